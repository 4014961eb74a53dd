"""Prune, then unlearn: set the smallest weights to zero for good, and let an unlearner train what is left.

Paper: Jia et al., Model sparsity can simplify machine unlearning, arXiv 2304.04934 (NeurIPS 2023), sections 3 and 4. With w the
weights of all linear and convolutional layers and s the sparsity,

    m = the round((1 - s) |w|) largest of |w|, over all layers together;   w <- m w;   then an unlearner, with m held

The error of approximate unlearning falls with the number of weights that are free to move. The paper's sparse models are
trained on all rows under the mask before they forget: `refit_epochs` does that here.

Departures from the official code, and why. One-shot magnitude pruning only; iterative pruning and SynFlow train from scratch,
which here is `learn`'s work. The code prunes convolutions and leaves linear layers alone, which would leave nothing of an MLP:
`prune_linear=false` does as it does. It multiplies by the mask in the forward pass (the weight behind it moves on, unseen);
here a pruned weight is zero itself, to the bit, whatever weight decay and momentum do.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn
from transformers import TrainerCallback
from transformers.pytorch_utils import Conv1D

from efface.catalog import Card, Taxonomy
from efface.data.request import Request
from efface.errors import ConfigError
from efface.forget.method import FitConfig, Fitted, Method, train_edit
from efface.forget.objective import Prepared
from efface.forget.objectives import gradient_ascent, l1_sparse, random_labels
from efface.forget.objectives.finetune import FinetuneConfig
from efface.subjects.learner import Learner
from efface.train.engine import newest_checkpoint, train
from efface.train.gradient_stats import own_parameters
from efface.train.mask_guard import MaskGuard, refuse_masked
from efface.train.mask_selectors import restricted
from efface.train.streams import collator_of
from efface.train.supervised import answer_loss, supervised_schedule
from efface.train.weight_mask import MaskFacts, WeightMask

CARD = Card(
    name="prune-finetune",
    system="sparse-unlearning",
    title="Prune, then unlearn",
    summary="Sets the smallest weights of linear and convolutional layers to zero for good, then fine-tunes the rest on the "
    "retain set, or lets another unlearner train it.",
    paper="Jia et al., Model sparsity can simplify machine unlearning, arXiv 2304.04934 (NeurIPS 2023)",
    verb="forget",
    mechanism="objectives",
    modalities=("any",),
    subjects=("causal-lm", "classifier", "regressor"),
    needs=("forget", "retain", "gradients"),
    claims="empirical",
    taxonomy=Taxonomy(
        intention="removal", mechanism="localise_edit", survey_class="parameter_optimisation", level="weights_all",
        threat_model="weight holder",
    ),
    defaults_source="Unlearn-Sparse: sparsity 95 %, SGD, momentum 0.9, decay 5e-4, batch 256; fine-tuning 0.01 for 10 epochs, "
    "gradient ascent 1e-4 for 5; random labels 0.013 for 10 (Unlearn-Saliency)",
)  # fmt: skip

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LINEAR = (nn.Linear, Conv1D)
"""GPT-2's Conv1D is a linear layer that stores its matrix the other way round."""

PUBLISHED: dict[str, dict[str, float]] = {
    "gradient-ascent": {"learning_rate": 1e-4, "epochs": 5}, "random-labels": {"learning_rate": 0.013},
}  # fmt: skip


class PruneFinetuneConfig(l1_sparse.SparseConfig):
    """How much is pruned, and what follows."""

    sparsity: float = Field(0.95, ge=0, lt=1, description="share of the layers' weights that become zero; paper: 0.95")
    prune_linear: bool = Field(True, description="linear layers too; Unlearn-Sparse prunes convolutions only")
    unlearner: Literal["finetune", "gradient-ascent", "random-labels", "l1-sparse"] = Field(
        "finetune", description="what trains the weights that are left; paper: each of these"
    )
    settings: dict[str, Any] = Field({}, description="keys of the unlearner's own, such as {'order': 'sequential'}")
    refit_epochs: float = Field(
        0,
        ge=0,
        description="passes over forget and retain rows under the mask first, as the paper's sparse models; 0: none",
    )
    scope: Literal["all", "layers"] = Field("all", description="what is pruned and may move")

    @model_validator(mode="before")
    @classmethod
    def _published(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {**PUBLISHED.get(str(values.get("unlearner")), {}), **values}


def prunable(model: nn.Module, *, linear: bool = True) -> list[str]:
    """Names of the weights of convolutional (and linear) layers; a matrix that is also an embedding's is none of them."""
    kinds = (*CONVOLUTIONS, *(LINEAR if linear else ()))
    inside = {id(module.weight) for module in model.modules() if isinstance(module, kinds)}
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)}
    return [name for name, parameter in own_parameters(model).items() if id(parameter) in inside - tables]


