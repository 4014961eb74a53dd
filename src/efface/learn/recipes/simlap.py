"""SimLAP: learns from arbitrary pairs of classes, each pair in a subspace of its own that a gate picks.

Paper: Learning from arbitrary pairs, arXiv 2410.18200 (v1: Hydra). Each anchor i of class y_i gets a target class y2_i that is
in the batch; its positives are all keys of y2_i, its negatives those of neither class; both sides are gated by g(y_i, y2_i):

    e = (E[y1] + E[y2]) / 2,  g = sigmoid(W2 BN(ReLU(W1 BN(ReLU(e))))) in (0, 1)^D,  z = LayerNorm(MLP(f(x)))
    L = mean over all positive pairs of log( exp(s_im) + sum_{m' negative} exp(s_im') ) - s_im   (see numerics.gated_contrast)

What is kept is the encoder; gate and head serve training, and a class that was not trained on has no gate. Departures from the
official sources: target classes are drawn from those in the batch ('distinct' by an offset would mostly name absent ones), by
a generator of the step, for the whole batch on every process; the gate, too, is computed for the whole batch on each, so that
its batch statistics are the same; log-sum-exp in place of exponentials of mean-shifted logits; the plain head has no batch
norm. In the one-view form a row is not its own positive. Dense [B, M] logits: no `tile`; `chunk` serves the encoder.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from efface.catalog import Card
from efface.errors import InputError, RequestError
from efface.learn.memory.ema import EMA
from efface.learn.module import Batch, LearnModule, Lesson
from efface.learn.objective import ContrastiveConfig, Recipe
from efface.learn.recipes.simlap_gate import PairGate, gate_entropy, save_gate
from efface.numerics.gated_contrast import gated_cosine, pair_losses
from efface.numerics.mixing import seeded
from efface.train.gather import gather_plain, gather_rows, rank
from efface.train.gradient_caching import cached, refuse_batch_norm

CARD = Card(
    name="simlap",
    system="hydra-pairs",
    title="SimLAP (Hydra)",
    summary="Contrast of arbitrary pairs of classes: a gate for each pair picks the dimensions in which they are alike.",
    paper="SimLAP (v1: Hydra), Rethinking positive pairs in contrastive learning, arXiv 2410.18200 (2024)",
    verb="learn",
    mechanism="recipes",
    modalities=("any",),
    subjects=("encoder",),
    needs=("labels",),
    defaults_source="authors' sources: D 256, head 2048 (momentum: 4096, three layers), gate 512 to 1024, T 0.1, batch 512, "
    "learning rate 1e-4, arbitrary pairs",
)

Pairs = Literal["arbitrary", "identical", "distinct"]


class SimLAPConfig(ContrastiveConfig):
    """The pairs, the gate, the head, and what else is in the loss."""

    learning_rate: float = Field(1e-4, gt=0, description="SimLAP, a launch line of its source: 1e-4")
    batch_size: int = Field(512, ge=2, description="SimLAP: 512")
    temperature: float = Field(0.1, gt=0, description="SimLAP: 0.1")
    pairs: Pairs = Field(
        "arbitrary", description="class of the positives: of a random other row; the own class; or always another one"
    )
    form: Literal["one-view", "two-view", "momentum"] = Field(
        "two-view", description="keys: the anchors themselves; the other view; the other view by a moving copy"
    )
    gate: Literal["learned", "open"] = Field("learned", description="open: no filter, all gates are 1 (the control)")
    fused: bool = Field(
        True, description="one gate of the mean embedding of both classes; else the product of two gates"
    )
    width: int = Field(256, ge=2, description="D, of the head's output; SimLAP: 256")
    hidden: int = Field(2048, ge=1, description="of the head; SimLAP: 2048, momentum version 4096")
    layers: Literal[2, 3] = Field(2, description="of the head; SimLAP: 2, momentum version 3")
    label_width: int = Field(512, ge=1, description="of a class's embedding; SimLAP: 512")
    gate_hidden: int = Field(1024, ge=1, description="of the gate; SimLAP: 1024")
    key_momentum: float = Field(0.99, ge=0, lt=1, description="m of the moving copy; MoCo v3: 0.99")
    instance_weight: float = Field(0.0, ge=0, description="of an InfoNCE of the two views of an item, without gates")
    class_weight: float = Field(0.0, ge=0, description="of the cross-entropy of a linear head on the encoder's output")
    sup_loss: bool = Field(False, description="that cross-entropy trains the encoder too")
    gate_entropy: float = Field(0.0, description="gamma, weight of the gates' mean entropy in nats")

    @model_validator(mode="after")
    def _possible(self) -> SimLAPConfig:
        if self.tile is not None:
            raise ValueError("simlap has no tiles: its logits are held whole, leave tile out")
        if self.projector:
            raise ValueError("simlap has a head of its own: set width and hidden, leave projector at 0")
        if self.instance_weight and self.form == "one-view":
            raise ValueError("instance_weight needs two views: choose form=two-view or momentum")
        return self


def target_classes(labels: Tensor, pairs: Pairs, generator: Generator) -> Tensor:
    """[B] y2, each a class that is in the batch.

    Args:
        labels: [B].
        pairs: `arbitrary`: a permutation of the labels; `identical`: the labels; `distinct`: another class, all alike.

    Raises:
        InputError: fewer classes than the loss needs: three, for `identical` two.
    """
    present: Tensor = torch.unique(labels)
    needed = 2 if pairs == "identical" else 3
    if len(present) < needed:
        raise InputError(
            f"a batch of {len(labels)} rows with {len(present)} classes", f"{needed} classes or more",
            "raise batch_size, or give data of more classes",
        )  # fmt: skip
    if pairs == "identical":
        return labels
    if pairs == "arbitrary":
        return labels[torch.randperm(len(labels), generator=generator).to(labels.device)]
    offset = 1 + torch.randint(len(present) - 1, labels.shape, generator=generator).to(labels.device)
    return present[(torch.searchsorted(present, labels) + offset) % len(present)]


def pair_masks(labels: Tensor, wanted: Tensor, of_keys: Tensor) -> tuple[Tensor, Tensor]:
    """[B, M] positives (keys of the target class) and negatives (of neither class).

    Args:
        labels, wanted: [B] y and y2 of the anchors.
        of_keys: [M].
    """
    positive = of_keys[None, :] == wanted[:, None]
    return positive, ~(positive | (of_keys[None, :] == labels[:, None]))


def head(width: int, hidden: int, out: int, layers: int) -> nn.Module:
    """An MLP that ends in a layer norm: a batch norm there would keep gates from closing."""
    inner = [part for _ in range(layers - 2) for part in (nn.Linear(hidden, hidden), nn.ReLU())]
    return nn.Sequential(
        nn.Linear(width, hidden), nn.ReLU(), *inner, nn.Linear(hidden, out), nn.LayerNorm(out)
    )  # fmt: skip


class SimLAPModule(LearnModule):
    """Encoder, head, gate, and what the variants add.

    Args:
        subject: an encoder; its module is trained in place.
        config: a `SimLAPConfig`.
        lesson: the run; gives the classes.

    Raises:
        RequestError: no labels, or one below 0.
    """

    def __init__(self, subject: Any, config: SimLAPConfig, lesson: Lesson) -> None:
        super().__init__(subject)
        if lesson.labels is None or lesson.classes is None:
            raise RequestError("no labels", "a column 'label'", "add one; of unlabelled data, the number of a cluster")
        if int(lesson.labels.min()) < 0:
            raise RequestError(f"a label of {int(lesson.labels.min())}", "whole numbers from 0", "mend the labels")
        self.settings, self.classes = config, lesson.classes
        outer = head(subject.width, config.hidden, config.width, config.layers)
        self.online = nn.ModuleList([subject.model, outer])
        self.gate: PairGate | None = None
        if config.gate == "learned":
            self.gate = PairGate(
                len(lesson.classes), config.label_width, config.gate_hidden, config.width, fused=config.fused
            )
        self.linear = nn.Linear(subject.width, len(lesson.classes)) if config.class_weight else None
        self.ema: EMA | None = None
        if config.form == "momentum":
            self.ema = EMA(self.online, momentum=config.key_momentum)
            shadow = copy.copy(subject)
            shadow.model = self.ema.module[0]  # type: ignore[index]
            object.__setattr__(self, "shadow", shadow)
        if config.chunk is not None:
            refuse_batch_norm(subject.model, training=True)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The gated loss of this process's anchors, and what the variants add."""
        config, views = self.settings, batch["views"]
        features = self._features(views[0])
        z = self.online[1](features)
        if config.form == "one-view":
            keys = z
        elif self.ema is None:
            keys = self.online[1](self._features(views[1]))
        else:
            with torch.no_grad():
                keys = self.ema.module[1](self._shadow_features(views[1]))  # type: ignore[index]
        labels = batch["labels"].to(z.device)
        every = gather_plain(labels)
        here = slice(rank() * len(z), (rank() + 1) * len(z))
        wanted = target_classes(every, config.pairs, seeded(config.seed, int(self.done)))
        gates_all = self.gate(every, wanted) if self.gate is not None else z.new_ones(len(every), z.shape[1])
        gathered = gather_rows(keys)
        cosine = gated_cosine(z, gathered, gates_all[here])
        # how many positives the whole batch has; every process knows all labels and targets
        whole = pair_masks(every, wanted, every)[0]
        if config.form == "one-view":
            whole = whole & ~torch.eye(len(every), dtype=torch.bool, device=whole.device)
        count = int(whole.sum())
        if count == 0:
            raise InputError(
                f"no positive pair in a batch of {len(every)} rows",
                "two rows of a class",
                "raise batch_size, or two views",
            )
        positive, negative = whole[here], pair_masks(labels, wanted[here], every)[1]
        value = pair_losses(cosine / config.temperature, positive, negative).sum() / count
        numbers = {"same_class": float((wanted == every).float().mean()), **self._gate_numbers(gates_all.detach())}
        extra, more = self._extras(batch, features, z, gathered, gates_all[here], labels, len(every))
        return value + extra, numbers | more

    def _features(self, inputs: dict[str, Tensor]) -> Tensor:
        return cached(lambda part: self.subject.features(part).float(), inputs, self.settings.chunk)

    def _shadow_features(self, inputs: dict[str, Tensor]) -> Tensor:
        found: Tensor = self.shadow.features(inputs).float()  # type: ignore[operator,union-attr]
        return found

    def _extras(
        self, batch: Batch, features: Tensor, z: Tensor, keys: Tensor, gates: Tensor, labels: Tensor, total: int
    ) -> tuple[Tensor, dict[str, float]]:
        """Instance contrast, cross-entropy of the linear head, entropy of the gates; each divided by all rows."""
        config, value, numbers = self.settings, z.new_zeros(()), {}
        if config.instance_weight:
            logits = normalize(z, dim=1) @ normalize(keys, dim=1).T / config.temperature
            own = torch.arange(len(z), device=z.device) + rank() * len(z)
            instance = cross_entropy(logits, own, reduction="sum") / total
            value, numbers["instance_loss"] = value + config.instance_weight * instance, float(instance.detach())
        if self.linear is not None:
            seen = features if config.sup_loss else features.detach()
            classes = cross_entropy(self.linear(seen), labels, reduction="sum") / total
            value, numbers["class_loss"] = value + config.class_weight * classes, float(classes.detach())
        if config.gate_entropy and self.gate is not None:
            value = value + config.gate_entropy * gate_entropy(gates).sum() / (total * gates.shape[1])
        return value, numbers

    def _gate_numbers(self, gates: Tensor) -> dict[str, float]:
        """Mean opening, and how much gates of different rows differ."""
        if self.gate is None:
            return {}
        return {"gate_mean": float(gates.mean()), "gate_spread": float(gates.std(0).mean())}

    def after_step(self) -> None:
        """The moving copy follows."""
        if self.ema is not None:
            self.ema.update(self.online)

    def save_beside(self, folder: Path) -> None:
        """The gate, in a folder of its own; see `load_gate`."""
        if self.gate is not None:
            save_gate(self.gate, self.classes, folder)


CONFIG = SimLAPConfig
RECIPE = Recipe(
    CARD, CONFIG, None, takes="labelled", build=SimLAPModule,
    draws=lambda config: [config.views] * (1 if config.form == "one-view" else 2),
)  # fmt: skip
