"""What PixPro and PixContrast share: an encoder's map through a pixel-wise head, a moving copy of both, and matching cells.

Paper: PixPro, Xie et al., arXiv 2011.10043, section 3. The encoder's map [b, C, h, w] goes through a head of 1 x 1
convolutions; keys come from a moving copy of encoder and head, whose momentum rises to 1 on a cosine. Which cells of two
views match follows from the boxes that the views show. Departures from the official code: LARS is not among the engine's
optimisers, so the defaults are AdamW's; there is no solarisation; the copy's running statistics are the encoder's (they
play no part in training, where the keys are normalised by their own batch); the heads' batch norm is over the rows of all
processes, the encoder's over each process's own; the momentum's count is stored and resumed.
"""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from efface.errors import ConfigError
from efface.learn.heads import MapNorm
from efface.learn.memory.ema import EMA
from efface.learn.module import Batch, LearnModule, Lesson
from efface.learn.objective import ContrastiveConfig
from efface.learn.views.images import Range, ViewConfig
from efface.numerics.pixel_grid import Size, matches
from efface.run.files import make_folder, read_json, write_json
from efface.train.gather import gather_plain

BESIDE = "pixels"
"""The sub-folder of a model that holds the pixel-wise head."""

ALONE = 0.2
"""Share of pictures without matching cells above which a run warns (PixPro's specification)."""


class PixelViews(ViewConfig):
    """BYOL's views as PixPro draws them, without solarisation (arXiv 2006.07733, appendix B)."""

    flip: float = Field(0.5, ge=0, le=1, description="chance of a horizontal flip; PixPro: 0.5")
    brightness: float = Field(0.4, ge=0, le=1, description="largest change of the brightness factor; PixPro: 0.4")
    contrast: float = Field(0.4, ge=0, le=1, description="largest change of the contrast factor; PixPro: 0.4")
    saturation: float = Field(0.2, ge=0, le=1, description="largest change of the saturation factor; PixPro: 0.2")
    hue: float = Field(0.1, ge=0, le=0.5, description="largest turn of the hue; PixPro: 0.1")
    blur: float = Field(1.0, ge=0, le=1, description="chance of a Gaussian blur; PixPro: 1 in the first view")
    crop_area: Range = Field((0.08, 1.0), description="share of the area that a crop keeps; PixPro: 0.08 to 1")


class PixelConfig(ContrastiveConfig):
    """Matching, head and moving copy. No `chunk` and no `projector`: see `PixelModule`."""

    weight_decay: float = Field(1e-5, ge=0, description="PixPro: 1e-5 (with LARS)")
    epochs: float = Field(100, gt=0, description="PixPro: 100 or 400")
    warmup_ratio: float = Field(0.05, ge=0, le=1, description="PixPro: 5 of 100 epochs")
    views: PixelViews = Field(PixelViews(), description="how the views are drawn; PixPro: BYOL's")
    second_blur: float = Field(0.1, ge=0, le=1, description="blur of the second view, at most the first's; PixPro: 0.1")
    ratio: float = Field(0.7, gt=0, description="T, a match's largest distance in cell diagonals; PixPro: 0.7")
    head_hidden: int = Field(4096, ge=1, description="inner width of the heads; PixPro's code: 4096, paper: 2048")
    head_width: int = Field(256, ge=2, description="width of the heads' output; PixPro: 256")
    key_momentum: float = Field(
        0.99, ge=0, lt=1, description="of the moving copy, rising to 1 on a cosine; PixPro: 0.99"
    )
    most_cells: int = Field(
        1024, ge=1, description="cells of a map at most: every picture of a batch needs that squared in memory; efface"
    )


def draws(config: PixelConfig) -> tuple[ViewConfig, ViewConfig]:
    """The two views, which differ in their blur."""
    second = config.views.model_copy(update={"blur": min(config.views.blur, config.second_blur)})
    return config.views, second


def pixel_head(width: int, hidden: int, out: int) -> nn.Sequential:
    """1 x 1 convolution, batch norm, ReLU, 1 x 1 convolution: [b, width, h, w] -> [b, out, h, w]."""
    return nn.Sequential(nn.Conv2d(width, hidden, 1), MapNorm(hidden), nn.ReLU(), nn.Conv2d(hidden, out, 1))


def cells_of(maps: Tensor) -> Tensor:
    """[b, D, h, w] -> [b, h w, D], row by row."""
    return maps.flatten(2).transpose(1, 2)


def cell_spread(cells: Tensor) -> float:
    """Standard deviation of unit cells [..., D] a channel, times sqrt(D): near 1 spread over the sphere, 0 collapsed."""
    rows = nn.functional.normalize(cells.detach().flatten(0, -2).float(), dim=1)
    return float(rows.std(0).mean()) * math.sqrt(rows.shape[1])


@dataclass(frozen=True)
class Seen:
    """One view in one tower: `maps` [b, C, h, w] of the encoder, `heads` [b, D, h, w] of each head that is copied."""

    maps: Tensor
    heads: tuple[Tensor, ...]

    @property
    def cells(self) -> Tensor:
        """[b, h w, D] of the first head, not normalised."""
        return cells_of(self.heads[0])

    @property
    def size(self) -> Size:
        """(h, w)."""
        return int(self.maps.shape[2]), int(self.maps.shape[3])


