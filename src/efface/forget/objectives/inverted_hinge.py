"""Inverted hinge: lower the true token's probability until the runner-up takes over, and not further.

Paper: Cha et al., LoKU, arXiv 2408.06621 (ICLR 2025), section 3.2. With p = softmax(logits), y the true token and m the
largest probability of any other token,

    L_IHL = E max(0, 1 + p_y - m),   0 <= L_IHL <= 2

Its gradient on the logits is p_y (1 - p_y + m) for y, -m (1 + p_y - m) for the runner-up and p_v (m - p_y) for any other v;
gradient ascent pushes every other token up without bound. Departures from the official code: softmax is always applied (there
only where some logit lies outside [0, 1]); the vocabulary is the logits' last dimension. m is not detached: its
gradient is what lifts the runner-up.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from efface.catalog import Card, Taxonomy
from efface.forget.objective import ForgetBatch, ObjectiveConfig, ObjectiveMethod

CARD = Card(
    name="inverted-hinge",
    system="loku",
    title="Inverted hinge",
    summary="Lowers the true token only until the runner-up takes over: a bounded loss that leaves other tokens alone.",
    paper="Cha et al., Towards robust and parameter-efficient knowledge unlearning (LoKU), arXiv 2408.06621 (ICLR 2025)",
    verb="forget",
    mechanism="objectives",
    modalities=("any",),
    subjects=("causal-lm", "classifier"),
    needs=("forget", "gradients"),
    claims="empirical",
    taxonomy=Taxonomy(
        intention="removal", mechanism="gradient_ascent", survey_class="parameter_optimisation", level="weights_all",
        threat_model="weight holder",
    ),
    defaults_source="TOFU full fine-tuning (learning rate 1e-5, batch 32); the paper trains it with LoRA, see loku",
)  # fmt: skip


class InvertedHingeConfig(ObjectiveConfig):
    """The paper's retain term."""

    retain_term: Literal["none", "nll", "kl"] = Field("nll", description="the paper: L_IHL + NLL")


def inverted_hinge(logits: Tensor, targets: Tensor) -> Tensor:
    """max(0, 1 + p_y - m) at every position, [...].

    Args:
        logits: [..., V], V at least 2.
        targets: [...] the true tokens, in [0, V).
    """
    norm = logits.logsumexp(-1)  # [...]
    index = targets.unsqueeze(-1)
    p_y = (logits.gather(-1, index).squeeze(-1) - norm).exp()
    m = (logits.scatter(-1, index, float("-inf")).amax(-1) - norm).exp()
    return (1 + p_y - m).clamp_min(0)


def loss(config: ObjectiveConfig, batch: ForgetBatch) -> Tensor:
    """The objective on one batch: the mean over the answer tokens of the step."""
    answer = batch.answer
    assert answer is not None
    hinge = inverted_hinge(answer.logits, answer.targets).masked_fill(~answer.mask, 0.0)  # [B, T']
    return (hinge.sum(-1) * batch.token_share).sum()


METHOD = ObjectiveMethod(CARD, InvertedHingeConfig, loss)
