"""Embedding a column in parts: joined, resumed, made anew where anything changed, bad items named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from efface.errors import InputError
from efface.measure.embeddings import embed_in_parts


class Letters:
    """A tower of texts: counts of letters; remembers what it embedded."""

    def __init__(self, modality: str = "text", dies_after: int | None = None) -> None:
        self.modality, self.seen, self.dies_after = modality, 0, dies_after

    def embed(self, items: Any, batch_size: int = 64) -> torch.Tensor:
        if self.dies_after is not None and self.seen >= self.dies_after:
            raise KeyboardInterrupt
        self.seen += len(items)
        if self.modality == "image":
            found = torch.tensor([[float(sum(item.getpixel((0, 0)))) + 1, 1.0] for item in items])
        else:
            found = torch.tensor([[item.count(c) + 0.5 for c in "abcdefgh"] for item in items])
        return found / found.norm(dim=1, keepdim=True)


def captions(n: int = 50) -> Dataset:
    """Texts with ids."""
    return Dataset.from_list([{"id": f"c{i}", "text": "abcdefgh"[i % 8] * (i + 1)} for i in range(n)])


def test_parts_join_to_the_whole_and_are_not_embedded_twice(tmp_path: Path) -> None:
    data = captions()
    plain = Letters().embed(data["text"]).numpy()
    tower = Letters()
    found = embed_in_parts(tower, data, "text", tmp_path, model="sha256:1", part_rows=16)
    np.testing.assert_array_equal(found.values, plain)
    assert (found.ids, found.modality, tower.seen) == (list(data["id"]), "text", 50)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["embeddings.json", "embeddings.npy"]
    again = Letters(dies_after=0)
    np.testing.assert_array_equal(
        embed_in_parts(again, data, "text", tmp_path, model="sha256:1", part_rows=16).values, plain
    )


def test_a_killed_embedding_goes_on(tmp_path: Path) -> None:
    data = captions()
    with pytest.raises(KeyboardInterrupt):
        embed_in_parts(Letters(dies_after=32), data, "text", tmp_path, model="sha256:1", part_rows=16)
    assert len(list(tmp_path.iterdir())) == 2
    tower = Letters()
    found = embed_in_parts(tower, data, "text", tmp_path, model="sha256:1", part_rows=16)
    assert tower.seen == 18
    np.testing.assert_array_equal(found.values, Letters().embed(data["text"]).numpy())


@pytest.mark.parametrize("change", ["model", "item", "batch", "damage"])
def test_another_model_or_item_is_embedded_anew(change: str, tmp_path: Path) -> None:
    data = captions()
    embed_in_parts(Letters(), data, "text", tmp_path, model="sha256:1")
    if change == "item":
        data = Dataset.from_list([*data.to_list()[:-1], {"id": "c49", "text": "hgf"}])
    if change == "damage":
        content = bytearray((tmp_path / "embeddings.npy").read_bytes())
        content[-2] ^= 1
        (tmp_path / "embeddings.npy").write_bytes(content)
    tower = Letters()
    found = embed_in_parts(
        tower, data, "text", tmp_path, model="sha256:2" if change == "model" else "sha256:1",
        batch_size=32 if change == "batch" else 64,
    )  # fmt: skip
    assert tower.seen == 50
    np.testing.assert_array_equal(found.values, Letters().embed(data["text"]).numpy())


def test_items_that_cannot_be_opened_are_named(tmp_path: Path) -> None:
    from PIL import Image

    good = tmp_path / "good.png"
    Image.new("RGB", (2, 2), (7, 0, 0)).save(good)
    broken = tmp_path / "broken.png"
    broken.write_bytes(good.read_bytes()[:30])
    table = [{"id": f"p{i}", "image": {"bytes": None, "path": str(broken if i in (2, 3) else good)}} for i in range(5)]
    with pytest.raises(InputError, match=r"image of 'p2', 'p3' cannot be opened .*mend or drop these items"):
        embed_in_parts(Letters("image"), Dataset.from_list(table), "image", tmp_path / "w", model="m")
    fine = Dataset.from_list([row for row in table if row["id"] not in ("p2", "p3")])
    found = embed_in_parts(Letters("image"), fine, "image", tmp_path / "w", model="m")
    np.testing.assert_allclose(found.values, [[8 / 65**0.5, 1 / 65**0.5]] * 3, rtol=1e-6)
    missing = Dataset.from_list([{"id": "gone", "image": {"bytes": None, "path": str(tmp_path / "absent.png")}}])
    with pytest.raises(InputError, match="image of 'gone' cannot be opened"):
        embed_in_parts(Letters("image"), missing, "image", tmp_path / "w2", model="m")
    with pytest.raises(InputError, match="a column 'caption'"):
        embed_in_parts(Letters(), captions(), "caption", tmp_path / "w3", model="m")
