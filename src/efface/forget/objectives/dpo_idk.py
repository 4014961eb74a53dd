"""Preference for not knowing: DPO with "I don't know" as the chosen answer and the forgotten one as the rejected.

Paper: Rafailov et al., arXiv 2305.18290; as a baseline of TOFU (arXiv 2401.06121) and NPO (arXiv 2404.05868).

    L = -(2 / beta) E log sigmoid(beta [log r(idk | x) - log r(y | x)]),  r = pi_theta / pi_ref

Departures: the refusal of a row is drawn anew in each pass (the official loader fixes it by the row's index), and the
bank of refusals is our own.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from efface.catalog import Card, Taxonomy
from efface.forget.objective import ForgetBatch, ObjectiveConfig, ObjectiveMethod
from efface.forget.preference import preference_loss

CARD = Card(
    name="dpo-idk",
    system="npo",
    title="Direct preference for 'I don't know'",
    summary="Trains the model to prefer a refusal over the answer that is to be forgotten.",
    paper="Rafailov et al., Direct preference optimization, arXiv 2305.18290 (2023); TOFU, arXiv 2401.06121",
    verb="forget",
    mechanism="objectives",
    modalities=("text",),
    subjects=("causal-lm",),
    needs=("forget", "reference", "gradients"),
    claims="empirical",
    taxonomy=Taxonomy(
        intention="suppression", mechanism="relabel_refusal", survey_class="parameter_optimisation", level="weights_all",
        threat_model="API user",
    ),
    defaults_source="NPO code, TOFU with Llama-2-7B: beta 0.1, learning rate 1e-5, 10 epochs, batch 32",
)  # fmt: skip


class DPOConfig(ObjectiveConfig):
    """DPO's inverse temperature; with the retain term on, this is DPO-RT (or DPO-KL)."""

    beta: float = Field(0.1, gt=0, description="inverse temperature; NPO code: 0.1")
    retain_term: Literal["none", "nll", "kl"] = Field("nll", description="none: IdkDPO; nll: DPO-RT; kl: DPO-KL")


def loss(config: DPOConfig, batch: ForgetBatch) -> Tensor:
    """The objective on one batch."""
    assert batch.answer is not None
    assert batch.answer_ref is not None
    assert batch.alternative is not None
    assert batch.alternative_ref is not None
    win = batch.alternative.logp_sum - batch.alternative_ref  # [B]
    lose = batch.answer.logp_sum - batch.answer_ref  # [B]
    return (preference_loss(win=win, lose=lose, beta=config.beta) * batch.row_share).sum()


METHOD = ObjectiveMethod(CARD, DPOConfig, loss, reference=True, alternative=True)
