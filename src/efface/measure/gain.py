"""Information gain as equations: pure functions of unit embeddings, a scale and a sample of the other side.

A query u (an image, or a text) turns the distribution p(v) of the other side into p(v | u), proportional to
p(v) exp(a <u, v>); its gain is how far that moves. Scores s_n = a <u, v_n> over a sample of N rows, w = softmax(s), natural
logarithm, float64. Paper: arXiv 2506.22881; the equations are re-derived (specification, Method 1 to 9), because the
official code differs in constants: see `cov_norm`. N is what the sample has, and log N caps `kl`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from efface.errors import InputError

LOW_SCALE, HIGH_SCALE = 0.5, 500.0
"""Outside of these a scale is a logarithm, or was exponentiated twice (specification, Traps)."""

USUAL_LOGS = {100.0: "CLIP's ceiling", 1 / 0.07: "CLIP's start", 10.0: "SigLIP's start"}
"""Scales that are stored as logarithms so often that their logarithm is not taken for a scale."""

NEAR_LOG = 6e-3
"""How near: such logarithms are written with one to four decimals."""

LOWEST_USUAL = 7.0
"""Trained scales below this are rare, and the logarithms of all usual ones lie there: worth a warning."""

ESS_FLOOR = 50.0
"""Fewer effective samples than these, and a value is a statement about the sample (specification, step 9)."""


class Blocks(Protocol):
    """Rows that can be read in slices: a tensor, or `efface.measure.sides.UnitRows`."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Tensor: ...


@dataclass(frozen=True)
class GainSums:
    """Per query, each [B] float64 (`saturated`: bool).

    Attributes:
        kl: KL(p(.|u) || p), D_KL: sum w s - log Z. Never above log N or 2a.
        klr: KL(p || p(.|u)), D_KLR: log Z - mean s. Never above 2a.
        log_z: log Z = logsumexp(s) - log N.
        expected: sum w s.
        mean: mean s.
        ess: effective sample size, 1 / sum w^2.
        k2_half: half the variance of s (divided by N), in nats: the first term of both gains.
        skewness: k3 / k2^1.5 of s; 0 where all scores are equal.
        saturated: k2_half > 0.5 log N or ess < 50: `kl` says "out of samples", not "informative".
        log_n: log of the rows that were summed over.
    """

    kl: Tensor
    klr: Tensor
    log_z: Tensor
    expected: Tensor
    mean: Tensor
    ess: Tensor
    k2_half: Tensor
    skewness: Tensor
    saturated: Tensor
    log_n: float


def check_scale(scale: float) -> float:
    """The scale a = 1 / temperature, if it can be one.

    Raises:
        InputError: below 0.5, above 500, or the logarithm of one of CLIP's or SigLIP's usual scales.
    """
    stored = "CLIP and SigLIP store the logarithm of the scale"
    if not math.isfinite(scale) or scale < LOW_SCALE:
        shown = f"; if {scale:g} is that logarithm, give {math.exp(scale):.4g}" if abs(scale) < 7 else ""
        raise InputError(f"a scale of {scale:g}", f"{LOW_SCALE:g} to {HIGH_SCALE:g}", f"{stored}{shown}")
    if scale > HIGH_SCALE:
        raise InputError(
            f"a scale of {scale:g}", f"{LOW_SCALE:g} to {HIGH_SCALE:g}",
            f"{stored}: take the exponential once; {scale:g} looks as if it had been taken twice",
        )  # fmt: skip
    for usual, whose in USUAL_LOGS.items():
        if abs(scale - math.log(usual)) < NEAR_LOG:
            raise InputError(
                f"a scale of {scale:g}, the logarithm of {usual:.5g} ({whose})", "the scale itself",
                f"{stored}: give {usual:.5g}",
            )  # fmt: skip
    return float(scale)


def _check_pair(queries: Tensor, width: int, other: str) -> None:
    if queries.ndim != 2:
        raise InputError(f"queries of shape {list(queries.shape)}", "[B, d]")
    if queries.shape[1] != width:
        raise InputError(
            f"queries of {queries.shape[1]} dimensions and {other} of {width}", "one d for both",
            "embed both sides with the two towers of one model",
        )  # fmt: skip


