"""Scenes: small pictures of one or two coloured handwritten digits, with facts from which everything else follows.

A picture is 3 x 32 x 32: a dark grey background with a little noise and four cells of 16 x 16; an object is one of
scikit-learn's digits, enlarged twice and blended in by its ink in one of six colours. The first 1,200 digits of a fixed
permutation are drawn in training scenes only and the last 597 in test scenes only, so test glyphs are unseen.
Pictures are kept as bytes: a pixel is rounded to a multiple of 1/255 (0.004), a seventh of the noise's deviation.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits

from efface.errors import InputError
from efface.lab.scene_texts import Object, Scene, caption
from efface.run.digests import digest_value
from efface.run.files import write_json, write_with
from efface.train.reference import cache_folder

Split = Literal["train", "test"]
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

COLOURS = {
    "red": (0.95, 0.10, 0.10), "green": (0.10, 0.80, 0.15), "blue": (0.15, 0.30, 1.00), "yellow": (0.95, 0.90, 0.10),
    "purple": (0.65, 0.15, 0.80), "white": (1.00, 1.00, 1.00),
}  # fmt: skip
"""Red, green, blue in [0, 1]."""

CELLS = ("northwest", "northeast", "southwest", "southeast")
BESIDE = (  # cell of the first object, of the second, and the relation of the first to the second
    (0, 1, "left of"), (1, 0, "right of"), (2, 3, "left of"), (3, 2, "right of"),
    (0, 2, "above"), (2, 0, "below"), (1, 3, "above"), (3, 1, "below"),
)  # fmt: skip
SIDE, CELL = 32, 16
GLYPHS_TRAIN, GLYPHS_TEST, GLYPH_SEED = 1200, 597, 0
TWO_OBJECTS = 0.7
GREY, NOISE = 0.25, 0.03
"""The background is uniform in [0, GREY]; the noise is normal with this deviation."""

VERSION = 1
"""Of the recipe below; a change to it makes cached sets stale."""


@dataclass(frozen=True)
class SceneSet:
    """Scenes with their pictures and captions.

    Attributes:
        split: "train" or "test": which glyphs were drawn.
        seed: of the draw.
        images: [n, 3, 32, 32] uint8.
        scenes: n facts.
        templates: n indices of the caption's template.
    """

    split: Split
    seed: int
    images: torch.Tensor
    scenes: tuple[Scene, ...]
    templates: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.scenes)

    @property
    def captions(self) -> list[str]:
        """n captions, each in its own template."""
        return [caption(scene, template) for scene, template in zip(self.scenes, self.templates, strict=True)]

    @property
    def meanings(self) -> list[str]:
        """What each caption states, whatever the template and the order of the objects."""
        return [scene.meaning for scene in self.scenes]

    def pictures(self) -> list[Image.Image]:
        """n RGB pictures, 32 x 32."""
        return as_pictures(self.images)


def scene_set(split: Split, n: int, seed: int) -> SceneSet:
    """Draw `n` scenes, or load them from the cache (a file of the recipe's digest, written in one step).

    Raises:
        InputError: an unknown split or n < 1.
    """
    if split not in ("train", "test"):
        raise InputError(f"the split '{split}' of the scenes", "'train' or 'test'")
    if n < 1:
        raise InputError(f"{n} scenes", "one or more")
    recipe = {
        "lab": "scenes", "version": VERSION, "split": split, "n": n, "seed": seed, "colours": list(COLOURS.items()),
        "glyphs": [GLYPHS_TRAIN, GLYPHS_TEST, GLYPH_SEED], "two_objects": TWO_OBJECTS, "grey": GREY, "noise": NOISE,
    }  # fmt: skip
    key = digest_value(recipe).removeprefix("sha256:")[:24]
    path = cache_folder() / "lab" / f"scenes-{key}.safetensors"
    found = _stored(path, n)
    if found is None:
        rng = np.random.default_rng([seed, 0 if split == "train" else 1])
        facts, glyphs = _draw(rng, n, split)
        found = {"images": torch.from_numpy(_render(rng, facts, glyphs)), "facts": torch.from_numpy(facts)}
        write_json(path.with_suffix(".json"), recipe)  # what the file is, for people; the tensors count
        write_with(path, lambda partial: save_file(found, partial))
    facts = found["facts"].numpy()
    return SceneSet(split, seed, found["images"], tuple(map(_scene, facts)), tuple(map(int, facts[:, 0])))


def blank_images(n: int, seed: int) -> torch.Tensor:
    """[n, 3, 32, 32] uint8: backgrounds of scenes without any object."""
    rng = np.random.default_rng([seed, 2])
    return torch.from_numpy(_quantised(_background(rng, n)))


def noise_images(n: int, seed: int) -> torch.Tensor:
    """[n, 3, 32, 32] uint8: every byte uniform."""
    rng = np.random.default_rng([seed, 3])
    return torch.from_numpy(rng.integers(0, 256, size=(n, 3, SIDE, SIDE), dtype=np.uint8))


def object_scenes(objects: Literal[1, 2], n: int, seed: int) -> SceneSet:
    """`n` test scenes of exactly one object, or of exactly two; not cached.

    Raises:
        InputError: another number of objects.
    """
    if objects not in (1, 2):
        raise InputError(f"scenes of {objects} objects", "one or two")
    rng = np.random.default_rng([seed, 3 + objects])
    facts, glyphs = _draw(rng, n, "test", two=float(objects == 2))
    images = torch.from_numpy(_render(rng, facts, glyphs))
    return SceneSet("test", seed, images, tuple(map(_scene, facts)), tuple(map(int, facts[:, 0])))


def as_pictures(images: torch.Tensor) -> list[Image.Image]:
    """[n, 3, H, W] uint8 -> n RGB pictures.

    Raises:
        InputError: another shape or type.
    """
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
        raise InputError(f"images {list(images.shape)} of {images.dtype}", "[n, 3, height, width] of uint8")
    return [Image.fromarray(array) for array in np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())]


def as_dataset(scenes: SceneSet) -> Dataset:
    """Columns id, image (PNG bytes, not decoded) and text."""
    ids = [f"{scenes.split}-{scenes.seed}-{i}" for i in range(len(scenes))]
    return picture_dataset({"id": ids, "text": scenes.captions}, scenes.pictures())


def picture_dataset(columns: dict[str, list[str]], pictures: Sequence[Image.Image]) -> Dataset:
    """A data set of string columns and an `image` column of PNG bytes that are decoded by whoever needs pixels."""
    image = [{"bytes": _png(picture), "path": None} for picture in pictures]
    features = {name: datasets.Value("string") for name in columns}
    return Dataset.from_dict(
        {**columns, "image": image}, features=datasets.Features({**features, "image": datasets.Image(decode=False)})
    )


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)  # noise does not compress; speed counts
    return buffer.getvalue()


@lru_cache(maxsize=1)
def _glyphs() -> tuple[Floats, Integers]:
    """Ink [1797, 16, 16] in [0, 1] and digits [1797], in the fixed permutation."""
    images, truth = load_digits(return_X_y=True)
    order = np.random.default_rng(GLYPH_SEED).permutation(len(images))
    ink = (images[order] / 16.0).reshape(-1, 8, 8).astype(np.float32)
    return ink.repeat(2, axis=1).repeat(2, axis=2), truth[order].astype(np.int64)


def _draw(rng: np.random.Generator, n: int, split: Split, *, two: float = TWO_OBJECTS) -> tuple[Integers, Integers]:
    """Facts [n, 8] (template, relation or -1, then digit, colour, cell of each object or -1) and glyphs [n, 2]."""
    glyphs = rng.integers(0, GLYPHS_TRAIN if split == "train" else GLYPHS_TEST, size=(n, 2))
    if split == "test":
        glyphs += GLYPHS_TRAIN
    digits = _glyphs()[1][glyphs]
    colours = rng.integers(0, len(COLOURS), size=(n, 2))
    single, place = rng.integers(0, len(CELLS), size=n), rng.integers(0, len(BESIDE), size=n)
    pair = rng.random(n) < two
    cells = np.array([row[:2] for row in BESIDE])[place]
    cells[:, 0] = np.where(pair, cells[:, 0], single)
    second = np.stack([digits[:, 1], colours[:, 1], cells[:, 1]], axis=1)
    facts = np.column_stack([
        rng.integers(0, 4, size=n), np.where(pair, place, -1), digits[:, 0], colours[:, 0], cells[:, 0],
        np.where(pair[:, None], second, -1),
    ])  # fmt: skip
    return facts, glyphs


def _background(rng: np.random.Generator, n: int) -> Floats:
    grey = rng.uniform(0, GREY, size=(n, 1, 1, 1)).astype(np.float32)
    noise = rng.standard_normal((n, 3, SIDE, SIDE), dtype=np.float32)
    return grey + NOISE * noise


def _render(rng: np.random.Generator, facts: Integers, glyphs: Integers) -> Bytes:
    """[n, 3, 32, 32]; all objects of one cell are blended at once."""
    image, ink = _background(rng, len(facts)), _glyphs()[0]
    palette = np.array(list(COLOURS.values()), dtype=np.float32)
    for which in (0, 1):
        colour, cell = facts[:, 3 + 3 * which], facts[:, 4 + 3 * which]
        for place in range(len(CELLS)):
            rows = np.flatnonzero(cell == place)
            top, left = CELL * (place // 2), CELL * (place % 2)
            alpha = ink[glyphs[rows, which]][:, None]  # [m, 1, 16, 16]
            under = image[rows, :, top : top + CELL, left : left + CELL]
            over = palette[colour[rows]][:, :, None, None]
            image[rows, :, top : top + CELL, left : left + CELL] = (1 - alpha) * under + alpha * over
    return _quantised(image)


def _quantised(image: Floats) -> Bytes:
    whole: Bytes = np.rint(image.clip(0, 1) * 255).astype(np.uint8)
    return whole


def _scene(row: Integers) -> Scene:
    names = list(COLOURS)
    parts = [row[2:5]] if row[1] < 0 else [row[2:5], row[5:8]]
    objects = tuple(Object(int(digit), names[colour], CELLS[cell]) for digit, colour, cell in parts)
    return Scene(objects, None if row[1] < 0 else BESIDE[row[1]][2])


def _stored(path: Path, n: int) -> dict[str, Any] | None:
    """A cached set; a damaged file counts as absent and is made anew."""
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = load_file(path)
    except SafetensorError:
        return None
    whole = {"images": (n, 3, SIDE, SIDE), "facts": (n, 8)}
    return found if {name: tuple(part.shape) for name, part in found.items()} == whole else None
