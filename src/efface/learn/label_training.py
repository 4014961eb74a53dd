"""Training of a query tower and a label tower with every label, or a shortlist, in the loss (DEXML, arXiv 2310.10636)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn

from efface.errors import ConfigError, InputError
from efface.learn.module import LearnModule, Steps, module_loss
from efface.learn.retrieval_scores import search
from efface.numerics import multi_label as losses
from efface.run.cost import Cost, measure_cost
from efface.run.files import make_folder
from efface.subjects.dual_encoder import DualEncoder
from efface.train.config import TrainConfig
from efface.train.engine import train, world_size
from efface.train.gather import gather_plain, gather_rows, processes, rank
from efface.train.gradient_caching import cached, refuse_batch_norm
from efface.train.rows import RowSchedule

Inputs = Callable[[Sequence[int]], dict[str, Tensor]]


class LabelledConfig(TrainConfig):
    """Loss, labels in the loss, and optimisation. Defaults: DEXML's base configuration."""

    learning_rate: float = Field(1e-4, gt=0, description="DEXML: 1e-4 (EURLex 5e-5, AmazonTitles 3e-4)")
    weight_decay: float = Field(0.01, ge=0, description="DEXML: 0.01")
    epochs: float = Field(100, gt=0, description="DEXML: 100")
    batch_size: int = Field(1000, ge=2, description="queries of a step, all processes together; DEXML: 1000")
    warmup_ratio: float = Field(0.1, ge=0, le=1, description="DEXML: 0.1")
    loss: Literal["decoupled", "softmax", "softmax-mean", "bce", "soft-top-k"] = Field(
        "decoupled", description="DEXML's proposals: decoupled, and soft-top-k for a fixed k"
    )
    temperature: float = Field(0.05, gt=0, description="T; DEXML: 0.05")
    k: int = Field(5, ge=1, description="of the soft top-k; DEXML: 5")
    alpha: float = Field(2.0, gt=0, description="its sharpness; DEXML: 2")
    iterations: int = Field(32, ge=8, description="its halvings; DEXML: 32")
    sample: bool = Field(
        True, description="one positive a query and step (soft top-k: k) is drawn, the others take no part; DEXML: yes"
    )
    negatives: Literal["all", "shortlist"] = Field(
        "all", description="labels in the loss; DEXML's dist-de-all, dist-de-hnm"
    )
    shortlist: int = Field(100, ge=1, description="hardest negatives kept of each query; DEXML: 100")
    hard_negatives: int = Field(10, ge=1, description="of them, drawn for each query of a step")
    hard_start: int = Field(
        5, ge=1, description="epoch of the first shortlist; before it, random labels; DEXML, EURLex: 5"
    )
    refresh: int = Field(5, ge=1, description="epochs between shortlists; DEXML: 5")
    label_chunk: int | None = Field(
        1000, ge=1, description="labels in one encoder pass (gradient caching); DEXML: 1000"
    )
    chunk: int | None = Field(None, ge=1, description="queries in one encoder pass; default: all of a step")
    tile: int | None = Field(None, ge=1, description="side of a tile of the scores; default: chosen by size")
    dropout: bool = Field(False, description="leave the model's dropout on; DEXML: off")


def towers_of(subject: Any) -> tuple[Any, Any]:
    """What embeds queries, and what embeds labels."""
    return (subject.image, subject.text) if isinstance(subject, DualEncoder) else (subject, subject)


