"""Contrastive unlearning: push each row to forget away from the retained rows of its class, towards those of others.

Paper: Lee et al., Contrastive unlearning, arXiv 2401.10458 (IJCAI 2025). z = h/|h| of what goes into the head, X_u a forget
batch [B], X_s a retain batch [B]; for an anchor i of X_u, P(i) are the rows of X_s with y = y_i, N(i) the others:

    L_UL = mean_i [ lse_{p in P(i)} <z_i, z_p>/tau - mean_{a in N(i)} <z_i, z_a>/tau ],  L = lam_UL L_UL + lam_CE CE(X_s)

lam_UL and lam_CE are `forget_weight` and `retain_weight`. Of a class that the retain set lacks altogether, P(i) is empty and
the first term is left out. Each forget batch meets `omega` retain batches, a step each. After a pass the run stops: `class`
once the forgotten classes are right no more often than 1/K, `rows` once the forget set is right no more often than unseen
rows are.

Departures from the official code, and why: z is made of what the head sees, not of a tensor that an in-place ReLU has
rectified after it was normalised, and there is no projection head (any classifier will do); retain batches come in a random
order, where the loader without a sampler gives the first omega batches for ever; every forget row is an anchor (the code
keeps back the last of a class); rows without P(i) or N(i) are left out, where the code has log 0 and 0/0, and a warning says
so above a tenth; the stop reads not the test set but a validation share of it or a set of its own, and the edit names these
rows in `validation_ids`. The variant with a queue of momentum embeddings is not offered: its masks flip once the queue is
full and its encoder never moves.

Anchors that are drawn to all other classes end up between the clusters, where a membership attack can see them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from efface.catalog import Card, Taxonomy
from efface.data.request import Request
from efface.errors import ConfigError, ModelError, RequestError
from efface.forget.method import FitConfig, Fitted, Method, train_edit
from efface.forget.objective import ObjectiveConfig
from efface.forget.retain import kl_to_reference, nll, retain_stream
from efface.numerics.contrast import Contrast
from efface.numerics.inverted_contrast import Denominator, Empty, inverted_supcon, mean_counted
from efface.subjects.answers import AnswerLogits, sample_answers
from efface.subjects.predictor import Predictor
from efface.subjects.samples import Sample
from efface.train.context_batches import ContextSchedule
from efface.train.engine import world_size
from efface.train.mask_selectors import MaskRows
from efface.train.stopping import StopWhen
from efface.train.streams import Stream, whole_batch

CARD = Card(
    name="contrastive-unlearning",
    system="contrastive-unlearning",
    title="Contrastive unlearning",
    summary="Pushes each row to forget away from retained rows of its class and towards those of other classes, in the space "
    "that the head reads, and holds the retained rows by their labels.",
    paper="Lee et al., Contrastive unlearning: a contrastive approach to machine unlearning, arXiv 2401.10458 (IJCAI 2025)",
    verb="forget",
    mechanism="objectives",
    modalities=("any",),
    subjects=("classifier",),
    needs=("forget", "retain", "labels", "gradients"),
    claims="empirical",
    taxonomy=Taxonomy(
        intention="removal", mechanism="representation_steering", survey_class="parameter_optimisation", level="weights_all",
        threat_model="weight holder",
    ),
    defaults_source="official code, ResNet on CIFAR-10: tau 0.7, weights 3 and 1, omega 4, SGD 1e-3 with momentum 0.9, batch "
    "128, 3 epochs (its README: 1 for a class, 30 for random rows)",
)  # fmt: skip

SKIPPED = 0.1
"""Share of anchors left out above which the run warns."""

KEPT: Empty = "drop"
GONE: Empty = "omit"
"""What is done with an anchor whose class the retain batch lacks: by chance, or because nothing of it is kept."""


class ContrastConfig(ObjectiveConfig):
    """What both contrastive methods share."""

    tau: float = Field(0.7, gt=0, description="temperature; official code: 0.7")
    omega: int = Field(4, ge=1, description="retain batches, a step each, for each forget batch; official code: 4")
    retain_ratio: int = Field(1, ge=1, description="retain rows beside each forget row of a step; official code: 1")
    balanced: bool = Field(False, description="retain batches with all classes alike often; official code: no")
    stop: Literal["auto", "class", "rows", "none"] = Field(
        "auto", description="when a pass over the forget set is the last: its classes are right no more often than 1/K, or its "
        "rows no more often than unseen ones; auto: class where nothing of its classes is kept, else rows; paper",
    )  # fmt: skip
    validation_share: float = Field(
        0.2, gt=0, le=1, description="of the holdout set, for the stop; efface. A set named validation is taken whole instead"
    )  # fmt: skip
    validation_ids: tuple[str, ...] = Field(
        (), description="rows that the stop reads; filled in by the run: leave them out of a test"
    )
    retain_term: Literal["none", "nll", "kl"] = Field("nll", description="paper: CE on the retain batch")
    anchor: Literal["forget"] = Field("forget", description="passes are those over the forget set; paper")
    repeat_pairs: Literal[False] = Field(False, description="pairs are drawn anew")

    @field_validator("micro_batch_size")
    @classmethod
    def _whole_batch(cls, value: int | None) -> int | None:
        if value is not None:
            raise ValueError("none: the contrast of a step must be seen in one forward pass; lower batch_size")
        return value

    @field_validator("gamma")
    @classmethod
    def _no_other_gamma(cls, value: Any, info: ValidationInfo) -> Any:
        if value != "auto" and info.data.get("scope") != "mask":
            raise ValueError("gamma belongs to scope=mask; the weight of the contrastive term is forget_weight")
        return value


class ContrastiveUnlearningConfig(ContrastConfig):
    """The official code's numbers."""

    forget_weight: float = Field(3.0, ge=0, description="lam_UL; official code: 3")
    learning_rate: float = Field(1e-3, gt=0, description="official code: 1e-3; small networks need ten times that")
    optimizer: Literal["adamw", "adam", "sgd"] = Field("sgd", description="official code: SGD, momentum 0.9")
    weight_decay: float = Field(0.0, ge=0, description="official code: none is passed")
    batch_size: int = Field(128, ge=1, description="official code: 128")
    epochs: float = Field(3, gt=0, description="passes over the forget set; official code: 3")
    schedule: Literal["linear", "cosine", "constant"] = Field("constant", description="official code: no schedule")
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="official code: none")
    max_grad_norm: float = Field(1e9, gt=0, description="official code: no clipping")


