"""What a proof is: a published claim as a runnable check, with its baseline, its threshold and its figure.

A proof lives in `efface.proofs.<system>` as `PROOF`. Thresholds are the specification's and stand in the code before any
figure is known; a proof that does not hold is shown as not holding.
"""

from __future__ import annotations

import importlib
import pkgutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from efface.errors import ConfigError, nearest

Relation = Literal[">", ">=", "<", "<=", "==", "reported"]
"""`reported`: a figure that stands beside the checks, without a threshold to hold."""


class Check(BaseModel):
    """One comparison of a proof."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="what is compared")
    figure: float
    relation: Relation
    threshold: float | None = None
    baseline: float | None = Field(None, description="the same figure for the method that must be beaten")
    seeds: tuple[int, ...] = (0,)

    @model_validator(mode="after")
    def _judged_or_reported(self) -> Check:
        if (self.relation == "reported") != (self.threshold is None):
            raise ValueError(f"'{self.name}': a threshold belongs to every relation but 'reported'")
        return self

    @property
    def bound(self) -> str:
        """Relation and threshold in words."""
        return "reported" if self.threshold is None else f"{self.relation} {self.threshold:g}"

    @property
    def holds(self) -> bool:
        """Whether the figure satisfies the threshold; NaN never does. A reported figure has nothing to hold."""
        x, y = self.figure, self.threshold
        if y is None:
            return True
        return {">": x > y, ">=": x >= y, "<": x < y, "<=": x <= y, "==": x == y}[self.relation]


class ProofResult(BaseModel):
    """What a run of a proof gives; the first check is the headline."""

    model_config = ConfigDict(extra="forbid")

    system: str
    claim: str
    figure: float
    baseline: float | None
    threshold: float
    holds: bool
    seconds: float
    checks: list[Check]
    holding: list[bool] = Field(description="verdict of each check, in order")
    note: str = ""


@dataclass(frozen=True)
class Proof:
    """A claim and the function that checks it.

    Args:
        system: the specification's file name.
        claim: the published claim in words.
        checks: runs everything and returns the comparisons, the headline first.
        quick: takes less than a minute on two CPU cores.
        note: what this small scale cannot show.
    """

    system: str
    claim: str
    checks: Callable[[], list[Check]]
    quick: bool = True
    note: str = ""

    def run(self) -> ProofResult:
        """Run the proof."""
        start = time.perf_counter()
        checks = self.checks()
        first = checks[0]
        if first.threshold is None:
            raise ConfigError(f"the proof of '{self.system}' begins with a reported figure", "the headline check first")
        return ProofResult(
            system=self.system, claim=self.claim, figure=first.figure, baseline=first.baseline, threshold=first.threshold,
            holds=all(check.holds for check in checks), seconds=time.perf_counter() - start, checks=checks,
            holding=[check.holds for check in checks], note=self.note,
        )  # fmt: skip


@cache
def proofs() -> dict[str, Proof]:
    """All proofs by system, found by walking the package."""
    package = importlib.import_module("efface.proofs")
    found = {}
    for info in pkgutil.iter_modules(package.__path__, prefix="efface.proofs."):
        proof = getattr(importlib.import_module(info.name), "PROOF", None)
        if isinstance(proof, Proof):
            found[proof.system] = proof
    return dict(sorted(found.items()))


def find_proof(name: str) -> Proof:
    """A proof by its system's name.

    Raises:
        ConfigError: no such proof; suggests the nearest.
    """
    if name not in proofs():
        raise ConfigError(f"no proof of '{name}'", None, nearest(name, proofs()))
    return proofs()[name]
