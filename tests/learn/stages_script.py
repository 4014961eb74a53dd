"""Run by test_stage_processes.py in one and in two processes: shares of DEXML's and cMIM's losses, and a run of MCL."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from datasets import Dataset
from safetensors.torch import save_file
from torch import Tensor, nn

from efface.learn.label_training import LabelledConfig, LabelModule
from efface.learn.module import Lesson
from efface.learn.recipes.cmim import CMIMConfig, CMIMModule
from efface.learn.run import learn
from efface.subjects.encoder import Encoder
from efface.subjects.small_encoders import VectorEncoder, VectorEncoderConfig
from efface.train.gather import processes, rank

RELEVANT = [[0, 6], [1, 3], [2], [0, 1, 4], [4, 6], [3, 0], [2, 1], [6]]
LOSSES = ("softmax", "softmax-mean", "decoupled", "bce", "soft-top-k")


class Side:
    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        found: Tensor = self.module(inputs["x"])
        return found


def labels_module(**config: Any) -> LabelModule:
    """Eight queries, seven labels: shards of four and three."""
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(6, 4), nn.Linear(5, 4)])
    x, y = torch.randn(8, 6), torch.randn(7, 5)
    settings = LabelledConfig(temperature=0.2, **config)
    towers = (Side(model[0]), Side(model[1]))
    return LabelModule(model, towers, lambda rows: {"x": x[list(rows)]}, {"x": y}, RELEVANT, settings, 1.0)


def own(count: int) -> list[int]:
    """The rows of this process."""
    b = count // processes()
    return list(range(rank() * b, (rank() + 1) * b))


def shares(model: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
    """The sum of the shares over processes, and of their gradients."""
    value, _ = model(batch)
    value.backward()
    found = {"loss": value.detach().clone()[None]}
    for name, parameter in model.named_parameters():
        found[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
    if processes() > 1:
        for tensor in found.values():
            dist.all_reduce(tensor)
    return found


def results() -> dict[str, Tensor]:
    """Every share."""
    found: dict[str, Tensor] = {}
    for loss in LOSSES:
        for sample in (False, True):
            model = labels_module(loss=loss, k=2, sample=sample, label_chunk=2)
            batch = {"rows": torch.tensor(own(8)), "inputs": model.queries(own(8))}
            found |= {f"{loss}.{sample}.{name}": value for name, value in shares(model, batch).items()}
    model = labels_module(negatives="shortlist", shortlist=2, hard_negatives=1)
    model.refresh()
    batch = {"rows": torch.tensor(own(8)), "inputs": model.queries(own(8))}
    found |= {f"shortlist.{name}": value for name, value in shares(model, batch).items()}

    torch.manual_seed(0)
    subject = Encoder(VectorEncoder(VectorEncoderConfig(inputs=6, widths=(8,))))
    x = torch.rand(8, 6, generator=torch.Generator().manual_seed(1))
    lesson = Lesson(rows=8, steps=1, batch_size=8, inputs=lambda rows: {"features": x[list(rows)]})
    machine = CMIMModule(subject, CMIMConfig(code=4, temperature=0.5), lesson)
    found |= {f"cmim.{name}": value for name, value in shares(machine, {"views": [{"features": x[own(8)]}]}).items()}
    return found


def stages(out: Path) -> None:
    """MCL on arrays whose views are the rows themselves, so that every process sees what one would see."""
    rng = np.random.default_rng(0)
    centres = np.array([[9.0, 0, 1, 0], [9, 0, -1, 0], [-9, 0, 0, 1], [-9, 0, 0, -1]])
    values = (centres[np.arange(32) % 4] + 0.05 * rng.standard_normal((32, 4))).astype(np.float32)
    learn(
        "mcl", Dataset.from_dict({"id": [str(i) for i in range(32)], "features": values}), out, stages=3, clusters=2, epochs=1,
        batch_size=8, stage_batch_size=4, start={"widths": (8, 4)}, feature_views={"corrupt": 0.0}, evaluations=0,
    )  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    if len(sys.argv) > 2:
        dist.init_process_group("gloo")
    found = results()
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(found, folder / "shares.safetensors")
    stages(folder / "mcl")