def pruning_mask(subject: Learner, config: PruneFinetuneConfig) -> WeightMask:
    """What stays of the layers within the scope: the largest weights.

    Raises:
        ConfigError: the model has no such layer there, or nothing would be left of it.
    """
    ranked = set(restricted(subject.model, config))
    names = [name for name in prunable(subject.model, linear=config.prune_linear) if name in ranked]
    if not names:
        raise ConfigError(
            "no layer to prune", f"{'linear or ' if config.prune_linear else ''}convolutional layers within the scope",
            "set prune_linear=true, or widen layers",
        )  # fmt: skip
    scores = {name: p.detach().abs() for name, p in own_parameters(subject.model, names).items()}
    facts = MaskFacts(selector="magnitude", model=subject.digest)
    mask = WeightMask.from_scores(scores, 1 - config.sparsity, facts=facts)
    if not mask.selected:
        raise ConfigError(
            f"sparsity={config.sparsity} of {mask.size} weights leaves none", "at least one", "lower sparsity"
        )
    return mask


class Held(TrainerCallback):  # type: ignore[misc]
    """Pruned weights: zero from `prune` on, and kept there during training.

    Args:
        model: what is pruned.
        mask: what is left of it.
    """

    def __init__(self, model: nn.Module, mask: WeightMask) -> None:
        self.model, self.mask = model, mask
        self.stack = contextlib.ExitStack()
        self.guard: MaskGuard | None = None

    def prune(self) -> None:
        """Set the weights to zero and guard them as such."""
        with torch.no_grad():
            for name, parameter in self.mask.parameters(self.model).items():
                parameter.masked_fill_(self.mask.masks[name].logical_not(), 0.0)
        self.guard = self.stack.enter_context(MaskGuard(self.model, self.mask))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the engine after the step and before anything is saved."""
        assert self.guard is not None
        self.guard.restore()


def unlearning(subject: Learner, request: Request, config: PruneFinetuneConfig) -> Prepared:
    """The batches and the loss of the unlearner.

    Raises:
        ConfigError: a key that the unlearner does not have, or a model that it does not fit.
        RequestError: rows that it needs are missing.
    """
    name = config.unlearner
    own = {**{key: getattr(config, key) for key in FitConfig.model_fields}, **config.settings}
    if name == "gradient-ascent":
        ascent = gradient_ascent.GradientAscentConfig.parse(own, owner=name)
        return gradient_ascent.METHOD.prepare(subject, request, ascent)
    if name == "random-labels":
        return random_labels.METHOD.prepare(subject, request, random_labels.RandomLabelsConfig.parse(own, owner=name))
    if name == "l1-sparse":
        return l1_sparse.METHOD.prepare(subject, request, l1_sparse.L1SparseConfig.parse(own, owner=name))
    plain = FinetuneConfig.parse(own, owner=name)
    assert request.retain is not None
    return Prepared(supervised_schedule(subject.encode_rows(request.retain, name="retain"), plain), answer_loss)


class PruneFinetune(Method):
    """See the module."""

    card = CARD
    config_class = PruneFinetuneConfig

    def fit(self, subject: Learner, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """See `Method.fit`.

        Raises:
            ConfigError: nothing to prune, or nothing left; the model has an adapter or is quantised; see `unlearning`.
        """
        assert isinstance(config, PruneFinetuneConfig)
        self.check(request, config)
        refuse_masked(subject.model, CARD.name)
        run = unlearning(subject, request, config)
        held = Held(subject.model, pruning_mask(subject, config))

        def restart() -> None:
            held.prune()
            begun = newest_checkpoint(work / "checkpoints") is not None
            if config.refit_epochs and not begun:
                refit(subject, request, config, held, work / "refit")

        with held.stack:
            return train_edit(
                self, subject, run.schedule, run.loss, config, work=work, out=out, restart=restart,
                callbacks=(held, *run.callbacks),
            )  # fmt: skip


def refit(subject: Learner, request: Request, config: PruneFinetuneConfig, held: Held, folder: Path) -> None:
    """Train on all rows, with the pruned weights held at zero."""
    assert request.retain is not None
    rows = [
        *subject.encode_rows(request.forget, name="forget"),
        *subject.encode_rows(request.retain, name="retain"),
    ]
    how = config.model_copy(update={"epochs": config.refit_epochs})
    train(
        subject.model, supervised_schedule(rows, how), answer_loss, how, folder=folder, collator=collator_of(subject),
        label=f"refit {CARD.name}", callbacks=(held,),
    )  # fmt: skip


METHOD = PruneFinetune()
