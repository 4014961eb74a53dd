"""The two sides of a gain: embedded images and texts, read in blocks, checked, and normalised on the way.

Every trap of the specification that shows in the rows themselves is met here: rows that are not finite, zero or not of
unit length, different dimensions, swapped sides, one side given twice, pairs that are not one to one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from efface.data.pictures import text_key
from efface.errors import InputError
from efface.numerics.moments import Moments

SideName = Literal["images", "texts"]
Values = npt.NDArray[np.generic] | Tensor

UNIT_TOLERANCE = 1e-3
"""A row whose length is further from one than this is not a unit row (float16 embeddings stay inside)."""

DUPLICATE_SHARE = 0.05
"""More repeated items in a sample than this are worth a warning: p(v) then has heavy points."""

WORDS = {
    "images": {"image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "visual", "vision"},
    "texts": {"text", "texts", "txt", "caption", "captions", "sentence", "sentences", "language"},
}
MODALITY = {"images": "image", "texts": "text"}
BLOCK = 8192


@dataclass(frozen=True)
class EmbeddedSide:
    """The embedded items of one side.

    Attributes:
        values: [N, d] embeddings, an array, a memory map or a tensor.
        ids: N ids; default: the row numbers.
        keys: N content keys (for example digests of the pictures' bytes), by which samples are told apart whatever the
            model; default: the texts, and without those the embeddings' own bytes.
        texts: N texts, to show.
        thumbnail: base64 PNG of a row, at most 96 px a side, made on demand.
        modality: what the embedder says the rows are, where it says so.
        source: the file or data set, for errors.
    """

    values: Values
    ids: Sequence[str] | None = None
    keys: Sequence[str | bytes] | None = None
    texts: Sequence[str] | None = None
    thumbnail: Callable[[int], str | None] | None = None
    modality: str | None = None
    source: str = ""

    def __len__(self) -> int:
        return len(self.values)

    @property
    def content(self) -> Sequence[str | bytes] | None:
        """Content keys, or None where only the embeddings are known."""
        if self.keys is not None:
            return self.keys
        return None if self.texts is None else [text_key(text) for text in self.texts]

    def names(self) -> list[str]:
        """N ids."""
        return [str(i) for i in range(len(self))] if self.ids is None else [str(name) for name in self.ids]


class UnitRows:
    """[N, d] rows that come out of slices as float64 of unit length (`Blocks` of `efface.measure.gain`).

    Args:
        values: the embeddings as they are.
        name: of the side, for errors.
        normalize: divide every row by its length; otherwise rows come as they are.
        index: [n] rows to take, rising; default all.
        device: where the blocks go.
    """

    def __init__(
        self, values: Values, name: str, *, normalize: bool = True, index: npt.NDArray[np.int64] | None = None,
        device: str = "cpu",
    ) -> None:  # fmt: skip
        if values.ndim != 2 or values.shape[1] == 0:
            raise InputError(f"{name} of shape {list(values.shape)}", "[N, d]", "give one row of numbers an item")
        if isinstance(values, np.ndarray) and values.dtype.kind not in "fiu":
            raise InputError(f"{name} of type {values.dtype}", "floating-point numbers", "embed the items again")
        self.values, self.name, self.normalize, self.index, self.device = values, name, normalize, index, device

    def __len__(self) -> int:
        return len(self.values) if self.index is None else len(self.index)

    @property
    def d(self) -> int:
        """Numbers in a row."""
        return int(self.values.shape[1])

    def __getitem__(self, rows: slice, /) -> Tensor:
        return self.read(rows)[0]

    def read(self, rows: slice) -> tuple[Tensor, Tensor]:
        """The rows [n, d] and the lengths [n] that they had.

        Raises:
            InputError: a row that is not finite, or zero where rows are normalised; the row is named.
        """
        start, stop, _ = rows.indices(len(self))
        place: slice | npt.NDArray[np.int64] = slice(start, stop) if self.index is None else self.index[start:stop]
        part = self.values[place]
        if isinstance(part, Tensor):
            block = part.detach().to(self.device, torch.float64, copy=True)
        else:
            block = aligned(np.array(part, dtype=np.float64), self.device)
        length = torch.linalg.vector_norm(block, dim=1)
        if not bool(torch.isfinite(length).all()):
            bad = self.number(start + int((~torch.isfinite(length)).nonzero()[0]))
            raise InputError(f"row {bad} of {self.name} is not finite", "numbers", "drop the item, or embed it again")
        if self.normalize:
            if bool((length == 0).any()):
                bad = self.number(start + int((length == 0).nonzero()[0]))
                raise InputError(
                    f"row {bad} of {self.name} is all zeros", "a direction", "drop the item, or embed it again"
                )
            block /= length.unsqueeze(1)
        return block, length

    def number(self, place: int) -> int:
        """The row of `values` that stands at a place."""
        return place if self.index is None else int(self.index[place])


def aligned(values: npt.NDArray[np.float64], device: str | torch.device = "cpu") -> Tensor:
    """An array in torch's own memory: a product's last bits may depend on where numpy happened to put its operands."""
    return torch.from_numpy(values).clone().to(device)


@dataclass
class Surveyed:
    """One side after a pass over all of its rows.

    Attributes:
        side, rows: as given, and as they are read.
        digest: of the rows in their order; results are reused only for these.
        sample: the rows that serve as the other side's sample.
        sample_index: [n] which rows those are, or None for all.
        moments: of the sample.
        log: warnings.
    """

    side: EmbeddedSide
    rows: UnitRows
    digest: str
    sample: UnitRows
    sample_index: npt.NDArray[np.int64] | None
    moments: Moments
    log: list[str] = field(default_factory=list)


def check_sides(images: EmbeddedSide | None, texts: EmbeddedSide | None) -> None:
    """Refuse swapped sides, one side given twice, and columns that do not fit the rows.

    Raises:
        InputError: see above.
    """
    for name, side in (("images", images), ("texts", texts)):
        if side is None:
            continue
        other = "texts" if name == "images" else "images"
        where = f" ({side.source})" if side.source else ""
        if side.modality is not None and side.modality != MODALITY[name]:
            raise InputError(
                f"embeddings of {side.modality} items given as {name}{where}", f"{MODALITY[name]} embeddings",
                "the two sides are swapped: exchange them",
            )  # fmt: skip
        words = set(re.split(r"[^a-z]+", side.source.replace("\\", "/").rsplit("/", 1)[-1].lower()))
        if words & WORDS[other] and not words & WORDS[name]:
            raise InputError(
                f"'{side.source}' given as {name}", f"a name that does not speak of {other}",
                "exchange the two sides, or rename the file",
            )  # fmt: skip
        for column, values in (("ids", side.ids), ("keys", side.keys), ("texts", side.texts)):
            if values is not None and len(values) != len(side):
                raise InputError(f"{len(values)} {column} for {len(side)} {name}{where}", "one for each row")
        if side.ids is not None and len(set(side.ids)) < len(side):
            raise InputError(f"{len(side) - len(set(side.ids))} repeated ids in {name}{where}", "unique ids",
                             "give each item an id of its own")  # fmt: skip
    if images is not None and texts is not None:
        if images.values is texts.values:
            raise InputError("the same rows as images and as texts", "two sides", "give the other side's embeddings")
        if images.values.ndim == 2 == texts.values.ndim and images.values.shape[1] != texts.values.shape[1]:
            raise InputError(
                f"images of {images.values.shape[1]} dimensions and texts of {texts.values.shape[1]}",
                "one d for both", "embed both sides with the two towers of one model",
            )  # fmt: skip


def survey(
    name: SideName, side: EmbeddedSide, *, normalize: bool, unit_needed: bool, sample_size: int | None, seed: int,
    device: str = "cpu",
) -> Surveyed:  # fmt: skip
    """Read a side once: check every row, take its digest, and gather the moments of its sample.

    Args:
        name: which side.
        side: its items.
        normalize: as in the settings.
        unit_needed: with `normalize` off, refuse rows that are not of unit length.
        sample_size: rows of the sample, drawn without replacement by `seed`; None takes all.

    Raises:
        InputError: bad rows, fewer than two rows, or rows that would have to be of unit length and are not.
    """
    if len(side) < 2:
        raise InputError(f"{len(side)} {name}", "two or more", f"give more {name}: one alone is no distribution")
    index = None
    if sample_size is not None and sample_size < len(side):
        index = np.sort(np.random.default_rng(seed).choice(len(side), sample_size, replace=False)).astype(np.int64)
    rows = UnitRows(side.values, name, normalize=normalize, device=device)
    sample = rows if index is None else UnitRows(side.values, name, normalize=normalize, index=index, device=device)
    moments, sha, off, first = Moments.empty(rows.d), hashlib.sha256(), 0, -1
    seen: set[bytes] = set()
    content = side.content
    for start in range(0, len(rows), BLOCK):
        block, length = rows.read(slice(start, start + BLOCK))
        values = block.cpu().numpy()
        sha.update(values.tobytes())
        odd = (length - 1).abs() > UNIT_TOLERANCE
        off += int(odd.sum())
        if first < 0 and bool(odd.any()):
            first = start + int(odd.nonzero()[0])
            if not normalize and unit_needed:
                raise InputError(
                    f"row {first} of {name} has length {float(length[first - start]):.4g} with normalize=false",
                    "unit rows for kl and klr", "set normalize=true, or ask for norm modes only",
                )  # fmt: skip
        stop = start + len(values)
        if index is None:
            keys = None if content is None else content[start:stop]
        else:
            chosen = index[np.searchsorted(index, start) : np.searchsorted(index, stop)]
            values = values[chosen - start]
            keys = None if content is None else [content[i] for i in chosen]
        moments.update(values, keys=keys, name=name, first=start)
        seen.update(_short_key(item) for item in (values.astype(np.float32) if keys is None else keys))
    log = []
    if off and normalize:
        log.append(f"{name}: {off} of {len(side)} rows were not of unit length and were normalised")
    if moments.n < rows.d:
        log.append(
            f"{name}: the sample has {moments.n} rows and {rows.d} dimensions; its covariance is rank-deficient, and the "
            "norms see only the directions that the sample spans"
        )
    repeated = 1 - len(seen) / moments.n
    if repeated > DUPLICATE_SHARE:
        log.append(
            f"{name}: {repeated:.0%} of the sample repeat another item; p({MODALITY[name]}) has heavy points there"
        )
    return Surveyed(side, rows, "sha256:" + sha.hexdigest(), sample, index, moments, log)


def _short_key(item: str | bytes | npt.NDArray[np.float32]) -> bytes:
    data = item.encode() if isinstance(item, str) else item if isinstance(item, bytes) else item.tobytes()
    return hashlib.blake2b(data, digest_size=8).digest()


def own_pairs(query: Surveyed, other: Surveyed) -> Tensor:
    """[B] int64: the row of the other side's sample that is each query's own pair; -1 where it was not sampled.

    Items pair by id where both sides have ids, otherwise by row.

    Raises:
        InputError: the sides do not pair one to one.
    """
    n, m = len(query.rows), len(other.rows)
    given = query.side.ids is not None and other.side.ids is not None
    if given:
        places = {name: i for i, name in enumerate(other.side.names())}
        pair = [places.get(name, -1) for name in query.side.names()]
    else:
        pair = list(range(n))
    if n != m or -1 in pair:
        why = "whose ids differ" if n == m else f"against {m} {other.rows.name}"
        raise InputError(
            f"exclude_self with {n} {query.rows.name} {why}", "one-to-one pairs",
            "give both sides the same ids, or the same number of rows in the same order; or set exclude_self=false",
        )  # fmt: skip
    own = np.asarray(pair, dtype=np.int64)
    if other.sample_index is not None:
        place = np.full(m, -1, dtype=np.int64)
        place[other.sample_index] = np.arange(len(other.sample_index))
        own = place[own]
    return torch.from_numpy(own)
