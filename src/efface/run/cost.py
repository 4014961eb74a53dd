"""What a phase of work cost: seconds, items, tokens, peak memory."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field


class Cost(BaseModel):
    """Seconds, throughput and peak memory of one phase."""

    model_config = ConfigDict(extra="forbid")

    phase: str = Field(description="what was done")
    seconds: float = Field(0.0, description="wall-clock seconds")
    items: int = Field(0, description="examples (sequences) that went through the model")
    tokens: int = Field(0, description="tokens that went through the model, padding not counted")
    peak_mb: float = Field(0.0, description="peak resident (CPU) or allocated (CUDA) memory in MiB")

    @property
    def tokens_per_second(self) -> float | None:
        """Throughput, or None where no token was counted."""
        return self.tokens / self.seconds if self.tokens and self.seconds else None


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):  # Linux only; elsewhere the peak is the process's own
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_mb() -> float:
    """Peak memory since the last reset in MiB: CUDA allocations where there is a GPU, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


@contextlib.contextmanager
def measure_cost(phase: str) -> Iterator[Cost]:
    """Time a block; `items` and `tokens` of the yielded record are the caller's to fill."""
    cost = Cost(phase=phase)
    _reset_peak()
    start = time.perf_counter()
    try:
        yield cost
    finally:
        cost.seconds = time.perf_counter() - start
        cost.peak_mb = peak_mb()
