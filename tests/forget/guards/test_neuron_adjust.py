"""Neuron Adjust: the equation against a loop, its traps by name, and the same draws in every way of running."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from efface.audit.observe import score
from efface.errors import ConfigError
from efface.forget.edit import Edit
from efface.forget.guards.neuron_adjust import METHOD, AdjustedModel, adjusted, chosen_neurons, neuron_scores
from efface.numerics.running_variance import RunningVariance
from efface.subjects.hooks import Site, recorded
from efface.subjects.neuron_statistics import neuron_statistics
from efface.subjects.prompts import pad


def normal(z: float, mean: float, std: float) -> float:
    return math.exp(-((z - mean) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi))


def test_the_equation_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    z, draws = torch.randn(2, 30, 4, generator=generator) * 2, torch.rand(2, 30, 4, generator=generator)
    mu_f, sigma_f = torch.tensor([1.0, -1.0, 0.0, 2.0]), torch.tensor([1.0, 0.5, 2.0, 1.5])
    mu_r, sigma_r = torch.tensor([-1.0, 1.0, 0.0, 0.0]), torch.tensor([0.5, 1.0, 0.3, 1.0])
    made = adjusted(z, draws, mu_f, sigma_f, mu_r, sigma_r)
    moved = 0
    for index in torch.cartesian_prod(torch.arange(2), torch.arange(30), torch.arange(4)).tolist():
        b, t, j = index
        x, f, r = float(z[b, t, j]), (float(mu_f[j]), float(sigma_f[j])), (float(mu_r[j]), float(sigma_r[j]))
        n_f, n_r = normal(x, *f), normal(x, *r)
        slow = x
        if n_r < n_f and float(draws[b, t, j]) < n_f / (n_f + n_r):
            slow = 2 * r[0] - (r[1] * (x - f[0]) / f[1] + r[0])
            moved += 1
        assert float(made[b, t, j]) == pytest.approx(slow, abs=1e-5)
    assert 50 < moved < 200


def test_far_tails_and_dead_neurons_stay_finite() -> None:
    """In half precision, exp of both densities is 0, and 0 / 0 is no number."""
    one = torch.ones(1)
    z = torch.tensor([[-1e4], [1e4], [0.0]])
    made = adjusted(z, torch.zeros(3, 1), one, 0 * one, -one, 0 * one)
    assert torch.isfinite(made).all()
    assert torch.isfinite(adjusted(z, torch.zeros(3, 1), one, 0.01 * one, -one, 0.01 * one)).all()


def statistics(mean: list[float], std: list[float]) -> RunningVariance:
    return RunningVariance(10, torch.tensor(mean).double(), torch.tensor(std).double().square() * 10)


def test_choosing_on_one_side_and_on_two() -> None:
    forget, retain = statistics([3.0, -5.0, 1.0, 0.2], [1.0] * 4), statistics([0.0] * 4, [1.0, 1.0, 1.0, 0.01])
    order = {
        name: neuron_scores(forget, retain, name).argsort(descending=True).tolist()  # type: ignore[arg-type]
        for name in ("signed", "absolute", "standardised")
    }
    assert order == {"signed": [0, 2, 3, 1], "absolute": [1, 0, 2, 3], "standardised": [3, 1, 0, 2]}


def test_neurons_of_all_layers_compete() -> None:
    scores = {0: torch.tensor([1.0, 2.0, 3.0]), 2: torch.tensor([9.0, 0.0]), 5: torch.tensor([-1.0])}
    found = chosen_neurons(scores, 0.5)
    assert {layer: index.tolist() for layer, index in found.items()} == {0: [1, 2], 2: [0]}
    assert {layer: index.tolist() for layer, index in chosen_neurons(scores, 0.01).items()} == {2: [0]}


def part(index: list[int], generator: torch.Generator) -> dict[str, torch.Tensor]:
    n = len(index)
    return {
        "index": torch.tensor(index), "mu_f": torch.randn(n, generator=generator), "sigma_f": torch.ones(n),
        "mu_r": torch.randn(n, generator=generator), "sigma_r": torch.ones(n) * 0.8,
    }  # fmt: skip


@pytest.fixture
def guarded(tiny: Any) -> Any:
    """The tiny subject with a third of its neurons adjusted."""
    generator, plain = torch.Generator().manual_seed(3), tiny.model
    parts = {layer: part(list(range(0, 96, 3)), generator) for layer in (0, 1)}
    tiny.model = AdjustedModel(plain, parts, seed=0).eval()
    yield tiny
    tiny.model = plain


def prompts_of(subject: Any, request: Any) -> list[list[int]]:
    return [ids[i:] for i, ids in enumerate(subject.encode_prompts(request.forget)[:3])]


def test_every_element_has_its_own_coin(guarded: Any, request_: Any) -> None:
    """The official draw is one coin for all neurons and tokens of a row."""
    ids = torch.tensor(guarded.encode_prompts(request_.forget)[:4])
    sites = [Site("gate", 0)]
    with torch.no_grad(), recorded(guarded.model.base, sites) as before:
        guarded.model.base(ids)
        z = before[sites[0]].clone()
    one = {key: value for key, value in guarded.model.parts[0].items() if key != "index"}
    index = guarded.model.parts[0]["index"]
    forced = adjusted(z[..., index], torch.zeros(z[..., index].shape), **one)
    eligible = forced.ne(z[..., index])
    with torch.no_grad(), recorded(guarded.model.base, [Site("keys", 0)]) as found:
        guarded.model(ids)
        keys = found[Site("keys", 0)][..., index].clone()
        guarded.model.base(ids)
        moved = keys.ne(found[Site("keys", 0)][..., index])
    assert not bool((moved & ~eligible).any())
    share = moved.float().sum() / eligible.float().sum()
    assert 0.5 < float(share) < 0.98
    mixed_tokens = (moved.any(-1) & (eligible & ~moved).any(-1)).float().mean()
    assert float(mixed_tokens) > 0.5, "within one token some neurons move and some do not"
    assert not torch.equal(moved[0], moved[1]), "two prompts have draws of their own"


@pytest.mark.parametrize("how", [{}, {"num_beams": 2}])
def test_batch_padding_and_cache_change_nothing(guarded: Any, request_: Any, how: dict[str, Any]) -> None:
    prompts = prompts_of(guarded, request_)
    batch = pad(prompts, guarded.pad_id, side="left")
    settings = {"max_new_tokens": 6, "pad_token_id": guarded.pad_id, "eos_token_id": None, **how}
    width = batch["input_ids"].shape[1]
    together = guarded.model.generate(**batch, **settings)[:, width:]
    assert torch.equal(guarded.model.generate(**batch, **settings, use_cache=False)[:, width:], together)
    assert torch.equal(guarded.model.generate(**batch, **settings)[:, width:], together)
    for row, ids in zip(together, prompts, strict=True):
        alone = guarded.model.generate(torch.tensor([ids]), **settings)[0, len(ids) :]
        assert torch.equal(row, alone)
    plain = guarded.model.base.generate(**batch, **settings)[:, width:]
    assert not torch.equal(plain, together)


def test_scores_meet_the_draws_of_generation(guarded: Any, request_: Any) -> None:
    """Padded right with its answer behind it, a prompt has the draws that it has when it is generated from."""
    rows = request_.forget.select([0, 1, 2])
    made = guarded.generate(guarded.encode_prompts(rows), max_new_tokens=6)
    texts = [guarded.decode(ids) for ids in made]
    assert all(len(ids) for ids in made)
    bare = rows.remove_columns([name for name in rows.column_names if name not in ("id", "question", "answer")])
    data = bare.map(lambda row, i: {**row, "answer": texts[i]}, with_indices=True)
    for row, ids in zip(score(guarded, data), made, strict=True):
        assert row["rank"][: len(ids)] == [0] * len(ids)


def fit(tiny: Any, request: Any, folder: Path, **values: Any) -> Edit:
    config = METHOD.configure(values)
    return METHOD.fit(tiny, request, config, work=folder / "work", out=folder / "edit").edit


def test_fitted_statistics_are_standard_deviations(tiny: Any, request_: Any, tmp_path: Path) -> None:
    """The official code fills sigma_f from the means and keeps variances."""
    edit = fit(tiny, request_, tmp_path, share=0.1)
    guarded = Edit.load(edit.folder).apply(tiny).model
    parts = guarded.parts
    edit.remove(tiny)
    assert sum(len(found["index"]) for found in parts.values()) == round(0.1 * 192)
    for layer, found in parts.items():
        site = Site("gate", layer)
        for name, data in (("f", request_.forget), ("r", request_.retain)):
            own = neuron_statistics(tiny, tiny.encode_rows(data), [site])[site]
            torch.testing.assert_close(found[f"mu_{name}"], own.mean[found["index"]].float())
            torch.testing.assert_close(found[f"sigma_{name}"], own.std[found["index"]].float())


def test_another_seed_draws_otherwise(tiny: Any, request_: Any, tmp_path: Path) -> None:
    ids, logits = torch.tensor(tiny.encode_prompts(request_.forget)[:1]), []
    for seed in (0, 1, 0):
        edit = fit(tiny, request_, tmp_path / str(len(logits)), share=0.5, seed=seed)
        edit.apply(tiny)
        logits.append(tiny.model(ids).logits.detach())
        edit.remove(tiny)
    assert torch.equal(logits[0], logits[2])
    assert not torch.equal(logits[0], logits[1])


def test_layers_and_scope_go_together(tiny: Any, request_: Any, tmp_path: Path) -> None:
    edit = fit(tiny, request_, tmp_path, share=0.2, scope="layers", layers="-1")
    assert edit.facts.config["neurons"] == {"1": round(0.2 * 96)}
    with pytest.raises(ConfigError, match="go together"):
        METHOD.configure({"layers": "0"})
