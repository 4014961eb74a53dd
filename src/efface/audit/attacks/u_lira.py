"""U-LiRA: was this row seen and then unlearned, or never seen?

LiRA with models that were trained with a row and then unlearned it, by the audited method, as its IN side. So it costs that
method once a pipeline. A pipeline is a kept shadow model that is made to forget a random half of the audited rows that it was
trained on, and to retain everything else that it was trained on. Every row is unlearned by a quarter of the pipelines and
never seen by half of them, and one run of 8 pipelines serves all rows: 8 times the method's own cost on half of the data.

Two comparisons, each with its own OUT side; 0.5 is perfect for both:

- `forget_against_holdout`: forget rows against holdout rows, both under the audited model. OUT are the pipelines that never
  saw the row, unlearned like the others: what unlearning does to rows that it should not touch is on both sides.
- `forget_against_retrained`: the forget rows under the audited model against the same rows under the retrained one, the game
  of the paper. OUT are shadow models that never saw the row.

The pipelines' forget sets are random rows. Where a class or a person is to be forgotten, they are not like the request's.

Source: Hayes et al., Inexact unlearning needs more careful evaluations, arXiv 2403.01218. The variance of a side is pooled
over rows, each around its own centre, as LiRA does with few models.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from datasets import ClassLabel, Dataset, Value, concatenate_datasets
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy.stats import norm
from torch import Tensor

from efface.audit.attacks.shadow_attacks import AuditedRows, judged, phi_of
from efface.audit.metrics import lira
from efface.audit.predictions import Predictions
from efface.data.request import Request
from efface.errors import ConfigError, InputError
from efface.run.cost import Cost
from efface.run.digests import digest_value
from efface.run.files import write_with
from efface.run.progress import track
from efface.subjects.predictor import COLUMN, Predictor
from efface.subjects.samples import Sample
from efface.train.model_stack import outputs_of
from efface.train.shadow_models import ShadowModels, put_weights, request_sets

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

PIPELINES = 8

Unlearn = Callable[[Predictor, Request], Mapping[str, Tensor]]
"""(shadow model, what it is to forget and keep) -> weights of the unlearned model, by the names of `Predictor.weights`. The
shadow model may be changed. Its request's holdout are rows of the request's holdout set that it never saw."""


def forget_matrix(keep: Flags, seed: int) -> Flags:
    """[P, n] which pipeline unlearns which row: every other one of those that were trained on it, from a random first one.

    Args:
        keep: [P, n] which pipeline was trained on which row.
    """
    first = np.random.default_rng([seed, 0xF0]).integers(0, 2, keep.shape[1])
    order = np.cumsum(keep, axis=0) + first  # counts the pipelines that hold the row
    found: Flags = keep & (order % 2 == 0)
    return found


def pipelines(
    subject: Predictor, request: Request, rows: AuditedRows, shadows: ShadowModels, unlearn: Unlearn, *,
    count: int = PIPELINES, key: str | None = None, seed: int = 0, cost: Cost | None = None,
) -> tuple[Floats, Flags]:  # fmt: skip
    """Make shadow models forget random halves of the audited rows.

    Args:
        subject: any predictor of the audited form.
        request: whose forget and holdout rows are audited.
        rows: of the request.
        shadows: with kept weights (`weights=True`), `count` or more.
        unlearn: the audited method with its settings.
        count: a multiple of four, eight or more.
        key: names method and settings; with it, results are kept beside the shadow models and used again.
        seed: of the forget sets.
        cost: record to add items to.

    Returns:
        [P, n, K] what the unlearned models say about the rows, and [P, n] which of them each was made to forget.

    Raises:
        ConfigError: a wrong number of pipelines.
        InputError: fewer shadow models, or none with weights.
        ModelError: `unlearn` gave weights of another form.
    """
    if count < 8 or count % 4:
        raise ConfigError(f"{count} pipelines", "a multiple of 4 from 8 on", "with 8, two of them unlearn each row")
    if count > len(shadows):
        raise InputError(f"{count} pipelines and {len(shadows)} shadow models", "as many models", "train more")
    distinct, place = np.unique(rows.columns, return_inverse=True)  # equal rows go together
    told = forget_matrix(shadows.keep[:count, distinct], seed)
    pool = _Pool(subject, request, shadows)
    found = []
    with track("U-LiRA pipelines", count) as advance:
        for index in range(count):
            chosen = distinct[told[index]]
            path = None if key is None else _path(shadows, index, chosen, distinct, key)
            said = _read(path)
            if said is None:
                model = shadows.predictor(index, subject)
                put_weights(model, unlearn(model, pool.request(index, chosen)))
                said = outputs_of(subject, model.model, [pool.rows[column] for column in distinct])
                if path is not None:
                    write_with(path, functools.partial(save_file, {"logits": said.contiguous()}))
                if cost is not None:
                    cost.items += int(shadows.keep[index].sum())
            found.append(said.double().numpy()[place])
            advance(1)
    return np.stack(found), told[:, place]


def unlearning_attack(
    subject: Predictor, request: Request, rows: AuditedRows, tables: Mapping[str, Mapping[str, Predictions]],
    shadows: ShadowModels, unlearn: Unlearn, *, count: int = PIPELINES, key: str | None = None, seed: int = 0,
    cost: Cost | None = None,
) -> dict[str, Any]:  # fmt: skip
    """U-LiRA on one model; see the module. Arguments and errors as `pipelines`.

    Args:
        tables: by role, `unlearned` and, where there is one, `retrained`: what it says about `forget` and `holdout`.

    Returns:
        JSON values: `forget_against_holdout` and, with a retrained model, `forget_against_retrained`, each as
        `shadow_attacks.judged` says.
    """
    audited = phi_of(rows.outputs(tables["unlearned"]), rows.targets, shadows.task)
    said, told = pipelines(subject, request, rows, shadows, unlearn, count=count, key=key, seed=seed, cost=cost)
    after, kept = phi_of(said, rows.targets, shadows.task), shadows.keep[:, rows.columns]
    score = ratio(audited, (after, told), (after, ~kept[:count]))
    found: dict[str, Any] = {
        "forget_against_holdout": judged(score[rows.member], score[~rows.member], seed=seed), "pipelines": count,
        "notes": list(shadows.notes),
    }  # fmt: skip
    if "retrained" in tables:
        other = phi_of(rows.outputs(tables["retrained"]), rows.targets, shadows.task)
        never = (phi_of(shadows.logits[:, rows.columns], rows.targets, shadows.task), ~kept)
        pair = [ratio(phi, (after, told), never)[rows.member] for phi in (audited, other)]
        found["forget_against_retrained"] = judged(*pair, seed=seed)
    return found


def ratio(phi: Floats, unlearned: tuple[Floats, Flags], never_seen: tuple[Floats, Flags]) -> Floats:
    """[n] log N(phi; unlearned) - log N(phi; never seen).

    Args:
        phi: [n] under the audited model.
        unlearned, never_seen: phi under models [P, n], and which of them count for which row [P, n]; the two sides may come
            from different models.
    """
    sides = [
        lira.side(table, chosen, name, len(table) < lira.FEW_SHADOWS, "mean")
        for name, (table, chosen) in (("unlearned", unlearned), ("never seen", never_seen))
    ]
    inside, outside = (norm.logpdf(phi, side.centre, side.std) for side in sides)
    return np.asarray(inside - outside, dtype=np.float64)


class _Pool:
    """The candidates of the shadow models as rows of a data set: what a pipeline's request is made of."""

    def __init__(self, subject: Predictor, request: Request, shadows: ShadowModels) -> None:
        self.keep = shadows.keep
        self.rows: dict[int, Sample] = {}
        content = COLUMN[subject.modality]
        parts, columns, targets, at = [], [], [], 0
        shape = request.forget.select_columns(["id", content]).features
        self.place: dict[int, int] = {}
        for name, data in request_sets(request).items():
            encoded = subject.encode_rows(data, name=name)
            for index, (column, row) in enumerate(zip(shadows.columns(encoded).tolist(), encoded, strict=True)):
                self.place.setdefault(column, at + index)
                self.rows.setdefault(column, row)
                if name == "holdout":
                    columns.append(column)
            shown = data.select_columns(["id", content])
            parts.append(shown if shown.features == shape else shown.cast(shape))
            targets += [row.target for row in encoded]
            at += len(data)
        self.holdout = np.unique(columns)
        answer, kind = (
            ("label", ClassLabel(names=list(subject.labels))) if subject.labels else ("target", Value("float64"))
        )
        self.data: Dataset = concatenate_datasets(parts).add_column(answer, targets, feature=kind)

    def request(self, index: int, chosen: Integers) -> Request:
        """What pipeline `index` is to forget (the chosen candidates) and to keep (its other ones).

        An input that is to be forgotten with one label is not retained with another.
        """
        own = np.flatnonzero(self.keep[index])
        forget = self._inputs(chosen)
        retain = [column for column in np.setdiff1d(own, chosen).tolist() if self.rows[column].key not in forget]
        seen = forget | self._inputs(own)
        unseen = [column for column in self.holdout.tolist() if self.rows[column].key not in seen]
        return Request(
            forget=self._select(chosen.tolist()), retain=self._select(retain) if retain else None,
            holdout=self._select(unseen) if unseen else None,
        )  # fmt: skip

    def _inputs(self, columns: Integers) -> set[str]:
        return {self.rows[column].key for column in columns.tolist()}

    def _select(self, columns: list[int]) -> Dataset:
        return self.data.select([self.place[column] for column in columns])


def _path(shadows: ShadowModels, index: int, chosen: Integers, distinct: Integers, key: str) -> Path:
    name = digest_value({"pipeline": index, "forget": chosen.tolist(), "rows": distinct.tolist(), "method": key})
    return shadows.folder / "unlearned" / f"{name.removeprefix('sha256:')[:32]}.safetensors"


def _read(path: Path | None) -> torch.Tensor | None:
    """What is kept of a pipeline; a damaged file counts as absent."""
    if path is None or not path.exists():
        return None
    try:
        found: torch.Tensor = load_file(path)["logits"]
    except SafetensorError:
        path.unlink(missing_ok=True)
        return None
    return found


__all__ = ["PIPELINES", "Unlearn", "forget_matrix", "pipelines", "ratio", "unlearning_attack"]
