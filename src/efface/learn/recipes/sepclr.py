"""SepCLR: two encoders, one of what background and target pictures have in common, one of what only the target has.

Paper: Louiset et al., arXiv 2402.11928 (ICLR 2024). With unit common codes c [B, d_c], salient codes s [B, d_s] of any length,
t [B] (1: target), s' = t s, k(x, y) = exp(-||x - y||^2 / (2 tau)), and every term the mean over the two views where a view
stands alone:

    common       align(c1, c2) + 2 log mean_{i<j} k(c_i, c_j)
    salient      align(s1, s2 | t = 1) + 2 log mean_{i<j} k(s'_i, s'_j)
    information  mean ||s||^2 / (2 tau) over t = 0                      (background has nothing salient)
    joint        mean_i log mean_j k(c_i, c_j) k(s'_i, s'_j)            (minus the joint entropy)

with align(a, b) = mean ||a - b||^2 / (2 tau). The loss is common + b_S salient + b_I information + l_J joint. The subject is
the common encoder; the salient one, of the same architecture, is saved in the folder `salient` beside it. What is to be read
are the encoders' features, not the heads'.

Departures from the official code (neurospin-projects/2024_rlouiset_sep_clr): s' is a product with t, not a copy with rows
overwritten; distances are centred inner products. The variant with known attributes (dSprites) is not here. A pattern that
the background also has ends up in common; pictures whose label is swapped give a quiet failure, of which a warning tells
when salient codes of the target are not the longer ones.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from efface.catalog import Card
from efface.errors import ConfigError, ModelError, RequestError, nearest
from efface.learn.contrastive import class_names
from efface.learn.heads import mlp
from efface.learn.module import Batch, LearnModule, Lesson
from efface.learn.objective import ContrastiveConfig, Recipe
from efface.numerics.common_salient import FEWEST, common_loss, information_loss, joint_loss, salient_loss
from efface.run.files import make_folder
from efface.subjects.encoder import Encoder
from efface.train.engine import isolated_rng
from efface.train.gather import gather_plain, gather_rows, processes

CARD = Card(
    name="sepclr",
    system="sepclr",
    title="SepCLR",
    summary="Separates what target pictures share with a background set from what only they have: two encoders, weak labels "
    "(which set), no labels of factors. A batch of B needs several B x B matrices; no gradient caching.",
    paper="Louiset et al., Separating common from salient patterns, arXiv 2402.11928 (ICLR 2024)",
    verb="learn",
    mechanism="recipes",
    modalities=("any",),
    subjects=("encoder",),
    needs=("labels",),
    defaults_source="the official CIFAR-MNIST script: weights 1000, 1000, 10, codes of 32, tau 0.5, Adam 3e-4, batch 512",
)

SALIENT = "salient"
"""The sub-folder of the salient encoder."""

OTHER_SEED = 0x5A11E47
"""Turns the run's seed into the salient encoder's: from the same seed both encoders would start equal."""


class SepCLRConfig(ContrastiveConfig):
    """Weights of the terms and sizes of the codes."""

    target: str | None = Field(None, description="name of the target class; default: the later of the two labels")
    salient_weight: float = Field(1000.0, ge=0, description="b_S; SepCLR: 1000 (dSprites 100)")
    information_weight: float = Field(1000.0, ge=0, description="b_I; SepCLR: 1000 (dSprites 100)")
    joint_weight: float = Field(10.0, ge=0, description="l_J; SepCLR: 10; report the leakage over a grid of it")
    uniformity_weight: float = Field(2.0, ge=0, description="of uniformity against alignment; SepCLR's scripts: 2")
    temperature: float = Field(0.5, gt=0, description="tau; SepCLR: 0.5")
    common_size: int = Field(32, ge=2, description="d_c; SepCLR: 32 (CelebA 16)")
    salient_size: int = Field(32, ge=1, description="d_s; SepCLR: 32 (CelebA 16)")
    head_hidden: int = Field(128, ge=1, description="inner width of both heads; SepCLR: 128")
    salient_start: Literal["new", "copy"] = Field(
        "new", description="the salient encoder starts with new weights, or with the subject's"
    )
    optimizer: Literal["adamw", "adam", "sgd"] = Field("adam", description="SepCLR: Adam")
    learning_rate: float = Field(3e-4, gt=0, description="SepCLR: 3e-4")
    weight_decay: float = Field(0.0, ge=0, description="SepCLR: none")
    schedule: Literal["linear", "cosine", "constant"] = Field("constant", description="SepCLR: constant")
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="SepCLR: none")
    max_grad_norm: float = Field(1e6, gt=0, description="efface: the weights of 1000 make any usual bound a tiny step")
    epochs: float = Field(250, gt=0, description="SepCLR: 250")
    batch_size: int = Field(512, ge=4, description="half of it target; SepCLR: 512 (CelebA 256)")


def groups(data: Dataset, config: Any) -> Tensor:
    """[N] int64: 1 for rows of the target class, 0 for the background.

    Raises:
        RequestError: not exactly two classes.
        ConfigError: a target that is none of them.
    """
    labels = torch.tensor(data["label"], dtype=torch.int64)
    found = sorted(set(labels.tolist()))
    names = class_names(data)
    known = [names[label] if names else str(label) for label in found]
    if len(found) != 2:
        raise RequestError(f"{len(found)} classes ({', '.join(known[:5])})", "two: a background set and a target set",
                           "label the rows by the set that they come from")  # fmt: skip
    target = config.target if config.target is not None else known[1]
    if target not in known:
        raise ConfigError(f"target='{target}'", f"one of the classes {known[0]} and {known[1]}", nearest(target, known))
    marks: Tensor = labels == found[known.index(target)]
    return marks.long()


class SepCLRModule(LearnModule):
    """The common encoder (the subject), the salient one, and their heads.

    Raises:
        ConfigError: chunk or projector; a batch without two rows of each set.
        ModelError: a model that cannot be built anew from its configuration.
    """

    norms: Tensor
    salient: Any

    def __init__(self, subject: Any, config: Any, lesson: Lesson) -> None:
        super().__init__(subject)
        if config.chunk is not None:
            raise ConfigError(f"chunk={config.chunk} for sepclr", "no gradient caching: its heads hold batch norm",
                              "lower batch_size")  # fmt: skip
        if config.projector:
            raise ConfigError(
                f"projector={config.projector} for sepclr", "0: it has heads of its own", "set head_hidden"
            )
        if lesson.batch_size < 2 * FEWEST:
            raise ConfigError(
                f"batches of {lesson.batch_size} rows", f"{2 * FEWEST}: two of each set", "give more data"
            )
        self.settings = config
        salient = second_encoder(subject, config.seed, copied=config.salient_start == "copy")
        object.__setattr__(self, "salient", salient)
        self.encoders = nn.ModuleList([subject.model, salient.model])
        width = subject.width
        sizes = (config.common_size, config.salient_size)
        self.heads = nn.ModuleList([mlp([width, config.head_hidden, size]) for size in sizes])
        self.register_buffer("norms", torch.zeros(2))

    def codes(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """c [B, d_c] unit and s [B, d_s] of one view, the rows of all processes."""
        common = self.heads[0](self.subject.features(inputs)).float()
        salient = self.heads[1](self.salient.features(inputs)).float()
        return gather_rows(normalize(common, dim=1)), gather_rows(salient)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The four terms of the whole batch, of which each process takes an equal share."""
        config = self.settings
        (c1, s1), (c2, s2) = (self.codes(inputs) for inputs in batch["views"])
        target = gather_plain(batch["groups"].to(c1.device)) == 1
        tau, weight = config.temperature, config.uniformity_weight
        terms = {
            "common": common_loss(c1, c2, tau, weight), "salient": salient_loss(s1, s2, target, tau, weight),
            "information": information_loss(s1, s2, target, tau), "joint": joint_loss((c1, c2), (s1, s2), target, tau),
        }  # fmt: skip
        value = terms["common"] + config.salient_weight * terms["salient"]
        value = value + config.information_weight * terms["information"] + config.joint_weight * terms["joint"]
        lengths = s1.detach().norm(dim=1)
        self.norms.copy_(torch.stack([lengths[~target].mean(), lengths[target].mean()]))
        numbers = {name: float(term.detach()) for name, term in terms.items()}
        numbers |= {"background_norm": float(self.norms[0]), "target_norm": float(self.norms[1])}
        return value / processes(), numbers

    def finish(self) -> None:
        """The salient encoder rests too; a word where it says no more of the target than of the background."""
        self.salient.model.eval()
        self.salient.changed()
        if not float(self.norms[1]) > float(self.norms[0]):
            warnings.warn(
                f"salient codes of the target are not longer ({float(self.norms[1]):.3g}) than those of the background "
                f"({float(self.norms[0]):.3g}): is the target class the right one, and is there a pattern that only it has?",
                UserWarning,
                stacklevel=2,
            )

    def save_beside(self, folder: Path) -> None:
        """The salient encoder, as a model of its own: `efface.load(folder / "salient")`."""
        self.salient.save_into(make_folder(folder / SALIENT))


