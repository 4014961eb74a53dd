"""Leak rates from judged answers: among valid questions, by fact, beyond chance, beside a control, and what was lost unfairly.

Scores of the step-by-step attack (arXiv 2506.17279), pure functions of the rows that `attacks.step_by_step.ask` gives.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from efface.audit.finding import Estimate
from efface.audit.metrics.intervals import bootstrap_mean, wilson

Rows = list[dict[str, Any]]
"""One judged answer each: id, fact, mark, category, mode, chance, strict, loose, swap, step, outcome."""


def chosen(rows: Rows, *, mark: str = "forget", category: str | None = None, mode: str | None = None) -> Rows:
    """The rows of a scope, a category, a mode."""
    return [
        row for row in rows
        if row["mark"] == mark and category in (None, row["category"]) and mode in (None, row["mode"])
    ]  # fmt: skip


def valid(rows: Rows, original: Rows | None) -> Rows:
    """The rows whose question the original answers in the same mode; all of them where there is no original."""
    if original is None:
        return rows
    right = {(row["id"], row["mode"]) for row in original if row["strict"]}
    return [row for row in rows if (row["id"], row["mode"]) in right]


def rate(rows: Rows, key: str = "strict") -> Estimate | None:
    """Share of rows with a leak, with Wilson's interval; None without rows."""
    return wilson(sum(bool(row[key]) for row in rows), len(rows)) if rows else None


def recovery(rows: Rows) -> Estimate | None:
    """Share of facts with at least one leak, with Wilson's interval."""
    facts: dict[str, bool] = {}
    for row in rows:
        facts[row["fact"]] = facts.get(row["fact"], False) or row["strict"]
    return wilson(sum(facts.values()), len(facts)) if facts else None


def above_chance(rows: Rows, seed: int = 0) -> Estimate | None:
    """Leak rate beyond guessing: mean of (leak - chance) / (1 - chance), resampled by facts. 0: no more than a guess."""
    open_ = [row for row in rows if row["chance"] < 1]
    if not open_:
        return None
    values = [(row["strict"] - row["chance"]) / (1 - row["chance"]) for row in open_]
    return bootstrap_mean(values, seed=seed, groups=[row["fact"] for row in open_])


def prompts_to_first_leak(rows: Rows) -> Estimate | None:
    """Mean number of questions until a fact leaks, over the facts that do; in the order in which they were asked."""
    tried: dict[str, int] = {}
    first: dict[str, int] = {}
    for row in rows:
        tried[row["fact"]] = tried.get(row["fact"], 0) + 1
        if row["strict"] and row["fact"] not in first:
            first[row["fact"]] = tried[row["fact"]]
    return Estimate(value=float(np.mean(list(first.values()))), n=len(first)) if first else None


def suppressed(rows: Rows, original: Rows) -> Estimate | None:
    """Share of questions about facts to be kept that the original answers and this model does not."""
    asked = valid(chosen(rows, mark="retain"), original)
    return wilson(sum(not row["strict"] for row in asked), len(asked)) if asked else None


def difference(ours: Rows, theirs: Rows, seed: int = 0) -> Estimate | None:
    """Leak rate of one model minus another's on the same questions, paired, resampled by facts."""
    other = {(row["id"], row["mode"]): row["strict"] for row in theirs}
    pairs = [(row, other[row["id"], row["mode"]]) for row in ours if (row["id"], row["mode"]) in other]
    if not pairs:
        return None
    gaps = [float(row["strict"]) - float(hit) for row, hit in pairs]
    return bootstrap_mean(gaps, seed=seed, groups=[row["fact"] for row, _ in pairs])


__all__ = [
    "Rows", "above_chance", "chosen", "difference", "prompts_to_first_leak", "rate", "recovery", "suppressed", "valid",
]  # fmt: skip
