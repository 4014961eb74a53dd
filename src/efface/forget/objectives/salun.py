"""SalUn: random labels that may move only the half of the weights on which the forget loss depends most.

Paper: Fan et al., Empowering machine unlearning via gradient-based weight saliency, arXiv 2310.12508 (ICLR 2024), equations 3
to 5. With theta_o in R^P the weights before and L_f the mean cross-entropy on the forget rows with their own labels,

    m = 1[|grad L_f(theta_o)| >= gamma],   theta = theta_o + m delta,   min over delta of CE with random labels

gamma is such that exactly round(density P) weights may move, ranked over all tensors together. It is the gradient of the whole
forget loss, in evaluation mode, not the mean of single rows' gradients. `soft` puts a proximal step in the mask's place: after
each optimiser step, theta - theta_o is soft-thresholded by the k-th smallest |theta - theta_o|, k = mask_ratio P (1 - step /
steps), an l1 penalty on the change that fades. Any other loss goes under the same mask: `scope=mask mask=gradient`.

Departures from the official code, and why. The update is masked, not only the gradient: with weight decay and momentum the
frozen half of the published code drifted until a fix of 2026; `leaky` keeps that behaviour, for comparison with published
figures. Labels differ from the true one (see random_labels). The running statistics of batch norms, which no mask holds, rest
(`norm_statistics`; the code moves them, and so do `leaky` and `soft`). The soft anchor is theta_o for the whole run; the code
reads it anew each epoch and counts the steps of the two phases differently.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import softshrink
from transformers import TrainerCallback

from efface.catalog import Card, Taxonomy
from efface.data.request import Request
from efface.errors import ConfigError
from efface.forget.method import FitConfig, Fitted, train_edit
from efface.forget.objectives.random_labels import RandomLabels, RandomLabelsConfig
from efface.subjects.learner import Learner
from efface.train.gradient_stats import own_parameters
from efface.train.mask_guard import MaskGuard, refuse_masked
from efface.train.mask_selectors import MaskRows, mask_of
from efface.train.weight_mask import WeightMask

CARD = Card(
    name="salun",
    system="salun",
    title="SalUn: saliency unlearning",
    summary="Trains on random labels for the forget rows, and lets only those weights move on which the forget loss depends "
    "most.",
    paper="Fan et al., SalUn: gradient-based weight saliency, arXiv 2310.12508 (ICLR 2024)",
    verb="forget",
    mechanism="objectives",
    modalities=("any",),
    subjects=("classifier",),
    needs=("forget", "retain", "labels", "gradients"),
    claims="empirical",
    taxonomy=Taxonomy(
        intention="removal", mechanism="localise_edit", survey_class="parameter_optimisation", level="weights_subset",
        threat_model="API user",
    ),
    defaults_source="Unlearn-Saliency, 10 % of CIFAR-10: mask ratio 0.5, SGD 0.013, momentum 0.9, decay 5e-4, batch 256, 10 "
    "epochs",
)  # fmt: skip


class SalUnConfig(RandomLabelsConfig):
    """Random labels under a mask."""

    scope: Literal["mask", "layers", "all"] = Field(
        "mask", description="the mask is the method; layers: ranked within these layers; all: for soft"
    )
    mask: str | None = Field(
        "gradient", description="gradient: the paper's saliency; or a control: random, magnitude; or a file"
    )
    density: float = Field(0.5, gt=0, le=1, description="share that may move; paper: 0.5")
    soft: bool = Field(False, description="the proximal step in place of the mask (paper, section 4)")
    mask_ratio: float = Field(
        0.5, ge=0, le=1, description="for soft: share of the weights that its first step puts back"
    )
    leaky: bool = Field(False, description="mask the gradient only, so that decay moves the rest: published figures")

    @model_validator(mode="before")
    @classmethod
    def _scope_of(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        soft = values.get("soft") in (True, "true", "True")
        if soft:
            return {"scope": "all", **values}
        return {**values, "scope": "mask"} if values.get("scope") == "layers" else values

    @model_validator(mode="after")
    def _one_of(self) -> SalUnConfig:
        if self.soft and self.leaky:
            raise ValueError("soft and leaky together: soft has no mask that could leak")
        if self.soft and self.scope == "mask":
            raise ValueError("soft takes the mask's place: scope=all or scope=layers")
        if not self.soft and self.scope == "all":
            raise ValueError("scope=all is salun without its mask: use random-labels, or set soft=true")
        if self.leaky and self.mask != "gradient":
            raise ValueError("leaky repeats the published code, whose mask is mask=gradient")
        return self


def soft_step(theta: Mapping[str, Tensor], anchor: Mapping[str, Tensor], k: int) -> float:
    """anchor + S(theta - anchor) into theta, where S soft-thresholds by the k-th smallest |theta - anchor|.

    At least k entries have the anchor's bits afterwards.

    Args:
        theta: tensors by name, changed in place; floating, of P entries together.
        anchor: of the same names and shapes.
        k: 0 (nothing happens) to P.

    Returns:
        The threshold.
    """
    if k < 1:
        return 0.0
    with torch.no_grad():
        delta = {name: tensor.float() - anchor[name].float() for name, tensor in theta.items()}
        threshold = float(torch.cat([part.abs().flatten() for part in delta.values()]).kthvalue(k).values)
        for name, tensor in theta.items():
            moved = anchor[name].float() + softshrink(delta[name], threshold)
            tensor.copy_(torch.where(delta[name].abs() <= threshold, anchor[name], moved.to(tensor.dtype)))
    return threshold


class Proximal(TrainerCallback):  # type: ignore[misc]
    """`soft_step` after each optimiser step, towards the weights at the time of making, on what trains.

    Args:
        model: as it is before training, also where a run goes on from a checkpoint.
        ratio: mask_ratio.
    """

    def __init__(self, model: torch.nn.Module, ratio: float) -> None:
        self.live = own_parameters(model)
        self.anchor = {name: parameter.detach().clone() for name, parameter in self.live.items()}
        self.ratio = ratio

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the engine after the step and before anything is saved."""
        theta = {name: parameter for name, parameter in self.live.items() if parameter.requires_grad}
        P = sum(parameter.numel() for parameter in theta.values())
        soft_step(theta, self.anchor, int(self.ratio * P * (1 - state.global_step / state.max_steps)))


