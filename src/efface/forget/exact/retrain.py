"""Retraining without the forget set: exact by construction, and the reference for everything else.

As in TOFU (arXiv 2401.06121): the retain model is trained from the same base checkpoint on the retain set only. Without
a base checkpoint the architecture is trained from a fresh initialisation. Exactness needs that nothing else saw the
forget set: not the base checkpoint, not the choice of epochs. The tokenizer stays the subject's.
"""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field, field_validator

from efface.catalog import Card, Taxonomy
from efface.data.request import Request
from efface.errors import ModelError
from efface.forget.method import FitConfig, Fitted, Method, train_edit
from efface.subjects.learner import Learner
from efface.subjects.load import load
from efface.subjects.subject import Subject
from efface.train.engine import isolated_rng
from efface.train.supervised import answer_loss, supervised_schedule

CARD = Card(
    name="retrain",
    system="tofu",
    title="Retraining",
    summary="Trains the model anew on what is to be kept: the exact deletion that other methods approximate.",
    paper="Maini et al., TOFU, arXiv 2401.06121 (the retain model)",
    verb="forget",
    mechanism="exact",
    modalities=("any",),
    subjects=("causal-lm", "classifier", "regressor"),
    needs=("forget", "retain", "gradients"),
    claims="exact",
    taxonomy=Taxonomy(
        intention="removal", mechanism="retraining_exact", survey_class="parameter_optimisation", level="weights_all",
        threat_model="weight holder",
    ),
    defaults_source="TOFU: learning rate 1e-5, weight decay 0.01, 5 epochs, batch 32, one epoch of warm-up",
)  # fmt: skip


class RetrainConfig(FitConfig):
    """TOFU's fine-tuning, from a base checkpoint or from scratch."""

    base_model: str | None = Field(
        None, description="checkpoint from before the forget set was learnt; none: fresh weights"
    )
    epochs: float = Field(5, gt=0, description="TOFU: 5")
    warmup_ratio: float = Field(0.2, ge=0, le=1, description="TOFU: one epoch of five")

    @field_validator("scope")
    @classmethod
    def _everything(cls, value: str) -> str:
        if value != "all":
            raise ValueError("retraining moves every weight: scope all")
        return value


class Retrain(Method):
    """See the module."""

    card = CARD
    config_class = RetrainConfig

    def fit(self, subject: Learner, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """See `Method.fit`."""
        assert isinstance(config, RetrainConfig)
        self.check(request, config)
        assert request.retain is not None
        rows = subject.encode_rows(request.retain, name="retain")
        return train_edit(
            self, subject, supervised_schedule(rows, config), answer_loss, config, work=work, out=out,
            restart=lambda: self._restart(subject, config),
        )  # fmt: skip

    def _restart(self, subject: Learner, config: RetrainConfig) -> None:
        """Put the starting weights into the subject: the base checkpoint's, or fresh ones."""
        if config.base_model is not None:
            source = load(config.base_model, subject.kind, dtype=str(subject.dtype).removeprefix("torch.")).weights()
        else:
            with isolated_rng(config.seed):
                source = Subject(subject.fresh()).weights()
        live = subject.weights()
        if {name: t.shape for name, t in live.items()} != {name: t.shape for name, t in source.items()}:
            raise ModelError(
                f"base_model='{config.base_model}' has other tensors than the model", "the same architecture",
                "give the checkpoint that the model was fine-tuned from",
            )  # fmt: skip
        with torch.no_grad():
            for name, tensor in live.items():
                tensor.copy_(source[name])
        subject.changed()


METHOD = Retrain()