class PixelModule(LearnModule):
    """Encoder and heads, their moving copy, and the matches of a batch; a subclass gives `pixel_loss`.

    Gradient caching is refused: maps of whole batches are compared, and the heads hold batch norm.

    Args:
        subject, config, lesson: see `LearnModule`.
        instance: a second head of whole pictures is copied too.

    Raises:
        ConfigError: chunk, projector, or views that turn; a map of too many cells.
        ModelError: an encoder without a map.
    """

    shadow: Any
    seen: Tensor
    alone: Tensor

    def __init__(self, subject: Any, config: Any, lesson: Lesson, *, instance: bool = False) -> None:
        super().__init__(subject)
        self.settings, self.lesson_steps = config, lesson.steps
        refuse(config)
        with subject.evaluating():
            maps = subject.maps(lesson.inputs([0]))
        self.check(maps)
        heads = [pixel_head(maps.shape[1], config.head_hidden, config.head_width) for _ in range(1 + instance)]
        self.online = nn.ModuleList([subject.model, *heads])
        self.ema = EMA(self.online, momentum=config.key_momentum, schedule="cosine", steps=lesson.steps)
        shadow = copy.copy(subject)
        shadow.model = self.ema.module[0]  # type: ignore[index]
        object.__setattr__(self, "shadow", shadow)
        self.width = int(maps.shape[1])
        self.check_at = max(1, min(lesson.steps, round(lesson.steps_per_epoch)))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("alone", torch.zeros((), dtype=torch.int64))

    def check(self, maps: Tensor) -> None:
        """Refuse a map whose squared number of cells would not fit."""
        cells = maps.shape[2] * maps.shape[3]
        if cells > self.settings.most_cells:
            raise ConfigError(
                f"maps of {maps.shape[2]} x {maps.shape[3]} cells, whose {cells} x {cells} pairs a picture are compared",
                f"{self.settings.most_cells} cells at most",
                "take smaller views or a later map, or raise most_cells: a batch of b needs about 16 b cells^2 bytes",
            )

    def look(self, inputs: dict[str, Tensor]) -> Seen:
        """A view in the trained tower."""
        maps = self.subject.maps(inputs)
        self.check(maps)
        return Seen(maps, tuple(head(maps) for head in self.online[1:]))

    def look_slowly(self, inputs: dict[str, Tensor]) -> Seen:
        """A view in the moving copy, without gradient."""
        with torch.no_grad():
            maps = self.shadow.maps(inputs)
            return Seen(maps, tuple(head(maps) for head in self.ema.module[1:]))  # type: ignore[index]

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Both views in both towers, their matches, and the system's loss."""
        online = [self.look(inputs) for inputs in batch["views"]]
        keys = [self.look_slowly(inputs) for inputs in batch["views"]]
        boxes = batch["boxes"].to(online[0].maps)
        match = matches(boxes[0], boxes[1], (online[0].size, online[1].size), self.settings.ratio)
        if self.training:
            self.seen += len(match)
            self.alone += (~match.flatten(1).any(1)).sum()
        value, numbers = self.pixel_loss(online, keys, match)
        numbers |= {
            "spread": cell_spread(torch.cat([view.cells for view in online], 1)),
            "matched": float(match.flatten(1).any(1).float().mean()), "key_momentum": self.ema.momentum,
        }  # fmt: skip
        return value, numbers

    def pixel_loss(self, online: list[Seen], keys: list[Seen], match: Tensor) -> tuple[Tensor, dict[str, float]]:
        """(this process's share, numbers to log) from both views and their matches [b, N, M]."""
        raise NotImplementedError

    def after_step(self) -> None:
        """The copy follows; after one pass over the data, a word where too many views do not overlap."""
        self.ema.update(self.online)
        if int(self.done) + 1 == self.check_at and int(self.alone) > ALONE * int(self.seen):
            warnings.warn(
                f"{int(self.alone)} of {int(self.seen)} pictures had two views without a matching cell: they teach nothing; "
                "raise the least share of the area in views.crop_area",
                UserWarning,
                stacklevel=2,
            )

    def save_beside(self, folder: Path) -> None:
        """The pixel-wise head, which dense tasks may go on with: see `load_pixel_head`."""
        place = make_folder(folder / BESIDE)
        state = {name: value.detach().cpu().contiguous() for name, value in self.online[1].state_dict().items()}
        save_file(state, place / "head.safetensors")
        sizes = {"width": self.width, "hidden": self.settings.head_hidden, "out": self.settings.head_width}
        write_json(place / "head.json", sizes)


def load_pixel_head(folder: Path) -> nn.Sequential:
    """The pixel-wise head that was trained with the encoder in `folder`, in evaluation mode."""
    place = Path(folder) / BESIDE
    head = pixel_head(**read_json(place / "head.json"))
    head.load_state_dict(load_file(place / "head.safetensors"))
    return head.eval()


def refuse(config: PixelConfig) -> None:
    """Settings of contrastive recipes that a pixel-wise one cannot follow.

    Raises:
        ConfigError: names the first of them.
    """
    if config.chunk is not None:
        raise ConfigError(
            f"chunk={config.chunk} for a pixel-wise recipe", "no gradient caching: its heads hold batch norm",
            "lower batch_size; the loss holds b * cells^2 numbers a direction",
        )  # fmt: skip
    if config.projector:
        raise ConfigError(f"projector={config.projector} for a pixel-wise recipe", "0: it has a head of its own",
                          "set head_hidden and head_width")  # fmt: skip
    if config.views.rotate:
        raise ConfigError(f"views.rotate={config.views.rotate}", "0: a box does not say how a view was turned",
                          "leave the rotation out")  # fmt: skip


def total(count: Tensor) -> Tensor:
    """A count summed over all processes, at least 1, []."""
    return gather_plain(count.reshape(1)).sum().clamp(min=1)
