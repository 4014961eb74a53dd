"""Emoji: 1,899 real pictures with their names in nine languages, placeholder pictures, and a small CLIP for them.

The pictures are Google's Noto Color Emoji (OFL 1.1), the names are CLDR's (Unicode licence). Neither ships with efface:
they are read from `EFFACE_DATA`. Placeholders are what a web crawl has where a picture is missing: plain areas and icons
that say "image not found"; they are drawn here and are never part of the emoji set.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image, ImageDraw

from efface.data.items import open_picture
from efface.errors import InputError
from efface.lab.scene_texts import word_tokenizer
from efface.lab.scenes import picture_dataset
from efface.learn.run import learn
from efface.learn.starts import StartConfig, new_dual_encoder
from efface.run.digests import digest_value
from efface.subjects.dual_encoder import DualEncoder
from efface.train.reference import cache_folder

LANGUAGES = ("en", "es", "de", "fr", "pt", "it", "zh", "ja", "ko")
COUNT, SIDE, PER_ROW = 1899, 32, 40
SHIFT = 2
SIZE = StartConfig(width=128, depth=3, heads=4, image_size=SIDE, patch=8, context=16)
RECIPE: dict[str, Any] = {
    "learning_rate": 1e-3, "batch_size": 128, "epochs": 5, "weight_decay": 0.1, "warmup_ratio": 0.1, "schedule": "cosine",
}  # fmt: skip

Colour = tuple[int, int, int]
Drawing = Callable[[ImageDraw.ImageDraw, np.random.Generator, Colour], None]


def data_folder() -> Path:
    """`EFFACE_DATA`, or `shared/data` beside the repository."""
    given = os.environ.get("EFFACE_DATA")
    return Path(given) if given else Path(__file__).resolve().parents[4] / "shared" / "data"


def emoji(folder: Path | None = None) -> Dataset:
    """Columns id, emoji (the character), image (PNG bytes, not decoded), text (the English name) and nine languages.

    Args:
        folder: with `images.png` and `captions.jsonl`; default: `emoji` in `data_folder()`.

    Raises:
        InputError: a file is missing, or is not the set that is described here.
    """
    folder = data_folder() / "emoji" if folder is None else Path(folder)
    sheet_path, names_path = folder / "images.png", folder / "captions.jsonl"
    for path in (sheet_path, names_path):
        if not path.is_file():
            raise InputError(f"no file {path}", "the emoji set (images.png, captions.jsonl)", "set EFFACE_DATA")
    try:
        rows = [json.loads(line) for line in names_path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise InputError(f"{names_path} is not JSON lines ({error})", "one object a line") from error
    wanted = ("emoji", *LANGUAGES)
    if len(rows) != COUNT or any(not isinstance(row.get(name), str) for row in rows for name in wanted):
        raise InputError(f"{names_path} with {len(rows)} rows", f"{COUNT} rows with {', '.join(wanted)}")
    with Image.open(sheet_path) as opened:
        sheet = np.asarray(opened.convert("RGB"))
    if sheet.shape != (size := (-(-COUNT // PER_ROW) * SIDE, PER_ROW * SIDE, 3)):
        raise InputError(f"{sheet_path} with height, width and channels {sheet.shape}", str(size))
    tiles = sheet.reshape(-1, SIDE, PER_ROW, SIDE, 3).swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3)[:COUNT]
    columns = {"id": [f"emoji-{i:04d}" for i in range(COUNT)], "text": [row["en"] for row in rows]}
    columns |= {name: [row[name] for row in rows] for name in wanted}
    return picture_dataset(columns, [Image.fromarray(tile) for tile in tiles])


def placeholders(n: int, seed: int) -> Dataset:
    """`n` pictures 32 x 32 that show nothing: columns id, kind (a key of `KINDS`), image.

    Kinds take turns. Plain areas are white or one of many greys; icons stand on white or light grey, and line width, size,
    grey and place vary, so that nearly all pictures differ.

    Raises:
        InputError: n < 1.
    """
    if n < 1:
        raise InputError(f"{n} placeholders", "one or more")
    rng = np.random.default_rng([seed, 7])
    kinds = [list(KINDS)[i % len(KINDS)] for i in range(n)]
    pictures = []
    for kind in kinds:
        grey = int(rng.integers(40, 256)) if kind == "blank" else int(rng.integers(225, 256))
        white = rng.random() < (0.2 if kind == "blank" else 0.5)
        picture = Image.new("RGB", (SIDE, SIDE), (255, 255, 255) if white else (grey, grey, grey))
        ink = int(rng.integers(90, 190))
        KINDS[kind](ImageDraw.Draw(picture), rng, (ink, ink, ink))
        pictures.append(picture)
    return picture_dataset({"id": [f"{kind}-{i:04d}" for i, kind in enumerate(kinds)], "kind": kinds}, pictures)


def _frame(rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of an icon's frame."""
    left, top = int(rng.integers(3, 7)), int(rng.integers(3, 8))
    return left, top, SIDE - 1 - left + int(rng.integers(-1, 2)), SIDE - 1 - top + int(rng.integers(-1, 2))


def _blank(pen: ImageDraw.ImageDraw, rng: np.random.Generator, ink: Colour) -> None:
    """Nothing."""


