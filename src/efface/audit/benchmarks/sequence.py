"""Requests in sequence: what each one forgets, whether it stays forgotten, and what is left of the rest after each.

Sustainability of MUSE (arXiv 2407.06460): deletion requests come one after another, and utility falls with each. The model is
scored after every request on all rows of all requests and on what is to be kept; everything here is read from those tables.
Departure: the share of the original's utility is judged after the last request only; the curve is shown, not judged.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from efface.audit.evidence import Evidence, compare
from efface.audit.finding import Estimate, Finding, Threshold, not_measured
from efface.audit.metrics.intervals import bootstrap_mean
from efface.audit.metrics.tofu import probability
from efface.audit.suite import Suite
from efface.audit.table import ScoreTable
from efface.catalog import Card
from efface.data.joined import request_of

CARD = Card(
    name="sequence",
    system="muse",
    title="Requests in sequence",
    summary="Quality and utility after each of several requests that were forgotten one after another.",
    paper="Shi et al., MUSE: machine unlearning six-way evaluation for language models, arXiv 2407.06460 (ICLR 2025)",
    verb="audit",
    mechanism="benchmarks",
    modalities=("text",),
    subjects=("causal-lm",),
    needs=("forget", "retain"),
    defaults_source="MUSE, sustainability: metrics after each of four folds",
)

Floats = npt.NDArray[np.float64]


def stages(evidence: Evidence) -> list[int]:
    """The numbers of the requests after which the model was scored."""
    names = evidence.tables.get("unlearned", {})
    found = (name.removeprefix("sequence.").split("-")[0] for name in names if name.startswith("sequence."))
    return sorted({int(number) for number in found})


def answers(table: ScoreTable) -> tuple[npt.NDArray[np.int64], Floats]:
    """The request of each row [N], and the probability per token of its answer [N]."""
    scores = table.select("answer")
    return np.array([request_of(identity) for identity in scores.ids]), probability(scores.mean_logp)


def kept(tables: dict[str, ScoreTable]) -> Floats | None:
    """[N] ROUGE-L F1 (stemmer off) of every row that is to be kept; the probability of its text where there is no question."""
    rows: list[float] = []
    for name in sorted(tables):
        table = tables[name]
        if table.generations is not None:
            rows += table.generated("rougeL_f1_unstemmed")
        else:
            rows += probability(table.select("answer").mean_logp).tolist()
    return np.array(rows) if rows else None


def findings(evidence: Evidence) -> list[Finding]:
    """After each request: its own answers, those of all so far, those of the ones before it, and utility."""
    numbers = stages(evidence)
    if not numbers:
        return [not_measured(
            "sequence/utility", "Requests in sequence", "Quality and utility after each request.", "utility",
            "the run has one request (--forget given once)",
        )]  # fmt: skip
    return [row for number in numbers for row in _after(evidence, number, numbers)]


def _after(evidence: Evidence, number: int, numbers: list[int]) -> list[Finding]:
    seed = evidence.config.seed
    stage = evidence.tables["unlearned"][f"sequence.{number}-forget"]

    def asked(chosen: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.bool_]]) -> Callable[[str], Estimate | None]:
        def value(role: str) -> Estimate | None:
            table = stage if role == "unlearned" else evidence.table(role, "forget")
            if table is None:
                return None
            requests, values = answers(table)
            return bootstrap_mean(values[chosen(requests)], seed=seed)

        return value

    def returned(role: str) -> Estimate | None:
        if role != "unlearned":
            return None
        requests, values = answers(stage)
        parts = []
        for earlier in range(1, number):
            _, then = answers(evidence.tables["unlearned"][f"sequence.{earlier}-forget"])
            parts.append(values[requests == earlier] - then[requests == earlier])
        return bootstrap_mean(np.concatenate(parts), seed=seed)

    def utility(role: str) -> Estimate | None:
        prefix = f"sequence.{number}-" if role == "unlearned" else ""
        own = {name.removeprefix(prefix): table for name, table in evidence.tables.get(role, {}).items()
               if name.startswith(prefix) and "." not in name.removeprefix(prefix)}  # fmt: skip
        values = kept({name: table for name, table in own.items() if name not in ("forget", "holdout")})
        return None if values is None else bootstrap_mean(values, seed=seed)

    last = number == numbers[-1]
    share = Threshold(quantity="ratio", relation=">=", bound=evidence.config.thresholds.utility_share)
    found = [
        compare(evidence, f"sequence/forgotten/{number}", f"Request {number}, right after it",
                "Mean probability per token of the answers that this request asked to forget.",
                "forgetting", "retrained", asked(lambda requests: requests == number)),
        compare(evidence, f"sequence/utility/{number}", f"Utility after request {number}",
                "Mean ROUGE-L F1 of the answers that are to be kept.",
                "utility", "higher", utility, threshold=share if last else None, reason="no retain set was given"),
    ]  # fmt: skip
    if number > 1:
        found += [
            compare(evidence, f"sequence/so_far/{number}", f"All requests up to {number}",
                    "Mean probability per token of all answers that were to be forgotten by then.",
                    "forgetting", "retrained", asked(lambda requests: requests <= number)),
            compare(evidence, f"sequence/returned/{number}", f"Earlier requests after request {number}",
                    "Mean change of the probability of earlier requests' answers since each was forgotten: above 0, a later "
                    "request brought them back.",
                    "forgetting", "lower", returned),
        ]  # fmt: skip
    return found


SUITE = Suite("sequence", lambda _request, _settings: {}, findings)
