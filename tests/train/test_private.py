"""DP-SGD by its parts: clipping against a loop, Poisson samples, the expected batch, empty batches, the report."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from efface.errors import ConfigError, InputError, MissingExtraError, ModelError
from efface.train import private
from efface.train.noise_source import filled
from efface.train.private import (
    PrivacyReport,
    PrivacyWarning,
    PrivateConfig,
    clipped_sum,
    dp_sgd,
    epsilon_of,
    noise_for,
    one_by_one,
    poisson_batches,
    report,
    vectorised,
)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4))


INPUTS = torch.tensor([[0.3, -1.0, 2.0], [5.0, 0.0, 1.0], [0.01, 0.0, 0.0], [1.0, 1.0, -1.0]])
TARGETS = torch.tensor([0, 3, 1, 2])


def by_loop(model: nn.Module, batch: list[int], clip: float) -> dict[str, Tensor]:
    """Clipped sum by plain loops."""
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for i in batch:
        grads = torch.autograd.grad(
            cross_entropy(model(INPUTS[i : i + 1]), TARGETS[i : i + 1]), list(model.parameters())
        )
        norm = math.sqrt(sum(float(g.square().sum()) for g in grads))
        for name, g in zip(total, grads, strict=True):
            total[name] += g * min(1.0, clip / norm)
    return total


@pytest.mark.parametrize("clip", [0.05, 0.7, 100.0])
@pytest.mark.parametrize("kind", ["vectorised", "one by one"])
def test_the_clipped_sum_is_the_loops(clip: float, kind: str) -> None:
    model = network()
    if kind == "vectorised":
        summed: Callable[[Tensor], dict[str, Tensor]] = vectorised(model, cross_entropy, INPUTS, TARGETS, clip)
    else:
        summed = one_by_one(model, lambda i: cross_entropy(model(INPUTS[i : i + 1]), TARGETS[i : i + 1]), clip)
    found, wanted = summed(torch.tensor([0, 1, 3])), by_loop(model, [0, 1, 3], clip)
    for name in wanted:
        assert torch.allclose(found[name], wanted[name], atol=1e-6)


def test_no_row_adds_more_than_the_clip() -> None:
    rows = {"a": torch.randn(6, 3, 2) * 50, "b": torch.randn(6, 4)}
    for i in range(6):
        one = clipped_sum({name: g[i : i + 1] for name, g in rows.items()}, 0.5)
        assert math.sqrt(sum(float(g.square().sum()) for g in one.values())) <= 0.5 + 1e-5
    zero = clipped_sum({"a": torch.zeros(1, 3)}, 0.5)["a"]
    assert torch.equal(zero, torch.zeros(3)), "a gradient of zero stays zero"


def test_poisson_samples_have_the_rate_and_may_be_empty() -> None:
    sizes = [len(b) for b in poisson_batches(50, 0.04, 4000, torch.Generator().manual_seed(0))]
    mean = sum(sizes) / len(sizes)
    variance = sum((s - mean) ** 2 for s in sizes) / len(sizes)
    assert mean == pytest.approx(2.0, abs=4 * math.sqrt(1.92 / 4000))
    assert variance == pytest.approx(1.92, rel=0.1), "binomial, not a fixed batch"
    assert 0 in sizes


def plain(noise: float = 1e-9, **more: float) -> PrivateConfig:
    return PrivateConfig(learning_rate=1.0, weight_decay=0.0, noise=noise, delta=1e-5, noise_from="seed", **more)  # type: ignore[arg-type]


def told(rate: float, steps: int, noise: float, clip: float = 1.0) -> PrivacyReport:
    return PrivacyReport(
        epsilon=1.0, delta=1e-5, noise=noise, clip=clip, rate=rate, steps=steps, records=8, noise_from="seed"
    )


def test_the_denominator_is_the_expected_batch() -> None:
    """Every row has gradient 1, so a step of r rows moves by r / (q n), whatever r is."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    sizes: list[int] = []

    def summed(batch: Tensor) -> dict[str, Tensor]:
        sizes.append(len(batch))
        return {"weight": torch.full((1, 1), float(len(batch)))}

    dp_sgd(model, summed, 8, plain(), told(0.5, 20, 1e-9))
    assert float(model.weight.detach()) == pytest.approx(-sum(sizes) / 4, abs=1e-5)
    assert len(set(sizes)) > 1


