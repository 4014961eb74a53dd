"""Task vectors: the arithmetic, the choice of alpha, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from efface.errors import CheckFailed, ConfigError
from efface.forget.edits.task_vector import control_rows, keep_largest
from efface.forget.method import find_method

METHOD = find_method("task-vector")
QUICK = {"learning_rate": 5e-3, "epochs": 3, "batch_size": 4}


def fit(subject: Any, request: Any, folder: Path, **more: Any) -> Any:
    """One short fit."""
    return METHOD.fit(subject, request, METHOD.configure({**QUICK, **more}), work=folder / "work", out=folder / "edit")


def test_the_edit_is_minus_alpha_times_the_vector(tiny: Any, request_: Any, tmp_path: Path) -> None:
    start = {name: value.detach().clone() for name, value in tiny.weights().items()}
    moved = {}
    for alpha in (1.0, 2.0):
        edit = fit(tiny, request_, tmp_path / str(alpha), alpha=alpha).edit
        edit.apply(tiny)
        moved[alpha] = {name: value.detach() - start[name] for name, value in tiny.weights().items()}
        edit.remove(tiny)
    for name, once in moved[1.0].items():
        torch.testing.assert_close(moved[2.0][name], 2 * once, atol=1e-5, rtol=1e-4)


def test_alpha_is_the_largest_that_keeps_the_control_score(tiny: Any, request_: Any, tmp_path: Path) -> None:
    fitted = fit(tiny, request_, tmp_path)
    chosen = fitted.edit.facts.config["alpha_chosen"]
    start = fitted.log[0]["start"]
    kept = [row["alpha"] for row in fitted.log if row["control"] >= 0.95 * start]
    assert chosen == max(kept)
    assert all(row["control"] < 0.95 * start for row in fitted.log if row["alpha"] > chosen)


def test_a_vector_of_nothing_and_an_impossible_control_are_refused(tiny: Any, request_: Any, tmp_path: Path) -> None:
    digest = tiny.digest
    with pytest.raises(CheckFailed, match="memorised already"):
        fit(tiny, request_, tmp_path / "a", learning_rate=1e-12, weight_decay=0.0)
    with pytest.raises(CheckFailed, match="no alpha keeps"):
        fit(tiny, request_, tmp_path / "b", learning_rate=0.5, grid=(5.0,))
    tiny.changed()
    assert tiny.digest == digest


@pytest.mark.parametrize(
    "bad", [{"scope": "lora"}, {"grid": (1.0, 0.5)}, {"grid": ()}, {"alpha": 0}, {"keep_share": 0}]
)
def test_bad_settings(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        METHOD.configure(bad)


def test_largest_entries_ties_by_index() -> None:
    tau = torch.tensor([[1.0, -3.0], [3.0, 0.5]])
    assert keep_largest(tau, 0.25).tolist() == [[0.0, -3.0], [0.0, 0.0]]
    assert keep_largest(tau, 0.5).tolist() == [[0.0, -3.0], [3.0, 0.0]]
    assert keep_largest(tau, 1.0) is tau


@pytest.mark.parametrize(("n", "limit", "expected"), [(10, 100, 5), (1000, 100, 100), (1001, 100, 100), (1, 5, 1)])
def test_control_rows(n: int, limit: int, expected: int) -> None:
    rows = control_rows(list(range(n)), limit)  # type: ignore[arg-type]
    assert len(rows) == expected
    assert max(rows) < max(1, n // 2)  # type: ignore[type-var]