# -- the loss ------------------------------------------------------------------------------------------------------


def contrast(
    z: Tensor, y: Tensor, gone: Tensor, z_ctx: Tensor, y_ctx: Tensor, tau: float, denominator: Denominator
) -> tuple[Tensor, float]:
    """The mean contrastive term of a batch, [], and the share of its anchors that was left out.

    Args:
        z: [A, D] unit anchors; y: [A] their classes.
        gone: [A] bool, the retain set has nothing of the class: the denominator of `same_class` is left out.
        z_ctx, y_ctx: [M, D] and [M], the retain batch.
    """
    if not len(z) or len(z_ctx) < 2:
        return (z.sum() + z_ctx.sum()) * 0, 1.0
    parts = [
        inverted_supcon(z[chosen], y[chosen], z_ctx, y_ctx, tau, denominator, empty)
        for chosen, empty in ((~gone, KEPT), (gone, GONE)) if bool(chosen.any())
    ]  # fmt: skip
    found = Contrast(torch.cat([part.losses for part in parts]), torch.cat([part.positives for part in parts]))
    return mean_counted(found), found.without_positive / len(found.losses)


def directions(features: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows [R, D] of those features [N, D] that have a direction, and which these are, [N] bool.

    Behind a ReLU and dropout a row may be all zero. NaN stays: the loss refuses it.
    """
    size = features.norm(dim=1)
    there = size != 0
    return features[there] / size[there, None], there


# -- when to stop --------------------------------------------------------------------------------------------------


class AfterPass(StopWhen):
    """Stops after a pass over the forget set, of so many steps, once `enough` says so."""

    def __init__(self, steps: int, enough: Callable[[], bool]) -> None:
        super().__init__(lambda _: True, "max", confirm=lambda _: enough())
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step % self.steps == 0:
            self.see(1.0)
            super().on_step_end(args, state, control, model=model)


def validation_rows(request: Request, config: ContrastConfig) -> Dataset | None:
    """Unseen rows that no test may use: the evaluation set `validation`, else a share of the holdout set."""
    if "validation" in request.evaluate or request.holdout is None:
        return request.evaluate.get("validation")
    n = len(request.holdout)
    drawn = np.random.default_rng([config.seed, 0x7A]).permutation(n)[: max(1, round(config.validation_share * n))]
    return request.holdout.select(sorted(drawn.tolist()))


def stopping(
    subject: Predictor, forget: Sequence[Sample], kept: set[int | float], read: Dataset | None, config: ContrastConfig
) -> tuple[Callable[[], bool] | None, tuple[str, ...]]:
    """What says after a pass whether it was the last one (None: nothing does), and the ids of the rows that it reads
    beside the forget set.

    Args:
        kept: classes of the retain set.
        read: validation rows.

    Raises:
        RequestError: `stop=rows` without validation rows.
    """
    if config.stop == "none":
        return None, ()
    unseen = [] if read is None else subject.encode_rows(read, name="validation")
    ids = [] if read is None else list(read["id"])
    classes = {row.target for row in forget}
    if config.stop == "class" or (config.stop == "auto" and not classes & kept):
        own = [place for place, row in enumerate(unseen) if row.target in classes]
        judged = [unseen[place] for place in own] or forget
        return lambda: accuracy(subject, judged) <= 1 / subject.outputs, tuple(ids[place] for place in own)
    if unseen:
        return lambda: accuracy(subject, forget) <= accuracy(subject, unseen), tuple(ids)
    if config.stop == "rows":
        raise RequestError(
            "stop=rows without unseen rows", "a holdout set, or an evaluation set named validation",
            "give one, or set stop=none",
        )  # fmt: skip
    return None, ()


def accuracy(subject: Predictor, rows: Sequence[Sample]) -> float:
    """Share of rows whose class has the largest logit."""
    _, said = subject.read(rows)
    return float((said.argmax(-1) == torch.tensor([row.target for row in rows])).float().mean())


# -- the method ----------------------------------------------------------------------------------------------------


class ContrastiveUnlearning(Method):
    """See the module. A subclass may change the anchors (`embedded`), the denominator and the term's weight (`weighed`)."""

    def __init__(self, card: Card, config_class: type[ContrastConfig]) -> None:
        self.card, self.config_class = card, config_class

    def fit(self, subject: Any, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """See `Method.fit`.

        Raises:
            ConfigError: several processes, or features that cannot move.
            ModelError: a model with one class, or with features of one number.
            RequestError: a retain set of one class; `stop=rows` without unseen rows.
        """
        assert isinstance(config, ContrastConfig)
        self.check(request, config)
        self.check_model(subject, config)
        assert request.retain is not None
        rows = subject.encode_rows(request.forget, name="forget")
        keep = subject.encode_rows(request.retain, name="retain")
        kept = {row.target for row in keep}
        if len(kept) < 2:
            raise RequestError(
                f"{self.card.name} with a retain set of one class", "two or more: rows are drawn towards other classes",
                "give more retain rows",
            )  # fmt: skip
        enough, read = stopping(subject, rows, kept, validation_rows(request, config), config)
        config = config.model_copy(update={"validation_ids": read})
        schedule = ContextSchedule(
            "forget", Stream(rows, {"gone": torch.tensor([row.target not in kept for row in rows])}),
            "retain", retain_stream(config.retain_term, subject, keep, config.retain_top_k),
            passes=config.epochs, batch_size=whole_batch(len(rows), config.batch_size, None), seed=config.seed,
            repeats=config.omega, ratio=config.retain_ratio,
            labels=[row.target for row in keep] if config.balanced else None,
        )  # fmt: skip

        def step(model: Any, parts: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
            return self.step(subject, model, parts, config)

        made = train_edit(
            self, subject, schedule, step, config, work=work, out=out, mask_rows=MaskRows(rows, keep),
            callbacks=() if enough is None else (AfterPass(schedule.pass_steps, enough),),
        )  # fmt: skip
        skipped = float(np.mean([row["skipped"] for row in made.log])) if made.log else 0.0
        if skipped > SKIPPED:
            warnings.warn(
                f"{self.card.name}: {skipped:.0%} of the anchors were left out, for want of a retained row of their own or "
                "of another class in the step; raise batch_size or retain_ratio, or set balanced=true", stacklevel=2,
            )  # fmt: skip
        return made

    def check_model(self, subject: Predictor, config: ContrastConfig) -> None:
        """Refuse what no contrast can be made of; see `fit`."""
        if world_size() > 1:
            raise ConfigError(
                f"{self.card.name} on {world_size()} processes", "one: a step's contrast is over its whole batch",
                "start a single process",
            )  # fmt: skip
        if subject.outputs < 2 or subject.head.in_features < 2:
            raise ModelError(
                f"{self.card.name} on a model with {subject.outputs} class(es) and features of {subject.head.in_features} "
                "number(s)", "two or more of each", "use another model or method",
            )  # fmt: skip

    def embedded(
        self, subject: Predictor, model: Any, part: dict[str, Any], config: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Features of the anchors [A, D], their classes [A], and whether these are gone [A]."""
        features, _ = subject.forward(model, part["inputs"])
        return features, part["target"], part["gone"]

    def denominator(self, config: Any) -> Denominator:
        """What the log-sum-exp is over."""
        return "same_class"

    def weighed(self, term: Tensor, model: Any, config: Any) -> float:
        """The weight of the contrastive term in this step."""
        return float(config.forget_weight)

    def step(
        self, subject: Predictor, model: Any, parts: dict[str, Any], config: ContrastConfig
    ) -> tuple[Tensor, dict[str, float]]:
        """Both terms of one batch, and the numbers of the log. Features and logits are of one forward pass."""
        features, y, gone = self.embedded(subject, model, parts["forget"], config)
        if not features.requires_grad:
            raise ConfigError(
                f"{self.card.name} with features that cannot move", "a scope that trains what comes before the head",
                "widen scope or layers, or use a model with a hidden layer",
            )  # fmt: skip
        kept = [parts[name] for name in parts if name != "forget"]
        passes = [subject.forward(model, part["inputs"]) for part in kept]
        z, there = directions(features)
        z_ctx, there_ctx = directions(torch.cat([found for found, _ in passes]))
        y_ctx = torch.cat([part["target"] for part in kept])[there_ctx]
        term, out = contrast(z, y[there], gone[there], z_ctx, y_ctx, config.tau, self.denominator(config))
        weight = self.weighed(term, model, config)
        total = weight * term
        numbers = {
            "forget": float(term.detach()),
            "weight": weight,
            "skipped": 1 - float(there.float().mean()) * (1 - out),
        }
        if config.retain_term != "none":
            held = torch.stack([_held(config, said, part) for (_, said), part in zip(passes, kept, strict=True)]).mean()
            numbers["retain"] = float(held.detach())
            total = total + config.retain_weight * held
        return total, numbers


def _held(config: ContrastConfig, said: Tensor, part: dict[str, Any]) -> Tensor:
    """The retain term of some rows, from the pass that gave their features."""
    answer = sample_answers(said, part["target"])
    assert isinstance(answer, AnswerLogits)
    if config.retain_term == "nll":
        return nll(answer, part["token_share"])
    return kl_to_reference(answer, part["ref_ids"], part["ref_logp"], part["token_share"])


METHOD = ContrastiveUnlearning(CARD, ContrastiveUnlearningConfig)
