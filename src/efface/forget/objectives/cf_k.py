"""CF-k: fine-tune the last k blocks of a network on the retain set and leave everything before them as it was.

Paper: Goel et al., Towards adversarial evaluations for inexact machine unlearning, arXiv 2201.06640 (2022), catastrophic
forgetting of the last k layers; as CF-3 in the identity benchmark of Choi and Na, arXiv 2311.02240. With theta = (theta_1, ...,
theta_B) the blocks from input to output,

    min over (theta_(B-k+1), ..., theta_B) of E_(x,y) in retain [ CE(theta; x, y) ]

A block is a part of the network as it was written: the parts of the model in their order, where a part that holds a list of
layers (or is the only one) is opened. A ResNet's are its stem, its stages and its head, so that k = 3 is the benchmark's
layer3, layer4 and fc; a Sequential's are its layers with weights; BERT's are the embeddings, each layer, pooler and head.

Departures from the official code, and why. It builds its optimiser before it freezes layers, so that every parameter is in it and
momentum or decoupled weight decay could move what is frozen: here what rests is frozen first and is in no optimiser.
Batch norms rest with their statistics in frozen blocks and in moving ones (`norm_statistics`).
`finetune scope=layers` does the same for transformers, whose layers have numbers; this one counts blocks of any network.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field
from torch import nn

from efface.catalog import Card, Taxonomy
from efface.data.request import Request
from efface.errors import ConfigError
from efface.forget.method import FitConfig, Fitted, Method, train_edit
from efface.subjects.predictor import Predictor
from efface.train.mask_selectors import MaskRows
from efface.train.supervised import answer_loss, supervised_schedule

CARD = Card(
    name="cf-k",
    system="facial-identity-benchmarks",
    title="Fine-tuning of the last k blocks",
    summary="Trains the last blocks on without the forget set; what the earlier ones know stays.",
    paper="Goel et al., Towards adversarial evaluations for inexact machine unlearning (CF-k), arXiv 2201.06640 (2022)",
    verb="forget",
    mechanism="objectives",
    modalities=("any",),
    subjects=("classifier", "regressor"),
    needs=("forget", "retain", "gradients"),
    claims="empirical",
    taxonomy=Taxonomy(
        intention="removal", mechanism="control", survey_class="parameter_optimisation", level="weights_subset",
        threat_model="API user",
    ),
    defaults_source="the benchmark's code (arXiv 2311.02240): k = 3, 2 epochs, batch 64, SGD 0.001 without momentum",
)  # fmt: skip


class CFkConfig(FitConfig):
    """The benchmark's run."""

    k: int = Field(3, ge=1, description="blocks that move, counted from the output; benchmark: 3")
    scope: Literal["all"] = Field("all", description="the blocks are the scope")
    epochs: float = Field(2, gt=0, description="passes over the retain set; benchmark: 2")
    batch_size: int = Field(64, ge=1, description="benchmark: 64")
    optimizer: Literal["adamw", "adam", "sgd"] = Field("sgd", description="benchmark: SGD")
    learning_rate: float = Field(1e-3, gt=0, description="benchmark: 0.001")
    momentum: float = Field(0.0, ge=0, lt=1, description="benchmark: none")
    weight_decay: float = Field(0.0, ge=0, description="benchmark: none")
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="benchmark: none")
    schedule: Literal["linear", "cosine", "constant"] = Field("constant", description="benchmark: constant")
    max_grad_norm: float = Field(1e9, gt=0, description="benchmark: no clipping")


def blocks_of(model: nn.Module) -> list[str]:
    """Names of the parts with weights, in the order in which they were registered; see the module for what a part is."""
    found = list(_opened(model, "", root=True))
    while len(found) == 1 and any(True for _ in _parts(model.get_submodule(found[0]))):
        found = list(_opened(model.get_submodule(found[0]), found[0], root=True))
    return found


def _parts(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Children with weights."""
    return ((name, child) for name, child in module.named_children() if next(child.parameters(), None) is not None)


def _opened(module: nn.Module, name: str, *, root: bool = False) -> Iterator[str]:
    if root or any(isinstance(part, nn.ModuleList) for part in module.modules()):
        for own, child in _parts(module):
            yield from _opened(child, f"{name}.{own}" if name else own)
    else:
        yield name


def last_blocks(model: nn.Module, k: int) -> list[str]:
    """The k blocks nearest to the output.

    Raises:
        ConfigError: there are not so many, or so many that nothing rests.
    """
    found = blocks_of(model)
    if k >= len(found):
        raise ConfigError(
            f"k={k} of a network with {len(found)} blocks ({', '.join(found)})", "fewer, so that some rest",
            "lower k, or use finetune",
        )  # fmt: skip
    return found[-k:]


class CFk(Method):
    """See the module."""

    card = CARD
    config_class = CFkConfig

    def fit(self, subject: Predictor, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """See `Method.fit`.

        Raises:
            ConfigError: the network has no more than k blocks.
        """
        assert isinstance(config, CFkConfig)
        self.check(request, config)
        self.check_subject(subject)
        assert request.retain is not None
        chosen = ",".join(last_blocks(subject.model, config.k))
        rows = subject.encode_rows(request.retain, name="retain")
        held = config.model_copy(update={"scope": "mask", "mask": "magnitude", "density": 1.0, "mask_modules": chosen})
        return train_edit(
            self, subject, supervised_schedule(rows, config), answer_loss, held, work=work, out=out,
            mask_rows=MaskRows(subject.encode_rows(request.forget, name="forget"), rows),
        )  # fmt: skip


METHOD = CFk()

__all__ = ["CARD", "METHOD", "CFkConfig", "blocks_of", "last_blocks"]
