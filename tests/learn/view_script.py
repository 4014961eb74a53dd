"""Run by test_view_processes.py, in one process and in two: losses and gradients of the recipes of several views."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from efface.catalog import find
from efface.learn.contrastive_model import ContrastiveModel
from efface.learn.starts import StartConfig, new_encoder
from efface.train.gather import processes, rank

TOTAL, WIDTH, VIEWS, STEPS = 12, 6, 3, 2
RECIPES: dict[str, dict[str, Any]] = {
    "dcl": {"weighted": True, "sigma": 2.0},
    "moco-dcl": {"queue_size": 16, "momentum": 0.5},
    "mv-infonce": {"n_views": VIEWS},
    "mv-dhel": {"n_views": VIEWS, "unique_ids": True},
    "mv-pwe": {"n_views": VIEWS},
    "mv-avg": {"n_views": VIEWS},
    "mv-pvc": {"n_views": VIEWS, "unique_ids": True},
    "cacr": {"n_views": VIEWS, "tau_plus": 0.1},
    "cacr-moco": {"n_views": VIEWS, "queue_size": 16, "momentum": 0.5},
    "cacr-moco-v3": {"n_views": VIEWS, "momentum": 0.5, "predictor": 4, "unique_ids": True},
}


def views() -> list[Tensor]:
    """The views of all processes, each [TOTAL, WIDTH]."""
    generator = torch.Generator().manual_seed(3)
    item = torch.randn(TOTAL, WIDTH, generator=generator)
    return [item + 0.3 * torch.randn(TOTAL, WIDTH, generator=generator) for _ in range(VIEWS)]


def found(name: str, more: dict[str, Any]) -> dict[str, Tensor]:
    """Losses and gradients of two steps, summed over the processes; the queue holds the first step's keys at the second."""
    entry = find(name, "learn").module
    config = entry.CONFIG.parse(more)
    everyone = views()
    encoder = new_encoder(StartConfig.parse({"widths": (8, 5)}), "features", (), 0, arrays=everyone[0])
    torch.manual_seed(0)
    build = entry.RECIPE.build
    model: Any = ContrastiveModel(encoder, entry.RECIPE, config) if build is None else build(encoder, config, None)
    b, ids = TOTAL // processes(), torch.tensor([0, 1, 2, 3, 4, 5, 0, 7, 2, 9, 10, 11])
    part, results = slice(rank() * b, (rank() + 1) * b), {}
    for step in range(STEPS):
        count = len(entry.RECIPE.views_of(config))
        batch = {"views": [{"features": (x * (1 + step))[part]} for x in everyone[:count]], "ids": ids[part]}
        value, _ = model(batch)
        model.zero_grad()
        value.backward()
        kept = {f"{name}.{step}.loss": value.detach().clone()}
        for key, parameter in model.named_parameters():
            if parameter.grad is not None:
                kept[f"{name}.{step}.{key}"] = parameter.grad.clone()
        for tensor in kept.values():
            if processes() > 1:
                dist.all_reduce(tensor)
        results |= kept
        model.after_step()
        if model.queue is not None:
            results[f"{name}.{step}.queue"] = model.queue.keys.clone()
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
    tensors: dict[str, Tensor] = {}
    for recipe, settings in RECIPES.items():
        tensors |= found(recipe, settings)
    if rank() == 0:
        save_file(tensors, str(Path(sys.argv[1])))
    if dist.is_initialized():
        dist.destroy_process_group()