def gain_sums(
    queries: Tensor, sample: Blocks, scale: float, *, exclude: Tensor | None = None, sample_mean: Tensor | None = None,
    chunk_queries: int = 256, chunk_sample: int = 2048,
) -> GainSums:  # fmt: skip
    """Both gains and their diagnostics by sums that run over chunks of the sample; B x N is never held.

    The scores are centred at a <u, mean v> before anything is summed, so that powers and exponentials stay small; the
    running maximum and what is scaled by it are per query. Any constant that is added to a query's scores (SigLIP's bias,
    log tau) cancels.

    Args:
        queries: [B, d] unit rows; cast to float64 before the product.
        sample: [N, d] unit rows of the other side, read in slices.
        scale: a.
        exclude: [B] int64, the row of the sample that is each query's own pair and is left out; -1 for none.
        sample_mean: [d] mean of the sample where it is known; saves one pass. Any vector near it gives the same result.
        chunk_queries, chunk_sample: sides of a tile; one tile of float64 is 4 MiB by default, and three are held.

    Raises:
        InputError: a scale out of range, fewer than two rows to sum over, or different d.
    """
    a = check_scale(scale)
    n, d = len(sample), int(sample[0:1].shape[1])
    _check_pair(queries, d, "a sample")
    if n - (exclude is not None) < 2:
        less = " without the query's own pair" if exclude is not None else ""
        raise InputError(f"a sample of {n} rows{less}", "two or more that are not its own", "give a larger sample")
    if exclude is not None and (exclude.shape != queries.shape[:1] or bool((exclude >= n).any())):
        raise InputError(f"exclude of shape {list(exclude.shape)}", f"[{len(queries)}] rows below {n}")
    if sample_mean is None:
        total = torch.zeros(d, dtype=torch.float64, device=queries.device)
        for start in range(0, n, chunk_sample):
            total += sample[start : start + chunk_sample].to(torch.float64).sum(dim=0)
        sample_mean = total / n
    found = torch.empty(9, len(queries), dtype=torch.float64, device=queries.device)
    work = torch.empty(3, chunk_queries * chunk_sample, dtype=torch.float64, device=queries.device)
    for start in range(0, len(queries), chunk_queries):
        rows = slice(start, start + chunk_queries)
        scaled = queries[rows].to(torch.float64) * a
        own = None if exclude is None else exclude[rows].to(queries.device)
        found[:, rows] = _sums_of_rows(
            scaled, sample, n, own, scaled @ sample_mean.to(torch.float64), chunk_sample, work
        )
    kl, klr, log_z, expected, mean, ess, k2_half, skewness, saturated = found
    return GainSums(
        kl,
        klr,
        log_z,
        expected,
        mean,
        ess,
        k2_half,
        skewness,
        saturated.bool(),
        log_n=math.log(n - (exclude is not None)),
    )


