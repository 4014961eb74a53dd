"""Run by test_gather.py in two processes: a local InfoNCE over gathered rows; each rank stores what it found."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from efface.errors import ConfigError, InputError
from efface.train.gather import gather_plain, gather_rows, processes, rank
from efface.train.gradient_caching import cached

TOTAL = 12
DTYPES = (torch.float32, torch.float64)


class Towers(nn.Module):
    """A small encoder, a learnt scale, and both sides' embeddings in one forward pass."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4))
        self.log_scale = nn.Parameter(torch.tensor(1.0))
        self.double()

    def embed(self, inputs: dict[str, Tensor]) -> Tensor:
        return nn.functional.normalize(self.encoder(inputs["x"]), dim=1)

    def forward(self, first: Tensor, second: Tensor, chunk: int | None) -> tuple[Tensor, Tensor, Tensor]:
        a, b = (cached(self.embed, {"x": x}, chunk) for x in (first, second))
        return a, b, self.log_scale.exp()


def data() -> tuple[Tensor, Tensor]:
    """Two sides [B, 5] of all processes."""
    g = torch.Generator().manual_seed(7)
    return tuple(torch.randn(TOTAL, 5, generator=g, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


def local_loss(first: Tensor, second: Tensor, scale: Tensor) -> Tensor:
    """Sum over the local anchors of both directions, divided by the number of all anchors."""
    all_first, all_second = gather_rows(first), gather_rows(second)
    here = torch.arange(len(first)) + rank() * len(first)
    loss = nn.functional.cross_entropy(scale * first @ all_second.T, here, reduction="sum")
    loss = loss + nn.functional.cross_entropy(scale * second @ all_first.T, here, reduction="sum")
    return loss / (2 * len(all_first))


def found(model: nn.Module, chunk: int | None) -> dict[str, Tensor]:
    """Gradients after the local loss times the number of processes, as the engine scales it."""
    b = TOTAL // processes()
    part = slice(rank() * b, (rank() + 1) * b)
    first, second = data()
    loss = local_loss(*model(first[part], second[part], chunk))
    (loss * processes()).backward()
    names = {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}
    total = loss.detach().clone()
    dist.all_reduce(total)
    return {**{name: grad.clone() for name, grad in names.items() if grad is not None}, "loss": total}


def main() -> None:
    """Arguments: folder for the results."""
    out = Path(sys.argv[1])
    dist.init_process_group("gloo")
    results: dict[str, Tensor] = {}
    averaged = found(Towers(), None)
    for name, grad in averaged.items():
        if name != "loss":
            dist.all_reduce(grad)
            grad /= processes()
        results[f"plain.{name}"] = grad
    for key, chunk in {"ddp": None, "cached1": 1, "cached4": 4}.items():
        wrapped = DistributedDataParallel(Towers())
        results.update({f"{key}.{name}": value for name, value in found(wrapped, chunk).items()})

    ids = torch.arange(3) + 10 * rank()
    results["ids"] = gather_plain(ids)
    results["flags"] = gather_plain(torch.tensor([rank() == 1]))
    # one row's gradient is the sum of what every process owes to it: process r weighs row i with (r + 1) * (i + 1)
    x = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    weights = (rank() + 1.0) * torch.arange(1, 2 * processes() + 1, dtype=torch.float64)[:, None]
    (gather_rows(x) * weights).sum().backward()
    assert x.grad is not None
    results["owed"] = x.grad
    half = torch.zeros(2, dtype=torch.bfloat16, requires_grad=True)
    gather_rows(half).sum().backward()
    assert half.grad is not None
    results["half"] = half.grad
    assert not gather_plain(x).requires_grad
    for name, wrong in {"rows": torch.zeros(2 + rank(), 3), "type": torch.zeros(2, dtype=DTYPES[rank()])}.items():
        try:
            gather_rows(wrong)
        except InputError as error:
            (out / f"{name}{rank()}.txt").write_text(str(error))
    try:
        cached(DistributedDataParallel(nn.Linear(5, 4)), {"x": torch.zeros(4, 5)}, 2)  # type: ignore[arg-type]
    except ConfigError as error:
        (out / f"wrapped{rank()}.txt").write_text(str(error))
    save_file(results, out / f"rank{rank()}.safetensors")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
