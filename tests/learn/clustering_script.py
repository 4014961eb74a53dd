"""Some steps of swav and beclr, this process's share of the rows: clustering_script.py OUT (by torch.distributed.run).

Each step is a forward and a backward pass, gradients summed over the processes, and plain gradient descent, so that queues,
memories, teacher, masks and prototypes of later steps come from earlier ones. All in float64: in float32 a unit that rounding
puts on the other side of a ReLU's kink shows in the weights.
"""

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
from efface.subjects.encoder import Encoder
from efface.train.gather import processes, rank

ROWS, SIDE, STEPS = 8, 16, 6
BECLR: dict[str, Any] = {
    "projector": 8, "clusters": 4, "rows_per_cluster": 8, "memory_start": 1, "recluster": 2, "topk": 2, "mask_patch": 4,
    "momentum": 0.5, "negative_weight": 1.0,
}  # fmt: skip
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "swav": ("swav", {
        "prototypes": 6, "hidden": 16, "projector": 8, "queue_size": 19, "queue_start": 0.5, "small_crops": 1,
        "batch_size": ROWS,
    }),
    "beclr": ("beclr", BECLR),
    "beclr-rows": ("beclr", BECLR | {"neighbors": "rows", "negatives": "ST"}),
}  # fmt: skip


class Wide(Encoder):
    """Features in the weights' own type."""

    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        """[b, D] float64."""
        pooled: Tensor = self.model(**inputs).pooler_output
        return pooled


def module_of(name: str, **more: Any) -> LearnModule:
    """The module on a small encoder without batch norm, in training mode, with `more` settings; an epoch is two steps."""
    start = StartConfig(architecture="conv", channels=(8, 16), norm="group", image_size=SIDE, patch=4)
    recipe, settings = SETTINGS[name]
    module = find(recipe, "learn").module
    encoder = new_encoder(start, "image", (), 0)
    subject = Wide(encoder.model.double(), encoder.part, pooling="pooler")
    subject._width = 16
    torch.manual_seed(1)
    lesson = Lesson(rows=2 * ROWS, steps=STEPS, batch_size=ROWS, inputs=lambda rows: {})
    made: LearnModule = module.RECIPE.build(subject, module.CONFIG.parse(settings | more), lesson)
    return made.double().train()


def batch_of(step: int, rows: slice) -> Batch:
    """Rows of a batch of eight: two views of one size, and a smaller one."""
    generator = torch.Generator().manual_seed(step)
    views = [
        torch.randn(ROWS, 3, side, side, generator=generator, dtype=torch.float64) for side in (SIDE, SIDE, SIDE // 2)
    ]
    items = torch.arange(ROWS) + ROWS * (step % 2)
    return {"views": [{"pixel_values": view[rows]} for view in views], "rows": items[rows]}


def found(name: str) -> dict[str, Tensor]:
    """Losses of all steps, and what was trained and is remembered after them."""
    model = module_of(name)
    share = ROWS // processes()
    rows = slice(rank() * share, (rank() + 1) * share)
    losses = []
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for step in range(STEPS):
        batch = batch_of(step, rows)
        if SETTINGS[name][0] == "beclr":
            batch["views"] = batch["views"][:2]
        value, _ = model(batch)
        for parameter in trained:
            parameter.grad = None
        value.backward()
        total = value.detach().clone()
        if processes() > 1:
            dist.all_reduce(total)
            for parameter in trained:
                assert parameter.grad is not None
                dist.all_reduce(parameter.grad)
        losses.append(total)
        model.before_step()
        with torch.no_grad():
            for parameter in trained:
                if parameter.grad is not None:
                    parameter -= 0.2 * parameter.grad
        model.after_step()
        model.done += 1
    result = {"losses": torch.stack(losses), **model.state_dict()}
    return {key: value.detach().clone() for key, value in result.items() if "stuck" not in key}


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for case in SETTINGS:
        tensors = found(case)
        if rank() == 0:
            save_file(
                {key: value.contiguous() for key, value in tensors.items()}, Path(sys.argv[1]) / f"{case}.safetensors"
            )
    dist.destroy_process_group()
