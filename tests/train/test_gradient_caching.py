"""Gradient caching: exact with dropout for every chunk size, memory of one chunk, refusals."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from efface.errors import ConfigError, InputError
from efface.train.gradient_caching import cached, refuse_batch_norm

ROWS = 11


class Encoder(nn.Module):
    """Two layers with dropout; takes two inputs by name."""

    def __init__(self, width: int = 6, hidden: int = 16, dropout: float = 0.5) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, hidden), nn.Linear(hidden, 4)
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        hidden = self.dropout(torch.tanh(self.inner(inputs["x"])))
        out: Tensor = self.outer(self.dropout(hidden)) * inputs["mask"][:, None]
        return out


def batch(rows: int = ROWS, width: int = 6, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Inputs that want a gradient themselves, and a mask."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(rows, width, generator=g, dtype=dtype)
    return {"x": x, "mask": 1 + torch.arange(rows).to(dtype) / rows}


def info_nce(z: Tensor) -> Tensor:
    """Every row against every other: no sum over rows, so that chunks do not separate."""
    z = nn.functional.normalize(z, dim=1)
    logits = (z @ z.T / 0.2).fill_diagonal_(-30.0)
    return nn.functional.cross_entropy(logits, (torch.arange(len(z)) + 1) % len(z))


def gradients(encoder: nn.Module, inputs: dict[str, Tensor], forward: Callable[..., Tensor]) -> list[Tensor]:
    """Loss, parameter gradients and the input's from one seed."""
    encoder.zero_grad()
    inputs = {**inputs, "x": inputs["x"].detach().clone().requires_grad_()}
    torch.manual_seed(5)
    loss = info_nce(forward(encoder, inputs))
    torch.randn(3)  # the loss and whoever comes after it draw numbers too
    loss.backward()
    return [loss.detach(), inputs["x"].grad, *[p.grad.clone() for p in encoder.parameters()]]  # type: ignore[union-attr,list-item]


def in_chunks(encoder: nn.Module, inputs: dict[str, Tensor], chunk: int) -> Tensor:
    """The plain forward pass with all activations, over the same chunks and so the same random numbers."""
    rows = len(inputs["x"])
    return torch.cat(
        [encoder({name: value[i : i + chunk] for name, value in inputs.items()}) for i in range(0, rows, chunk)]
    )


@pytest.mark.parametrize("chunk", [*range(1, ROWS + 2), None])
def test_gradient_is_the_plain_one_with_dropout(chunk: int | None) -> None:
    torch.manual_seed(0)
    encoder = Encoder().double()
    plain = gradients(encoder, batch(), lambda e, inputs: in_chunks(e, inputs, chunk or ROWS))
    ours = gradients(encoder, batch(), lambda e, inputs: cached(e, inputs, chunk))
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
    other = gradients(encoder.eval(), batch(), lambda e, inputs: cached(e, inputs, chunk))
    assert (other[2] - plain[2]).abs().max() > 1e-3, "dropout must matter, or the test shows nothing"


@pytest.mark.parametrize("chunk", [1, 4, 10])
def test_without_randomness_it_is_the_whole_batch(chunk: int) -> None:
    torch.manual_seed(0)
    encoder = Encoder(dropout=0.0).double()
    plain = gradients(encoder, batch(), lambda e, inputs: e(inputs))
    ours = gradients(encoder, batch(), lambda e, inputs: cached(e, inputs, chunk))
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_the_backward_pass_leaves_the_generator_where_it_was() -> None:
    encoder = Encoder().double()
    torch.manual_seed(5)
    loss = info_nce(cached(encoder, batch(), 3))
    before = torch.get_rng_state()
    loss.backward()
    assert torch.equal(torch.get_rng_state(), before)


