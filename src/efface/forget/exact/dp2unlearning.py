"""DP2Unlearning: go back to a base that was trained under differential privacy, and fine-tune it on what is kept.

DP2Unlearning, arXiv 2504.13774 (Neural Networks 2025). Prepared beforehand: theta_DP, by DP-SGD on all data D. At a request
the deployed model is dropped, and theta_r = fine-tune(theta_DP, D_r). The fine-tune never sees the deleted rows, so theta_r
is post-processing of an (epsilon, delta)-private release with respect to each of them: k records together get k epsilon.

With `base_model` (a folder by `efface learn dp-base`) the base's own report gives the bound. Without one the base is trained
here, from fresh weights and on the forget and retain rows: the same result at the cost of a training.

Departures from the official code, and why: Poisson samples once, empty ones counted, the expected batch in the denominator
(the code samples twice and skips empty batches, so its accounting is off); a base without a report is refused; so is the
deployed model as a base. The script that makes the paper's private text takes the ten best words of a masked model, with
no bound on how they depend on the data; it is not differentially private and is not offered here, nor is DP-MLM.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator

from efface.catalog import Card, Taxonomy
from efface.data.request import Request
from efface.errors import ModelError
from efface.forget.method import FitConfig, Fitted, Method, train_edit
from efface.subjects.causal_lm import CausalLM, load_causal_lm
from efface.train.engine import isolated_rng
from efface.train.private import PrivacyReport, PrivateConfig, report
from efface.train.private_lm import read_protection, train_privately
from efface.train.supervised import answer_loss, supervised_schedule

CARD = Card(
    name="dp2unlearning",
    system="dp2unlearning",
    title="Fine-tuning a private base",
    summary="Drops the model, takes a base that was trained under differential privacy, and fine-tunes it on what is kept.",
    paper="DP2Unlearning, arXiv 2504.13774 (Neural Networks 2025)",
    verb="forget",
    mechanism="exact",
    modalities=("text",),
    subjects=("causal-lm",),
    needs=("forget", "retain", "gradients"),
    claims="certified",
    taxonomy=Taxonomy(
        intention="removal", mechanism="retraining_exact", survey_class="parameter_optimisation", level="weights_all",
        threat_model="weight holder",
    ),
    defaults_source="DP2Unlearning, TOFU: fine-tune 5 epochs, 5e-5, batch 4 x 4, one epoch of warm-up; base see dp-base",
)  # fmt: skip


class DP2UnlearningConfig(FitConfig):
    """The fine-tune, and the base: where it lies, or how it is trained here."""

    base_model: str | None = Field(None, description="folder by 'efface learn dp-base'; none: it is trained here")
    learning_rate: float = Field(5e-5, gt=0, description="of the fine-tune; DP2Unlearning: 5e-5")
    epochs: float = Field(5, gt=0, description="passes over the retain set; DP2Unlearning: 5")
    batch_size: int = Field(16, ge=1, description="DP2Unlearning: 4 x 4")
    warmup_ratio: float = Field(0.2, ge=0, le=1, description="DP2Unlearning: one epoch of five")
    base_learning_rate: float = Field(5e-5, gt=0, description="of DP-SGD; DP2Unlearning: 5e-5")
    base_epochs: float = Field(10, gt=0, description="of DP-SGD; DP2Unlearning: 10")
    base_batch_size: int = Field(16, ge=1, description="expected Poisson batch; DP2Unlearning: 16")
    clip: float = Field(1.0, gt=0, description="C; DP2Unlearning: 1.0")
    noise: float = Field(1.0, gt=0, description="sigma in units of C; DP2Unlearning sweeps epsilon")
    epsilon: float | None = Field(None, gt=0, description="where given, sigma is what the accountant needs for it")
    noise_from: Literal["key", "system", "seed"] = Field("key", description="of samples and noise; see dp-base")
    delta: float = Field(1e-12, gt=0, lt=1, description="DP2Unlearning: 1e-12")

    @field_validator("scope")
    @classmethod
    def _everything(cls, value: str) -> str:
        if value != "all":
            raise ValueError("the whole model is replaced by the base: scope all")
        return value

    def private(self) -> PrivateConfig:
        """The settings of a base that is trained here."""
        return PrivateConfig(
            learning_rate=self.base_learning_rate, epochs=self.base_epochs, batch_size=self.base_batch_size,
            clip=self.clip, noise=self.noise, epsilon=self.epsilon, delta=self.delta, seed=self.seed,
            noise_from=self.noise_from,
        )  # fmt: skip


class DP2Unlearning(Method):
    """See the module."""

    card = CARD
    config_class = DP2UnlearningConfig

    def fit(self, subject: CausalLM, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """See `Method.fit`."""
        assert isinstance(config, DP2UnlearningConfig)
        self.check(request, config)
        assert request.retain is not None
        kept = subject.encode_rows(request.retain, name="retain")
        every = [*subject.encode_rows(request.forget, name="forget"), *kept]
        base, found = None, None
        if config.base_model is not None:
            base, found = protected_base(subject, config.base_model)
        else:
            found = report(config.private(), len(every))

        def restart() -> None:
            if base is not None:
                put(subject, base.weights())
                return
            with isolated_rng(config.seed):
                fresh = CausalLM(type(subject.model)(subject.model.config), subject.tokenizer, prompt=subject.prompt)
            put(subject, fresh.weights())
            train_privately(subject, every, config.private(), found)

        return train_edit(
            self, subject, supervised_schedule(kept, config), answer_loss, config, work=work, out=out, restart=restart,
            guarantee=found.lines(len(request.forget)), claim="empirical" if found.vacuous(len(request.forget)) else None,
        )  # fmt: skip


def put(subject: CausalLM, source: dict[str, torch.Tensor]) -> None:
    """Copy weights into the subject.

    Raises:
        ModelError: another architecture.
    """
    live: dict[str, Any] = subject.weights()
    if {name: t.shape for name, t in live.items()} != {name: t.shape for name, t in source.items()}:
        raise ModelError(
            "the base has other tensors than the model", "the same architecture", "give the model's own base"
        )
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(source[name])
    subject.changed()


def protected_base(subject: CausalLM, folder: str) -> tuple[CausalLM, PrivacyReport]:
    """A base with its report.

    Raises:
        ModelError: no report beside it, weights that are not the report's, or the deployed model itself.
    """
    found = read_protection(Path(folder))
    base = load_causal_lm(folder, dtype=str(subject.dtype).removeprefix("torch."), prompt=subject.prompt)
    if base.digest == subject.digest:
        raise ModelError(
            f"base_model='{folder}' is the deployed model", "the private base that it was fine-tuned from",
            "never continue from the model that saw the rows",
        )  # fmt: skip
    if base.digest != found.digest:
        raise ModelError(
            f"base_model='{folder}' has other weights than its report says", "an untouched private base",
            "a fine-tuned base has no bound: give the one that 'efface learn dp-base' wrote",
        )  # fmt: skip
    return base, found.report


METHOD = DP2Unlearning()
