"""The score table: what one forward pass (and one generation pass) over a data set leaves behind.

One row for every (example, answer form). Token columns are lists of the answer's tokens, the end-of-answer token
included where the prompt format appends one. Everything that an audit computes on a language model is a pure
function of score tables.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import pyarrow.ipc

from efface.errors import RunError, StorageError
from efface.run.files import write_with

Floats = npt.NDArray[np.float64]

SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # the example's stable id
        ("form", pa.string()),  # answer | paraphrased_answer | perturbed_answer
        ("variant", pa.int32()),  # index within the form (perturbed answers are numbered from 0)
        ("n_bytes", pa.int64()),  # UTF-8 bytes of the answer text
        ("zlib_bytes", pa.int64()),  # zlib-compressed size of the answer text
        ("logp", pa.list_(pa.float32())),  # [T] log-probability of each answer token
        ("rank", pa.list_(pa.int32())),  # [T] number of vocabulary entries with a larger logit; 0 = argmax
        ("mean", pa.list_(pa.float32())),  # [T] sum_v p_v log p_v
        ("var", pa.list_(pa.float32())),  # [T] sum_v p_v (log p_v)^2 - mean^2
    ]
)

GENERATION_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("n_tokens", pa.int32()),  # generated tokens, end token not counted
        ("stopped", pa.bool_()),  # the end token came before the limit
        ("rouge1_recall", pa.float64()),
        ("rougeL_recall", pa.float64()),
        ("rougeL_f1", pa.float64()),
        ("exact", pa.bool_()),  # normalised text equal to the reference answer
        ("distinct", pa.float64()),  # share of distinct tokens among the generated ones; near 0 = one word repeated
        ("rougeL_f1_unstemmed", pa.float64()),  # MUSE's dialect
        ("contains", pa.bool_()),  # the answer or an alias stands in the text as whole words
        ("refused", pa.bool_()),  # a refusal phrase stands at its beginning
        ("rougeL_recall_plain", pa.float64()),  # RWKU's dialect: the package `rouge`, no stemmer, case counts
        ("ngram_entropy", pa.float64()),  # fluency of the text; 0 = one word repeated, or nothing
        ("text", pa.string()),  # null unless texts were asked for
    ]
)


@dataclass(frozen=True)
class TokenScores:
    """Scores of one answer form: one entry an example, in the order of the table.

    `logp[i]`, `rank[i]`, `mean[i]`, `var[i]` are arrays [T_i].
    """

    ids: list[str]
    variants: list[int]
    logp: list[Floats]
    rank: list[npt.NDArray[np.int64]]
    mean: list[Floats]
    var: list[Floats]
    n_bytes: npt.NDArray[np.int64]  # [N]
    zlib_bytes: npt.NDArray[np.int64]  # [N]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def mean_logp(self) -> Floats:
        """[N] mean log-probability per token, in float64; -loss."""
        return np.array([float(np.mean(row)) for row in self.logp], dtype=np.float64)

    @property
    def sum_logp(self) -> Floats:
        """[N] total log-probability in nats."""
        return np.array([float(np.sum(row)) for row in self.logp], dtype=np.float64)


@dataclass(frozen=True)
class ScoreTable:
    """Scores and, where asked for, generations of one model on one data set.

    `key` holds the digests of model, data and prompt format; tables of different keys are never mixed.
    """

    scores: pa.Table
    generations: pa.Table | None
    key: dict[str, Any] = field(default_factory=dict)

    def forms(self) -> set[str]:
        """The answer forms that were scored."""
        return set(self.scores.column("form").unique().to_pylist())

    def select(self, form: str) -> TokenScores:
        """All rows of one form.

        Raises:
            RunError: the form was not scored.
        """
        if form not in self.forms():
            raise RunError(f"the score table has no '{form}'", f"one of {sorted(self.forms())}")
        part = self.scores.filter(pa.compute.equal(self.scores.column("form"), form))

        def lists(name: str, kind: Any) -> list[Any]:
            column = part.column(name).combine_chunks()
            flat = column.flatten().to_numpy(zero_copy_only=False).astype(kind)
            offsets = np.concatenate([[0], np.cumsum([len(row) for row in column])])
            return [flat[offsets[i] : offsets[i + 1]] for i in range(len(column))]

        return TokenScores(
            ids=part.column("id").to_pylist(),
            variants=part.column("variant").to_pylist(),
            logp=lists("logp", np.float64),
            rank=lists("rank", np.int64),
            mean=lists("mean", np.float64),
            var=lists("var", np.float64),
            n_bytes=part.column("n_bytes").to_numpy(),
            zlib_bytes=part.column("zlib_bytes").to_numpy(),
        )

    def generated(self, column: str) -> list[Any]:
        """One column of the generation pass, in the order of `generations`' ids.

        Raises:
            RunError: there was no generation pass.
        """
        if self.generations is None:
            raise RunError("the score table has no generations", "a pass with generate=True")
        values: list[Any] = self.generations.column(column).to_pylist()
        return values

    def save(self, folder: Path, name: str) -> list[Path]:
        """Write `<name>.arrow` and, with generations, `<name>.generations.arrow`."""
        meta = {b"efface": json.dumps(self.key, sort_keys=True).encode()}
        paths = [_write_arrow(folder / f"{name}.arrow", self.scores.replace_schema_metadata(meta))]
        if self.generations is not None:
            target = folder / f"{name}.generations.arrow"
            paths.append(_write_arrow(target, self.generations.replace_schema_metadata(meta)))
        return paths

    @staticmethod
    def load(folder: Path, name: str) -> ScoreTable:
        """Read what `save` wrote."""
        scores, key = _read_arrow(folder / f"{name}.arrow")
        generations = None
        if (folder / f"{name}.generations.arrow").exists():
            generations, other = _read_arrow(folder / f"{name}.generations.arrow")
            if other != key:
                raise RunError(f"{name}.arrow and {name}.generations.arrow in {folder} belong to different models or data",
                               "one key", "audit again")  # fmt: skip
        return ScoreTable(scores, generations, key)


def _write_arrow(path: Path, table: pa.Table) -> Path:
    def writer(partial: Path) -> None:
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, table.schema) as out:
            out.write_table(table)

    return write_with(path, writer)


def _read_arrow(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    try:
        with pa.OSFile(str(path), "rb") as source:
            table = pa.ipc.open_file(source).read_all()
        table.validate(full=True)  # a damaged offset would end the process, not raise
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"{path} cannot be read as an Arrow file: {error}") from error
    meta = table.schema.metadata or {}
    return table, json.loads(meta.get(b"efface", b"{}"))


def build_scores(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """A scores table from plain rows with the columns of `SCHEMA` (tests and importers use it)."""
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)


def build_generations(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """A generations table from plain rows with the columns of `GENERATION_SCHEMA`."""
    return pa.Table.from_pylist(list(rows), schema=GENERATION_SCHEMA)
