"""The proofs of DCL, MV-InfoNCE and CACR judge what their specifications say, within seeds and at the worst of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from efface.lab.digit_learning import digit_split
from efface.proofs import cacr, dcl, mv_infonce


def judged(checks: list[Any]) -> list[bool]:
    return [check.holds for check in checks if check.relation != "reported"]


def test_they_have_their_systems_names_and_take_their_time() -> None:
    assert [(file.PROOF.system, file.PROOF.quick) for file in (dcl, mv_infonce, cacr)] == [
        ("dcl", False), ("mv-infonce", False), ("cacr", False),
    ]  # fmt: skip


def test_the_identity_is_exact_where_q_is_far_below_one() -> None:
    assert all(dcl.identity(seed) < 1e-12 for seed in dcl.SEEDS)


def test_dcl_judges_q_at_its_worst_seed_and_accuracies_by_their_means(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(worst_q: float, loss: float, small_gain: float) -> None:
        def outcome(method: str, size: int, seed: int) -> dict[str, float]:
            gain = (small_gain if size == 16 else loss) if method == "dcl" else 0.0
            gain += (seed - 1) * 0.2 if method == "dcl" else 0.0  # cancels in the mean
            q = worst_q if (size, seed) == (16, 2) else 0.3 if size == 16 else 0.9
            return {"last_q": q, "knn": 0.9, "probe": 0.9, "knn50": 0.7 + gain, "probe50": 0.9 + gain}

        monkeypatch.setattr(dcl, "outcome", outcome)

    made(0.7, -0.004, 0.01)
    assert judged(dcl.checks()) == [True] * 4
    made(0.76, -0.004, 0.01)
    assert judged(dcl.checks()) == [False, True, True, True]
    made(0.7, -0.006, 0.01)
    assert judged(dcl.checks()) == [True, True, False, True]
    made(0.7, 0.02, 0.01)
    assert judged(dcl.checks()) == [True, True, True, False]


def test_ranks_are_compared_within_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(**changes: float) -> None:
        def outcome(name: str, views: int, seed: int) -> dict[str, float]:
            rank = {"mv-pwe": 20.0, "mv-infonce": 19.0, "mv-dhel": 28.0 if views == 2 else 30.0}[name] + 15 * seed
            rank += changes.get(f"{name.removeprefix('mv-')}{views}", 0.0) if seed == 1 else 0.0
            return {"rank": rank, "knn": 0.9, "probe": 0.9, "knn50": 0.7, "probe50": 0.9, "seconds": 0.1}

        monkeypatch.setattr(mv_infonce, "outcome", outcome)

    made()
    assert judged(mv_infonce.checks()) == [True] * 3
    made(pwe4=11)
    assert judged(mv_infonce.checks()) == [False, True, True]
    made(infonce4=12)
    assert judged(mv_infonce.checks()) == [True, False, True]
    made(dhel4=-3)
    assert judged(mv_infonce.checks()) == [True, True, False]


def test_cacr_judges_weights_positives_and_the_drop(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"nt-xent": (0.8, 0.76), "one positive": (0.78, 0.74), "equal weights": (0.6, 0.5),
               "three positives": (0.79, 0.77)}  # fmt: skip

    def made(method: str = "", tailed: bool = False, figure: float = 0.0) -> list[bool]:
        def outcome(name: str, cut: bool, seed: int) -> dict[str, float]:
            value = figure if (name, cut, seed) == (method, tailed, 1) else figures[name][int(cut)]
            return {"knn50": value, "probe": 0.9, "knn": 0.9, "probe50": 0.9}

        monkeypatch.setattr(cacr, "outcome", outcome)
        return judged(cacr.checks())

    assert made() == [True] * 5
    assert made("equal weights", False, 0.785) == [False, True, True, True, True]
    assert made("equal weights", True, 0.745) == [True, False, True, True, True]
    assert made("one positive", False, 0.795) == [True, True, False, True, True]
    assert made("one positive", True, 0.775) == [True, True, True, False, True]
    assert made("three positives", True, 0.745) == [True, True, True, True, False]


def test_the_long_tail() -> None:
    counts = np.bincount(cacr.long_tail(0)["label"], minlength=10)
    whole = np.bincount(digit_split(0)[0]["label"], minlength=10)
    wanted = [max(8, round(108 * 0.75**c)) for c in range(10)]
    assert counts.tolist() == [min(most, there) for most, there in zip(wanted, whole, strict=True)]
    assert counts[-1] == 8
