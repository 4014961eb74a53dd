"""Gradient ascent: raise the loss on the forget set. The oldest baseline; unbounded, it wrecks the model.

Paper: Jang et al., arXiv 2210.01504; as in TOFU (arXiv 2401.06121) and NPO (arXiv 2404.05868), section 2.
Departures: none; the mean runs over all answer tokens of the optimiser step, also under accumulation.
"""

from __future__ import annotations

from torch import Tensor

from efface.catalog import Card, Taxonomy
from efface.forget.objective import ForgetBatch, ObjectiveConfig, ObjectiveMethod

CARD = Card(
    name="gradient-ascent",
    system="npo",
    title="Gradient ascent",
    summary="Raises the loss on the forget set without bound; the baseline that shows what collapse looks like.",
    paper="Jang et al., Knowledge unlearning for mitigating privacy risks, arXiv 2210.01504 (2022)",
    verb="forget",
    mechanism="objectives",
    modalities=("any",),
    subjects=("causal-lm", "classifier", "regressor"),
    needs=("forget", "gradients"),
    claims="empirical",
    taxonomy=Taxonomy(
        intention="removal", mechanism="gradient_ascent", survey_class="parameter_optimisation", level="weights_all",
        threat_model="weight holder",
    ),
    defaults_source="NPO code, TOFU with Llama-2-7B: learning rate 1e-5, 10 epochs, batch 32",
)  # fmt: skip


class GradientAscentConfig(ObjectiveConfig):
    """No parameter of its own."""


def gradient_ascent_loss(token_logp: Tensor, token_share: Tensor) -> Tensor:
    """+E[log p(y_t | x, y_<t)]: minimising it raises the loss.

    Args:
        token_logp: [B, T'], 0 outside the answer.
        token_share: [B], one over the number of answer tokens in the step.
    """
    return (token_logp.sum(-1) * token_share).sum()


def loss(config: ObjectiveConfig, batch: ForgetBatch) -> Tensor:
    """The objective on one batch."""
    assert batch.answer is not None
    return gradient_ascent_loss(batch.answer.token_logp, batch.token_share)


METHOD = ObjectiveMethod(CARD, GradientAscentConfig, loss)