def whole(mask: WeightMask, model: torch.nn.Module) -> WeightMask:
    """The mask with every parameter of the model named: what it did not name is frozen."""
    none = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in own_parameters(model).items()}
    return WeightMask({**none, **mask.masks}, mask.facts)


class SalUn(RandomLabels):
    """See the module."""

    card = CARD
    config_class = SalUnConfig

    def fit(self, subject: Learner, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """See `Method.fit`.

        Raises:
            ConfigError: the model has no classes, carries an adapter or is quantised, or the mask lets nothing move.
            RequestError: no label is left to draw.
        """
        assert isinstance(config, SalUnConfig)
        refuse_masked(subject.model, self.card.name)
        run = self.prepare(subject, request, config)
        callbacks = run.callbacks
        assert run.mask_rows is not None
        with contextlib.ExitStack() as stack:
            if config.soft:
                callbacks = (*callbacks, Proximal(subject.model, config.mask_ratio))
                config = config.model_copy(update={"mask": None})
            elif config.leaky:  # the guard's hooks without its restoring
                stack.enter_context(MaskGuard(subject.model, self._published(subject, config, run.mask_rows)))
                config = config.model_copy(update={"scope": "all", "layers": None, "mask": None})
            return train_edit(
                self, subject, run.schedule, run.loss, config, work=work, out=out, callbacks=callbacks,
                mask_rows=run.mask_rows,
            )  # fmt: skip

    @staticmethod
    def _published(subject: Learner, config: SalUnConfig, rows: MaskRows) -> WeightMask:
        mask = mask_of(subject, config, rows, config.seed)
        if not mask.selected:
            raise ConfigError("the mask lets no weight move", "at least one", "raise density")
        return whole(mask, subject.model)


METHOD = SalUn()
