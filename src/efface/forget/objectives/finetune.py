"""Fine-tuning on the retain set alone: hope that what is not repeated fades. A baseline, and usually a weak one.

Paper: the standard baseline of machine unlearning (Golatkar et al., arXiv 1911.04933; Jia et al., arXiv 2304.04934).
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from efface.catalog import Card, Taxonomy
from efface.data.request import Request
from efface.forget.method import FitConfig, Fitted, Method, train_edit
from efface.subjects.learner import Learner
from efface.train.mask_selectors import MaskRows
from efface.train.supervised import answer_loss, supervised_schedule

CARD = Card(
    name="finetune",
    system="tofu",
    title="Fine-tuning on the retain set",
    summary="Trains on without the forget set and hopes that it fades; the weakest baseline.",
    paper="Golatkar et al., Eternal sunshine of the spotless net, arXiv 1911.04933 (2020)",
    verb="forget",
    mechanism="objectives",
    modalities=("any",),
    subjects=("causal-lm", "classifier", "regressor"),
    needs=("forget", "retain", "gradients"),
    claims="empirical",
    taxonomy=Taxonomy(
        intention="removal", mechanism="control", survey_class="parameter_optimisation", level="weights_all",
        threat_model="API user",
    ),
    defaults_source="TOFU's fine-tuning: learning rate 1e-5, weight decay 0.01, 5 epochs, batch 32",
)  # fmt: skip


class FinetuneConfig(FitConfig):
    """TOFU's fine-tuning on the retain set."""

    epochs: float = Field(5, gt=0, description="passes over the retain set; TOFU: 5")


class Finetune(Method):
    """See the module."""

    card = CARD
    config_class = FinetuneConfig

    def fit(self, subject: Learner, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """See `Method.fit`."""
        self.check(request, config)
        assert request.retain is not None
        rows = subject.encode_rows(request.retain, name="retain")
        return train_edit(
            self, subject, supervised_schedule(rows, config), answer_loss, config, work=work, out=out,
            mask_rows=MaskRows(subject.encode_rows(request.forget, name="forget"), rows),
        )  # fmt: skip


METHOD = Finetune()
