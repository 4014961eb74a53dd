"""Streaming mean and covariance in float64, mergeable over chunks, processes and files.

Two sets of rows merge by Chan, Golub and LeVeque's update (1983): with delta = mean_b - mean_a and n = n_a + n_b,

    mean = mean_a + delta n_b / n          scatter = scatter_a + scatter_b + delta delta^T n_a n_b / n

The mean is kept as a pair (its float64 value and what rounding lost), because delta is a difference of two means: with a
large common mean its rounding would otherwise show in the scatter. Beside the moments runs a digest of the sample: the
sum modulo 2^256 of the SHA-256 of every item, which does not depend on the order of the items or of the merges. It tells
two samples apart; it is not proof against someone who constructs collisions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from efface.errors import InputError, StorageError
from efface.run.digests import digest_tensors, digest_value, short
from efface.run.files import write_with

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.generic] | torch.Tensor

CHUNK = 8192
"""Rows turned into float64 at a time; at d = 512 that is 32 MiB."""

MODULUS = 1 << 256
FORMAT = "efface moments 1"


@dataclass
class Moments:
    """Mean and scatter of n rows, and the digest of which rows they were.

    Attributes:
        n: rows so far.
        mean: [d].
        scatter: [d, d] sum of (x - mean)(x - mean)^T.
        rest: [d] what rounding took from `mean`; the mean is `mean + rest`.
        key_sum: sum modulo 2^256 of the SHA-256 of the items' keys.
        source: digest of the model that made the rows, where it is known; rows of two models do not merge.
    """

    n: int
    mean: Floats
    scatter: Floats
    rest: Floats = field(default_factory=lambda: np.zeros(0))
    key_sum: int = 0
    source: str = ""

    def __post_init__(self) -> None:
        if not len(self.rest):
            self.rest = np.zeros_like(self.mean)

    @staticmethod
    def empty(d: int) -> Moments:
        """No rows of d numbers yet."""
        return Moments(0, np.zeros(d), np.zeros((d, d)))

    @staticmethod
    def of(rows: Rows, chunk: int = CHUNK, *, keys: Sequence[str | bytes] | None = None, name: str = "rows") -> Moments:
        """The moments of [N, d] rows, `chunk` rows at a time; arguments and errors as in `update`."""
        _check_shape(rows, None, name)
        found = Moments.empty(int(rows.shape[1]))
        found.update(rows, keys=keys, chunk=chunk, name=name)
        return found

    @property
    def d(self) -> int:
        """Numbers in a row."""
        return len(self.mean)

    @property
    def centre(self) -> Floats:
        """[d] the mean, as a copy: c of the norm's formula."""
        return self.mean + self.rest

    @property
    def digest(self) -> str:
        """Digest of the sample: of the number of rows and the sum of their keys, whatever their order."""
        return digest_value({"rows": self.n, "sum": f"{self.key_sum:064x}"})

    def covariance(self, ddof: int = 0) -> Floats:
        """[d, d] scatter / (n - ddof).

        Raises:
            InputError: n <= ddof.
        """
        if self.n <= ddof:
            raise InputError(f"the covariance of {self.n} rows", f"more than {ddof}", "give a larger sample")
        return self.scatter / (self.n - ddof)

    def update(
        self, rows: Rows, *, keys: Sequence[str | bytes] | None = None, chunk: int = CHUNK, name: str = "rows", first: int = 0
    ) -> None:  # fmt: skip
        """Take in [N, d] rows, `chunk` at a time.

        Args:
            rows: numpy or torch, any float type.
            keys: N keys that stand for the items' content; default: the float32 bytes of each row.
            name: what to call the rows in an error.
            first: index of the first row, for errors.

        Raises:
            InputError: not 2-D, another d, a value that is not finite (the row is named), or keys of another number. What
                was taken in before a bad chunk stays; start afresh.
        """
        _check_shape(rows, self.d, name)
        if keys is not None and len(keys) != len(rows):
            raise InputError(f"{len(keys)} keys for {len(rows)} {name}", "one key a row")
        for start in range(0, len(rows), chunk):
            part = _as_numpy(rows[start : start + chunk])
            block = part.astype(np.float64)
            finite = np.isfinite(block).all(axis=1)
            if not finite.all():
                bad = first + start + int(np.argmin(finite))
                raise InputError(
                    f"row {bad} of {name} is not finite", "numbers", "drop the row, or embed the item again"
                )
            self._take(_of_block(block, _key_sum(part, None if keys is None else keys[start : start + chunk])))

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of rows; neither is changed.

        Raises:
            InputError: another d, or another model.
        """
        if other.d != self.d:
            raise InputError(f"moments of {self.d} and of {other.d} dimensions", "one model's embeddings")
        if self.source and other.source and self.source != other.source:
            raise InputError(
                f"moments of the models {short(self.source)} and {short(other.source)}", "one model's embeddings",
                "embed all parts with the same weights",
            )  # fmt: skip
        source = self.source or other.source
        both = Moments(self.n, self.mean.copy(), self.scatter.copy(), self.rest.copy(), self.key_sum, source)
        both._take(other)
        return both

    def _take(self, other: Moments) -> None:
        n = self.n + other.n
        self.key_sum = (self.key_sum + other.key_sum) % MODULUS
        if other.n == 0:
            return
        if self.n == 0:
            self.n, self.mean, self.rest = n, other.mean.copy(), other.rest.copy()
            self.scatter = other.scatter.copy()
            return
        delta = (other.mean - self.mean) + (other.rest - self.rest)
        shift = delta * (other.n / n) + self.rest
        mean = self.mean + shift
        self.rest = shift - (mean - self.mean)  # what the sum above rounded away
        self.mean = mean
        self.scatter = self.scatter + other.scatter + np.outer(delta, delta) * (self.n / n * other.n)
        self.n = n

    def save(self, path: Path) -> Path:
        """Write one file (safetensors), whole or not at all."""
        return save_moments(path, {"rows": self})

    @staticmethod
    def load(path: Path) -> Moments:
        """Read what `save` wrote; raises as `load_moments` does."""
        found = load_moments(path)
        if set(found) != {"rows"}:
            raise InputError(f"{path} holds the moments of {sorted(found)}", "of one set of rows", "use load_moments")
        return found["rows"]


def _check_shape(rows: Rows, d: int | None, name: str) -> None:
    if rows.ndim != 2 or (d is not None and rows.shape[1] != d) or rows.shape[1] == 0:
        expected = "[N, d]" if d is None else f"[N, {d}]"
        raise InputError(f"{name} of shape {list(rows.shape)}", expected, "give one row of numbers an item")


def _as_numpy(rows: Rows) -> npt.NDArray[np.generic]:
    if isinstance(rows, torch.Tensor):
        rows = rows.detach().cpu()
        return np.asarray((rows.float() if rows.dtype == torch.bfloat16 else rows).numpy())
    return np.asarray(rows)


def _of_block(block: Floats, key_sum: int) -> Moments:
    """Two passes over one block: the second corrects the first for the rounding of the mean."""
    n = len(block)
    mean = block.mean(axis=0)
    block -= mean
    rest = block.mean(axis=0)
    scatter = block.T @ block - np.outer(rest, rest) * n
    return Moments(n, mean, scatter, rest, key_sum)


def _key_sum(part: npt.NDArray[np.generic], keys: Sequence[str | bytes] | None) -> int:
    if keys is None:
        single = np.ascontiguousarray(part, dtype=np.float32)
        items = [memoryview(row).cast("B") for row in single]
    else:
        items = [memoryview(key.encode() if isinstance(key, str) else key) for key in keys]
    return sum(int.from_bytes(hashlib.sha256(item).digest(), "big") for item in items) % MODULUS


def save_moments(path: Path, sets: Mapping[str, Moments]) -> Path:
    """Write named moments into one safetensors file, whole or not at all."""
    tensors = {
        f"{name}.{part}": torch.from_numpy(np.ascontiguousarray(getattr(moments, part)))
        for name, moments in sets.items()
        for part in ("mean", "rest", "scatter")
    }
    facts = {
        name: {"n": moments.n, "key_sum": f"{moments.key_sum:064x}", "source": moments.source}
        for name, moments in sets.items()
    }
    whole = digest_value({"sets": facts, "tensors": digest_tensors(tensors)})
    described = json.dumps({"format": FORMAT, "sets": facts, "digest": whole}, sort_keys=True)
    metadata = {
        "efface": described
    }  # one entry: safetensors writes several in any order, and equal files should be equal
    return write_with(Path(path), lambda partial: save_file(tensors, partial, metadata=metadata))


def load_moments(path: Path) -> dict[str, Moments]:
    """Read what `save_moments` wrote.

    Raises:
        StorageError: missing, damaged, or not a file of moments.
    """
    try:
        with safe_open(str(path), framework="pt") as handle:
            metadata = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise StorageError(f"cannot read {path}: {error}; it is missing or damaged, write it again") from error
    try:
        head = json.loads(metadata.get("efface", "{}"))
    except ValueError:
        head = {}
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise StorageError(
            f"{path} is not a file of moments ({FORMAT}); give a statistics.safetensors that efface wrote"
        )
    if head.get("digest") != digest_value({"sets": head.get("sets"), "tensors": digest_tensors(tensors)}):
        raise StorageError(f"{path} was changed after it was written (its digest does not fit); write it again")
    found = {}
    for name, facts in head["sets"].items():
        mean, rest, scatter = (tensors[f"{name}.{part}"].numpy() for part in ("mean", "rest", "scatter"))
        found[name] = Moments(
            int(facts["n"]), mean, scatter, rest, int(facts["key_sum"], 16), str(facts.get("source", ""))
        )
    return found


def merge_files(paths: Sequence[Path]) -> dict[str, Moments]:
    """The moments of many files, merged by name in the order given.

    Raises:
        InputError: no file, or files of different dimensions or names.
        StorageError: as `load_moments`.
    """
    if not paths:
        raise InputError("no file of moments", "one or more", "give the statistics.safetensors of each part")
    merged: dict[str, Moments] = {}
    known: dict[tuple[str, str], Path] = {}
    for path in paths:
        found = load_moments(Path(path))
        for name, moments in found.items():
            if (name, moments.digest) in known:
                raise InputError(
                    f"{path} holds the {name} that {known[name, moments.digest]} holds",
                    "each part once",
                    "leave one out",
                )
            known[name, moments.digest] = Path(path)
        if merged and set(found) != set(merged):
            raise InputError(
                f"{path} holds {sorted(found)}", f"{sorted(merged)} as {paths[0]}", "merge files of one kind"
            )
        for name, moments in found.items():
            if name in merged and moments.d != merged[name].d:
                raise InputError(
                    f"{path}: '{name}' has {moments.d} dimensions", f"{merged[name].d} as in {paths[0]}",
                    "merge statistics of one model",
                )  # fmt: skip
            merged[name] = merged[name].merge(moments) if name in merged else moments
    return merged


def merge_processes(moments: Moments) -> Moments:
    """The moments of all processes' rows, the same on every process; one process gets its own back.

    Tensors only go over the wire, and they merge in the order of the ranks. A process without rows passes
    `Moments.empty(d)`.

    Raises:
        InputError: the processes have different dimensions (on every process).
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return moments
    world = torch.distributed.get_world_size()
    if world == 1:
        return moments
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"

    def gathered(values: torch.Tensor) -> list[torch.Tensor]:
        mine = values.to(device)
        found = [torch.empty_like(mine) for _ in range(world)]
        torch.distributed.all_gather(found, mine)
        return [part.cpu() for part in found]

    heads = gathered(torch.tensor([moments.n, moments.d], dtype=torch.int64))
    sizes = sorted({int(head[1]) for head in heads})
    if len(sizes) > 1:
        raise InputError(f"processes with embeddings of {sizes} dimensions", "one model on every process")
    d = moments.d
    body = gathered(torch.from_numpy(np.concatenate([moments.mean, moments.rest, moments.scatter.ravel()])))
    sums = gathered(torch.tensor(list(moments.key_sum.to_bytes(32, "big")), dtype=torch.uint8))
    merged = Moments.empty(d)
    for head, values, key in zip(heads, body, sums, strict=True):
        flat = values.numpy()
        scatter = flat[2 * d :].reshape(d, d).copy()
        merged._take(
            Moments(
                int(head[0]),
                flat[:d].copy(),
                scatter,
                flat[d : 2 * d].copy(),
                int.from_bytes(bytes(key.tolist()), "big"),
            )
        )
    return merged
