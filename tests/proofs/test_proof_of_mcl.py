"""The proof of MCL: its pictures and its verdicts at once; the whole of it runs by `efface prove`."""

from __future__ import annotations

import numpy as np
import pytest

from efface.data.items import open_picture
from efface.lab.two_digits import COLOURS, two_digits
from efface.proofs import mcl as proof


def test_the_three_features_are_independent_and_b_is_faint() -> None:
    known, unseen = two_digits(0)
    assert (len(known), len(unseen)) == (2000, 1000)
    table = np.array([known["colour"], known["a"], known["b"]])
    assert float(np.abs(np.corrcoef(table) - np.eye(3)).max()) < 0.1
    pixels = np.stack([np.asarray(open_picture(item)) for item in known["image"][:200]]).astype(float)
    assert pixels.shape == (200, 16, 16, 3)
    assert not pixels[:, :4].any()
    assert not pixels[:, 12:].any()
    assert pixels[:, 4:12, 8:].max() <= 128
    assert pixels[:, 4:12, :8].max() > 250
    strongest = COLOURS[np.array(known["colour"][:200])].argmax(1)
    assert (pixels.sum((1, 2))[np.arange(200), strongest] >= pixels.sum((1, 2)).max(1) * 0.99).all()


def outcome(seed: int) -> dict[str, dict[str, float]]:
    def marks(b: float, colour: float = 1.0) -> dict[str, float]:
        return {"colour": colour, "a": 0.9, "b": b}

    return {"stage 0": marks(0.5), "stage 1": marks(0.5), "stage 2": marks(0.7), "mcl": marks(0.8), "plain": marks(0.7)}


def test_each_verdict_turns_with_the_worst_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "outcome", outcome)
    assert [check.holds for check in proof.checks()[:3]] == [True, True, True]
    for place, name, mark, value in ((0, "mcl", "b", 0.69), (1, "stage 2", "b", 0.59), (2, "mcl", "colour", 0.97)):

        def broken(seed: int, name: str = name, mark: str = mark, value: float = value) -> dict[str, dict[str, float]]:
            found = outcome(seed)
            if seed == 1:
                found[name][mark] = value
            return found

        monkeypatch.setattr(proof, "outcome", broken)
        assert [check.holds for check in proof.checks()[:3]] == [i != place for i in range(3)]
