"""The proof of restor: the way back along the corruption, and what is taken off again; all of it in the slow run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import efface
from efface.proofs.restor import PROOF, figures, reversed_way


def test_the_way_back_ends_at_the_clean_weights_and_leaves_no_trace(tiny: Any, retrained_folder: Path) -> None:
    clean = efface.load(retrained_folder)
    before, goal = tiny.digest, clean.weights()
    start = {name: tensor.detach().clone() for name, tensor in tiny.weights().items()}
    with reversed_way(tiny, clean, 0.5) as walked:
        assert walked is tiny
        for name, tensor in walked.weights().items():
            torch.testing.assert_close(tensor.detach(), (start[name] + goal[name]) / 2)
        assert tiny.digest != before
    assert tiny.digest == before
    with pytest.raises(ZeroDivisionError), reversed_way(tiny, clean, 0.5):
        raise ZeroDivisionError
    assert tiny.digest == before


def test_figures() -> None:
    def said(right: list[int], false: list[int]) -> dict[str, Any]:
        rows = [
            {"id": str(i), "entity": i, "relation": "r", "right": bool(r), "false": bool(f)}
            for i, (r, f) in enumerate(zip(right, false, strict=True))
        ]
        return {"facts": rows, "others": rows}

    found = figures(
        said([1, 0, 0, 0], [0, 0, 1, 0]), said([0, 0, 0, 0], [1, 1, 1, 1]), said([1, 1, 1, 1], [0, 0, 0, 0])
    )
    assert found == {"true": 0.25, "false": 0.25, "others": 0.25, "restoration": 0.25, "forgotten": 0.75}


@pytest.mark.slow
def test_every_check_holds() -> None:
    result = PROOF.run()
    assert not [check.model_dump() for check in result.checks if not check.holds]
