"""SimNPO: NPO without a reference model, on the length-normalised log-probability.

Paper: Fan et al., Simplicity prevails, arXiv 2410.07163, equation 4:

    L = -(2 / beta) E log sigmoid(-(beta / |y|) log pi_theta(y | x) - gamma)

Departures: none. The margin is called `margin` here, since gamma is the forget weight in NPO's notation.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from efface.catalog import Card, Taxonomy
from efface.forget.objective import ForgetBatch, ObjectiveConfig, ObjectiveMethod

CARD = Card(
    name="simnpo",
    system="npo",
    title="Simple negative preference optimisation",
    summary="NPO with the length-normalised log-probability in place of the ratio to a reference.",
    paper="Fan et al., Simplicity prevails: rethinking NPO for LLM unlearning, arXiv 2410.07163 (2024)",
    verb="forget",
    mechanism="objectives",
    modalities=("any",),
    subjects=("causal-lm", "classifier"),
    needs=("forget", "gradients"),
    claims="empirical",
    taxonomy=Taxonomy(
        intention="removal", mechanism="preference", survey_class="parameter_optimisation", level="weights_all",
        threat_model="weight holder",
    ),
    defaults_source="open-unlearning's TOFU set-up: beta 4.5, margin 0, forget weight 0.125, retain weight 1",
)  # fmt: skip


class SimNPOConfig(ObjectiveConfig):
    """SimNPO's inverse temperature and margin."""

    beta: float = Field(4.5, gt=0, description="inverse temperature; open-unlearning: 4.5, paper: 2.5 on forget10")
    margin: float = Field(0.0, ge=0, description="gamma of the paper: target margin; 0 on TOFU")
    forget_weight: float = Field(0.125, ge=0, description="open-unlearning: 0.125")
    retain_term: Literal["none", "nll", "kl"] = Field("nll", description="the paper trains with a retain loss")


def simnpo_loss(logp: Tensor, length: Tensor, beta: float, margin: float) -> Tensor:
    """Equation 4 per example, [B].

    Args:
        logp: [B] log pi_theta(y | x), summed over tokens.
        length: [B] number of answer tokens.
        beta: inverse temperature.
        margin: target margin.
    """
    return -(2 / beta) * logsigmoid(-beta * logp / length - margin)


def loss(config: SimNPOConfig, batch: ForgetBatch) -> Tensor:
    """The objective on one batch."""
    assert batch.answer is not None
    length = batch.answer.mask.sum(-1)
    return (simnpo_loss(batch.answer.logp_sum, length, config.beta, config.margin) * batch.row_share).sum()


METHOD = ObjectiveMethod(CARD, SimNPOConfig, loss)