def test_an_empty_batch_still_adds_noise_and_counts() -> None:
    model = nn.Linear(40, 50, bias=False)
    nn.init.zeros_(model.weight)

    def never(batch: Tensor) -> dict[str, Tensor]:
        raise AssertionError("rate 1e-9 samples nobody")

    dp_sgd(model, never, 8, plain(), told(1e-9, 9, 2e-9, clip=3.0))
    sd = math.sqrt(9) * 2e-9 * 3.0 / (1e-9 * 8)  # nine steps of sigma C / (q n)
    assert float(model.weight.detach().std()) == pytest.approx(sd, rel=0.1)


def test_the_same_seed_repeats_and_the_system_does_not() -> None:
    def run(source: str) -> Tensor:
        model = nn.Linear(2, 2, bias=False)
        nn.init.zeros_(model.weight)
        config = PrivateConfig(learning_rate=1.0, seed=5, noise_from=source)  # type: ignore[arg-type]
        dp_sgd(model, lambda batch: {}, 8, config, told(0.5, 2, 1.0))
        return model.weight.detach()

    assert torch.equal(run("seed"), run("seed"))
    assert not torch.equal(run("system"), run("system"))


def test_what_cannot_be_clipped_row_by_row_is_refused() -> None:
    mixing = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with pytest.raises(ModelError, match="BatchNorm1d"):
        vectorised(mixing, cross_entropy, INPUTS, TARGETS, 1.0)
    with pytest.raises(ModelError, match="BatchNorm1d"):
        one_by_one(mixing, lambda i: torch.zeros(()), 1.0)
    model = network()
    unused = nn.ModuleDict({"used": model, "unused": nn.Linear(2, 2)})
    summed = one_by_one(unused, lambda i: model(INPUTS[i]).sum(), 1.0)
    with pytest.raises(ModelError, match=r"no gradient for unused.weight \[2, 2\]"):
        summed(torch.tensor([0]))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ModelError, match="no parameter"):
        dp_sgd(model, lambda batch: {}, 4, plain(), told(0.5, 1, 1.0))


def test_epsilon_without_sampling_is_the_gaussian_mechanisms() -> None:
    """q = 1, one step: RDP gives alpha / (2 sigma^2) exactly; the conversion then lies below the classical bound."""
    pytest.importorskip("opacus")
    sigma, delta = 4.0, 1e-5
    classical = min(a / (2 * sigma**2) + math.log(1 / delta) / (a - 1) for a in private.ORDERS)
    found = epsilon_of(sigma, 1.0, 1, delta)
    assert 0.5 * classical < found <= classical
    assert epsilon_of(sigma, 0.01, 100, delta) < epsilon_of(sigma, 0.1, 100, delta)
    assert epsilon_of(2.0, 0.1, 100, delta) > found


def test_noise_for_an_epsilon_is_enough_and_not_much_more() -> None:
    pytest.importorskip("opacus")
    noise = noise_for(2.0, 0.05, 200, 1e-5)
    assert epsilon_of(noise, 0.05, 200, 1e-5) <= 2.0 < epsilon_of(noise - 0.01, 0.05, 200, 1e-5)


