"""BECLR: likely members of a row's class, found in a clustered memory, are added to its targets; made for few-shot use.

Paper: Poulakakis-Daktylidis and Jamali-Rad, arXiv 2402.02444 (ICLR 2024). The student (encoder, projector, predictor) sees
masked views, the teacher, a moving average of encoder and projector, whole ones. With unit rows p (predictor), s (projector)
and t (teacher, without gradient) [B, D] of two views, and N(t_i) = [t_i; its k nearest rows in the teacher's memory],

    L = -1/2 [ mean cos(p1_i, N(t2_i)) + mean cos(p2_i, N(t1_i)) ] + 0.1 log mean_i mean_r exp(<s_i, s_r> / 2)

Departures from the official code, by `neighbors`: "targets" (default) is this equation, where a row's neighbours are targets
of its other view's prediction and no negatives of it. "rows" is the code's: student and teacher batches are each made longer
by their own memory's neighbours and compared row by row, which gives a neighbour no gradient and repels an anchor from its
own neighbours. In both, samples go to the nearest clusters with room (there, the farthest), eps is what is asked for, and
rows have no neighbour among views of their own item (see `memory.clustered`). The memory's epochs and sizes are the paper's
and need long runs; what few-shot inference adds (OpTA) is `learn.episodes`.

Gradient caching cannot serve it (batch norm in the heads) and is refused. Memory: three (with "targets" two) memories
[M, D], similarities [2B, M], and for the loss [2B, 2B(1 + k)], or with "rows" the square of 2B(1 + k).
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from efface.catalog import Card
from efface.errors import ConfigError, ModelError
from efface.learn.heads import mlp
from efface.learn.memory.clustered import ClusteredMemory, Metric
from efface.learn.memory.ema import EMA
from efface.learn.module import Batch, LearnModule, Lesson
from efface.learn.objective import ContrastiveConfig, Recipe
from efface.learn.views.block_mask import BlockMask
from efface.learn.views.images import ViewConfig
from efface.numerics.contrast import wide
from efface.numerics.neighbour_contrast import paired_uniformity, target_cosines, uniformity_without_neighbours
from efface.train.gather import gather_plain, gather_rows, processes, rank

CARD = Card(
    name="beclr",
    system="beclr",
    title="BECLR",
    summary="A student follows its teacher; neighbours from a clustered memory are further targets. For few-shot use, with "
    "OpTA in learn.episodes. Keeps memories of M rows and [2B, M] similarities; no gradient caching.",
    paper="Poulakakis-Daktylidis and Jamali-Rad, BECLR: batch enhanced contrastive few-shot learning, arXiv 2402.02444 "
    "(ICLR 2024)",
    verb="learn",
    mechanism="recipes",
    modalities=("image",),
    subjects=("encoder",),
    defaults_source="paper and official configuration for miniImageNet with ResNet-18",
)


class BeclrConfig(ContrastiveConfig):
    """Heads, teacher, memory, masks and loss."""

    projector: int = Field(
        512, ge=4, description="D of projector and memory; paper: 512; the predictor narrows to D / 4"
    )
    momentum: float = Field(0.995, ge=0, le=1, description="of the teacher at the start, 1 at the end; paper: 0.995")
    neighbors: Literal["targets", "rows"] = Field(
        "targets", description="targets: neighbours are positives, as the paper means it; rows: as the official code"
    )
    topk: int = Field(5, ge=1, description="neighbours of a row; official: 5, 3 (ResNet-50), 10 (tieredImageNet)")
    clusters: int = Field(200, ge=2, description="P; official: 200")
    rows_per_cluster: int = Field(40, ge=1, description="memory rows over P; official: 40")
    memory_start: int = Field(60, ge=0, description="epoch from which neighbours are used; official: 60 of 400")
    recluster: int = Field(60, ge=0, description="epochs between two clusterings, 0 for one only; official: 60")
    eps: float = Field(0.1, gt=0, description="entropy of the assignment; official: 1e-5 asked for, about 0.1 used")
    iterations: int = Field(10, ge=1, description="Sinkhorn iterations; official: 10")
    metric: Metric = Field(
        "euclidean", description="euclidean, cosine, or released: the code's, to the farthest clusters"
    )
    prototype_momentum: float = Field(0.0, ge=0, lt=1, description="of the memory's prototypes; official: 0")
    negative_weight: float = Field(0.1, ge=0, description="weight of the second term; official: 0.1")
    temperature: float = Field(2.0, gt=0, description="T of the second term; official: 2")
    negatives: Literal["SS", "ST", "TT"] = Field(
        "SS",
        description="whose rows of view one and two repel: student's or teacher's; TT has no gradient; official: SS",
    )
    mask_patch: int = Field(16, ge=1, description="side of a masked patch in pixels; official: 16")
    mask_share: float = Field(
        0.15, ge=0, lt=1, description="of the patches; official: 0.15; none below 3 patches a side"
    )
    mask_spread: float = Field(0.1, ge=0, lt=1, description="largest distance from that share; official: 0.1")
    views: ViewConfig = Field(
        ViewConfig(crop_area=(0.2, 1.0), flip=0.5), description="official, without its RandAugment"
    )
    batch_size: int = Field(256, ge=2, description="items in one step, all processes together; official: 256")
    epochs: float = Field(400, gt=0, description="passes over the data; official: 400")
    optimizer: Literal["adamw", "adam", "sgd"] = Field("sgd", description="official: SGD with momentum 0.9")
    learning_rate: float = Field(0.3, gt=0, description="official: 0.3 times the batch over 256")
    weight_decay: float = Field(1e-4, ge=0, description="official: 1e-4")
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="official: none")


class BeclrModule(LearnModule):
    """Student, teacher and memories."""

    shadow: Any

    def __init__(self, subject: Any, config: BeclrConfig, lesson: Lesson) -> None:
        super().__init__(subject)
        size = config.clusters * config.rows_per_cluster
        if config.chunk is not None:
            raise ConfigError("chunk for beclr", "none", "its heads have batch norm: take a smaller batch_size")
        if subject.modality != "image":
            raise ModelError(f"beclr on an encoder of {subject.modality}", "pictures", "its student sees masked ones")
        if size < 2 * lesson.batch_size:
            raise ConfigError(
                f"a memory of {size} rows for batches of {lesson.batch_size}", "both views of a batch or more",
                "raise clusters or rows_per_cluster",
            )  # fmt: skip
        if config.topk > size:
            raise ConfigError(f"topk={config.topk} of {size} rows", "fewer")
        self.settings, self.epoch_steps = config, lesson.steps_per_epoch
        width = config.projector
        self.online = nn.ModuleList([subject.model, mlp((subject.width, width, width, width), last_norm=True)])
        self.predictor = mlp((width, width // 4, width))
        self.teacher = EMA(self.online, momentum=config.momentum, schedule="cosine", steps=lesson.steps)
        shadow = copy.copy(subject)
        shadow.model = self.teacher.module[0]  # type: ignore[index]
        object.__setattr__(self, "shadow", shadow)
        streams = ("teacher", "student") if config.neighbors == "targets" else ("teacher", "student", "predictor")
        self.memories = nn.ModuleDict({
            name: ClusteredMemory(
                size, width, config.clusters, eps=config.eps, iterations=config.iterations, metric=config.metric,
                every=config.recluster, momentum=config.prototype_momentum, seed=config.seed + place,
            )
            for place, name in enumerate(streams)
        })  # fmt: skip
        self.masks = BlockMask(config.mask_patch, config.mask_share, config.mask_spread)

    def masked(self, inputs: dict[str, Tensor], view: int) -> tuple[dict[str, Tensor], float]:
        """The student's inputs, and the share of the pixels that it does not see.

        The masks are those of the whole batch, drawn from seed and step, so that they are the same over any number of
        processes and after a kill.
        """
        pixels = inputs["pixel_values"]
        b = len(pixels)
        seed = (self.settings.seed, int(self.done), view)
        seen = self.masks.draw(b * processes(), pixels.shape[2], pixels.shape[3], seed)
        seen = seen[rank() * b : (rank() + 1) * b].to(pixels.device)
        return {**inputs, "pixel_values": pixels * seen}, 1 - float(seen.float().mean())

    def _streams(self, views: list[dict[str, Tensor]]) -> tuple[dict[str, Tensor], float]:
        """Unit rows [2, B, D] of all processes by stream, and the masked share."""
        seen = [self.masked(inputs, view) for view, inputs in enumerate(views)]
        student = self.online[1](self.subject.features(_joined([inputs for inputs, _ in seen])))
        predicted = self.predictor(student)
        with torch.no_grad():
            taught = self.teacher.module[1](self.shadow.features(_joined(views)))  # type: ignore[index]
        found = {"student": student, "predictor": predicted, "teacher": taught}
        return {name: _gathered(rows) for name, rows in found.items()}, sum(share for _, share in seen) / len(seen)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """See `LearnModule.forward`. Every process computes the loss of the whole batch and gives its share of it."""
        z, share = self._streams(batch["views"])
        with torch.autocast(z["student"].device.type, enabled=False):  # similarities and assignments in float32
            loss, numbers = self._loss(z, gather_plain(batch["rows"]))
        return loss / processes(), {"masked": share, **numbers}

    def _loss(self, z: dict[str, Tensor], ids: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The loss of the whole batch, from unit rows [2, B, D] by stream and items [B]; the memories move on."""
        config = self.settings
        epoch = int(int(self.done) / self.epoch_steps + 1e-6)
        for name, memory in self.memories.items():
            assert isinstance(memory, ClusteredMemory)
            memory.push(z[name].detach().flatten(0, 1), ids.repeat(2), epoch)
        numbers = {"teacher_spread": float(z["teacher"].detach().flatten(0, 1).std(0).mean())}
        found = None
        if epoch >= config.memory_start and all(memory.ready for memory in self.memories.values()):
            found, alone = self._neighbours(z, ids)
            numbers |= {"fell_back": alone, "clusters": float(self.memories["teacher"].labels.unique().numel())}  # type: ignore[operator]
        terms = _as_targets if config.neighbors == "targets" else _as_rows
        positive, negative = terms(z, ids, found, config)
        loss = positive + config.negative_weight * negative
        numbers |= {"positive": float(positive.detach()), "negative": float(negative.detach())}
        return loss, numbers | {"kept_clusters": float(self.memories["teacher"].kept)}  # type: ignore[arg-type]

    def _neighbours(self, z: dict[str, Tensor], ids: Tensor) -> tuple[dict[str, tuple[Tensor, Tensor]], float]:
        """By stream: neighbours [2, B, k, D] and their items [2, B, k]; and how often a cluster was too small."""
        found, alone = {}, []
        for name, memory in self.memories.items():
            assert isinstance(memory, ClusteredMemory)
            places, small = memory.neighbours(z[name].detach().flatten(0, 1), ids.repeat(2), self.settings.topk)
            places = places.view(*z[name].shape[:2], -1)
            found[name] = (memory.rows(places), memory.ring.ids[places])
            alone.append(float(small.float().mean()))
        return found, sum(alone) / len(alone)

    def after_step(self) -> None:
        """The teacher follows."""
        self.teacher.update(self.online)


