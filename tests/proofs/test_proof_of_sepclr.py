"""The proof of sepclr: its data and figures at once, its claim where there is time to train."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from efface.data.items import open_picture
from efface.lab.striped_digits import SIDE, STRIPES, striped, stripes
from efface.proofs import sepclr as proof
from efface.proofs.sepclr import PROOF, Matrix


def test_only_target_pictures_hold_a_digit() -> None:
    known, unseen = striped(0)
    assert (len(known.data), len(unseen.data)) == (2048, 1024)
    assert int(known.target.sum()) == 1024
    assert torch.equal(known.target.long(), torch.tensor(known.data["label"]))
    assert set(known.digit[known.target].tolist()) == set(range(10))
    assert set(known.digit[~known.target].tolist()) == {-1}
    assert set(known.orientation.tolist()) == set(range(6))
    brightest = [float(np.asarray(open_picture(item)).max()) / 255 for item in known.data["image"][:200]]
    assert all(
        (bright > STRIPES + 0.01) == target for bright, target in zip(brightest, known.target[:200], strict=True)
    )
    assert len(known.items()) == 1024


def test_stripes_turn_and_move() -> None:
    found = stripes(np.array([0, 3, 0]), np.array([0.0, 0.0, np.pi]))
    assert found.shape == (3, SIDE, SIDE)
    assert np.allclose(found[0], found[0][:1]), "orientation 0: the same down a column"
    assert np.allclose(found[1], found[1][:, :1])
    assert np.allclose(found[0] + found[2], 1)
    assert 0 <= found.min() < found.max() <= 1


def test_one_bad_seed_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, full = Matrix(1.0, 0.86, 0.99, 0.88), Matrix(0.99, 0.27, 0.36, 0.88)
    found = {(name, seed): plain for name in ("plain", "without joint") for seed in proof.SEEDS}
    found |= {("full", seed): full for seed in proof.SEEDS}
    monkeypatch.setattr(proof, "outcomes", lambda: found)
    assert all(check.holds for check in proof.checks())
    changes = {"orientation_s": 0.5, "digit_c": 0.44, "orientation_c": 0.96, "digit_s": 0.84}
    for place, (name, value) in enumerate(changes.items()):
        found["full", 2] = replace(full, **{name: value})
        assert [check.holds for check in proof.checks()[:4]] == [i != place for i in range(4)]
    found["full", 2] = full


@pytest.mark.slow
def test_every_check_holds() -> None:
    result = PROOF.run()
    assert not [check.model_dump() for check in result.checks if not check.holds]
