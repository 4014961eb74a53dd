"""The score table of a classifier or regressor: one pass gives every row's outputs and features.

Everything that is said about such a model, from its accuracy to membership attacks and the geometry of its features, is a
function of these tables. They are cached by the digests of model and data, and stored as Arrow.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from datasets import Dataset
from scipy.special import log_softmax

from efface.audit.observe import token_statistics
from efface.audit.table import ScoreTable, build_scores
from efface.data.request import data_digest
from efface.errors import ModelError, StorageError
from efface.run.cost import Cost
from efface.run.digests import digest_value
from efface.run.files import write_with
from efface.subjects.predictor import Predictor
from efface.train.reference import cache_folder

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Predictions:
    """What one model says about one set.

    Attributes:
        ids: [N].
        targets: [N] class indices, or numbers.
        outputs: [N, K] logits, or [N, 1] numbers.
        features: [N, D] what goes into the head.
        identities: [N] whose row it is; empty where the set does not say.
        task: `classification` or `regression`.
        key: what the table depends on.
    """

    ids: list[str]
    targets: Floats
    outputs: Floats
    features: Floats
    identities: list[str] = field(default_factory=list)
    task: str = "classification"
    key: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """[N] class indices."""
        return self.targets.astype(np.int64)

    @property
    def logp(self) -> Floats:
        """[N, K] log-probabilities of the classes."""
        return np.asarray(log_softmax(self.outputs, axis=1), dtype=np.float64)

    @property
    def own_logp(self) -> Floats:
        """[N] log-probability of the label; for numbers -(y - target)^2 / 2. Larger is better."""
        if self.task == "regression":
            return np.asarray(-0.5 * np.square(self.outputs[:, 0] - self.targets), dtype=np.float64)
        return np.asarray(self.logp[np.arange(len(self)), self.labels], dtype=np.float64)

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """[N] whether the label has the largest logit."""
        return np.asarray(self.outputs.argmax(1) == self.labels)

    def scores(self) -> ScoreTable:
        """The same as a score table: a class, or a number, is an answer of one token."""
        if self.task == "regression":
            own = self.own_logp
            columns = {"logp": own, "rank": np.zeros(len(self)), "mean": own, "var": np.zeros(len(self))}
        else:
            found = token_statistics(torch.from_numpy(self.outputs), torch.from_numpy(self.labels))
            columns = {name: values.double().numpy() for name, values in found._asdict().items()}
        rows = [
            {
                "id": identity, "form": "answer", "variant": 0, "n_bytes": 1, "zlib_bytes": 1,
                "rank": [int(columns["rank"][i])], **{name: [float(columns[name][i])] for name in ("logp", "mean", "var")},
            }
            for i, identity in enumerate(self.ids)
        ]  # fmt: skip
        return ScoreTable(build_scores(rows), None, self.key)

    def part(self, chosen: npt.ArrayLike) -> Predictions:
        """Some rows, by index or flag."""
        index = np.arange(len(self))[np.asarray(chosen)]
        return Predictions(
            [self.ids[i] for i in index], self.targets[index], self.outputs[index], self.features[index],
            [self.identities[i] for i in index] if self.identities else [], self.task, self.key,
        )  # fmt: skip

    def save(self, folder: Path, name: str) -> None:
        """Write NAME.predictions.arrow."""
        columns: dict[str, Any] = {
            "id": pa.array(self.ids), "target": pa.array(self.targets),
            "outputs": _matrix(self.outputs), "features": _matrix(self.features),
        }  # fmt: skip
        if self.identities:
            columns["identity"] = pa.array(self.identities)
        meta = {"task": self.task, "key": self.key}
        table = pa.table(columns).replace_schema_metadata({"efface": json.dumps(meta, sort_keys=True)})

        def writer(partial: Path) -> None:
            with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, table.schema) as out:
                out.write_table(table)

        write_with(folder / f"{name}.predictions.arrow", writer)

    @classmethod
    def load(cls, folder: Path, name: str) -> Predictions:
        """Read what `save` wrote.

        Raises:
            StorageError: no such table, or a damaged one.
        """
        path = folder / f"{name}.predictions.arrow"
        try:
            with pa.OSFile(str(path), "rb") as source:
                table = pa.ipc.open_file(source).read_all()
            table.validate(full=True)
            meta = json.loads((table.schema.metadata or {})[b"efface"])
            own = {column: table.column(column) for column in table.column_names}
            return cls(
                own["id"].to_pylist(), np.asarray(own["target"].to_numpy(), dtype=np.float64), _array(own["outputs"]),
                _array(own["features"]), own["identity"].to_pylist() if "identity" in own else [], meta["task"], meta["key"],
            )  # fmt: skip
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            raise StorageError(f"{path} cannot be read as a table of predictions: {error}") from error


def _matrix(values: Floats) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _array(column: Any) -> Floats:
    chunks = column.combine_chunks()
    part = chunks.chunk(0) if isinstance(chunks, pa.ChunkedArray) else chunks
    return np.asarray(part.flatten().to_numpy(zero_copy_only=False), dtype=np.float64).reshape(len(part), -1)


def _key(subject: Predictor, data: Dataset, foreign: bool) -> dict[str, Any]:
    """What a table depends on."""
    return {"model": subject.digest, "data": data_digest(data), "head": subject.head_name, "foreign": foreign}


def predictions_of(subject: Predictor, data: Dataset, *, name: str = "data", foreign: bool = False) -> Predictions:
    """One pass over a set, without the cache.

    Args:
        foreign: the labels are not the model's: features count, outputs do not.

    Raises:
        ModelError: an output or feature that is NaN or infinite.
    """
    own = [float(value) for value in data["label" if "label" in data.column_names else "target"]] if foreign else None
    rows = subject.encode_rows(data, name=name, targets=own)
    features, outputs = subject.read(rows)
    for what, found in (("outputs", outputs), ("features", features)):
        if not bool(found.isfinite().all()):
            raise ModelError(f"the model's {what} on the {name} set hold NaN or infinity", "numbers", "it is damaged")
    return Predictions(
        list(data["id"]), np.asarray([row.target for row in rows], dtype=np.float64), outputs.double().numpy(),
        features.double().numpy(), list(data["identity"]) if "identity" in data.column_names else [], subject.task,
        _key(subject, data, foreign),
    )  # fmt: skip


def observe_predictions(
    subject: Predictor, data: Dataset, *, name: str = "data", foreign: bool = False, cost: Cost | None = None,
    cache: Path | None = None,
) -> Predictions:  # fmt: skip
    """The table of a model on a set, from the cache or by one pass.

    Args:
        name: of the set, for errors.
        foreign: see `predictions_of`.
        cost: record to add items to; nothing is added where the cache serves.
        cache: folder of tables; default the cache folder.
    """
    key = _key(subject, data, foreign)
    folder = cache or cache_folder() / "tables"
    stem = digest_value({**key, "kind": "predictions"}).removeprefix("sha256:")
    if (folder / f"{stem}.predictions.arrow").exists():
        found = Predictions.load(folder, stem)
        if found.key == key:
            return found
    made = predictions_of(subject, data, name=name, foreign=foreign)
    made.save(folder, stem)
    if cost is not None:
        cost.items += len(made)
    return Predictions.load(folder, stem)  # float32, as every later reader sees it


__all__ = ["Predictions", "observe_predictions", "predictions_of"]
