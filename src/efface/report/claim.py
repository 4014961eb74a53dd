"""What a certificate may claim: the level, and the one line that must stand first.

A level is never higher than the method's card allows, and an audit can only lower it. Where the audit
contradicts the claim, the first line says so before it says anything else.
"""

from __future__ import annotations

from typing import Any

from efface.errors import RunError, nearest
from efface.report.data import Outcome
from efface.run.record import RunRecord

MEANINGS: dict[str, str] = {
    "exact": "The affected parts were trained again without the data. The result is what training without "
    "the data would have given; no statistical argument is needed.",
    "certified": "A mathematical bound limits how far the result can be from a model trained again without "
    "the data, under the assumptions that the method states.",
    "empirical": "There is no guarantee. The claim rests on the tests listed in this certificate and reaches "
    "as far as they do.",
    "suppressed": "The knowledge is kept from being said, but it was not removed: whoever holds the model "
    "can bring it back.",
}
"""Every level, highest first, with the sentence that explains it."""

LEVELS = tuple(MEANINGS)

_FIRST: dict[str, str] = {
    "exact": "Exact: the affected parts were trained again without the data.",
    "certified": "Certified: under the method's stated assumptions a bound limits what is left of the data.",
    "empirical": "Empirical: the listed tests could not tell the result from a model that never saw the "
    "data. There is no guarantee.",
    "suppressed": "Suppressed: the knowledge is kept from being said, but it was not removed.",
}

_CONTRADICTED: dict[str, str] = {
    "not forgotten": "Not forgotten: the model still gives what it was asked to forget. No deletion is claimed.",
    "damaged": "Damaged: the model lost more than it was asked to forget. What it no longer says may simply be broken.",
    "suppressed": "Suppressed: at least one test brought the knowledge back. It is hidden, not removed.",
}
"""Outcomes that the first line must begin with, whatever the method claims."""

_NOT_JUDGED = "Not judged: the tests that a verdict needs were not run."
_OUTCOMES = (*_CONTRADICTED, "removal-consistent", "not judged")


def lowest(levels: list[str]) -> str:
    """The weakest of several levels.

    Raises:
        RunError: an unknown level.
    """
    for level in levels:
        if level not in MEANINGS:
            raise RunError(f"unknown claim level '{level}'", None, nearest(level, LEVELS))
    return max(levels, key=LEVELS.index)


def _limits(run: RunRecord, outcome: Outcome, ceiling: str | None) -> list[tuple[str, str]]:
    """Every upper limit of the level, with its reason."""
    limits = [(run.claim, "the run's record states this level for the method")]
    if ceiling is not None:
        limits.append((ceiling, "the method's card allows no higher level"))
    if run.edit is not None and (run.edit.tensors == 0 or run.edit.edited_digest == run.edit.base_digest):
        limits.append(("suppressed", "the edit acts at inference: no weight differs from the model before"))
    if run.intention == "suppression":
        limits.append(("suppressed", "the method declares that it suppresses"))
    if outcome.word == "suppressed":
        limits.append(("suppressed", "the audit found suppression"))
    return limits


def claim_of(run: RunRecord, outcome: Outcome, ceiling: str | None = None) -> dict[str, Any]:
    """The claim of one run.

    Args:
        run: its record.
        outcome: the audit's conclusion.
        ceiling: the level on the method's card, where it was looked up.

    Returns:
        `first_line`, `guarantee` (what an exact or certified claim rests on), `level`, `limits` (why not higher), `meaning`
        and `outcome`, in this order, which is the canonical order too.

    Raises:
        RunError: unknown level or outcome.
    """
    if outcome.word not in _OUTCOMES:
        raise RunError(f"unknown outcome '{outcome.word}'", None, nearest(outcome.word, _OUTCOMES))
    limits = _limits(run, outcome, ceiling)
    level = lowest([limit for limit, _ in limits])
    if outcome.word in _CONTRADICTED:
        first = _CONTRADICTED[outcome.word]
        if level != outcome.word:
            first += f" (The method's level is {level}; the audit contradicts it.)"
    elif outcome.word == "not judged":
        first = f"{_NOT_JUDGED} {'Nothing is shown.' if level == 'empirical' else _FIRST[level]}"
    else:
        first = _FIRST[level]
    if level in ("exact", "certified") and run.guarantee:
        first += f" {run.guarantee[0][:1].upper()}{run.guarantee[0][1:]}."
    return {
        "first_line": first,
        "guarantee": run.guarantee if level in ("exact", "certified") else [],
        "level": level,
        "limits": [reason for limit, reason in limits if limit == level],
        "meaning": MEANINGS[level],
        "outcome": outcome.word,
    }


def joint_claim(claims: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The claim over several runs: each in its own words, and the weakest level for the whole.

    Args:
        claims: label to `claim_of`; at least one.
    """
    if len(claims) == 1:
        return next(iter(claims.values()))
    level = lowest([claim["level"] for claim in claims.values()])
    lines = " ".join(f"[{label}] {claim['first_line']}" for label, claim in claims.items())
    return {
        "first_line": f"{len(claims)} methods, one claim for each. {lines}",
        "guarantee": [f"[{label}] {line}" for label, claim in claims.items() for line in claim["guarantee"]],
        "level": level,
        "limits": ["the lowest level of the methods below stands for the whole"],
        "meaning": MEANINGS[level],
        "outcome": {label: claim["outcome"] for label, claim in claims.items()},
    }