Found = dict[str, tuple[Tensor, Tensor]] | None


def _as_targets(z: dict[str, Tensor], ids: Tensor, found: Found, config: BeclrConfig) -> tuple[Tensor, Tensor]:
    """Both terms with neighbours as targets."""
    targets = z["teacher"][:, :, None]
    if found is not None:
        targets = torch.cat([targets, found["teacher"][0]], 2)
    p = z["predictor"]
    positive = -(target_cosines(p[0], targets[1]).mean() + target_cosines(p[1], targets[0]).mean()) / 2
    first, second = _repelled(config)
    views = z[first][0], z[second][1]
    if found is None:
        return positive, paired_uniformity(*views, config.temperature)
    extra = torch.stack([found[first][0][0], found[second][0][1]])
    items = torch.stack([found[first][1][0], found[second][1][1]])
    return positive, uniformity_without_neighbours(*views, ids, extra, items, config.temperature)


def _as_rows(z: dict[str, Tensor], ids: Tensor, found: Found, config: BeclrConfig) -> tuple[Tensor, Tensor]:
    """Both terms over batches that were made longer."""
    longer = z if found is None else {
        name: torch.cat([rows, found[name][0].flatten(1, 2)], 1) for name, rows in z.items()
    }  # fmt: skip
    p, t = longer["predictor"], longer["teacher"][:, :, None]
    positive = -(target_cosines(p[0], t[1]).mean() + target_cosines(p[1], t[0]).mean()) / 2
    first, second = _repelled(config)
    return positive, paired_uniformity(longer[first][0], longer[second][1], config.temperature)


def _repelled(config: BeclrConfig) -> tuple[str, str]:
    first, second = ({"S": "student", "T": "teacher"}[letter] for letter in config.negatives)
    return first, second


def _joined(views: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([inputs[name] for inputs in views]) for name in views[0]}


def _gathered(rows: Tensor) -> Tensor:
    """[2b, D] of this process to unit rows [2, B, D] of all."""
    unit = nn.functional.normalize(wide(rows), dim=1)
    return torch.stack([gather_rows(part) for part in unit.chunk(2)])


CONFIG = BeclrConfig
RECIPE = Recipe(CARD, CONFIG, None, takes="views", build=BeclrModule)
