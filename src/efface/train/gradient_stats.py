"""Gradient statistics: the mean gradient of a loss over rows, or the mean of its square, one number a weight.

They feed attribution scores (WAGLE), Fisher ratios (LoKU), saliency and dampening. Two ways to cut the rows up: `per="batch"`
takes the gradient of each batch's mean loss, `per="sample"` that of each row. For the plain gradient both give the same
mean; for the square they do not: the square of a batch's mean is not the Fisher diagonal and falls with the batch size.

The model is in evaluation mode (no dropout), no `.grad` is touched, and nothing that is kept shares storage with the
model. A tied weight appears once, under the name that `named_parameters` gives it.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from efface.errors import ConfigError, InputError
from efface.run.digests import digest_value
from efface.run.files import write_with
from efface.run.progress import track
from efface.subjects.answers import AnswerLogits, answer_logits
from efface.subjects.learner import Learner
from efface.subjects.samples import Sample
from efface.train.outer_products import WORTH, OuterLayers, outer_layers
from efface.train.reference import cache_folder, rows_digest

Loss = Callable[[Any, Any], Tensor]
"""(model, batch) -> scalar: the mean over the batch. `model` is called as the module is."""

CACHED_NUMBERS = 2**27
"""Statistics with more numbers than this (half a gigabyte) are not cached unless asked for."""

SAMPLE_NUMBERS = 2**27
"""Per-sample gradients that are held at once: a chunk has as many samples as fit."""


@dataclass(frozen=True)
class GradStats:
    """What one pass gives.

    Attributes:
        tensors: by parameter name, of the parameter's shape, float32 (float64 for a float64 model).
        power: 1, the mean gradient; 2, the mean of its square.
        per: what a gradient was taken of.
        batch_size: rows in a batch; 1 for `per="sample"`. Squares depend on it.
        rows: how many rows there were.
        model, data: digests.
    """

    tensors: dict[str, Tensor]
    power: int
    per: str
    batch_size: int
    rows: int
    model: str
    data: str

    def mean(self) -> float:
        """Mean over all weights."""
        total = sum(float(tensor.double().sum()) for tensor in self.tensors.values())
        return total / sum(tensor.numel() for tensor in self.tensors.values())


def own_parameters(model: torch.nn.Module, names: Iterable[str] | None = None) -> dict[str, torch.nn.Parameter]:
    """Floating parameters by name, tied ones once; `names` restricts them.

    Raises:
        InputError: a name that the model lacks, or the second name of a tied weight.
    """
    own = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    if names is None:
        return own
    second = {name: p for name, p in model.named_parameters(remove_duplicate=False) if name not in own}
    chosen = set(names)
    for name in sorted(chosen - own.keys()):
        if name in second:
            first = next((key for key, p in own.items() if p is second[name]), None)
            if first:
                raise InputError(f"'{name}' is tied to '{first}'", "each weight once", f"use '{first}'")
        raise InputError(f"the model has no floating parameter '{name}'", "names of named_parameters()")
    return {name: p for name, p in own.items() if name in chosen}


@contextlib.contextmanager
def _requiring(model: torch.nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Evaluation mode, gradients for these parameters only; both come back as they were."""
    flags, mode, chosen = {n: p.requires_grad for n, p in model.named_parameters()}, model.training, set(names)
    model.eval()
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in chosen)
        with torch.enable_grad():
            yield
    finally:
        model.train(mode)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags[name])


@contextlib.contextmanager
def no_look_for_padding(model: torch.nn.Module) -> Iterator[None]:
    """Some architectures (GPT-2) look into the ids for padding, which vmap cannot do; there is none here."""
    config: Any = getattr(model, "config", None)
    pad = getattr(config, "pad_token_id", None)
    try:
        if pad is not None:
            config.pad_token_id = None
        yield
    finally:
        if pad is not None:
            config.pad_token_id = pad


