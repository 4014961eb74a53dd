"""A causal LM under DP-SGD: one record is one row, clipped by itself, whatever the architecture ties together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from efface.errors import ModelError
from efface.run.digests import digest_value
from efface.run.files import read_json
from efface.subjects.answers import answer_logits
from efface.subjects.causal_lm import CausalLM
from efface.subjects.prompts import Encoded
from efface.train.engine import isolated_rng
from efface.train.private import PrivacyReport, PrivateConfig, dp_sgd, one_by_one

FACTS = "learn.json"
"""What a recipe writes beside the weights; the report stands under `protection`."""


class Protection(BaseModel):
    """Which weights are private, by how much, and how far they are from where they began."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str = Field(description="of the weights that the bound is about")
    start: str | None = Field(description="digest of the public starting checkpoint; None: fresh weights")
    moved: float = Field(
        description="||theta_DP - theta_start|| / ||theta_start||; near 0 the base is the public model"
    )
    report: PrivacyReport


def train_privately(subject: CausalLM, rows: Sequence[Encoded], config: PrivateConfig, found: PrivacyReport) -> float:
    """DP-SGD in place on the mean answer loss of each row; returns how far the weights moved, relative.

    Dropout is off: a row's gradient is a function of the row and the weights.
    """
    before = {name: tensor.detach().clone() for name, tensor in subject.weights().items()}

    def loss(index: int) -> Tensor:
        row = rows[index]
        logp: Tensor = answer_logits(subject.model, subject.batch([row])).logp_sum
        return -logp.sum() / row.n_targets

    context = [subject.digest, digest_value([[row.n_prompt, row.ids] for row in rows])]
    subject.model.eval()
    with isolated_rng(config.seed):
        dp_sgd(subject.model, one_by_one(subject.model, loss, config.clip), len(rows), config, found, context=context)
    subject.changed()
    moved = size = 0.0
    for name, tensor in subject.weights().items():
        moved += float((tensor.detach().double() - before[name].double()).square().sum())
        size += float(before[name].double().square().sum())
    return float((moved / size) ** 0.5) if size else 0.0


def read_protection(folder: Path) -> Protection:
    """The report of a private base.

    Raises:
        ModelError: there is none, or it is no report.
    """
    path = folder / FACTS
    facts: Any = read_json(path) if path.exists() else {}
    if not isinstance(facts, dict) or "protection" not in facts:
        raise ModelError(
            f"'{folder}' has no report of a private base", "a private base with its report",
            "train one with 'efface learn dp-base'",
        )  # fmt: skip
    try:
        return Protection.model_validate(facts["protection"])
    except ValueError as error:
        raise ModelError(f"{path} is not the report of a private base", "one written by efface") from error
