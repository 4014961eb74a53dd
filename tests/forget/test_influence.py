"""Influence unlearning: the solve against numpy's dense one, single gradients against a loop, and the degenerate recursion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from predictor_worlds import predictor, request_of
from row_models import KINDS, by_hand, data_of, mean_of, model_of, split

from efface.data.request import Request
from efface.errors import CheckFailed, ConfigError, InputError, RequestError
from efface.forget.edits import influence, row_gradients
from efface.forget.edits.influence import damped_inverse, gradient_rows, published_recursion
from efface.forget.edits.row_gradients import sample_gradients
from efface.forget.method import Fitted, find_method
from efface.run.files import read_json
from efface.train.gradient_stats import mean_nll

METHOD = find_method("influence")


def fit(subject: Any, request: Any, folder: Path, **values: Any) -> Fitted:
    return METHOD.fit(subject, request, METHOD.configure(values), work=folder / "work", out=folder / "edit")


def names_of(subject: Any) -> list[str]:
    return [name for name, _ in subject.model.named_parameters()]


def flat(part: dict[str, torch.Tensor], names: list[str]) -> np.ndarray[Any, Any]:
    return torch.cat([part[name].flatten() for name in names]).double().numpy()


def dense(g: np.ndarray[Any, Any], v: np.ndarray[Any, Any], damping: float) -> np.ndarray[Any, Any]:
    return np.asarray(np.linalg.solve(damping * np.eye(len(v)) + g.T @ g / len(g), v))


@pytest.mark.parametrize(("m", "p"), [(5, 40), (60, 23), (1, 9)])
@pytest.mark.parametrize("damping", [1e-6, 1e-2, 3.0])
def test_woodbury_is_the_dense_solve(m: int, p: int, damping: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer rows than weights, more rows than weights, and blocks of columns that do not come out even."""
    monkeypatch.setattr(influence, "COLUMNS", 7)
    rng = np.random.default_rng(m)
    g, v = rng.standard_normal((m, p)), rng.standard_normal(p)
    found = damped_inverse(torch.from_numpy(g), torch.from_numpy(v), damping).numpy()
    expected = dense(g, v, damping)
    assert np.abs(found - expected).max() < 1e-8 * np.abs(expected).max()
    single = damped_inverse(torch.from_numpy(g).float(), torch.from_numpy(v).float(), damping)
    assert single.dtype == torch.float64
    expected = dense(g.astype(np.float32).astype(float), v.astype(np.float32).astype(float), damping)
    assert np.abs(single.numpy() - expected).max() < 1e-8 * np.abs(expected).max()


