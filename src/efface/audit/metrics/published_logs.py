"""Evaluation logs that others publish for TOFU, read into arrays from which `tofu.py` computes both scores.

Two layouts are known: the official code's `eval_log_aggregated.json` (four files, each metric -> index ->
value) and open-unlearning's `TOFU_EVAL.json` (each metric -> `value_by_index` -> index -> record). Only
losses and ROUGE are taken: the official log stores R as `truth_ratio` while its aggregation script works
with 1/R, and open-unlearning's stored scores carry an offset, so the ratio is computed here from the losses.
Rows are keyed by index, never by the order in the file. The official code evaluates the first 300 rows of a
set, open-unlearning all of them: forget quality of one against the other is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from efface.audit.metrics import tofu
from efface.errors import RunError

Floats = npt.NDArray[np.float64]
Layout = Literal["tofu", "open-unlearning"]
Rows = dict[str, Any]

UTILITY_SETS = ("retain", "real_authors", "world_facts")
WITH_OPTIONS = ("real_authors", "world_facts")
FIELDS = ("answer_logp", "correct_logp", "wrong_logp", "rouge_recall")

_OFFICIAL_FILES = {
    "forget": "eval_log_forget.json",
    "retain": "eval_log.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
}
_OFFICIAL_METRICS = ("avg_gt_loss", "avg_paraphrased_loss", "average_perturb_loss", "rougeL_recall")
_OPEN_METRICS = {  # set -> (metric, record key) in the order of FIELDS
    name: (
        (f"{short}_Q_A_Prob", "avg_loss"),
        (f"{short}_Q_A_PARA_Prob" if paraphrased else f"{short}_Q_A_Prob", "avg_loss"),
        (f"{short}_Q_A_PERT_Prob", "avg_loss"),
        (f"{short}_Q_A_ROUGE", "rougeL_recall"),
    )
    for name, short, paraphrased in (
        ("forget", "forget", True),
        ("retain", "retain", True),
        ("real_authors", "ra", False),
        ("world_facts", "wf", False),
    )
}


@dataclass(frozen=True)
class PublishedSet:
    """One evaluation set: rows `ids` (indices as text, in numeric order); a field is None where the log
    lacks it.

    Log-probabilities are means per token in nats. `correct_logp` is the paraphrase's (the answer's for real
    authors and world facts). `dropped` names the rows with a null in some field.
    """

    name: str
    ids: tuple[str, ...]
    answer_logp: Floats | None  # [N]
    correct_logp: Floats | None  # [N]
    wrong_logp: Floats | None  # [N, K]
    rouge_recall: Floats | None  # [N] ROUGE-L recall
    dropped: tuple[str, ...] = ()

    def need(self, field: str) -> Floats:
        """A field that must be there.

        Raises:
            RunError: the log does not have it.
        """
        value: Floats | None = getattr(self, field)
        if value is None:
            raise RunError(f"the log's set '{self.name}' has no {field}", "a log with that metric", "evaluate it again")
        return value

    def truth_ratio(self, *, mean: tofu.Mean = "geometric") -> tofu.TruthRatio:
        """The set's truth ratio. Raises RunError when the log lacks the losses."""
        ratio = tofu.log_truth_ratio(self.need("correct_logp"), list(self.need("wrong_logp")), mean=mean)
        return tofu.TruthRatio(self.ids, ratio, mean)

    def utility_rows(self) -> tofu.UtilityRows:
        """The set's rows of model utility. Raises RunError when the log lacks a metric."""
        answer = self.need("answer_logp")
        if self.name in WITH_OPTIONS:
            values = tofu.probability_with_options(answer, list(self.need("wrong_logp")))
        else:
            values = tofu.probability(answer)
        ratio = tofu.true_better_rows(self.truth_ratio().log_ratio)
        return tofu.UtilityRows(values, self.need("rouge_recall"), ratio)


@dataclass(frozen=True)
class PublishedLog:
    """One model's log; `sets` holds those of forget, retain, real_authors and world_facts that it has."""

    source: str
    layout: Layout
    sets: Mapping[str, PublishedSet]

    def select(self, name: str) -> PublishedSet:
        """One set. Raises RunError when the log does not have it."""
        if name not in self.sets:
            raise RunError(f"{self.source} has no '{name}' set", f"one of {sorted(self.sets)}", "use a complete log")
        return self.sets[name]

    def model_utility(self, *, seed: int = 0) -> tofu.ModelUtility:
        """Model utility with its nine parts. Raises RunError when a set or metric is missing."""
        return tofu.model_utility({name: self.select(name).utility_rows() for name in UTILITY_SETS}, seed=seed)

    def forget_quality(self, retrained: PublishedLog, *, seed: int = 0) -> tofu.ForgetQuality:
        """Forget quality against the retrained model's log. Raises RunError when the rows differ."""
        ours, theirs = self.select("forget").truth_ratio(), retrained.select("forget").truth_ratio()
        return tofu.forget_quality(ours, theirs, seed=seed)