def test_the_report_warns_of_a_large_delta() -> None:
    pytest.importorskip("opacus")
    with pytest.warns(PrivacyWarning, match="not below 1/100"):
        report(plain(noise=1.0).model_copy(update={"delta": 0.01}), 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = report(plain(noise=1.0), 100)
    assert found.records == 100
    assert found.steps == round(10 / 0.16)


def test_groups_and_words() -> None:
    found = told(0.5, 20, 1.0)
    together, delta = found.group(3)
    assert together == 3.0
    assert delta == pytest.approx(1e-5 * (1 + math.e + math.e**2))
    text = " ".join(found.lines(3))
    assert found.lines(3)[0].startswith("epsilon 3 at delta 1.1e-04 for the 3 record(s)")
    assert "for each record epsilon 1 at delta 1.0e-05" in text
    assert "added or removed" in text
    assert "tokenizer" in text
    with pytest.raises(InputError, match="group"):
        found.group(0)
    fine = found.model_copy(update={"noise_from": "key", "delta": 1e-12, "records": 100})
    assert fine.vacuous(3) is None
    assert "not certified" not in " ".join(fine.lines(3))
    assert "nearly nothing" in str(fine.model_copy(update={"delta": 1e-30}).vacuous(11))
    assert "publishing one record" in str(found.model_copy(update={"noise_from": "key", "records": 10}).vacuous(20))
    assert "published seed" in str(found.model_copy(update={"noise_from": "seed"}).vacuous(1))


def test_keyed_noise_repeats_here_and_differs_between_data() -> None:
    def run(context: str) -> Tensor:
        generator = PrivateConfig(noise_from="key").generator(context)
        return torch.rand(4, generator=generator)

    assert torch.equal(run("a"), run("a"))
    assert not torch.equal(run("a"), run("b"))
    bare = PrivateConfig(noise_from="seed").generator("a")
    assert not torch.equal(run("a"), torch.rand(4, generator=bare))


def test_rounded_weights_and_overflowing_rows() -> None:
    model = nn.Linear(2, 1, bias=False).bfloat16()
    with pytest.raises(ModelError, match="float32 weights"):
        dp_sgd(model, lambda batch: {}, 8, plain(), told(0.5, 20, 1.0))
    rows = {"w": torch.tensor([[3.0, 4.0], [float("inf"), 1.0], [float("nan"), 0.0]])}
    assert torch.allclose(clipped_sum(rows, 1.0)["w"], torch.tensor([0.6, 0.8]))


def test_groups_of_none() -> None:
    found = told(0.5, 20, 1.0)
    assert found.group(1) == (found.epsilon, found.delta)


def test_without_opacus_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in list(sys.modules):
        if name == "opacus" or name.startswith("opacus."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(MissingExtraError, match=r"opacus.*efface\[dp\]"):
        epsilon_of(1.0, 0.5, 1, 1e-5)
    with pytest.raises(ConfigError, match="noise"):
        epsilon_of(0.0, 0.5, 1, 1e-5)


def test_noise_is_not_one_of_four_billion_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch takes 32 bits of a seed, so a stream that is seeded could be found by trying them all."""
    assert torch.equal(*(torch.rand(3, generator=torch.Generator().manual_seed(7 + (k << 32))) for k in (0, 1)))
    material = bytes(range(32))
    first, again = filled(material), filled(material)
    assert torch.equal(torch.randn(64, generator=first), torch.randn(64, generator=again))
    state = first.get_state()
    body = filled(material).get_state()[24 : 24 + 8 * 624].view(torch.int64)
    assert len(body.unique()) == 624
    assert bool(((body >= 0) & (body < 2**32)).all())
    for place in (0, 15, 31):  # every part of the key counts
        other = bytearray(material)
        other[place] ^= 1
        assert not torch.equal(filled(bytes(other)).get_state(), filled(material).get_state())
    assert not torch.equal(torch.Generator().manual_seed(0).get_state(), state)
    with pytest.raises(ValueError, match="32 or more"):
        filled(b"short")


def test_filled_streams_are_uniform_and_normal() -> None:
    generator = filled(b"k" * 32)
    uniform = torch.rand(200_000, generator=generator, dtype=torch.float64).numpy()
    normal = torch.randn(200_000, generator=generator, dtype=torch.float64).numpy()
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3
    assert stats.kstest(normal, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(uniform[1:], uniform[:-1])[0, 1]) < 0.01


def test_system_noise_never_repeats() -> None:
    config = PrivateConfig(noise_from="system")
    assert not torch.equal(*(torch.rand(4, generator=config.generator("a")) for _ in range(2)))
