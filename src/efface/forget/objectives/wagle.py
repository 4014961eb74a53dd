"""WAGLE: score each weight by how much it matters for what is to be forgotten, and let only the top share move.

Paper: Jia et al., WAGLE: strategic weight attribution, arXiv 2410.17509 (NeurIPS 2024). With theta the weights, g_f and g_r
the mean gradients of the forget and the retain loss and gamma the diagonal of the retain loss's Hessian,

    S_i = (theta_i - g_r,i / gamma) g_f,i,   mask = the top `density` of |S_i| over all weights

Then any loss trains what the mask lets move (`efface forget npo scope=mask mask=wagle` is the same thing).

Departures from the official code, and why. The update is masked, not only the gradient: weight decay (0.1 there) does not
shrink frozen weights. Gradients are means, not sums over batches, so that gamma does not depend on the size of the data; the
published 1e-6 makes the score |g_r g_f| / gamma almost alone, so gamma is the mean squared retain gradient unless given, and
which term dominates is recorded with the mask. The losses are those of their own papers: the official NPO takes the batch's
mean token loss inside the sigmoid, and its KL is the wrong way round. `loss=dpo-idk` is DPO with a refusal, where the
paper's PO is plain training on refusals; its weights are attributed to the refusals, as there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from efface.catalog import Card, Taxonomy
from efface.data.request import Request
from efface.forget.method import FitConfig, Fitted, Method, train_edit
from efface.forget.objective import ObjectiveConfig, ObjectiveMethod
from efface.forget.objectives import dpo_idk, gradient_difference, npo
from efface.subjects.learner import Learner
from efface.train.mask_selectors import wagle_score

CARD = Card(
    name="wagle",
    system="wagle",
    title="WAGLE: weight attribution",
    summary="Freezes the weights that matter least for what is to be forgotten, relative to what is to be kept, and lets "
    "any unlearning loss move the rest.",
    paper="Jia et al., WAGLE: strategic weight attribution for effective and modular unlearning, arXiv 2410.17509 (2024)",
    verb="forget",
    mechanism="objectives",
    modalities=("any",),
    subjects=("causal-lm", "classifier"),
    needs=("forget", "retain", "reference", "gradients"),
    claims="empirical",
    taxonomy=Taxonomy(
        intention="removal", mechanism="localise_edit", survey_class="parameter_optimisation", level="weights_subset",
        threat_model="weight holder",
    ),
    defaults_source="WAGLE code, TOFU with Llama2-7B: NPO 1e-5, GradDiff 7e-6, PO 2e-5; density 0.95, 0.95, 0.8; batch 4",
)  # fmt: skip

LOSSES = {"npo": npo, "gradient-difference": gradient_difference, "dpo-idk": dpo_idk}
PUBLISHED: dict[str, dict[str, float]] = {
    "npo": {"learning_rate": 1e-5, "density": 0.95, "epochs": 4},
    "gradient-difference": {"learning_rate": 7e-6, "density": 0.95, "epochs": 5},
    "dpo-idk": {"learning_rate": 2e-5, "density": 0.8, "epochs": 5},
}
"""TOFU forget10; 400 steps of 4 of its 400 rows are 4 passes. WMDP with NPO has density 0.6."""


class WagleConfig(ObjectiveConfig):
    """A loss with its mask; what is not given takes the loss's own published value."""

    loss: Literal["npo", "gradient-difference", "dpo-idk"] = Field("npo", description="the paper: NPO, GradDiff, PO")
    beta: float = Field(0.1, gt=0, description="of npo and dpo-idk; NPO code: 0.1")
    scope: Literal["mask"] = Field("mask", description="the mask is the method; scope=layers ranks those layers only")
    mask: str | None = Field(
        "wagle", description="wagle; or a baseline: gradient, snip, magnitude, random, reverse; or a file"
    )
    density: float = Field(0.95, gt=0, le=1, description="share that may move; code: 0.95, for dpo-idk 0.8 (memory)")
    retain_term: Literal["none", "nll", "kl"] = Field("nll", description="the code trains with a retain loss")
    learning_rate: float = Field(1e-5, gt=0, description="code: npo 1e-5, gradient-difference 7e-6, dpo-idk 2e-5")
    epochs: float = Field(4, gt=0, description="code: npo 400 steps of 4 rows, 4 passes of forget10; others 5")
    batch_size: int = Field(4, ge=1, description="code: 1 with 4 accumulated")
    weight_decay: float = Field(0.1, ge=0, description="code: 0.1 on TOFU, 0 on WMDP; frozen weights do not decay here")

    @model_validator(mode="before")
    @classmethod
    def _published(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        found = {**PUBLISHED.get(str(values.get("loss", "npo")), {}), **values}
        if found.get("scope") == "layers":  # the mask within these layers
            found["scope"] = "mask"
        return found


class Wagle(Method):
    """See the module."""

    card = CARD
    config_class = WagleConfig

    def fit(self, subject: Learner, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """See `Method.fit`."""
        assert isinstance(config, WagleConfig)
        self.check(request, config)
        chosen = LOSSES[config.loss].METHOD
        inner = ObjectiveMethod(
            CARD, WagleConfig, chosen.loss, reference=chosen.reference, alternative=chosen.alternative
        )
        run = inner.prepare(subject, request, config)
        return train_edit(self, subject, run.schedule, run.loss, config, work=work, out=out, mask_rows=run.mask_rows)


METHOD = Wagle()

__all__ = ["CARD", "METHOD", "WagleConfig", "wagle_score"]
