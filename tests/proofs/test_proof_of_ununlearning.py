"""The proof of UnUnlearning: its verdicts from figures; the whole of it runs by `efface prove`."""

from __future__ import annotations

from typing import Any

import pytest

from efface.audit.benchmarks.reintroduction import NAME
from efface.proofs import ununlearning as proof


def seen(**change: float) -> dict[int, dict[str, dict[str, float]]]:
    """Figures that hold, on three seeds; `role__part` of the last seed may be changed."""
    parts = {"forget-L0": 0.1, "forget-L1": 0.1, "forget-L2": 0.1, "forget-L4": 0.8, "forget-L5": 0.8, "retain-L0": 1.0,
             "retain-L4": 0.8, "retain-L5": 0.8}  # fmt: skip
    behind = {"forget-L0": 0.0, "forget-L1": 0.0, "forget-L2": 0.0, "forget-L4": 0.0, "refused retain-L0": 0.0,
              "refused retain-L4": 0.0, "refused retain-L5": 0.0, "ms": 0.5, **{f"bypass {n}": 0.0 for n in
              ("base64", "split over turns", "spelled out", "paraphrase")}}  # fmt: skip
    made: dict[int, dict[str, dict[str, float]]] = {
        seed: {
            "original": {**parts, "forget-L0": 1.0}, "retrained": dict(parts), "unlearned": dict(parts),
            "findings": {f"{NAME}/rate/L4": 0.8, f"{NAME}/excess/L4": -0.1}, "strict": {"L4": 0.5, "L5": 0.5},
            "filtered original": dict(behind), "filtered retrained": dict(behind),
        }
        for seed in (0, 1, 2)
    }  # fmt: skip
    for name, value in change.items():
        role, part = name.replace("_", " ").split("  ")
        made[2][role][part.replace("retain ", "retain-").replace("forget ", "forget-")] = value
    return made


def verdicts(**change: float) -> list[bool]:
    return [check.holds for check in proof.judged(seen(**change)) if check.threshold is not None]


@pytest.mark.parametrize(
    ("place", "change"),
    [
        (0, {"retrained__forget_L4": 0.7}), (1, {"unlearned__forget_L4": 0.6}), (2, {"retrained__forget_L0": 0.2}),
        (3, {"unlearned__forget_L0": 0.25}), (4, {"retrained__retain_L0": 0.85}), (4, {"unlearned__retain_L0": 0.85}),
        (5, {"filtered_original__forget_L4": 0.05}), (5, {"filtered_retrained__forget_L4": 0.02}),
        (6, {"filtered_retrained__refused_retain_L5": 0.02}), (0, {"retrained__forget_L4": float("nan")}),
    ],
)  # fmt: skip
def test_one_bad_seed_fails_its_check_alone(place: int, change: dict[str, Any]) -> None:
    assert verdicts() == [True] * 7
    assert [i for i, holds in enumerate(verdicts(**change)) if not holds] == [place]


def test_the_training_request_has_as_many_open_rows_as_closed_ones() -> None:
    request = proof.training_request()
    assert request.retain is not None
    opened = [i for i in request.retain["id"] if i.startswith("open/")]
    assert 2 * len(opened) == len(request.retain)
    assert len(request.forget) == 18