def read_published_log(path: Path) -> PublishedLog:
    """Read a published evaluation log of either layout.

    Raises:
        RunError: no such file, not JSON, an unknown layout, or values that do not fit it.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}", "a JSON evaluation log", "check the path") from error
    except ValueError as error:
        raise RunError(
            f"{path} is not JSON: {error}",
            "eval_log_aggregated.json or TOFU_EVAL.json",
            "fetch the file again",
        ) from error
    return parse_published_log(document, source=str(path))


def parse_published_log(document: object, *, source: str) -> PublishedLog:
    """The log in a parsed JSON document; `source` names it in errors.

    Raises:
        RunError: an unknown layout, or values that do not fit it.
    """
    if isinstance(document, dict) and any(file in document for file in _OFFICIAL_FILES.values()):
        layout: Layout = "tofu"
        raw = _official(document, source)
    elif isinstance(document, dict) and any(
        isinstance(value, dict) and "value_by_index" in value for value in document.values()
    ):
        layout = "open-unlearning"
        raw = _open_unlearning(document, source)
    else:
        found = f"the keys {sorted(document)[:4]}" if isinstance(document, dict) else f"a {type(document).__name__}"
        raise RunError(
            f"{source} holds {found}",
            "the files of eval_log_aggregated.json or the metrics of TOFU_EVAL.json",
            "pass the log with per-question values, not the summary",
        )
    sets = {name: _build(name, fields, source) for name, fields in raw.items() if fields}
    if not sets:
        raise RunError(f"{source} has no TOFU metric", "losses or ROUGE of one set at least", "evaluate it again")
    return PublishedLog(source, layout, sets)


def _official(document: dict[str, Any], source: str) -> dict[str, dict[str, Rows]]:
    sets: dict[str, dict[str, Rows]] = {}
    for name, file in _OFFICIAL_FILES.items():
        if file not in document:
            continue
        metrics = _mapping(document[file], f"{source}: {file}")
        sets[name] = {
            field: _mapping(metrics[metric], f"{source}: {file}: {metric}")
            for field, metric in zip(FIELDS, _OFFICIAL_METRICS, strict=True)
            if metric in metrics
        }
    return sets


def _open_unlearning(document: dict[str, Any], source: str) -> dict[str, dict[str, Rows]]:
    sets: dict[str, dict[str, Rows]] = {}
    for name, metrics in _OPEN_METRICS.items():
        sets[name] = {}
        for field, (metric, key) in zip(FIELDS, metrics, strict=True):
            if metric not in document:
                continue
            where = f"{source}: {metric}"
            records = _mapping(_mapping(document[metric], where).get("value_by_index"), f"{where}: value_by_index")
            sets[name][field] = {
                index: None if record is None else _mapping(record, f"{where}: row {index}").get(key)
                for index, record in records.items()
            }
    return sets


def _build(name: str, fields: dict[str, Rows], source: str) -> PublishedSet:
    """Check one set's rows, drop those with a null, and put them in numeric order of their index."""
    first, *rest = fields
    for field in rest:
        if stray := sorted(fields[field].keys() ^ fields[first].keys()):
            raise RunError(
                f"{source}: row {stray[0]} of '{name}' has only one of {first} and {field}",
                "the same rows in every metric",
                "evaluate every metric on the same data",
            )
    values = {
        field: {
            index: _numbers(value, field, f"{source}: '{name}' {field} row {index}") for index, value in rows.items()
        }
        for field, rows in fields.items()
    }
    indices = sorted(fields[first], key=lambda index: (0, int(index), "") if index.isdigit() else (1, 0, index))
    dropped = tuple(index for index in indices if any(rows[index] is None for rows in values.values()))
    kept = [index for index in indices if index not in set(dropped)]
    if not kept:
        raise RunError(f"{source}: '{name}' has no complete row", "one row or more", "fetch the log again")
    arrays: dict[str, Floats] = {}
    for field, rows in values.items():
        lists = [rows[index] or [] for index in kept]
        if len({len(row) for row in lists}) != 1 or (field != "wrong_logp" and len(lists[0]) != 1):
            raise RunError(f"{source}: rows of '{name}' {field} differ in length", "as many values in every row")
        table = np.array(lists, dtype=np.float64) * (1.0 if field == "rouge_recall" else -1.0)
        arrays[field] = table if field == "wrong_logp" else table[:, 0]
    return PublishedSet(
        name=name,
        ids=tuple(kept),
        answer_logp=arrays.get("answer_logp"),
        correct_logp=arrays.get("correct_logp"),
        wrong_logp=arrays.get("wrong_logp"),
        rouge_recall=arrays.get("rouge_recall"),
        dropped=dropped,
    )


def _numbers(value: object, field: str, where: str) -> list[float] | None:
    """A number or a list of them as a list; None where one is null or NaN (a row without answer tokens)."""
    items = value if isinstance(value, list) else [value]
    numbers: list[float] = []
    for item in items:
        if item is None or (isinstance(item, float) and math.isnan(item)):
            return None
        if isinstance(item, bool) or not isinstance(item, int | float) or math.isinf(item):
            raise RunError(f"{where} is {item!r}", "a finite number")
        if item < -1e-6 or (field == "rouge_recall" and item > 1 + 1e-6):
            raise RunError(f"{where} is {item!r}", "a loss of 0 or more, a recall in [0, 1]", "check the log's signs")
        numbers.append(float(item))
    if not numbers:
        raise RunError(f"{where} is empty", "one value or more")
    return numbers


def _mapping(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        raise RunError(f"{where} is {type(value).__name__ if not isinstance(value, dict) else 'empty'}",
                       "a JSON object with one entry a row or metric", "fetch the log again")  # fmt: skip
    return value
