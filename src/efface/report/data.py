"""Everything that a report page shows, gathered from finished run folders. The page computes nothing."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from efface.audit.finding import Finding
from efface.audit.verdict import Outcome
from efface.run.cost import Cost
from efface.run.record import Curve, Example, RunRecord


class MethodResult(BaseModel):
    """One audited run."""

    model_config = ConfigDict(extra="forbid")

    label: str
    run: RunRecord
    outcome: Outcome
    findings: list[Finding]
    costs: list[Cost]
    relearning: list[Curve] = Field(default_factory=list)
    quantisation: list[Finding] = Field(default_factory=list)
    examples: list[Example] = Field(default_factory=list)

    def finding(self, metric: str) -> Finding | None:
        """The finding of that machine name, if there."""
        return next((row for row in self.findings if row.metric == metric), None)


class ReportData(BaseModel):
    """One page: a single run, or several methods side by side (the demo, a comparison)."""

    model_config = ConfigDict(extra="forbid")

    title: str
    story: str = Field("", description="one paragraph: what this is about, in plain words")
    created: str
    results: list[MethodResult]
    shared_costs: list[Cost] = Field(default_factory=list, description="training of original and retrained models")
    not_tested: list[str] = Field(default_factory=list)
    certificate: str | None = Field(None, description="digest of the certificate's statement, where there is one")


__all__ = ["MethodResult", "Outcome", "ReportData"]
