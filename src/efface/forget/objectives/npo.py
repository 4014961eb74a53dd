"""Negative preference optimisation: push the answer below the reference, with a gradient that fades as it falls.

Paper: Zhang et al., arXiv 2404.05868 (COLM 2024), equation 3. With pi_theta/pi_ref = r,

    L_NPO = (2 / beta) E log(1 + r^beta) = -(2 / beta) E log sigmoid(-beta log r)

Its gradient is W * (gradient ascent's) with W = 2 r^beta / (1 + r^beta); beta -> 0 is gradient ascent.
Departures from the official code: retain rows are sampled afresh (`repeat_pairs` gives the old pairing), and the
reference is computed once, not every step.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from efface.catalog import Card, Taxonomy
from efface.forget.objective import ForgetBatch, ObjectiveConfig, ObjectiveMethod
from efface.forget.preference import preference_loss

CARD = Card(
    name="npo",
    system="npo",
    title="Negative preference optimisation",
    summary="Treats the answer to forget as the rejected one; bounded pull, so the model does not collapse.",
    paper="Zhang et al., Negative preference optimization, arXiv 2404.05868 (COLM 2024)",
    verb="forget",
    mechanism="objectives",
    modalities=("any",),
    subjects=("causal-lm", "classifier"),
    needs=("forget", "reference", "gradients"),
    claims="empirical",
    taxonomy=Taxonomy(
        intention="removal", mechanism="preference", survey_class="parameter_optimisation", level="weights_all",
        threat_model="weight holder",
    ),
    defaults_source="NPO code, TOFU with Llama-2-7B: beta 0.1, learning rate 1e-5, 10 epochs, batch 32",
)  # fmt: skip


class NPOConfig(ObjectiveConfig):
    """NPO's inverse temperature; with the retain term on, this is NPO-RT (or NPO-KL)."""

    beta: float = Field(0.1, gt=0, description="inverse temperature; NPO code: 0.1. Short answers need 0.5 to 5")
    retain_term: Literal["none", "nll", "kl"] = Field("nll", description="none: NPO; nll: NPO-RT; kl: NPO-KL")


def npo_loss(logp: Tensor, ref_logp: Tensor, beta: float) -> Tensor:
    """Equation 3 per example, [B].

    Args:
        logp: [B] log pi_theta(y | x), summed (not averaged) over the answer's tokens.
        ref_logp: [B] the same under the reference.
        beta: inverse temperature.
    """
    return preference_loss(lose=logp - ref_logp, beta=beta)


def loss(config: NPOConfig, batch: ForgetBatch) -> Tensor:
    """The objective on one batch."""
    assert batch.answer is not None
    assert batch.answer_ref is not None
    return (npo_loss(batch.answer.logp_sum, batch.answer_ref, config.beta) * batch.row_share).sum()


METHOD = ObjectiveMethod(CARD, NPOConfig, loss, reference=True)
