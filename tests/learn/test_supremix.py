"""SupReMix: against every mix formed, its traps, and both stages of a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import normalize

from efface.errors import ConfigError, InputError, ModelError, RequestError
from efface.learn.objective import Embedded
from efface.learn.objectives.sup_con import sup_con
from efface.learn.objectives.supremix import Mixes, SupReMixConfig, _loss_for, supremix
from efface.learn.recipes.regression_head import load_head, predict, regressed
from efface.learn.run import learn
from efface.numerics.label_distance import Labels, hard_positives, labels_of, log_weights
from efface.numerics.mixing import draw, draw_beta, seeded
from efface.numerics.ordinality import ordinality
from efface.subjects.load import load

B, D, T = 7, 5, 0.3
Y = torch.tensor([1.0, 2.0, 2.0, 3.5, 4.0, 6.0, 9.0]).repeat(2)
SPAN = Labels(8.0, 0.1)
OFF = Mixes(negatives=False, positives=0)


def unit(seed: int, rows: int = 2 * B) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(rows, D, generator=generator, dtype=torch.float64), dim=1)


def slow(z: Tensor, mixes: Mixes, weighting: Any, largest: float | None, similarity: str) -> Tensor:
    """The loss with every mix formed, from the same draws."""
    n, y = len(z), Y.tolist()
    generator = mixes.generator
    assert generator is not None
    beta = draw_beta(generator, n, n, a=2, b=8) if mixes.negatives else None
    drawn = draw(generator, n, mixes.positives, like=Y.double())

    def weight(distance: float) -> float:
        x = distance if largest is None else distance / SPAN.reach
        top = 1 if largest is None else largest - 1
        return {
            "none": 1.0, "distance": 1 + top * x, "squared": 1 + top * x * x, "inverse": 1 / (1 + top * x),
        }[weighting]  # fmt: skip

    def s(i: int, h: Tensor) -> Tensor:
        return (z[i] @ h if similarity == "cosine" else -(z[i] - h).norm()) / T

    def made(h: Tensor) -> Tensor:
        return (h / h.norm() if mixes.normalise else h).detach()

    losses = []
    for i in range(n):
        terms, positives = [], []
        for t in range(n):
            if t == i:
                continue
            equal = abs(y[i] - y[t]) <= SPAN.tolerance
            terms.append(s(i, z[t]) + math.log(weight(0 if equal else abs(y[i] - y[t]))))
            if equal:
                positives.append(s(i, z[t]))
            elif beta is not None:
                a = float(beta[i, t])
                label = a * y[i] + (1 - a) * y[t]
                terms.append(s(i, made(a * z[i] + (1 - a) * z[t])) + math.log(weight(abs(y[i] - label))))
        order = torch.tensor(y, dtype=torch.float64).sort()[1]  # ties as the code takes them
        low = [int(j) for j in order if 0.1 < y[i] - y[int(j)] < mixes.window]
        high = [int(k) for k in order if 0.1 < y[int(k)] - y[i] < mixes.window]
        every = [(j, k) for j in low for k in high]
        if len(every) > mixes.positives:
            every = [every[int(float(u) * len(every))] for u in drawn[i]]
        for j, k in every:
            a = (y[k] - y[i]) / (y[k] - y[j])
            terms.append(s(i, made(a * z[j] + (1 - a) * z[k])))
            positives.append(terms[-1])
        total = torch.logsumexp(torch.stack(terms), 0)
        losses.append(total - torch.stack(positives).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("similarity", ["cosine", "distance"])
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize(
    ("weighting", "largest"), [("distance", 11.0), ("distance", None), ("squared", 5.0), ("inverse", 3.0), ("none", None)]
)  # fmt: skip
def test_against_explicit_mixes_in_value_and_gradient(
    weighting: Any, largest: float | None, normalise: bool, similarity: str
) -> None:
    z = unit(0).requires_grad_()

    def mixes() -> Mixes:
        return Mixes(True, 6, 4.0, (2.0, 8.0), normalise, seeded(0, 5))

    found = supremix(z, Y, T, mixes(), SPAN, weighting=weighting, max_weight=largest, similarity=similarity)
    expected = slow(z, mixes(), weighting, largest, similarity)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    grads = [torch.autograd.grad(value, z)[0] for value in (found, expected)]
    # the code knows rows to be unit: what differs along a row itself is gone after normalisation
    flat = [grad - (grad * z.detach()).sum(1, keepdim=True) * z.detach() for grad in grads]
    torch.testing.assert_close(*flat, atol=1e-9, rtol=0)
    assert float(flat[0].abs().max()) > 1e-3


def test_without_mixes_and_weights_it_is_supcon() -> None:
    z = unit(1)
    found = supremix(z, Y, T, OFF, SPAN, weighting="none")
    assert float(found) == pytest.approx(float(sup_con(z, (2 * Y).long(), T)), abs=1e-12)


def test_labels_of_hard_positives_are_the_anchors_and_lie_in_the_window() -> None:
    rng = torch.Generator().manual_seed(0)
    y = (50 * torch.rand(40, generator=rng, dtype=torch.float64)).repeat(2)
    drawn = torch.rand(80, 9, generator=rng, dtype=torch.float64)
    j, k, a, there = hard_positives(y, y, 6.0, 0.01, 9, drawn)
    mixed = a * y[j] + (1 - a) * y[k]
    anchors = y[:, None].expand_as(mixed)
    assert there.any(1).sum() > 60
    assert float((mixed - anchors)[there].abs().max()) < 1e-6
    for low, high in ((anchors - y[j], y[k] - anchors),):
        for gap in (low, high):
            assert float(gap[there].min()) > 0.01
            assert float(gap[there].max()) < 6.0
    assert float(a[there].min()) > 0
    assert float(a[there].max()) < 1
    at_the_ends = [int(y.argmin()), int(y.argmax())]
    assert not there[at_the_ends].any(), "nothing lies below the smallest or above the largest"


def test_all_pairs_where_they_are_few_and_draws_reach_all_where_they_are_many() -> None:
    y = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    drawn = torch.rand(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    j, k, _, there = hard_positives(y, y, 10.0, 0.1, 4, drawn)
    assert {(int(p), int(q)) for p, q in zip(j[2][there[2]], k[2][there[2]], strict=True)} == {
        (0, 3), (0, 4), (1, 3), (1, 4),
    }  # fmt: skip
    assert there.sum(1).tolist() == [0, 3, 4, 3, 0]
    many = torch.rand(5, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    j, k, _, there = hard_positives(y[:1] + 2, y, 10.0, 0.1, 3, many[:1, :3])
    found = {
        (int(p), int(q)) for u in many[0].split(3) if len(u) == 3
        for p, q in zip(*(x[0].tolist() for x in hard_positives(y[2:3], y, 10.0, 0.1, 3, u[None])[:2]), strict=True)
    }  # fmt: skip
    assert found == {(0, 3), (0, 4), (1, 3), (1, 4)}


def test_a_window_of_zero_gives_no_positive_mixes() -> None:
    z = unit(2)
    none, also = (supremix(z, Y, T, Mixes(False, n, w, generator=seeded(0, 0)), SPAN) for n, w in ((16, 0.0), (0, 5.0)))
    some = supremix(z, Y, T, Mixes(False, 16, 5.0, generator=seeded(0, 0)), SPAN)
    assert float(none) == float(also) != float(some)


def test_numbers_that_never_repeat_have_neighbours_by_tolerance() -> None:
    z = unit(3)
    y = (torch.arange(B) + torch.linspace(0, 1e-6, B)).repeat(2)
    near = y.clone()
    near[1] = near[0] + 1e-6
    near[8] = near[0] + 1e-6
    strict, loose = (supremix(z, near, T, OFF, Labels(6.0, tol), weighting="none") for tol in (0.0, 1e-3))
    assert float(loose) == pytest.approx(float(sup_con(z, torch.tensor([0, 0, 2, 3, 4, 5, 6]).repeat(2), T)), abs=1e-12)
    assert float(strict) == pytest.approx(float(sup_con(z, torch.arange(B).repeat(2), T)), abs=1e-12)
    with pytest.raises(InputError, match="none of the 7 anchors has a positive"):
        supremix(z[:B], y[:B], T, OFF, Labels(6.0, 0.0))


def test_default_tolerance_is_half_a_grids_step_or_one_percent() -> None:
    grid = torch.tensor([20.0, 25.0, 25.0, 30.0, 20.0, 25.0, 30.0, 45.0])
    assert labels_of(grid, None) == Labels(25.0, 2.5)
    assert labels_of(grid, 1.0) == Labels(25.0, 1.0)
    free = torch.linspace(0, 90, 101)
    assert labels_of(free, None).tolerance == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (None, "no targets"), (torch.zeros(5, 2), "shape \\[5, 2\\]"), (torch.full((5,), 3.0), "all targets are 3"),
        (torch.tensor([1.0, float("nan"), 2.0]), "row 1 is nan"), (torch.tensor([1.0, float("inf")]), "row 1 is inf"),
    ],
)  # fmt: skip
def test_targets_that_cannot_be_learnt_from(targets: Tensor | None, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        labels_of(targets, None)


def test_weights_are_capped_and_do_not_depend_on_the_unit() -> None:
    d = torch.tensor([0.0, 20.0, 100.0])
    torch.testing.assert_close(log_weights(d, "distance", 100.0, 11.0).exp(), torch.tensor([1.0, 3.0, 11.0]))
    torch.testing.assert_close(log_weights(d, "distance", 100.0, None).exp(), d + 1)
    torch.testing.assert_close(log_weights(d, "squared", 100.0, 11.0).exp(), torch.tensor([1.0, 1.4, 11.0]))
    torch.testing.assert_close(log_weights(d, "inverse", 100.0, 11.0).exp(), torch.tensor([1.0, 1 / 3, 1 / 11]))
    assert not log_weights(d, "none", 100.0, 11.0).any()
    z = unit(4)
    small, large = (
        supremix(z, c * Y, T, Mixes(True, 8, c * 3, generator=seeded(0, 1)), Labels(c * 8, c * 0.1), max_weight=11.0)
        for c in (1.0, 1024.0)  # a power of two: the same roundings
    )
    assert float(small) == pytest.approx(float(large), abs=1e-9)


def test_twins_have_a_finite_gradient_by_distance() -> None:
    z = unit(5)
    z[B:] = z[:B]
    z.requires_grad_()
    value = supremix(z, Y, T, Mixes(True, 8, 4.0, generator=seeded(0, 0)), SPAN, similarity="distance")
    assert torch.isfinite(torch.autograd.grad(value, z)[0]).all()


@pytest.mark.parametrize("masked", [False, True])
def test_parts_of_several_processes_sum_to_one(masked: bool) -> None:
    first, second, y = unit(6, B), unit(7, B), Y[:B]
    ids = torch.tensor([0, 1, 2, 3, 4, 0, 6])  # rows 0 and 5 show the same item with another number
    config = SupReMixConfig(window=0.5, unique_ids=masked)

    def run(rows: slice, step: int = 2) -> Tensor:
        given = Embedded(
            first=first[rows], second=second[rows], first_all=first, second_all=second, start=rows.start, step=step,
            scale=torch.tensor(1 / T, dtype=torch.float64), targets=y[rows], targets_all=y, ids=ids[rows], ids_all=ids,
        )  # fmt: skip
        value: Tensor = _loss_for(SPAN)(given, config)[0]
        return value

    whole = run(slice(0, B))
    torch.testing.assert_close(run(slice(0, 3)) + run(slice(3, B)), whole, atol=1e-12, rtol=0)
    assert float(run(slice(0, B), 3)) != float(whole)
    if not masked:
        pure = supremix(
            torch.cat([first, second]), Y, T, Mixes(True, 16, 4.0, generator=seeded(0, 2)), SPAN, max_weight=11.0
        )
        torch.testing.assert_close(whole, pure, atol=1e-12, rtol=0)


def test_settings_that_cannot_be_served() -> None:
    with pytest.raises(ConfigError, match="no tiles"):
        SupReMixConfig.parse({"tile": 8})
    with pytest.raises(ConfigError, match="positive"):
        SupReMixConfig.parse({"beta": (0.0, 8.0)})


def test_ordinality() -> None:
    y = torch.linspace(0, 1, 30)
    line = torch.stack([y, torch.zeros(30)], 1)
    assert ordinality(line, y) == pytest.approx(1.0)
    mixed = line[torch.randperm(30, generator=torch.Generator().manual_seed(0))]
    assert abs(ordinality(mixed, y)) < 0.3
    assert ordinality(line, y, pairs=100) == pytest.approx(1.0), "a draw of the pairs"
    with pytest.raises(InputError, match="collapsed"):
        ordinality(torch.ones(30, 2), y)
    with pytest.raises(InputError, match="NaN"):
        ordinality(line, torch.where(y > 0.5, float("nan"), 0.0))


# both stages ----------------------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "start": {"widths": (16, 8)}, "batch_size": 8, "projector": 8, "evaluations": 0, "learning_rate": 1e-2,
}  # fmt: skip


def arrays(rows: int = 40) -> Dataset:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 10, rows).astype(float)
    features = np.stack([np.sin(target / 3), np.cos(target / 3), *rng.normal(size=(3, rows)) / 10], 1)
    return Dataset.from_dict({
        "id": [str(i) for i in range(rows)], "features": features.astype("float32").tolist(), "target": target.tolist(),
    })  # fmt: skip


def test_both_stages_tell_the_number(tmp_path: Path) -> None:
    data = arrays()
    items, truth = list(data.with_format("numpy")[:]["features"]), torch.tensor(data["target"])
    first = learn("supremix", data, tmp_path / "first", epochs=6, feature_views={"corrupt": 0.1}, **SMALL)
    before = {name: tensor.clone() for name, tensor in first.model.state_dict().items()}
    more = SMALL | {"projector": 0}
    frozen = learn("regression-head", data, tmp_path / "frozen", model=first, freeze=True, epochs=2, **more)
    assert all(torch.equal(before[name], tensor) for name, tensor in frozen.model.state_dict().items())
    assert all(parameter.requires_grad for parameter in frozen.model.parameters())
    tuned = learn("regression-head", data, tmp_path / "tuned", model=load(tmp_path / "first"), epochs=30, **more)
    head = load_head(tmp_path / "tuned")
    said = predict(tuned, head, items)
    found = regressed(said, truth, tuned.embed(items))
    assert found.low < found.mae < found.high
    assert found.mae < 0.5 * float((truth - truth.mean()).abs().mean()), "half of what the mean alone errs by"
    assert found.ordinality > 0.3
    again = predict(load(tmp_path / "tuned"), load_head(tmp_path / "tuned"), items)
    assert torch.equal(said, again)
    with pytest.raises(ModelError, match="no regression head"):
        load_head(tmp_path / "first")


@pytest.mark.parametrize("recipe", ["supremix", "regression-head"])
def test_bad_targets_stop_a_run_before_it_begins(recipe: str, tmp_path: Path) -> None:
    constant = arrays().remove_columns("target").add_column("target", [2.0] * 40)
    with pytest.raises(RequestError, match="all targets are 2"):
        learn(recipe, constant, tmp_path / "model", epochs=1, **(SMALL | {"projector": 0}))
    with pytest.raises(RequestError, match="target"):
        learn(recipe, arrays().remove_columns("target"), tmp_path / "model", epochs=1, **SMALL)


def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file

    from efface.learn import module

    more: dict[str, Any] = SMALL | {"checkpoint_seconds": 1e-9, "epochs": 3, "window": 0.3}
    learn("supremix", arrays(), tmp_path / "whole", **more)

    class Killed(Exception):
        pass

    original = module.Steps.on_step_end

    def killed(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
        original(self, args, state, control, **rest)
        if state.global_step == 7:
            raise Killed

    monkeypatch.setattr(module.Steps, "on_step_end", killed)
    with pytest.raises(Killed):
        learn("supremix", arrays(), tmp_path / "model", **more)
    monkeypatch.setattr(module.Steps, "on_step_end", original)
    learn("supremix", arrays(), tmp_path / "model", **more)
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "model"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_chunks_of_a_head_on_batch_norm_are_refused(tmp_path: Path) -> None:
    """The encoder is in evaluation mode when the run is built, and in training mode when its chunks would be taken."""
    from efface.lab.digit_learning import START, digit_pixels, pictures

    pixels, labels = digit_pixels()
    rows = (
        pictures(pixels[:12], labels[:12], range(12))
        .remove_columns("label")
        .add_column("target", [float(i) for i in range(12)])
    )
    with pytest.raises(ConfigError, match="BatchNorm2d"):
        learn("regression-head", rows, tmp_path / "model", chunk=4, batch_size=8, epochs=1, start=START)
