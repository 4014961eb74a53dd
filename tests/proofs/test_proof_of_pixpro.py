"""The proof of pixpro: its data and figures at once, its claim where there is time to train."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from efface.lab.digit_learning import digit_pixels
from efface.lab.tiled_digits import HELD_OUT, cell_maps, matching, mosaics, untrained_mosaic
from efface.learn.pixel_towers import cells_of
from efface.proofs import pixpro as proof
from efface.proofs.pixpro import PROOF, Outcome


def test_every_tile_is_a_digit_of_its_class_and_no_digit_is_in_both_parts() -> None:
    data = mosaics(0)
    assert (len(data.train), len(data.held)) == (1024, HELD_OUT)
    pixels, labels = digit_pixels()
    known = {digit.tobytes(): int(label) for digit, label in zip(pixels, labels, strict=True)}

    def tiles(row: Any) -> list[bytes]:
        from efface.data.items import open_picture

        grey = np.asarray(open_picture(row["image"]))[..., 0]
        return [grey[8 * r : 8 * r + 8, 8 * c : 8 * c + 8].tobytes() for r in range(4) for c in range(4)]

    assert [known[tile] for tile in tiles(data.train[5])] == data.train_tiles[5].flatten().tolist()
    train = {tile for row in data.train.select(range(200)) for tile in tiles(row)}
    held = {tile for row in data.held for tile in tiles(row)}
    assert not train & held


def test_a_map_that_says_where_it_is_matches_and_a_constant_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from efface.lab import tiled_digits as lab
    from efface.numerics.pixel_grid import centres

    encoder = untrained_mosaic(0)
    assert cells_of(cell_maps(encoder, encoder.prepare(list(mosaics(0).held["image"][:2])))).shape == (2, 64, 128)
    plain = matching(encoder, 0)
    boxes: list[torch.Tensor] = []
    original = lab.ImageViews.__call__

    def drawn(self: Any, images: torch.Tensor, generator: torch.Generator) -> Any:
        views, box = original(self, images, generator)
        boxes.append(box / 32)
        return views, box

    def places(encoder: Any, inputs: Any, head: Any = None) -> torch.Tensor:
        """Unit vectors whose cosine falls with the distance of the cells' places."""
        x, y = centres(boxes[-1], (8, 8)).unbind(2)
        angles = torch.stack([x.cos(), x.sin(), y.cos(), y.sin()], 1)
        return angles.view(len(x), 4, 8, 8)

    monkeypatch.setattr(lab.ImageViews, "__call__", drawn)
    monkeypatch.setattr(lab, "cell_maps", places)
    assert matching(encoder, 0) > 0.99
    monkeypatch.setattr(lab, "cell_maps", lambda encoder, inputs, head=None: torch.ones(HELD_OUT, 3, 8, 8))
    assert matching(encoder, 0) < min(0.1, plain)


def test_one_bad_seed_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    good = {
        "untrained": Outcome(0.2, 0.9, 0.5), "nt-xent": Outcome(0.25, 0.92, 0.7),
        "pixcontrast": Outcome(0.32, 0.92, 0.7, 0.4, 0.9), "pixpro": Outcome(0.18, 0.93, 0.7, 0.15, 0.6),
    }  # fmt: skip
    found = {(name, seed): outcome for name, outcome in good.items() for seed in proof.SEEDS}
    monkeypatch.setattr(proof, "outcomes", lambda: found)
    checks = proof.checks()
    assert all(check.holds for check in checks)
    assert checks[0].figure == pytest.approx(0.07)
    for (name, change), place in (
        (("nt-xent", {"matching": 0.30}), 0), (("untrained", {"matching": 0.25}), 1), (("pixpro", {"probe": 0.89}), 2),
        (("pixpro", {"head_spread": 0.4}), 3),
    ):  # fmt: skip
        before = found[name, 1]
        found[name, 1] = replace(before, **change)
        assert [check.holds for check in proof.checks()[:4]] == [i != place for i in range(4)]
        found[name, 1] = before


@pytest.mark.slow
def test_every_figure_is_one_of_a_trained_encoder(tmp_path: Path) -> None:
    result = PROOF.run()
    assert all(0 <= check.figure <= 1.2 for check in result.checks)
    assert result.holding[:3] == [True, True, True]
