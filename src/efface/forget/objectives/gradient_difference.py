"""Gradient difference: gradient ascent on the forget set plus descent on the retain set (GA + RT).

Paper: Liu et al., Continual learning and private unlearning, arXiv 2203.12817; as in TOFU (arXiv 2401.06121).
It is gradient ascent's loss with a retain term: only the default of `retain_term` is particular to it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from efface.catalog import Card, Taxonomy
from efface.forget.objective import ObjectiveConfig, ObjectiveMethod
from efface.forget.objectives.gradient_ascent import loss

CARD = Card(
    name="gradient-difference",
    system="npo",
    title="Gradient difference",
    summary="Gradient ascent on what is to be forgotten, ordinary training on what is to be kept.",
    paper="Liu et al., Continual learning and private unlearning, arXiv 2203.12817 (2022)",
    verb="forget",
    mechanism="objectives",
    modalities=("any",),
    subjects=("causal-lm", "classifier", "regressor"),
    needs=("forget", "retain", "gradients"),
    claims="empirical",
    taxonomy=Taxonomy(
        intention="removal", mechanism="gradient_ascent", survey_class="parameter_optimisation", level="weights_all",
        threat_model="weight holder",
    ),
    defaults_source="NPO code, TOFU with Llama-2-7B: learning rate 1e-5, 10 epochs, batch 32, both weights 1",
)  # fmt: skip


class GradientDifferenceConfig(ObjectiveConfig):
    """Gradient ascent with a retain term."""

    retain_term: Literal["none", "nll", "kl"] = Field("nll", description="GradDiff: nll; 'KL' of the literature: kl")


METHOD = ObjectiveMethod(CARD, GradientDifferenceConfig, loss)
