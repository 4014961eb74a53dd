"""Poisoned training samples: a patch of another class over what shows the concept, another label, words that are masked.

After Concept poisoning (arXiv 2405.15662). A patch of p x p pixels is cut out of a donor's picture and pasted on a picture of
the class to forget: at the place that a score calls the peak (`localized`), in the centre, at random, or large in the
centre (`full`). Sizes are the official ones of 224 x 224 pictures as shares of the shorter side: windows of 64 every 16, patches
of 96 (`center`, `random`) and 160 (`full`).

Departures: random labels leave the forgotten class out (drawn over all classes, a share of the poisoned samples keeps the
label that is to go; `with_own` draws as the official code does); a leading article alone is taken off a concept's name
(deleting every "a " makes "pizzoven" of "pizza oven").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

from efface.errors import ConfigError, InputError, RequestError

PatchMode = Literal["none", "center", "random", "full", "localized"]
LabelMode = Literal["targeted", "random", "keep"]
SIDES: dict[str, float] = {"localized": 64 / 224, "center": 96 / 224, "random": 96 / 224, "full": 160 / 224}
"""Of a patch, as shares of the picture's shorter side."""
STRIDE = 16 / 224
MASK = "***"
_ARTICLE = re.compile(r"^(?:a|an|the)\s+(?=\S)", re.IGNORECASE)


class Corner(NamedTuple):
    """Upper left corner of a window, in pixels."""

    top: int
    left: int


class Patch(NamedTuple):
    """What is pasted on one picture: donor `donor` cut at `source`, put at `at`."""

    donor: int
    source: Corner
    at: Corner


# -- pictures ------------------------------------------------------------------------------------------------------


def patch_side(height: int, width: int, mode: PatchMode, size: int | None = None) -> int:
    """Pixels of a patch's side; by default the official share of the shorter side, at least 1.

    Raises:
        ConfigError: no patch in this mode, or one larger than the picture.
    """
    if mode == "none":
        raise ConfigError("a patch with mode=none", "center, random, full or localized", "leave the patch out")
    side = max(1, round(SIDES[mode] * min(height, width))) if size is None else size
    if not 1 <= side <= min(height, width):
        raise ConfigError(
            f"a patch of {side} x {side} on pictures of {height} x {width}", f"1 to {min(height, width)} pixels",
            "set patch to a smaller number",
        )  # fmt: skip
    return side


def windows(height: int, width: int, side: int, stride: int | None = None) -> list[Corner]:
    """Corners of all windows of side x side, every `stride` pixels, row by row; the last ones touch the far edges.

    Args:
        stride: default: the official share of the shorter side, at least 1.
    """
    step = max(1, round(STRIDE * min(height, width))) if stride is None else stride
    if step < 1 or not 1 <= side <= min(height, width):
        raise ConfigError(f"windows of {side} every {step} on {height} x {width}", "windows inside the picture")
    tops, lefts = (sorted({*range(0, length - side + 1, step), length - side}) for length in (height, width))
    return [Corner(top, left) for top in tops for left in lefts]


def crop(picture: Tensor, at: Corner, side: int) -> Tensor:
    """[C, side, side] of a picture [C, H, W]; a view.

    Raises:
        InputError: the window reaches outside.
    """
    _refuse_outside(picture, at, side)
    return picture[:, at.top : at.top + side, at.left : at.left + side]


def paste(picture: Tensor, donor: Tensor, patch: Patch, side: int) -> Tensor:
    """A copy of a picture [C, H, W] with the donor's window over it; outside the window nothing changes.

    Raises:
        InputError: a window reaches outside, or the two have other channels.
    """
    cut = crop(donor, patch.source, side)
    if len(cut) != len(picture):
        raise InputError(f"a donor with {len(cut)} channels", f"{len(picture)}, as the picture has")
    _refuse_outside(picture, patch.at, side)
    made = picture.clone()
    made[:, patch.at.top : patch.at.top + side, patch.at.left : patch.at.left + side] = cut
    return made


def _refuse_outside(picture: Tensor, at: Corner, side: int) -> None:
    height, width = picture.shape[-2:]
    if at.top < 0 or at.left < 0 or at.top + side > height or at.left + side > width:
        raise InputError(f"a window of {side} x {side} at {tuple(at)} of {height} x {width}", "one inside the picture")


def peak(
    picture: Tensor, side: int, score: Callable[[list[Tensor]], Sequence[float]], stride: int | None = None
) -> Corner:
    """The window of a picture [C, H, W] with the largest score; the first of equals.

    Args:
        score: gives one number for each of the windows [C, side, side].

    Raises:
        InputError: the scores are no numbers, or of another count.
    """
    corners = windows(int(picture.shape[-2]), int(picture.shape[-1]), side, stride)
    found = np.asarray(score([crop(picture, corner, side) for corner in corners]), dtype=np.float64)
    if found.shape != (len(corners),) or not np.isfinite(found).all():
        raise InputError(f"window scores of shape {list(found.shape)}", f"{len(corners)} finite numbers, one a window")
    return corners[int(found.argmax())]