def _sums_of_rows(
    scaled: Tensor, sample: Blocks, n: int, own: Tensor | None, reference: Tensor, chunk: int, work: Tensor
) -> Tensor:
    """[9, b] for one chunk of queries, `scaled` [b, d] = a u; `reference` [b] is what the scores are centred at."""
    b = len(scaled)
    top = torch.full((b,), torch.finfo(torch.float64).min, dtype=torch.float64, device=scaled.device)
    sum_e, sum_et, sum_ee, t1, t2, t3 = torch.zeros(6, b, dtype=torch.float64, device=scaled.device)
    left_out = torch.zeros(b, dtype=torch.float64, device=scaled.device)
    for start in range(0, n, chunk):
        block = sample[start : start + chunk].to(torch.float64)
        m = len(block)
        t, e, square = (row[: b * m].view(b, m) for row in work)
        torch.addmm(-reference.unsqueeze(1), scaled, block.T, out=t)  # [b, m] centred scores
        cells = None
        if own is not None:
            mine = ((own >= start) & (own < start + m)).nonzero().squeeze(1)
            cells = (mine, own[mine] - start)
            t[cells] = -math.inf  # no part in the maximum, no weight
            left_out[mine] += 1
        higher = torch.maximum(top, t.amax(dim=1))
        shrink = (top - higher).exp_()
        top = higher
        torch.sub(t, top.unsqueeze(1), out=e).exp_()
        if cells is not None:
            t[cells] = 0.0
        sum_e = sum_e * shrink + e.sum(dim=1)
        sum_et = sum_et * shrink + _row_dot(e, t)
        sum_ee = sum_ee * shrink.square() + _row_dot(e, e)
        torch.mul(t, t, out=square)
        t1 += t.sum(dim=1)
        t2 += square.sum(dim=1)
        t3 += _row_dot(square, t)
    count = n - left_out
    delta = t1 / count  # mean of the centred scores: zero up to rounding, and the share of the pair left out
    log_z = top + sum_e.log() - count.log()
    expected = sum_et / sum_e
    k2 = (t2 / count - delta.square()).clamp_min(0)
    k3 = t3 / count - 3 * delta * t2 / count + 2 * delta**3
    equal = k2 <= 1e-24 * (1 + reference.square())  # nothing but rounding
    skewness = torch.where(equal, torch.zeros_like(k3), k3 / torch.where(equal, torch.ones_like(k2), k2).pow(1.5))
    ess = sum_e.square() / sum_ee
    saturated = (k2 / 2 > 0.5 * count.log()) | (ess < ESS_FLOOR)
    return torch.stack([
        (expected - log_z).clamp_min(0), (log_z - delta).clamp_min(0), log_z + reference, expected + reference,
        delta + reference, ess, k2 / 2, skewness, saturated.to(torch.float64),
    ])  # fmt: skip


def _row_dot(first: Tensor, second: Tensor) -> Tensor:
    """[b] inner products of the rows of two [b, m], without a [b, m] in between."""
    return torch.bmm(first.unsqueeze(1), second.unsqueeze(2)).reshape(-1)


def fixed_log_z(bias: float | None, training_batch: int | None) -> float:
    """log Z = -(b + log tau), the normaliser that a sigmoid loss has learnt.

    tau is the number of negatives of a positive *during training*, the global batch minus one; the official code takes the
    size of the evaluation sample, which moves every value by the logarithm of their ratio.

    Raises:
        InputError: no bias (not a sigmoid-trained model), or no training batch.
    """
    if bias is None:
        raise InputError(
            "fixed_z without a bias", "the logit bias of a SigLIP model",
            "give the bias, or leave fixed_z out: a softmax-trained model has no fixed normaliser",
        )  # fmt: skip
    if training_batch is None or training_batch < 2:
        raise InputError(
            f"fixed_z with a training batch of {training_batch}", "the global batch size of the model's training",
            "set training_batch; the size of the sample does not stand for it",
        )  # fmt: skip
    return -(bias + math.log(training_batch - 1))


def fixed_z(sums: GainSums, bias: float | None, training_batch: int | None) -> tuple[Tensor, Tensor]:
    """kl and klr, each [B], with the trained normaliser in place of the sample's; both may be negative.

    Raises as `fixed_log_z` does.
    """
    log_z = fixed_log_z(bias, training_batch)
    return sums.expected - log_z, log_z - sums.mean


