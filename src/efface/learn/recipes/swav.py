"""SwAV: each view's soft code over trained prototypes is predicted from the other views; no negatives, no moving copy.

Paper: Caron et al., arXiv 2006.09882, equations 1 to 5. With unit embeddings z_v [b, D] of V crops, unit prototypes C [K, D],
scores S_v = z_v C^T and codes Q_a = balanced_codes(S_a) without gradient for the V_full full crops,

    L = 1 / V_full sum_a 1 / (V - 1) sum_{v != a} mean_b [ -sum_k Q_a[b, k] log softmax(S_v[b] / T)_k ]

The averages over crops are the official code's; the paper writes two views. Departures from it: the codes are computed in
log space and float32, so that any eps is honoured; a queue counts what it holds (the code tests whether its last row is
zero) and is a ring, so that its length needs to be no multiple of the batch; with several processes one queue is shared, of
which each scores its part; a head's batch norm is over all processes on CPU too. The engine has no LARC, so that AdamW is
the default. Small crops are as large as the others unless `small_views.size` says so, since most vision transformers take
one size only. The gradient's norm, clipped at `max_grad_norm`, counts the prototypes also while they are frozen.

Gradient caching cannot serve it (batch norm in the head, codes of the whole batch) and is refused; beside the encoder's
activations a step holds V [b, K] scores and for codes [b + queue, K].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from efface.catalog import Card
from efface.errors import ConfigError, ModelError
from efface.learn.heads import mlp
from efface.learn.memory.prototypes import Prototypes
from efface.learn.memory.queue import FeatureQueue
from efface.learn.module import Batch, LearnModule, Lesson
from efface.learn.objective import ContrastiveConfig, Recipe
from efface.learn.views.images import ViewConfig
from efface.numerics.contrast import wide
from efface.numerics.transport import balanced_codes, soft_cross_entropy
from efface.run.files import make_folder, read_json, storage, write_json
from efface.train.gather import gather_plain, processes, rank

CARD = Card(
    name="swav",
    system="swav",
    title="SwAV",
    summary="Clusters while it learns: the balanced code of one view over prototypes is predicted from other views. Keeps "
    "[rows, prototypes] scores in memory; no gradient caching.",
    paper="Caron et al., Unsupervised learning of visual features by contrasting cluster assignments, arXiv 2006.09882 "
    "(NeurIPS 2020)",
    verb="learn",
    mechanism="recipes",
    modalities=("any",),
    subjects=("encoder",),
    defaults_source="paper and official scripts at batch 256; AdamW in place of SGD under LARC",
)
FULL = ViewConfig(crop_area=(0.14, 1.0), flip=0.5)
SMALL = ViewConfig(crop_area=(0.05, 0.14), flip=0.5)
FOLDER = "prototypes"
PLATEAU = 0.99
"""A loss at or above this share of log K counts as one that has learnt nothing."""


class SwavConfig(ContrastiveConfig):
    """Crops, codes, prototypes and queue."""

    temperature: float = Field(0.1, gt=0, description="T of the predictions; paper: 0.1")
    eps: float = Field(0.05, gt=0, description="entropy of the codes, in units of a cosine; paper: 0.05")
    iterations: int = Field(3, ge=1, description="Sinkhorn iterations; paper: 3")
    prototypes: int = Field(3000, ge=2, description="K; paper: 3000")
    codes: Literal["balanced", "softmax"] = Field(
        "balanced", description="balanced: Sinkhorn; softmax: of the scores alone, an ablation that collapses"
    )
    projector: int = Field(128, ge=1, description="D, width of what meets the prototypes; paper: 128")
    hidden: int = Field(2048, ge=1, description="width of the head's hidden layer; paper: 2048")
    views: ViewConfig = Field(FULL, description="full crops, which make codes; paper: area 0.14 to 1, flip 0.5")
    full_crops: int = Field(2, ge=1, description="full crops; paper: 2")
    small_views: ViewConfig = Field(
        SMALL,
        description="small crops, which predict only; paper: area 0.05 to 0.14, size 96 where full crops have 224",
    )
    small_crops: int = Field(6, ge=0, description="small crops; paper: 6, or 0 for two views only")
    queue_size: int = Field(
        3840,
        ge=0,
        description="earlier rows that codes are balanced with, a full crop; paper: 3840 at batch 256, 0 at 4096",
    )
    queue_start: float = Field(15, ge=0, description="epoch from which the queue is filled; paper: 15")
    freeze: float = Field(1.0, ge=0, description="epochs with frozen prototypes; paper: 1")
    batch_size: int = Field(256, ge=2, description="items in one step, all processes together; paper: 256 or 4096")
    epochs: float = Field(200, gt=0, description="passes over the data; paper: 100 to 800")
    weight_decay: float = Field(1e-6, ge=0, description="paper: 1e-6; without effect on directions of prototypes")


class SwavHead(nn.Module):
    """Features of an encoder to cosines with the prototypes.

    Args:
        width: of the features.
        hidden: of the hidden layer.
        out: D.
        prototypes: K.
    """

    def __init__(self, width: int, hidden: int, out: int, prototypes: int) -> None:
        super().__init__()
        self.sizes = [width, hidden, out, prototypes]
        self.projector = mlp((width, hidden, out))
        self.prototypes = Prototypes(prototypes, out)

    def embed(self, features: Tensor) -> Tensor:
        """[b, D] unit rows."""
        return nn.functional.normalize(wide(self.projector(features)), dim=1)

    def forward(self, features: Tensor) -> Tensor:
        """[b, K] cosines of [b, width] features."""
        scores: Tensor = self.prototypes(self.embed(features))
        return scores


class SwavModule(LearnModule):
    """Encoder, head, prototypes and queues."""

    stuck: Tensor

    def __init__(self, subject: Any, config: SwavConfig, lesson: Lesson) -> None:
        super().__init__(subject)
        if config.chunk is not None:
            raise ConfigError("chunk for swav", "none", "its codes need the whole batch: take a smaller batch_size, "
                              "which the queue makes up for")  # fmt: skip
        if config.full_crops + config.small_crops < 2:
            raise ConfigError("one crop for swav", "two or more in all", "set small_crops, or full_crops=2")
        if 0 < config.queue_size < lesson.batch_size:
            raise ConfigError(
                f"queue_size={config.queue_size} below the batch of {lesson.batch_size}", "the batch or more, or 0"
            )
        self.settings = config
        self.backbone = subject.model
        self.head = SwavHead(subject.width, config.hidden, config.projector, config.prototypes)
        made = config.full_crops if config.queue_size else 0
        self.queues = nn.ModuleList([FeatureQueue(config.queue_size, config.projector) for _ in range(made)])
        self.frozen_steps = round(config.freeze * lesson.steps_per_epoch)
        self.queue_step = round(config.queue_start * lesson.steps_per_epoch)
        self.share = lesson.batch_size
        self.register_buffer("stuck", torch.zeros((), dtype=torch.int64))

    def _embed(self, views: Sequence[dict[str, Tensor]]) -> list[Tensor]:
        """[b, D] of each view; views of one shape go through the encoder together."""
        places: dict[Any, list[int]] = {}
        for place, inputs in enumerate(views):
            places.setdefault(tuple((name, tuple(value.shape)) for name, value in inputs.items()), []).append(place)
        found: list[Tensor] = [torch.empty(0)] * len(views)
        for group in places.values():
            joined = {name: torch.cat([views[place][name] for place in group]) for name in views[group[0]]}
            rows = self.head.embed(self.subject.features(joined)).chunk(len(group))
            for place, part in zip(group, rows, strict=True):
                found[place] = part
        return found

    def _codes(self, full: int, scores: Tensor) -> Tensor:
        """[b, K] of the batch's rows, balanced together with this process's part of the queue."""
        if self.settings.codes == "softmax":
            return (scores.detach() / self.settings.temperature).softmax(1)
        parts = [scores.detach()]
        if len(self.queues) and len(self.queues[full]) == self.queues[full].size:  # type: ignore[arg-type]
            earlier = self.queues[full].filled()[0][rank() :: processes()]  # type: ignore[operator]
            with torch.no_grad():
                parts.append(self.head.prototypes(earlier))
        together = torch.cat(parts)
        found = balanced_codes(together, eps=self.settings.eps, iterations=self.settings.iterations, across=True)
        return found[: len(scores)]

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """See `LearnModule.forward`."""
        config, views = self.settings, batch["views"]
        self.head.prototypes.renormalise()
        embedded = self._embed(views)
        scores = [self.head.prototypes(rows) for rows in embedded]
        codes = [self._codes(full, scores[full]) for full in range(config.full_crops)]
        losses = swav_losses(codes, [part / config.temperature for part in scores])
        count = processes() * len(losses)
        numbers = self._look(losses, codes[0], count)
        if len(self.queues) and int(self.done) >= self.queue_step:
            ids = gather_plain(batch["rows"])
            for queue, rows in zip(self.queues, embedded, strict=False):
                queue.enqueue(gather_plain(rows.detach()), ids)  # type: ignore[operator]
        return losses.sum() / count, numbers

    def _look(self, losses: Tensor, codes: Tensor, count: int) -> dict[str, float]:
        """What warns of the known failures: too few rows for the prototypes, a loss that stays at log K, unused ones."""
        config = self.settings
        of_log = float(losses.detach().mean()) / math.log(config.prototypes)
        moving = int(self.done) >= self.frozen_steps
        self.stuck.fill_(int(self.stuck) + 1 if moving and of_log >= PLATEAU else 0)
        earlier = len(self.queues[0]) if len(self.queues) else 0  # type: ignore[arg-type]
        full = bool(len(self.queues)) and earlier == config.queue_size
        return {
            "loss_of_log_k": of_log, "stuck_steps": float(self.stuck), "queue": float(earlier),
            "rows_per_prototype": (count + (earlier if full else 0)) / config.prototypes,
            "prototypes_hit": len(torch.unique(codes.argmax(1))) / min(config.prototypes, len(codes)),
        }  # fmt: skip

    def before_step(self) -> None:
        """Prototypes stay where they are in the first epoch."""
        if int(self.done) < self.frozen_steps:
            self.head.prototypes.weight.grad = None

    def finish(self) -> None:
        """The last step leaves rows of any length."""
        self.head.prototypes.renormalise()

    def warnings(self) -> list[str]:
        """What of the run deserves a second look."""
        config, found = self.settings, []
        rows = self.share + config.queue_size
        if rows < config.prototypes:
            found.append(
                f"{rows} rows share {config.prototypes} prototypes, so that codes are partly arbitrary; lower "
                "prototypes, or raise batch_size or queue_size"
            )
        if config.queue_size and any(len(queue) < config.queue_size for queue in self.queues):  # type: ignore[arg-type]
            found.append("the queue never filled; lower queue_start or queue_size, or train longer")
        if int(self.stuck):
            found.append(
                f"the loss stood at log K for the last {int(self.stuck)} steps; freeze the prototypes longer, or lower the "
                "learning rate"
            )
        return found

    def save_beside(self, folder: Path) -> None:
        """Head and prototypes, which say to which cluster an item belongs."""
        place = make_folder(folder / FOLDER)
        state = {name: value.detach().cpu().contiguous() for name, value in self.head.state_dict().items()}
        with storage(place):
            save_file(state, place / "model.safetensors")
        write_json(place / "config.json", {"sizes": self.head.sizes})


def swav_losses(codes: Sequence[Tensor], logits: Sequence[Tensor]) -> Tensor:
    """The loss of each row, [b].

    Args:
        codes: V_full times [b, K], of the first crops; no gradient flows into them.
        logits: V times [b, K], scores over the temperature.

    Raises:
        ConfigError: fewer than two crops, no codes, or more codes than crops.
    """
    if len(logits) < 2 or not 1 <= len(codes) <= len(logits):
        raise ConfigError(
            f"{len(codes)} codes for {len(logits)} crops", "two or more crops, of which one or more coded"
        )
    total = torch.zeros_like(logits[0][:, 0])
    for place, code in enumerate(codes):
        for other, prediction in enumerate(logits):
            if other != place:
                total = total + soft_cross_entropy(code, prediction)
    return total / (len(codes) * (len(logits) - 1))


def load_head(folder: Path) -> SwavHead:
    """The head and prototypes that a run left beside its encoder, in evaluation mode.

    Raises:
        ModelError: the folder holds none.
    """
    place = Path(folder) / FOLDER
    if not (place / "model.safetensors").exists():
        raise ModelError(f"no prototypes in {folder}", "a folder that swav wrote")
    head = SwavHead(*read_json(place / "config.json")["sizes"])
    head.load_state_dict(load_file(place / "model.safetensors"))
    return head.eval()


def _draws(config: SwavConfig) -> list[ViewConfig]:
    return [config.views] * config.full_crops + [config.small_views] * config.small_crops


CONFIG = SwavConfig
RECIPE = Recipe(CARD, CONFIG, None, takes="views", draws=_draws, build=SwavModule)