def second_encoder(subject: Encoder, seed: int, *, copied: bool = False) -> Encoder:
    """An encoder of the subject's architecture with weights (and none of its gradients) of its own.

    Args:
        subject: the common encoder.
        seed: of the run; the new weights come from another one, or both encoders would start equal.
        copied: the subject's weights in place of new ones.

    Raises:
        ModelError: the model says no configuration that it can be built from.
    """
    found = copy.copy(subject)
    config = getattr(subject.model, "config", None)
    if copied:
        found.model = copy.deepcopy(subject.model)
    elif config is None or not hasattr(config, "to_dict"):
        raise ModelError(
            f"'{subject.source}' ({type(subject.model).__name__}) cannot be built anew", "a model with a configuration",
            "set salient_start=copy",
        )  # fmt: skip
    else:
        with isolated_rng(seed ^ OTHER_SEED):
            found.model = type(subject.model)(copy.deepcopy(config)).to(subject.device)
        states = dict(found.model.named_buffers())
        for name, value in subject.model.named_buffers():  # of an array encoder, the data's mean and deviation
            states[name].copy_(value)
    found.model.train(subject.model.training)
    found.source = f"{SALIENT} encoder"
    found.changed()
    return found


CONFIG = SepCLRConfig
RECIPE = Recipe(CARD, CONFIG, None, takes="labelled", groups=groups, build=SepCLRModule)