def test_two_towers_and_two_forward_passes_in_one_loss() -> None:
    torch.manual_seed(0)
    encoder = Encoder().double()

    def twice(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda e, inputs: torch.cat([forward(e, inputs), forward(e, inputs)])

    plain = gradients(encoder, batch(), twice(lambda e, inputs: in_chunks(e, inputs, 4)))
    ours = gradients(encoder, batch(), twice(lambda e, inputs: cached(e, inputs, 4)))
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_autocast_is_kept_in_the_second_forward_pass() -> None:
    torch.manual_seed(0)
    encoder = Encoder()
    seen: list[torch.dtype] = []
    encoder.inner.register_forward_hook(lambda module, args, out: seen.append(out.dtype))

    def under(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(e: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return forward(e, inputs).float()

        return run

    inputs = batch(dtype=torch.float32)
    plain = gradients(encoder, inputs, under(lambda e, x: in_chunks(e, x, 4)))
    seen.clear()
    ours = gradients(encoder, inputs, under(lambda e, x: cached(e, x, 4)))
    assert seen == [torch.bfloat16] * 6, "three chunks, each twice, all in bfloat16"
    for a, b in zip(ours, plain, strict=True):
        # the weights' gradient adds up over chunks in bfloat16, in one order or the other
        torch.testing.assert_close(a, b, atol=1e-2, rtol=1e-2)


class Living(TorchDispatchMode):
    """Bytes of the storages that were made inside and still live; `peak` is their largest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def peak(rows: int, chunk: int | None) -> int:
    """Most bytes alive at once during forward and backward, beyond inputs and parameters; the hidden layer dominates."""
    encoder = Encoder(width=4, hidden=4096)
    inputs = batch(rows, 4, torch.float32)
    torch.manual_seed(0)
    with Living() as living:
        (cached(encoder, inputs, chunk) ** 2).sum().backward()
    return living.peak


def test_memory_is_that_of_one_chunk() -> None:
    small, large = peak(32, 8), peak(256, 8)
    plain_small, plain_large = peak(32, None), peak(256, None)
    assert plain_large > 4 * plain_small, "the plain pass grows with the batch, or the measure sees nothing"
    assert large < 1.1 * small
    assert large < plain_large / 5


def saved(rows: int, chunk: int | None) -> int:
    """Numbers that the forward pass keeps for the backward pass."""
    count = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal count
        count += tensor.numel()
        return tensor

    encoder = Encoder(width=4, hidden=512)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        cached(encoder, batch(rows, 4, torch.float32), chunk)
    return count


def test_the_forward_pass_saves_nothing() -> None:
    assert saved(64, 8) == saved(256, 8) == 0
    assert saved(256, None) > 256 * 512


def test_one_chunk_is_recomputed_and_freed_before_the_next() -> None:
    """In the backward pass each chunk is seen once more, the newest first."""
    encoder = Encoder().double()
    sizes: list[int] = []
    encoder.inner.register_forward_hook(lambda module, args, out: sizes.append(len(out)))
    info_nce(cached(encoder, batch(), 4)).backward()
    assert sizes == [4, 4, 3, 3, 4, 4]


def test_no_gradient_no_second_pass() -> None:
    encoder = Encoder(dropout=0.0).double()
    with torch.no_grad():
        found = cached(encoder, batch(), 4)
    assert not found.requires_grad
    torch.testing.assert_close(found, encoder(batch()), atol=1e-12, rtol=0)


class Normed(nn.Module):
    """An encoder with a normalisation inside."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        out: Tensor = self.norm(inputs["x"])
        return out

    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        return self(inputs)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d(6), nn.SyncBatchNorm(6), nn.BatchNorm1d(6, track_running_stats=False).eval(),
             nn.InstanceNorm1d(6, track_running_stats=True)],
)  # fmt: skip
def test_batch_norm_is_refused(norm: nn.Module) -> None:
    with pytest.raises(ConfigError, match=rf"{type(norm).__name__} in training mode \(module 'norm'\)"):
        refuse_batch_norm(Normed(norm))
    with pytest.raises(ConfigError, match="chunk=None"):
        cached(Normed(norm).features, batch(dtype=torch.float32), 4)


def test_frozen_batch_norm_and_whole_batches_are_allowed() -> None:
    encoder = Normed(nn.BatchNorm1d(6))
    assert cached(encoder, batch(dtype=torch.float32), None).shape == (ROWS, 6)
    assert int(encoder.norm.num_batches_tracked) == 1  # type: ignore[arg-type]
    assert cached(encoder.eval(), batch(dtype=torch.float32), 4).shape == (ROWS, 6)


@pytest.mark.parametrize(
    "inputs", [{}, {"x": torch.zeros(())}, {"x": torch.zeros(3, 6), "mask": torch.zeros(4)}], ids=str
)
def test_inputs_without_one_number_of_rows_are_refused(inputs: dict[str, Tensor]) -> None:
    with pytest.raises(InputError, match="one number of rows"):
        cached(Encoder(), inputs, 2)


def test_other_misuse_is_refused() -> None:
    with pytest.raises(ConfigError, match="chunk=0"):
        cached(Encoder(), batch(), 0)
    with pytest.raises(InputError, match=r"shape \[2\] of 4 rows; expected \[4, D\]"):
        cached(lambda inputs: inputs["mask"][:2], batch(), 4)