def accumulate(
    model: torch.nn.Module, loss: Loss, batches: Iterable[tuple[Any, float]], *, power: Literal[1, 2] = 1,
    names: Iterable[str] | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """sum_b w_b g_b^power / sum_b w_b over batches, where g_b is the gradient of the batch's loss.

    Args:
        loss: see `Loss`; for a classifier, an encoder or any other module.
        batches: (batch, weight w_b): the number of its tokens, of its rows, or 1.
        power: 1 or 2.
        names: of the parameters; default all floating ones.

    Raises:
        InputError: no batch, or an unknown name.
    """
    own = own_parameters(model, names)
    found = {name: _zeros(p) for name, p in own.items()}
    total = 0.0
    with _requiring(model, own):
        for batch, weight in batches:
            grads = torch.autograd.grad(loss(model, batch), list(own.values()), allow_unused=True)
            for name, g in zip(own, grads, strict=True):
                if g is not None:
                    found[name].add_(g.to(found[name].dtype) ** power, alpha=weight)
            total += weight
    return _divided(found, total)


def accumulate_samples(
    model: torch.nn.Module, loss: Loss, batches: Iterable[tuple[Any, Tensor]], *, power: Literal[1, 2] = 2,
    names: Iterable[str] | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """sum_i w_i g_i^power / sum_i w_i over samples, many gradients at once.

    Linear layers that a sample passes once, as one vector, give their sums without their gradients (`train.outer_products`);
    the gradients of all other weights are made by vmap over the functional model.

    Args:
        loss: of a batch of one sample; must not look at values (`.item()`, `if tensor`), which vmap cannot do.
        batches: (tensors with samples along the first dimension, in any nesting; weights [B]). All samples pass the model
            in the same way.

    Raises:
        InputError: no sample, or an unknown name.
    """
    own = own_parameters(model, names)
    found = {name: _zeros(p) for name, p in own.items()}
    total = 0.0
    looked, outer = False, None
    # torch's fused attention kernels have no batching rule; the plain one is arithmetic that vmap knows
    with _requiring(model, ()), no_look_for_padding(model), sdpa_kernel(SDPBackend.MATH):
        for batch, weights in batches:
            if not looked and len(weights) >= WORTH:
                looked, outer = True, _look(model, loss, own, batch)
            _add_samples(model, loss, own, outer, batch, weights, power, found)
            total += float(weights.sum())
    return _divided(found, total)


def _look(model: torch.nn.Module, loss: Loss, own: Mapping[str, Any], batch: Any) -> OuterLayers | None:
    """How the first sample of a batch passes the model."""
    with _requiring(model, own):
        return outer_layers(model, own, lambda: loss(model, tree_map(lambda t: t[:1], batch)))


def _add_samples(
    model: torch.nn.Module, loss: Loss, own: Mapping[str, Tensor], outer: OuterLayers | None, batch: Any, weights: Tensor,
    power: Literal[1, 2], found: Mapping[str, Tensor],
) -> None:  # fmt: skip
    """Adds sum_i w_i g_i^power of a batch to `found`."""
    summed = set() if outer is None else outer.parameters()
    values = {name: p.detach() for name, p in own.items() if name not in summed}
    offsets = {} if outer is None else outer.offsets

    def one(moving: tuple[dict[str, Tensor], dict[str, Tensor]], sample: Any) -> tuple[Tensor, dict[str, Tensor]]:
        own_values, own_offsets = moving

        def call(*args: Any, **kwargs: Any) -> Any:
            return functional_call(model, own_values, args, kwargs)

        nothing: contextlib.AbstractContextManager[dict[str, Tensor]] = contextlib.nullcontext({})
        with nothing if outer is None else outer.listening(own_offsets) as caught:
            return loss(call, tree_map(lambda t: t.unsqueeze(0), sample)), caught

    each = vmap(grad(one, has_aux=True), in_dims=(None, 0), randomness="error")
    (grads, deltas), inputs = each((values, offsets), batch)
    for name, g in grads.items():  # [B, ...]
        g = g.detach().to(found[name].dtype) ** power
        found[name].add_(torch.tensordot(weights.to(g), g, dims=1))
    if outer is not None:
        outer.add(found, deltas, inputs, weights, power)


def _zeros(parameter: Tensor) -> Tensor:
    wide = torch.float64 if parameter.dtype == torch.float64 else torch.float32
    return torch.zeros_like(parameter, dtype=wide, requires_grad=False)


def _divided(found: dict[str, Tensor], total: float) -> dict[str, Tensor]:
    if not total > 0:
        raise InputError("no rows to take gradients of", "at least one", "check the data")
    return {name: tensor.div_(total) for name, tensor in found.items()}


def mean_nll(answer: AnswerLogits) -> Tensor:
    """Mean negative log-probability of the answer tokens of a batch."""
    return -answer.logp_sum.sum() / answer.mask.sum()


def answer_gradients(
    subject: Learner, rows: Sequence[Any], *, power: Literal[1, 2] = 1, per: Literal["batch", "sample"] = "batch",
    weighting: Literal["tokens", "equal"] = "tokens", batch_size: int = 8, loss: Callable[[Any], Tensor] = mean_nll,
    loss_name: str | None = None, names: Iterable[str] | None = None, cache: bool | None = None,
) -> GradStats:  # fmt: skip
    """Gradient statistics of a model's loss on answers: of a language model's texts, a classifier's classes, a regressor's
    numbers.

    Args:
        rows: tokenised or labelled examples; batches are cut in this order.
        power: 1 or 2.
        per: a gradient for each batch's mean loss or for each row's.
        weighting: a batch (or row) counts by its answer tokens, or each counts one. With `tokens` the plain gradient is
            that of the mean over all tokens, whatever the batch size.
        loss: the mean over a batch, of the answers' logits; default the negative log-likelihood.
        loss_name: names another loss in the cache; without a name another loss is not cached.
        names: parameters; default all.
        cache: default: up to `CACHED_NUMBERS` numbers. `efface purge` removes the entries.

    Raises:
        ConfigError: batch_size below 1.
        InputError: no rows.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size}", "at least 1")
    if not rows:
        raise InputError("no rows to take gradients of", "at least one", "check the data")
    known = loss_name or ("nll" if loss is mean_nll else None)
    size = 1 if per == "sample" else batch_size
    own = own_parameters(subject.model, names)
    numbers = sum(p.numel() for p in own.values())
    data = rows_digest(rows)
    stats: dict[str, Any] = {
        "power": power, "per": per, "batch_size": size, "rows": len(rows), "model": subject.digest, "data": data,
    }  # fmt: skip
    keep = known is not None and (numbers <= CACHED_NUMBERS if cache is None else cache)
    path = None
    if keep:
        key = digest_value({**stats, "loss": known, "weighting": weighting, "names": sorted(own)})
        path = cache_folder() / "reference" / f"grad-{key.removeprefix('sha256:')}.safetensors"
        if path.exists():
            try:
                return GradStats(load_file(path, device=str(subject.device)), **stats)
            except SafetensorError:  # a damaged entry counts as absent
                path.unlink(missing_ok=True)
    with track(f"gradients, power {power} per {per}", len(rows)) as advance:
        if per == "batch":
            made = accumulate(
                subject.model, lambda model, batch: loss(answer_logits(model, batch)),
                _padded(subject, rows, size, weighting, advance), power=power, names=own,
            )  # fmt: skip
        else:
            made = _per_sample(subject, rows, loss, own, max(1, SAMPLE_NUMBERS // numbers), power, weighting, advance)
    if path is not None:
        tensors = {name: tensor.contiguous() for name, tensor in made.items()}
        write_with(path, lambda partial: save_file(tensors, partial))
    return GradStats(made, **stats)


def _padded(
    subject: Learner, rows: Sequence[Any], size: int, weighting: str, advance: Callable[[int], None]
) -> Iterator[tuple[dict[str, Tensor], float]]:
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        yield subject.batch(part), float(sum(row.n_targets for row in part)) if weighting == "tokens" else 1.0
        advance(len(part))


def _per_sample(
    subject: Learner, rows: Sequence[Any], loss: Callable[[Any], Tensor],
    names: Mapping[str, Tensor], chunk: int, power: Literal[1, 2], weighting: str, advance: Callable[[int], None],
) -> dict[str, Tensor]:  # fmt: skip
    """Rows of one shape go together, so that nothing is padded and no mask is needed."""
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for row in rows:
        groups.setdefault(shape_of(row), []).append(row)
    found: dict[str, Tensor] | None = None
    total = 0.0
    for _, members in sorted(groups.items()):
        weight = float(members[0].n_targets) if weighting == "tokens" else 1.0
        one = members[0]

        def answers(model: Any, batch: Any, one: Any = one) -> Tensor:
            if isinstance(one, Sample):
                return loss(answer_logits(model, batch))
            return loss(_unpadded(subject.model, model, batch, one.n_prompt, len(one.ids) - one.n_prompt + 1))

        def parts(members: list[Any] = members, weight: float = weight) -> Iterator[tuple[Any, Tensor]]:
            for start in range(0, len(members), chunk):
                part = members[start : start + chunk]
                yield stacked(subject, part), torch.full((len(part),), weight, device=subject.device)
                advance(len(part))

        share = weight * len(members)
        made = accumulate_samples(subject.model, answers, parts(), power=power, names=names)
        total += share
        if found is None:
            found = {name: tensor.mul_(share) for name, tensor in made.items()}
        else:
            for name, tensor in made.items():
                found[name].add_(tensor, alpha=share)
    assert found is not None
    return _divided(found, total)


def shape_of(row: Any) -> tuple[Any, ...]:
    """What rows must agree in to stand in one unpadded batch."""
    if isinstance(row, Sample):
        return tuple((name, tuple(tensor.shape)) for name, tensor in sorted(row.make().items()))
    return len(row.ids), row.n_prompt


def stacked(subject: Learner, rows: Sequence[Any]) -> Any:
    """Rows of one shape: ids [B, T], or a batch of samples without its attention mask, which would be all ones."""
    if not isinstance(rows[0], Sample):
        return torch.tensor([row.ids for row in rows], device=subject.device)
    batch = subject.batch(rows)
    inputs = {name: tensor for name, tensor in batch["inputs"].items() if name != "attention_mask"}
    return {**batch, "inputs": inputs}


def _unpadded(module: Any, call: Any, ids: Tensor, first: int, keep: int) -> AnswerLogits:
    """`answer_logits` of rows [B, T] without padding, in operations that vmap takes."""
    inputs: dict[str, Any] = {"input_ids": ids}
    takes = inspect.signature(module.forward).parameters
    if "use_cache" in takes:
        inputs["use_cache"] = False
    if "logits_to_keep" in takes:
        logits = call(**inputs, logits_to_keep=keep).logits
    else:
        logits = call(**inputs).logits[:, -keep:]
    targets = ids[:, first:]  # [B, T']
    return AnswerLogits(logits[:, :-1].float(), targets, torch.ones_like(targets, dtype=torch.bool))
