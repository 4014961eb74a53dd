"""Everything that a report page shows, gathered from finished run folders. The page computes nothing."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from efface.audit.embedding import EmbeddingMap
from efface.audit.finding import Finding
from efface.audit.verdict import Outcome
from efface.run.cost import Cost
from efface.run.record import Curve, Example, RunRecord


class Reading(BaseModel):
    """One kind of prompt through the layers (suite in-context)."""

    n: int
    skipped: int
    curves: dict[str, list[float]] = Field(default_factory=dict, description="[L+1] means over the prompts")
    shares: dict[str, float | None] = Field(default_factory=dict)


class LayerSet(BaseModel):
    """One set of facts: what stood in its tags, and the readings by kind of prompt."""

    rule: str
    layers: dict[str, Reading] = Field(default_factory=dict)


LayerSets = dict[str, LayerSet]


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
    layers: dict[str, LayerSets] = Field(default_factory=dict, description="role -> set -> kind of prompt -> reading")

    embedding: dict[str, EmbeddingMap] = Field(default_factory=dict, description="role -> map of the feature space")

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


__all__ = ["LayerSet", "LayerSets", "MethodResult", "Outcome", "Reading", "ReportData"]
