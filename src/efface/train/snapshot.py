"""Train in place, give back what was there: the starting weights wait on the disk, not in memory.

So fitting keeps one model in memory, whatever the objective, and leaves the subject bit for bit as it was.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from efface.run.files import write_with

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's memory seen as integers of the same width (no copy)."""
    return tensor.detach().view(BITS[tensor.element_size()])


class Snapshot:
    """The present values of some tensors, kept in a safetensors file; a context manager that puts them back.

    Args:
        tensors: live tensors by name.
        path: where the file goes.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], path: Path) -> None:
        self.tensors = {name: tensor.detach() for name, tensor in tensors.items()}
        self.path = path
        write_with(path, lambda partial: save_file({k: v.contiguous() for k, v in self.tensors.items()}, partial))

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()
        self.path.unlink(missing_ok=True)

    def base(self, name: str) -> torch.Tensor:
        """One starting tensor, read from the disk."""
        with safe_open(self.path, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor.to(self.tensors[name].device)

    def restore(self, names: Iterable[str] | None = None) -> None:
        """Put the starting values back, bit for bit."""
        with torch.no_grad():
            for name in self.tensors if names is None else names:
                self.tensors[name].copy_(self.base(name))

    def changed(self) -> list[str]:
        """Names of the tensors whose bits differ from the start."""
        return [name for name, live in self.tensors.items() if not torch.equal(bits(live), bits(self.base(name)))]
