"""Gradient caching: the exact gradient of a loss over a large batch, with the encoder's activations of one chunk only.

Paper: Gao et al., Scaling deep contrastive learning batch size under memory limited setup (GradCache), arXiv 2101.06983.
GradCache has three passes: (a) forward chunk by chunk without activations, with the random state of each chunk kept; (b)
the loss on the embeddings Z [B, D], whose backward pass gives the cache G = dL/dZ; (c) chunk by chunk, forward again from
the kept random state and backward of <Z_chunk, G_chunk>. Activation checkpointing with one checkpoint a chunk is the same
computation: the forward pass is (a), the backward pass through the loss is (b) and arrives at each chunk's output with its
rows of G, and the recomputation that it then triggers is (c). The engine takes the newest part of the graph first, so that
one chunk is recomputed, differentiated and freed before the next. The cost is one more forward pass (about 1.33 times).

Departures from the official code: no hand-written passes, so the loss is an ordinary differentiable function of the
embeddings, gradient accumulation, mixed precision and several encoders need nothing special, and under DDP each parameter's
gradient is complete before it is reduced (no `no_sync`). What grows with B: inputs, Z, and the graph's empty nodes.

Exact where the encoder treats rows independently and a second forward pass changes nothing. So modules with state that
moves in each training pass are out: batch normalisation is refused (chunk statistics are not the batch's, and running ones
would be updated twice); spectral norm's power iteration, counters and queues inside an encoder are the caller's to avoid.
Random numbers come from the global generators, which are replayed; a generator that the encoder keeps is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from efface.errors import ConfigError, InputError

Encode = Callable[[dict[str, Tensor]], Tensor]
"""Inputs by name, each [b, ...], to embeddings [b, D]. Modules, their methods and functions over them will do."""


def cached(encode: Encode, inputs: dict[str, Tensor], chunk: int | None) -> Tensor:
    """Embeddings [B, D] whose backward pass recomputes the encoder chunk by chunk.

    Under DDP, wrap the module that calls this, so that one forward pass of the wrapper holds all chunks. Autocast and
    the random numbers of the CPU and of every accelerator that inputs or encoder lie on are replayed.

    Args:
        encode: see `Encode`. A module, or a method of one, is checked by `refuse_batch_norm`; for another function the
            caller does that.
        inputs: tensors [B, ...] with one B.
        chunk: rows of one encoder pass; None, or B or more, runs the whole batch at once, without recomputation.

    Raises:
        ConfigError: chunk below 1, batch normalisation in training, or an encoder that is wrapped by DDP.
        InputError: no inputs, numbers of rows that differ, or an encoder that does not keep the number of rows.
    """
    total = _rows(inputs)
    if chunk is not None and chunk < 1:
        raise ConfigError(f"chunk={chunk}", "at least 1 row, or None for the whole batch at once")
    if chunk is None or chunk >= total:
        return _encoded(encode, inputs, total)
    owner = _owner(encode)
    if owner is not None:
        refuse_batch_norm(owner)
    if isinstance(owner, DistributedDataParallel):
        raise ConfigError(
            "gradient caching of a module that DDP wraps", "an encoder inside the wrapped module",
            "call cached() in the forward pass of the module that is given to DDP",
        )  # fmt: skip
    markers = _markers(owner)

    def run(part: dict[str, Tensor], rows: int, *_: Tensor) -> Tensor:
        return _encoded(encode, part, rows)

    parts: list[Tensor] = []
    for start in range(0, total, chunk):
        part = {name: tensor[start : start + chunk] for name, tensor in inputs.items()}
        rows = min(chunk, total - start)
        # inputs go as arguments: the devices whose random state is kept are found by looking at the arguments
        parts.append(checkpoint(run, part, rows, *markers, use_reentrant=False, preserve_rng_state=True))
    return torch.cat(parts)


def refuse_batch_norm(module: nn.Module, *, training: bool = False) -> None:
    """Refuse an encoder whose chunks would not be independent, or that a second forward pass would change.

    Args:
        training: as if the module were in training mode, in which it is not yet.

    Raises:
        ConfigError: batch normalisation that uses the statistics of its batch, or instance normalisation that updates
            running ones.
    """
    for name, part in module.named_modules():
        batch = isinstance(part, _BatchNorm) and (part.training or training or part.running_mean is None)
        instance = isinstance(part, _InstanceNorm) and (part.training or training) and part.track_running_stats
        if batch or instance:
            raise ConfigError(
                f"gradient caching of an encoder with {type(part).__name__} in training mode (module '{name}')",
                "modules that treat rows independently and keep no running statistics",
                "set chunk=None, freeze it with .eval(), or use group or layer normalisation",
            )


def _rows(inputs: dict[str, Tensor]) -> int:
    shapes = {name: list(tensor.shape) for name, tensor in inputs.items()}
    if not shapes or any(not shape for shape in shapes.values()) or len({shape[0] for shape in shapes.values()}) != 1:
        raise InputError(
            f"encoder inputs of shapes {shapes}", "one or more tensors [B, ...] with one number of rows",
            "give every input one row an item",
        )  # fmt: skip
    return next(iter(shapes.values()))[0]


def _encoded(encode: Encode, inputs: dict[str, Tensor], rows: int) -> Tensor:
    found = encode(inputs)
    if found.ndim == 0 or found.shape[0] != rows:
        raise InputError(
            f"the encoder made an output of shape {list(found.shape)} of {rows} rows", f"[{rows}, D]",
            "return one embedding a row",
        )  # fmt: skip
    return found


def _owner(encode: Any) -> nn.Module | None:
    """The module behind a callable: itself, or whose method it is."""
    owner = encode if isinstance(encode, nn.Module) else getattr(encode, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


def _markers(owner: nn.Module | None) -> list[Tensor]:
    """Empty tensors on the accelerators that the encoder may draw on, though its inputs come from the CPU.

    `checkpoint` keeps the random state of the devices of its arguments only; dropout of a module on another device would
    draw anew in the backward pass, and the gradient would be of another function.
    """
    if owner is not None:
        found = {tensor.device for tensor in (*owner.parameters(), *owner.buffers())}
    else:
        found = {torch.device("cuda", torch.cuda.current_device())} if _cuda() else set()
    devices = sorted((device for device in found if device.type not in ("cpu", "meta")), key=str)
    return [torch.empty(0, device=device) for device in devices]


def _cuda() -> bool:
    """Whether CUDA is in use already; asking does not start it."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