def _crossed(pen: ImageDraw.ImageDraw, rng: np.random.Generator, ink: Colour) -> None:
    """A frame with both diagonals."""
    left, top, right, bottom = _frame(rng)
    width, gap = int(rng.integers(1, 3)), int(rng.integers(0, 5))
    pen.rectangle((left, top, right, bottom), outline=ink, width=width)
    pen.line((left + gap, top + gap, right - gap, bottom - gap), fill=ink, width=width)
    pen.line((left + gap, bottom - gap, right - gap, top + gap), fill=ink, width=width)


def _broken(pen: ImageDraw.ImageDraw, rng: np.random.Generator, ink: Colour) -> None:
    """The outline of a sheet with a turned corner, a small landscape in it, and a crack through the middle."""
    left, top, right, bottom = _frame(rng)
    corner, middle = int(rng.integers(4, 8)), (top + bottom) // 2
    pen.line([
        (left, top), (right - corner, top), (right, top + corner), (right, bottom), (left, bottom), (left, top),
    ], fill=ink)  # fmt: skip
    pen.line([(right - corner, top), (right - corner, top + corner), (right, top + corner)], fill=ink)
    pen.polygon([(left + 3, bottom - 3), (left + 8, bottom - 9), (left + 13, bottom - 3)], fill=ink)
    pen.ellipse((left + 4, top + 4, left + 7, top + 7), fill=ink)
    ground = pen.im.getpixel((0, 0))
    steps = np.linspace(left - 1, right + 1, 6).astype(int)
    crack = [(int(x), middle + (2 if i % 2 else -2)) for i, x in enumerate(steps)]
    pen.line(crack, fill=ground, width=2)


def _question(pen: ImageDraw.ImageDraw, rng: np.random.Generator, ink: Colour) -> None:
    """A box with a question mark."""
    left, top, right, bottom = _frame(rng)
    pen.rounded_rectangle((left, top, right, bottom), radius=int(rng.integers(0, 5)), outline=ink)
    x, y = (left + right) // 2, (top + bottom) // 2
    pen.arc((x - 4, y - 7, x + 4, y + 1), start=180, end=450, fill=ink, width=2)
    pen.line((x, y + 1, x, y + 3), fill=ink, width=2)
    pen.rectangle((x - 1, y + 5, x, y + 6), fill=ink)


KINDS: dict[str, Drawing] = {"blank": _blank, "crossed": _crossed, "broken": _broken, "question": _question}


def name_words(texts: Sequence[str]) -> list[str]:
    """The distinct lower-case words and punctuation marks of `texts`, sorted."""
    return sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())})


def shifted(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture moved by up to two pixels each way; the edge goes on."""
    pixels = np.pad(np.asarray(picture), ((SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="edge")
    x, y = rng.integers(0, 2 * SHIFT + 1, 2)
    return Image.fromarray(np.ascontiguousarray(pixels[y : y + SIDE, x : x + SIDE]))


def web_pairs(
    seed: int, *, copies: int = 12, files: int = 8, captions: int = 16, folder: Path | None = None
) -> Dataset:
    """Emoji and names as a web crawl would hold them: some pictures are missing, and a placeholder stands in their place.

    A placeholder is one file that turns up with ever other captions, which is what makes it uninformative: a model that
    has seen it often enough knows that it says nothing. Columns id, image, text.

    Args:
        seed: of shifts, placeholders and their captions.
        copies: of every emoji, each shifted otherwise.
        files: placeholder files (`placeholders(files, seed)`); 0 gives the control without any.
        captions: rows of each file in each copy, with names drawn at random.
    """
    rng = np.random.default_rng([seed, 11])
    base = emoji(folder)
    names = list(base["text"])
    pictures = [open_picture(item) for item in base["image"]]
    missing = placeholders(files, seed) if files else None
    empty = [open_picture(item) for item in missing["image"]] if missing is not None else []
    rows: list[tuple[str, str, Image.Image]] = []
    for copy in range(copies):
        rows += [(f"{copy}/{i}", names[i], shifted(picture, rng)) for i, picture in enumerate(pictures)]
        for k, picture in enumerate(empty):
            drawn = rng.choice(len(names), captions, replace=False)
            rows += [(f"{copy}/missing-{k}/{i}", names[i], picture) for i in drawn]
    columns = {"id": [row[0] for row in rows], "text": [row[1] for row in rows]}
    return picture_dataset(columns, [row[2] for row in rows])


def new_emoji_clip(texts: Sequence[str], seed: int) -> DualEncoder:
    """Untrained, for 32 px pictures and the words of `texts`: patch 8 (16 patches), width 128, 3 layers a tower."""
    return new_dual_encoder(SIZE, [], seed, tokenizer=word_tokenizer(name_words(texts), SIZE.context))


def emoji_clip(seed: int = 0, *, files: int = 8) -> DualEncoder:
    """Trained on `web_pairs(seed, files=files)` by the library's own recipe in some minutes, or from the cache."""
    data = web_pairs(seed, files=files)
    start = new_emoji_clip(list(data["text"]), seed)
    key = digest_value({"lab": "emoji-clip", "seed": seed, "files": files, "recipe": RECIPE, "start": start.digest,
                        "rows": len(data), "version": 1})  # fmt: skip
    folder = cache_folder() / "lab" / key.removeprefix("sha256:")[:24]
    trained: DualEncoder = learn("clip", data, folder, model=start, seed=seed, **RECIPE)
    return trained
