"""Gradients of single rows, many at once, for edits that need more than their mean or their mean square.

Influence unlearning needs the rows of G [M, P] themselves, the loss-free form of dampening the mean of their absolute value,
Fisher forgetting a square for every class of every row. All of them stand on `shaped`, which lets rows of one shape go
together so that nothing is padded. Rows are a classifier's or a regressor's (`Sample`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from efface.errors import ConfigError
from efface.run.digests import digest_value
from efface.run.files import write_with
from efface.run.progress import track
from efface.subjects.answers import answer_logits
from efface.subjects.learner import Learner
from efface.subjects.samples import Sample
from efface.train.gradient_stats import (
    CACHED_NUMBERS,
    SAMPLE_NUMBERS,
    GradStats,
    accumulate,
    no_look_for_padding,
    own_parameters,
    shape_of,
    stacked,
)
from efface.train.reference import cache_folder, rows_digest

Loss = Callable[[Any], Tensor]
"""Answers of a batch -> scalar, the mean over the batch."""


def shaped(subject: Learner, rows: Sequence[Any], numbers: int) -> Iterator[tuple[list[int], Any]]:
    """Batches of rows of one shape, so many that as many gradients of `numbers` numbers fit at once.

    Returns:
        indices of the rows, and their batch without an attention mask, which would be all ones.
    """
    groups: dict[Any, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(shape_of(row), []).append(index)
    size = max(1, SAMPLE_NUMBERS // max(1, numbers))
    for _, members in sorted(groups.items()):
        for start in range(0, len(members), size):
            part = members[start : start + size]
            yield part, stacked(subject, [rows[i] for i in part])


def sample_gradients(
    subject: Learner, rows: Sequence[Any], loss: Loss, names: Iterable[str] | None = None
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """The gradient of every row (vmap over the functional model), in evaluation mode; no `.grad` is touched.

    Args:
        loss: must not look at values, which vmap cannot do.
        names: parameters; default all.

    Returns:
        indices of some rows, and by name their gradients [B, ...]; every row comes once, those of one shape together.

    Raises:
        ConfigError: rows of a language model.
    """
    if rows and not isinstance(rows[0], Sample):
        raise ConfigError(
            f"gradients of single rows of a {subject.kind}", "a classifier or a regressor", "use loss=labels"
        )
    own = own_parameters(subject.model, names)
    values = {name: p.detach() for name, p in own.items()}

    def one(weights: dict[str, Tensor], sample: Any) -> Tensor:
        def call(*args: Any, **kwargs: Any) -> Any:
            return functional_call(subject.model, weights, args, kwargs)

        return loss(answer_logits(call, torch.utils._pytree.tree_map(lambda t: t.unsqueeze(0), sample)))

    each = vmap(grad(one), in_dims=(None, 0), randomness="error")
    # torch's fused attention kernels have no batching rule; the plain one is arithmetic that vmap knows
    with subject.evaluating(), no_look_for_padding(subject.model), sdpa_kernel(SDPBackend.MATH):
        for part, batch in shaped(subject, rows, sum(p.numel() for p in own.values())):
            yield part, {name: g.detach() for name, g in each(values, batch).items()}


def absolute_gradients(
    subject: Learner, rows: Sequence[Any], loss: Loss, loss_name: str, *, per: Literal["batch", "sample"],
    batch_size: int, names: Iterable[str],
) -> GradStats:  # fmt: skip
    """The mean of |g| over rows, or over batches in the order given; cached as `answer_gradients` caches.

    Args:
        loss_name: names the loss in the cache.
        per: a gradient for each row's loss, or for each batch's mean loss.
    """
    own = own_parameters(subject.model, names)
    facts: dict[str, Any] = {
        "power": 1, "per": per, "batch_size": 1 if per == "sample" else batch_size, "rows": len(rows),
        "model": subject.digest, "data": rows_digest(rows),
    }  # fmt: skip
    key = digest_value({**facts, "absolute": True, "loss": loss_name, "names": sorted(own)}).removeprefix("sha256:")
    path = cache_folder() / "reference" / f"grad-{key}.safetensors"
    if path.exists():
        try:
            return GradStats(load_file(path, device=str(subject.device)), **facts)
        except SafetensorError:  # a damaged entry counts as absent
            path.unlink(missing_ok=True)
    found = {
        name: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32), requires_grad=False)
        for name, p in own.items()
    }
    with track(f"absolute gradients per {per}", len(rows)) as advance:
        if per == "sample":
            count = len(rows)
            for part, grads in sample_gradients(subject, rows, loss, own):
                for name, g in grads.items():
                    found[name] += g.to(found[name].dtype).abs().sum(0)
                advance(len(part))
        else:
            starts = range(0, len(rows), batch_size)
            count = len(starts)
            for start in starts:
                batch = subject.batch(rows[start : start + batch_size])
                made = accumulate(
                    subject.model, lambda model, b: loss(answer_logits(model, b)), [(batch, 1.0)], names=own
                )
                for name, g in made.items():
                    found[name] += g.abs()
                advance(min(batch_size, len(rows) - start))
    tensors = {name: tensor.div_(count).contiguous() for name, tensor in found.items()}
    if sum(p.numel() for p in own.values()) <= CACHED_NUMBERS:
        write_with(path, lambda partial: save_file(tensors, partial))
    return GradStats(tensors, **facts)


__all__ = ["absolute_gradients", "sample_gradients", "shaped"]