class LabelModule(LearnModule):
    """Both towers, and in shortlist mode each query's hard negatives.

    Args:
        model: holds all weights of the towers.
        towers: of queries and of labels; `features(inputs)` -> [b, D] with gradient.
        queries: rows -> the query tower's inputs.
        labels: the label tower's inputs, [L, ...] each.
        relevant: places of the labels of each row.
        config: the settings.
        steps_per_epoch: of the run.

    Raises:
        ConfigError: batch normalisation with gradient caching.
        InputError: fewer labels than processes, or a soft top-k whose k no threshold reaches.
    """

    shortlist: Tensor
    ready: Tensor
    towers: tuple[Any, Any]
    labels: dict[str, Tensor]

    def __init__(
        self, model: nn.Module, towers: tuple[Any, Any], queries: Inputs, labels: dict[str, Tensor],
        relevant: Sequence[Sequence[int]], config: LabelledConfig, steps_per_epoch: float,
    ) -> None:  # fmt: skip
        super().__init__(None)
        self.backbone, self.settings = model, config
        object.__setattr__(self, "towers", towers)
        self.queries, self.labels = queries, labels
        self.total = len(next(iter(labels.values())))
        sizes = np.array([len(line) for line in relevant])
        if not len(sizes) or sizes.min() < 1:
            raise InputError(f"{int((sizes < 1).sum())} queries without a label", "one or more each", "drop them")
        self.offsets = np.concatenate([[0], sizes.cumsum()])
        self.places = torch.tensor([label for line in relevant for label in line], dtype=torch.int64)
        if config.loss == "soft-top-k" and max(config.k, 0 if config.sample else int(sizes.max())) >= self.total:
            raise InputError(f"k={config.k} of {self.total} labels", "fewer than the labels", "lower k")
        if self.total < processes():
            raise InputError(f"{self.total} labels on {processes()} processes", "one a process or more")
        if config.dropout and (config.chunk is not None or config.label_chunk is not None):
            refuse_batch_norm(model, training=True)
        short = config.negatives == "shortlist"
        kept = min(config.shortlist, self.total - int(sizes.max())) if short else 0
        if short and kept < 1:
            raise ConfigError(
                f"a shortlist of {self.total} labels", "more labels than a query's own", "use negatives=all"
            )
        self.register_buffer("shortlist", torch.zeros(len(sizes) if short else 0, kept, dtype=torch.int64))
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))
        every = round(config.hard_start * steps_per_epoch), max(1, round(config.refresh * steps_per_epoch))
        self.first, self.every = max(1, every[0]), every[1]

    def train(self, mode: bool = True) -> LabelModule:
        """Without dropout the towers stay in evaluation mode."""
        super().train(mode)
        if not self.settings.dropout:
            self.backbone.eval()
        return self

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """Queries of everybody against this process's labels; see numerics/multi_label.py."""
        config = self.settings
        q = gather_rows(self._unit(0, batch["inputs"], config.chunk))
        rows = gather_plain(batch["rows"]).cpu()
        draw = torch.Generator().manual_seed((config.seed * 0x9E3779B1 + int(self.done) + 1) % 2**63)
        which, own, chosen = self._positives(rows, draw)
        names = torch.arange(self.total) if config.negatives == "all" else self._union(rows, own, draw)
        per = -(-len(names) // processes())
        mine = names[rank() * per : (rank() + 1) * per]
        if not len(mine):
            mine = names[-1:]  # one label again, which no sum counts
        unit = self._unit(1, {name: value[mine] for name, value in self.labels.items()}, config.label_chunk)
        value = self._loss(q, unit, mine, which, own, chosen, real=rank() * per < len(names), total=len(names))
        return value, {"labels": float(len(names)), "positives": float(chosen.sum()) / len(rows)}

    def _loss(
        self, q: Tensor, unit: Tensor, mine: Tensor, which: Tensor, own: Tensor, chosen: Tensor, *, real: bool, total: int
    ) -> Tensor:  # fmt: skip
        config, device = self.settings, q.device
        place = torch.searchsorted(mine, own).clamp(max=len(mine) - 1)
        here = (mine[place] == own) & real
        out = here & ~chosen
        left_out = (which[out].to(device), place[out].to(device))
        if not real:  # the repeated label: left out for every query
            left_out = (torch.arange(len(q), device=device), torch.zeros(len(q), dtype=torch.int64, device=device))
        pulled = here & chosen
        n = torch.bincount(which[chosen], minlength=len(q)).to(device)
        shard = losses.Shard(
            q, unit, which[pulled].to(device), place[pulled].to(device), left_out, n, total,
            joined=lambda x: losses.log_sum(gather_rows(x[None])) if processes() > 1 else x,
            total=lambda x: _reduced(x, dist.ReduceOp.SUM), largest=lambda x: _reduced(x, dist.ReduceOp.MAX),
        )  # fmt: skip
        scale = 1 / config.temperature
        if config.loss == "decoupled":
            return losses.decoupled_loss(shard, scale, tile=config.tile)
        if config.loss == "bce":
            return losses.one_vs_all_loss(shard, scale, tile=config.tile)
        if config.loss == "soft-top-k":
            k = n.clamp(min=config.k).float()
            return losses.soft_topk_loss(shard, scale, k, alpha=config.alpha, iterations=config.iterations)
        return losses.softmax_loss(shard, scale, averaged=config.loss == "softmax-mean", tile=config.tile)

    def _unit(self, side: int, inputs: dict[str, Tensor], chunk: int | None) -> Tensor:
        tower = self.towers[side]

        def run(part: dict[str, Tensor]) -> Tensor:
            return nn.functional.normalize(tower.features(part).float(), dim=1)

        return cached(run, inputs, chunk)

    def _positives(self, rows: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """For every positive pair of the batch: the query's place in it, the label, and whether it is pulled."""
        spans = [(int(self.offsets[row]), int(self.offsets[row + 1])) for row in rows.tolist()]
        own = torch.cat([self.places[start:stop] for start, stop in spans])
        which = torch.repeat_interleave(torch.arange(len(spans)), torch.tensor([stop - start for start, stop in spans]))
        if not self.settings.sample:
            return which, own, torch.ones(len(own), dtype=torch.bool)
        count = self.settings.k if self.settings.loss == "soft-top-k" else 1
        return which, own, losses.sample_positives(torch.ones(len(own)), which, count, draw)

    def _union(self, rows: Tensor, own: Tensor, draw: torch.Generator) -> Tensor:
        """Sorted labels of a step: the batch's own, and hard ones (before the first shortlist: random ones)."""
        count = self.settings.hard_negatives
        if not bool(self.ready):
            more = torch.randint(self.total, (len(rows) * count,), generator=draw)
        else:
            near = self.shortlist[rows.to(self.shortlist.device)].cpu()
            keys = torch.rand(near.shape, generator=draw)
            more = near.gather(1, keys.topk(min(count, near.shape[1]), dim=1).indices).flatten()
        found: Tensor = torch.cat([own, more]).unique()  # type: ignore[no-untyped-call]
        return found

    def after_step(self) -> None:
        """A new shortlist where it is due."""
        finished = int(self.done) + 1
        if self.shortlist.numel() and finished >= self.first and (finished - self.first) % self.every == 0:
            self.refresh()

    @torch.no_grad()
    def refresh(self, size: int = 256) -> None:
        """Each query's nearest labels that are not its own, by exact search; decided by the first process."""
        mode = self.backbone.training
        self.backbone.eval()
        labels = torch.cat([
            self._unit(1, {name: value[start : start + size] for name, value in self.labels.items()}, None)
            for start in range(0, self.total, size)
        ])  # fmt: skip
        sizes = np.diff(self.offsets)
        found = torch.empty_like(self.shortlist)
        for start in range(0, len(sizes), size):
            rows = range(start, min(start + size, len(sizes)))
            q = self._unit(0, self.queries(rows), None)
            near = search(q, labels, min(self.total, found.shape[1] + int(sizes[rows.start : rows.stop].max())))[
                1
            ].cpu()
            for row, line in zip(rows, near, strict=True):
                own = self.places[self.offsets[row] : self.offsets[row + 1]]
                found[row] = line[~torch.isin(line, own)][: found.shape[1]].to(found.device)
        self.backbone.train(mode)
        self.shortlist.copy_(gather_plain(found)[: len(found)])
        self.ready.fill_(True)


def _reduced(x: Tensor, how: Any) -> Tensor:
    """Sum or maximum over processes."""
    if processes() > 1:
        x = x.contiguous().clone()
        dist.all_reduce(x, op=how)
    return x


@dataclass(frozen=True)
class Done:
    """A finished training: the logged numbers of each step, the cost, and the module."""

    values: list[dict[str, float]]
    cost: Cost
    module: LabelModule


def fit_labels(
    model: nn.Module, towers: tuple[Any, Any], queries: Inputs, labels: dict[str, Tensor],
    relevant: Sequence[Sequence[int]], config: LabelledConfig, *, work: Path, label: str = "train",
) -> Done:  # fmt: skip
    """Train both towers in place; checkpoints live in `work`, which the caller empties. Arguments: see `LabelModule`."""
    world = world_size()
    schedule = RowSchedule(
        len(relevant), epochs=config.epochs, batch_size=config.batch_size, seed=config.seed, world=world
    )
    module = LabelModule(model, towers, queries, labels, relevant, config, len(relevant) / schedule.batch_size)

    def collate(items: list[tuple[int, int]]) -> dict[str, Any]:
        rows = [row for row, _ in items]
        return {"rows": torch.tensor(rows), "inputs": queries(rows)}

    once = config.model_copy(update={"micro_batch_size": schedule.batch_size // world})
    with measure_cost(label) as cost:
        log = train(
            module, schedule, module_loss, once, folder=make_folder(work), collator=collate, label=label,
            callbacks=(Steps(module),),
        )  # fmt: skip
        cost.items = len(schedule)
    return Done(log.values, cost, module)


__all__ = ["Done", "LabelModule", "LabelledConfig", "fit_labels", "towers_of"]
