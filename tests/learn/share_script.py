"""Loss and gradients of one step of a recipe's module, this process's share of the rows: share_script.py OUT RECIPE..."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from efface.catalog import find
from efface.learn.module import Batch, LearnModule, Lesson
from efface.learn.starts import StartConfig, new_encoder
from efface.train.gather import processes, rank

ROWS, SIDE = 8, 16
SETTINGS: dict[str, dict[str, Any]] = {
    "pixcontrast": {"head_hidden": 16, "head_width": 8},
    "pixpro": {"head_hidden": 16, "head_width": 8, "value_layers": 2, "instance_weight": 0.5},
    "sepclr": {
        "head_hidden": 16, "common_size": 4, "salient_size": 3, "salient_weight": 3.0, "information_weight": 2.0,
        "joint_weight": 5.0,
    },
}  # fmt: skip


def module_of(name: str) -> LearnModule:
    """The module of a recipe on a small encoder without batch norm, in training mode."""
    start = StartConfig(architecture="conv", channels=(8, 16), norm="group", image_size=SIDE, patch=4)
    module = find(name, "learn").module
    subject = new_encoder(start, "image", (), 0)
    torch.manual_seed(1)
    lesson = Lesson(
        rows=ROWS,
        steps=10,
        batch_size=ROWS,
        inputs=lambda rows: {"pixel_values": torch.zeros(len(rows), 3, SIDE, SIDE)},
    )
    made: LearnModule = module.RECIPE.build(subject, module.CONFIG.parse(SETTINGS[name]), lesson)
    return made.train()


def batch_of(rows: slice) -> Batch:
    """Rows of a batch of eight: crops of very different places, so that processes hold unequal numbers of matches."""
    generator = torch.Generator().manual_seed(3)
    views = [torch.randn(ROWS, 3, SIDE, SIDE, generator=generator) for _ in range(2)]
    corners = torch.rand(2, ROWS, 2, generator=generator) * 0.6
    corners[0, :2], corners[1, :2] = 0.0, 0.6  # two pictures without a match, both in the first process
    boxes = torch.cat([corners, corners + 0.35], 2)
    return {
        "views": [{"pixel_values": view[rows]} for view in views], "boxes": boxes[:, rows], "rows": torch.arange(ROWS)[rows],
        "groups": (torch.arange(ROWS) % 2)[rows], "labels": (torch.arange(ROWS) % 2)[rows],
    }  # fmt: skip


def found(name: str) -> dict[str, Tensor]:
    """Loss and gradients, summed over the processes; running statistics of the heads."""
    model = module_of(name)
    share = ROWS // processes()
    value, _ = model(batch_of(slice(rank() * share, (rank() + 1) * share)))
    value.backward()
    result = {key: p.grad for key, p in model.named_parameters() if p.grad is not None} | {"loss": value.detach()}
    if processes() > 1:
        for tensor in result.values():
            dist.all_reduce(tensor)
    states = {key: value for key, value in model.named_buffers() if key.endswith(("running_mean", "running_var"))}
    return result | states


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for recipe in sys.argv[2:]:
        tensors = found(recipe)
        if rank() == 0:
            save_file(
                {key: value.contiguous() for key, value in tensors.items()}, Path(sys.argv[1]) / f"{recipe}.safetensors"
            )
    dist.destroy_process_group()