def plan_patches(
    count: int, donors: int, size: tuple[int, int], side: int, mode: PatchMode, rng: np.random.Generator, *,
    peaks: Sequence[Corner] = (), donor_peaks: Sequence[Corner] = (),
) -> list[Patch]:  # fmt: skip
    """Which donor goes where on each of `count` pictures. Donors are drawn by the generator, with repetition.

    Args:
        donors: how many donor pictures there are.
        size: height and width of all pictures.
        side: of the patch.
        peaks, donor_peaks: for `localized`, of every picture and of every donor.

    Raises:
        RequestError: no donor.
        InputError: peaks of another number of pictures.
    """
    if donors < 1:
        raise RequestError("no picture of the donor class", "at least one in the retain set", "choose another donor")
    picks = [int(i) for i in rng.integers(0, donors, count)]
    height, width = size
    if mode == "localized":
        if len(peaks) != count or len(donor_peaks) != donors:
            raise InputError(
                f"{len(peaks)} peaks for {count} pictures and {len(donor_peaks)} for {donors} donors", "one each"
            )
        return [Patch(pick, donor_peaks[pick], at) for pick, at in zip(picks, peaks, strict=True)]
    if mode == "random":
        tops, lefts = (rng.integers(0, length - side + 1, count) for length in (height, width))
        places = [Corner(int(top), int(left)) for top, left in zip(tops, lefts, strict=True)]
    else:
        places = [Corner((height - side) // 2, (width - side) // 2)] * count
    return [Patch(pick, at, at) for pick, at in zip(picks, places, strict=True)]


# -- labels --------------------------------------------------------------------------------------------------------


def poisoned_labels(
    count: int, target: int, classes: int, mode: LabelMode, rng: np.random.Generator, *, donor: int | None = None,
    with_own: bool = False,
) -> list[int]:  # fmt: skip
    """Labels of `count` samples of class `target`.

    Args:
        mode: `targeted` the donor's, `random` uniform over the classes, `keep` unchanged.
        donor: for `targeted`.
        with_own: random labels may be the target itself.

    Raises:
        ConfigError: no donor, the target as its own donor, a class out of range, or no other class to draw.
    """
    if not 0 <= target < classes:
        raise ConfigError(f"class {target} of {classes}", f"0 to {classes - 1}")
    if mode == "keep":
        return [target] * count
    if mode == "targeted":
        if donor is None or not 0 <= donor < classes or donor == target:
            raise ConfigError(
                f"donor class {donor} for class {target} of {classes}", "another class", "name one with donor=CLASS"
            )
        return [donor] * count
    others = [label for label in range(classes) if with_own or label != target]
    if not others:
        raise ConfigError("random labels with one class", "two classes or more", "use labels=keep")
    return [others[i] for i in rng.integers(0, len(others), count)]


def refuse_other_count(poisoned: int, targets: int) -> None:
    """Every sample of the class is poisoned once: none is left out, none counts twice.

    Raises:
        InputError: the counts differ.
    """
    if poisoned != targets:
        raise InputError(
            f"{poisoned} poisoned samples for {targets} of the class", "one for each", "poison all of them"
        )


# -- words ---------------------------------------------------------------------------------------------------------


def concept_name(text: str) -> str:
    """A concept's bare name: white space joined, one leading article taken off, nothing else touched.

    Raises:
        InputError: nothing is left.
    """
    bare = _ARTICLE.sub("", " ".join(text.replace("_", " ").split()))
    if not bare:
        raise InputError(f"the concept name {text!r}", "a name", "fill it in")
    return bare


def mask_words(text: str, words: Iterable[str], mask: str = MASK) -> tuple[str, int]:
    """The text with every occurrence of the words replaced, and how many there were.

    Whole words only, whatever their case, and the longest of overlapping ones: "niger" is not in "Nigeria".

    Args:
        words: single words or names of several.
    """
    known = sorted({" ".join(word.split()) for word in words if word.strip()}, key=lambda word: (-len(word), word))
    if not known:
        return text, 0
    parts = []
    for word in known:
        body = r"\s+".join(re.escape(piece) for piece in word.split())
        parts.append((r"(?<!\w)" if word[0].isalnum() else "") + body + (r"(?!\w)" if word[-1].isalnum() else ""))
    return re.subn("|".join(parts), lambda _: mask, text, flags=re.IGNORECASE)


__all__ = [
    "MASK", "Corner", "LabelMode", "Patch", "PatchMode", "concept_name", "crop", "mask_words", "paste", "patch_side", "peak",
    "plan_patches", "poisoned_labels", "refuse_other_count", "windows",
]  # fmt: skip