def test_shapes_that_do_not_fit() -> None:
    for g, v in ((torch.ones(3), torch.ones(3)), (torch.ones(2, 4), torch.ones(3)), (torch.ones(0, 3), torch.ones(3))):
        with pytest.raises(InputError, match=r"\[M, P\] and \[P\]"):
            damped_inverse(g, v, 1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_single_gradients_are_the_loop_in_the_rows_order(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = model_of(kind)
    rows = subject.encode_rows(data_of(kind))
    names = names_of(subject)
    # texts go by length; chunks of two rows
    monkeypatch.setattr(row_gradients, "SAMPLE_NUMBERS", 2 * sum(p.numel() for p in subject.model.parameters()))
    g = gradient_rows(subject, rows, names).double().numpy()
    expected = np.stack([flat(part, names) for part in by_hand(subject, [[row] for row in rows], mean_nll)])
    assert g.shape == expected.shape
    assert np.abs(g - expected).max() < 1e-4 * np.abs(expected).max()
    order = [i for part, _ in sample_gradients(subject, rows, mean_nll) for i in part]
    assert sorted(order) == list(range(len(rows)))
    assert all(p.requires_grad and p.grad is None for p in subject.model.parameters())


@pytest.mark.parametrize("kind", ["mlp", "regressor"])
def test_fit_is_the_newton_step_by_numpy(kind: str, tmp_path: Path) -> None:
    subject, request = model_of(kind), split(kind)
    names = names_of(subject)
    frozen = names[-1]
    subject.model.get_parameter(frozen).requires_grad_(False)
    names = names[:-1]
    before = {name: p.detach().clone() for name, p in subject.model.named_parameters()}
    digest = subject.digest
    fitted = fit(subject, request, tmp_path, alpha=0.3, damping=0.05)
    subject.changed()
    assert subject.digest == digest
    single = {
        name: by_hand(subject, [[row] for row in subject.encode_rows(getattr(request, name))], mean_nll)
        for name in ("forget", "retain")
    }
    g_f, g_r = (flat(mean_of(single[name]), names) for name in ("forget", "retain"))
    g = np.stack([flat(part, names) for part in single["retain"]])
    expected = flat(before, names) + 0.3 * dense(g, 3 / 12 * (g_f - g_r), 0.05)
    fitted.edit.apply(subject)
    now = {name: p.detach() for name, p in subject.model.named_parameters()}
    assert np.abs(flat(now, names) - expected).max() < 1e-5 * max(1, np.abs(expected).max())
    assert torch.equal(now[frozen], before[frozen])
    notes = read_json(fitted.edit.folder / "influence.json")
    assert notes["samples"] == 9
    assert notes["length_of_step"] == pytest.approx(float(np.linalg.norm(expected - flat(before, names))), rel=1e-3)


def test_the_step_raises_the_forget_loss_more_than_the_retain_loss(tmp_path: Path) -> None:
    subject, request = predictor(), request_of("class")
    rows = {name: subject.encode_rows(getattr(request, name)) for name in ("forget", "retain")}

    def losses() -> dict[str, float]:
        found = {}
        for name, part in rows.items():
            logits = subject.read(part)[1]
            target = torch.tensor([row.target for row in part])
            found[name] = float(torch.nn.functional.cross_entropy(logits, target))
        return found

    before = losses()
    fit(subject, request, tmp_path, alpha=0.1).edit.apply(subject)
    after = losses()
    assert after["forget"] - before["forget"] > 10 * abs(after["retain"] - before["retain"])


# -- the published recursion ------------------------------------------------------------------------------------------


def test_the_recursion_only_takes_a_multiple_of_one_gradient_away() -> None:
    """Whatever the other gradients are: v minus the output is parallel to g_1. No inverse of anything is in it."""
    rng = np.random.default_rng(0)
    g, v = torch.from_numpy(rng.standard_normal((30, 50))), torch.from_numpy(rng.standard_normal(50))
    away = v - published_recursion(g, v)
    assert float(away.norm()) > 0
    assert abs(float(torch.nn.functional.cosine_similarity(away, g[0], dim=0))) == pytest.approx(1, abs=1e-9)
    exact = damped_inverse(g, v, 1e-3)
    assert float(torch.nn.functional.cosine_similarity(exact, v, dim=0)) < 0.9


def test_on_a_trained_model_the_recursion_is_gradient_ascent(tmp_path: Path) -> None:
    """cosine(output, v) = 1: `solver=repo` moves along v itself; the exact solve does not."""
    subject, request = predictor(), request_of("class")
    cosines = {
        solver: fit(subject, request, tmp_path / solver, solver=solver, damping=1e-5, alpha=1e-3).log[0]["cosine_to_v"]
        for solver in ("repo", "exact")
    }
    assert cosines["repo"] == pytest.approx(1, abs=1e-4)
    assert cosines["exact"] < 0.99


# -- limits -----------------------------------------------------------------------------------------------------------


def test_rows_are_drawn_by_the_seed_and_the_published_solver_takes_the_first(tmp_path: Path) -> None:
    subject, request = predictor(), request_of("class")
    runs = {(solver, seed): fit(subject, request, tmp_path / f"{solver}{seed}", samples=10, solver=solver, seed=seed)
            for solver in ("exact", "repo") for seed in (0, 1)}  # fmt: skip
    assert all(run.log[0].keys() for run in runs.values())
    digests = {key: run.edit.facts.edited_digest for key, run in runs.items()}
    assert digests["exact", 0] != digests["exact", 1]
    assert digests["repo", 0] == digests["repo", 1]


def test_gradients_beyond_the_memory_are_refused_with_their_bytes(tmp_path: Path) -> None:
    subject, request = model_of("mlp"), split("mlp")
    numbers = sum(p.numel() for p in subject.model.parameters())
    limit = 5 * 4 * numbers
    with pytest.raises(
        ConfigError, match=rf"9 gradients of {numbers} weights are {9 * 4 * numbers:,} bytes; .*samples=5"
    ):
        fit(subject, request, tmp_path, memory_gib=(limit + 1) / 2**30)
    with pytest.raises(ConfigError, match="scope=layers"):
        fit(subject, request, tmp_path, memory_gib=1e-9)
    assert not (tmp_path / "edit").exists()
    fit(subject, request, tmp_path, memory_gib=(limit + 1) / 2**30, samples=5)


def test_bad_input(tiny: Any, request_: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="influence on a causal-lm"):
        fit(tiny, request_, tmp_path)
    with pytest.raises(ConfigError, match="single rows of a causal-lm"):
        next(sample_gradients(tiny, tiny.encode_rows(request_.forget), mean_nll))
    with pytest.raises(CheckFailed, match="no weight changed by as much as its precision holds"):
        fit(model_of("mlp"), split("mlp"), tmp_path, alpha=1e-30)
    with pytest.raises(RequestError, match="without a retain set"):
        fit(model_of("mlp"), Request(forget=split("mlp").forget), tmp_path)