def _blocks(queries: Tensor, centre: Tensor | None, chunk: int, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Chunks of u - c in one buffer that is used again; the chunk itself where there is nothing to change."""
    buffer = torch.empty(min(chunk, len(queries)), queries.shape[1], dtype=dtype, device=queries.device)
    for start in range(0, len(queries), chunk):
        part = queries[start : start + chunk]
        rows = slice(start, start + len(part))
        if centre is None and part.dtype == dtype:
            yield rows, part
            continue
        shifted = buffer[: len(part)]
        shifted.copy_(part)
        if centre is not None:
            shifted -= centre
        yield rows, shifted


def cov_norm(
    queries: Tensor, G: Tensor, centre: Tensor | None, scale: float, *, paper_scale: bool = False,
    sample_size: int | None = None, chunk: int = 1024, dtype: torch.dtype = torch.float64,
) -> Tensor:  # fmt: skip
    """D_W, [B] in nats: 0.5 a^2 (u - c)^T G (u - c); its cost does not depend on the size of the sample behind G.

    `centre` None (c = 0) is the exact second-order term of both gains; c = the mean of the query's own side is the paper's.
    They agree where G c = 0, and can differ much where it is only small, through the cross term 2 u^T G c.

    The official clip_ig leaves the 1/2 out and does not divide the scatter by N: `paper_scale=True` gives its numbers, which
    are 2 N times ours and no nats. (Its DataComp script divides by N - 1 and leaves out 1/2 and a^2.) Ranks stay.

    Args:
        queries: [B, d], any float type; cast to `dtype` before the product.
        G: [d, d] covariance of the other side, divided by N.
        centre: [d] or None.
        scale: a.
        sample_size: N, for `paper_scale`.
        chunk: rows of one product; the buffers are made once.
        dtype: of the product.
    """
    a = check_scale(scale)
    _check_pair(queries, int(G.shape[0]), "a covariance")
    if paper_scale and not sample_size:
        raise InputError("paper_scale without a sample size", "the N that G was divided by")
    factor = a * a * (sample_size or 0) if paper_scale else 0.5 * a * a
    weight = G.to(queries.device, dtype)
    shift = None if centre is None else centre.to(queries.device, dtype)
    found = torch.empty(len(queries), dtype=dtype, device=queries.device)
    product = torch.empty(min(chunk, len(queries)), queries.shape[1], dtype=dtype, device=queries.device)
    for rows, shifted in _blocks(queries, shift, chunk, dtype):
        part = product[: len(shifted)]
        torch.mm(shifted, weight, out=part)
        torch.sum(part.mul_(shifted), dim=1, out=found[rows])
    return found.mul_(factor)


def centered_norm(queries: Tensor, centre: Tensor | None, scale: float, *, chunk: int = 1024) -> Tensor:
    """D_C, [B]: a^2 ||u - c||^2. For unit rows an affine map of the conformity <u, c>, falling in it."""
    a = check_scale(scale)
    shift = None if centre is None else centre.to(queries.device, torch.float64)
    found = torch.empty(len(queries), dtype=torch.float64, device=queries.device)
    for rows, shifted in _blocks(queries, shift, chunk, torch.float64):
        found[rows] = shifted.square().sum(dim=1)
    return found.mul_(a * a)


def raw_norm(queries: Tensor, scale: float) -> Tensor:
    """[B]: a^2 ||u||^2 of rows that were not normalised; on unit rows it would be the constant a^2."""
    return centered_norm(queries, None, scale)


def word_gain(words: Tensor, contexts: Tensor, p: Tensor) -> Tensor:
    """The ancestor for SGNS tables, [V] in nats: KL(p(.|w) || p) by 0.5 (u_w - c)^T G (u_w - c).

    c = sum_w p(w) u_w and G the p-weighted covariance of the context vectors: with frequencies absorbed, p itself sits at
    the mean word (arXiv 2212.09663). Rows are not normalised and there is no scale. Rare words gain by noise alone:
    subtract the same on a table that was trained on the shuffled corpus.

    Args:
        words: [V, d] word vectors.
        contexts: [V, d] context vectors of the same vocabulary.
        p: [V] unigram distribution.

    Raises:
        InputError: shapes that do not fit, or p that is not a distribution.
    """
    if words.ndim != 2 or words.shape != contexts.shape or p.shape != words.shape[:1]:
        raise InputError(
            f"words {list(words.shape)}, contexts {list(contexts.shape)}, p {list(p.shape)}", "[V, d], [V, d] and [V]"
        )
    u, v, weight = words.to(torch.float64), contexts.to(torch.float64), p.to(torch.float64)
    total = float(weight.sum())
    if not bool((weight >= 0).all()) or abs(total - 1) > 1e-6:
        raise InputError(
            f"p that sums to {total:g}", "non-negative shares that sum to 1", "divide the counts by their sum"
        )
    centred = v - weight @ v
    G = centred.T @ (centred * weight.unsqueeze(1))
    shifted = u - weight @ u
    return 0.5 * ((shifted @ G) * shifted).sum(dim=1)


def bits(nats: Tensor) -> Tensor:
    """The same gain in bits: nats / ln 2."""
    return nats / math.log(2)
