"""The gain's equations against plain loops, the specification's figures, and their bounds."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from efface.errors import InputError
from efface.measure.gain import (
    bits,
    centered_norm,
    check_scale,
    cov_norm,
    fixed_log_z,
    fixed_z,
    gain_sums,
    raw_norm,
    word_gain,
)

FIELDS = ("kl", "klr", "log_z", "expected", "mean", "ess", "k2_half", "skewness")


def unit(n: int, d: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random unit rows with a common direction, as trained embeddings have."""
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows[:, 0] += 0.7
    return (rows / rows.norm(dim=1, keepdim=True)).to(dtype)


def covariance(rows: Tensor) -> Tensor:
    """Divided by N."""
    return torch.cov(rows.T, correction=0)


def slow(u: list[float], sample: list[list[float]], a: float) -> dict[str, float]:
    """Everything about one query, one number at a time."""
    scores = [a * math.fsum(x * y for x, y in zip(u, v, strict=True)) for v in sample]
    n, top = len(scores), max(scores)
    weights = [math.exp(s - top) for s in scores]
    total = math.fsum(weights)
    log_z = top + math.log(total) - math.log(n)
    w = [x / total for x in weights]
    mean = math.fsum(scores) / n
    k2 = math.fsum((s - mean) ** 2 for s in scores) / n
    k3 = math.fsum((s - mean) ** 3 for s in scores) / n
    expected = math.fsum(p * s for p, s in zip(w, scores, strict=True))
    return {
        "kl": math.log(n) + math.fsum(p * math.log(p) for p in w if p > 0), "klr": log_z - mean, "log_z": log_z,
        "expected": expected, "mean": mean, "ess": 1 / math.fsum(p * p for p in w), "k2_half": k2 / 2,
        "skewness": k3 / k2**1.5 if k2 > 0 else 0.0,
    }  # fmt: skip


@pytest.mark.parametrize("a", [0.5, 2.0, 28.0, 100.0, 500.0])
def test_every_column_equals_plain_loops(a: float) -> None:
    queries, sample = unit(7, 5, 0), unit(83, 5, 1)
    found = gain_sums(queries, sample, a, chunk_queries=3, chunk_sample=10)
    for i, query in enumerate(queries.tolist()):
        for name, value in slow(query, sample.tolist(), a).items():
            assert float(getattr(found, name)[i]) == pytest.approx(value, rel=1e-10, abs=1e-10), (name, i)


def test_the_figures_of_the_specification() -> None:
    """Proof A: U = e1, e2; V = e1, e2, e3, -e1; a = 2."""
    e = torch.eye(3, dtype=torch.float64)
    queries, sample = e[:2], torch.stack([e[0], e[1], e[2], -e[0]])
    found = gain_sums(queries, sample, 2.0)
    assert found.kl.tolist() == pytest.approx([0.65563, 0.46801], abs=1e-5)  # the specification's five digits
    assert found.klr.tolist() == pytest.approx([0.86757, 0.45446], abs=1e-5)
    z = [math.exp(2) + 2 + math.exp(-2), math.exp(2) + 3]  # by hand: scores 2, 0, 0, -2 and 0, 2, 0, 0
    means, tops = [0.0, 0.5], [2 * math.exp(2) - 2 * math.exp(-2), 2 * math.exp(2)]
    exact_kl = [top / total - math.log(total / 4) for top, total in zip(tops, z, strict=True)]
    assert found.kl.tolist() == pytest.approx(exact_kl, abs=1e-14)
    assert found.klr.tolist() == pytest.approx([math.log(t / 4) - m for t, m in zip(z, means, strict=True)], abs=1e-14)
    G = covariance(sample)
    assert cov_norm(queries, G, None, 2.0).tolist() == pytest.approx([1.0, 0.375], abs=1e-12)
    assert cov_norm(queries, G, queries.mean(dim=0), 2.0).tolist() == pytest.approx([0.34375, 0.34375], abs=1e-12)
    assert found.k2_half.tolist() == pytest.approx([1.0, 0.375], abs=1e-12)


@pytest.mark.parametrize(("chunk_queries", "chunk_sample"), [(1, 1), (2, 7), (5, 83), (7, 82), (64, 4096), (3, 40)])
def test_any_tile_gives_the_same(chunk_queries: int, chunk_sample: int) -> None:
    queries, sample = unit(7, 6, 2), unit(83, 6, 3)
    own = torch.tensor([0, 82, 40, 41, -1, 7, 7])
    for exclude in (None, own):
        dense = gain_sums(queries, sample, 60.0, exclude=exclude, chunk_queries=7, chunk_sample=83)
        tiled = gain_sums(
            queries, sample, 60.0, exclude=exclude, chunk_queries=chunk_queries, chunk_sample=chunk_sample
        )
        for name in FIELDS:
            torch.testing.assert_close(getattr(tiled, name), getattr(dense, name), rtol=1e-11, atol=1e-11)
        assert torch.equal(tiled.saturated, dense.saturated)


@given(
    seed=st.integers(0, 10_000), n=st.integers(2, 40), d=st.integers(1, 6), a=st.floats(0.5, 500),
    chunk=st.integers(1, 50),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_bounds(seed: int, n: int, d: int, a: float, chunk: int) -> None:
    try:
        check_scale(a)
    except InputError:
        return
    found = gain_sums(unit(4, d, seed), unit(n, d, seed + 1), a, chunk_sample=chunk)
    slack = 1e-9 * a
    assert bool((found.kl >= 0).all())
    assert bool((found.klr >= 0).all())
    assert bool((found.kl <= min(math.log(n), 2 * a) + slack).all())
    assert bool((found.klr <= 2 * a + slack).all())
    assert bool((found.ess >= 1 - 1e-9).all())
    assert bool((found.ess <= n + 1e-6).all())


def test_equal_scores_gain_nothing() -> None:
    sample = unit(1, 5, 0).expand(30, 5)
    found = gain_sums(unit(3, 5, 1), sample, 100.0, chunk_sample=7)
    for values in (found.kl, found.klr, found.k2_half):
        assert float(values.abs().max()) < 1e-12
    assert found.skewness.tolist() == [0.0, 0.0, 0.0]
    assert found.ess.tolist() == pytest.approx([30.0] * 3)


def test_constants_per_query_cancel() -> None:
    """A further coordinate adds a constant to each query's scores, as a bias or log tau would."""
    queries, sample, a = unit(6, 4, 0), unit(50, 4, 1), 20.0
    constants = torch.tensor([-300.0, -10.0, 0.0, 1.0, 40.0, 300.0], dtype=torch.float64)
    shifted = gain_sums(
        torch.cat([queries, constants.unsqueeze(1) / a], dim=1),
        torch.cat([sample, torch.ones(50, 1, dtype=torch.float64)], dim=1), a, chunk_sample=9,
    )  # fmt: skip
    plain = gain_sums(queries, sample, a)
    for name in ("kl", "klr", "ess", "k2_half", "skewness"):
        torch.testing.assert_close(getattr(shifted, name), getattr(plain, name), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(shifted.log_z, plain.log_z + constants, rtol=1e-12, atol=1e-9)


def test_the_mean_that_is_given_changes_nothing() -> None:
    queries, sample = unit(6, 4, 0), unit(50, 4, 1)
    plain = gain_sums(queries, sample, 30.0)
    for other in (torch.zeros(4, dtype=torch.float64), sample.mean(dim=0) + 0.05):
        moved = gain_sums(queries, sample, 30.0, sample_mean=other)
        for name in FIELDS:
            torch.testing.assert_close(getattr(moved, name), getattr(plain, name), rtol=1e-9, atol=1e-9)


def test_exclude_self_is_the_sample_without_that_row() -> None:
    queries = unit(9, 5, 0)
    sample = torch.cat([unit(40, 5, 1), queries])  # the query itself would dominate at this scale
    own = torch.arange(40, 49)
    found = gain_sums(queries, sample, 200.0, exclude=own, chunk_queries=4, chunk_sample=11)
    for i in range(9):
        rest = sample[[j for j in range(49) if j != int(own[i])]]
        alone = gain_sums(queries[i : i + 1], rest, 200.0)
        for name in FIELDS:
            torch.testing.assert_close(
                getattr(found, name)[i : i + 1], getattr(alone, name), rtol=1e-10, atol=1e-10, msg=name
            )
    assert found.log_n == pytest.approx(math.log(48))
    assert bool((gain_sums(queries, sample, 200.0).kl > found.kl).all()), "the own pair keeps the gain high"


def test_saturation_flags() -> None:
    queries, sample = unit(5, 6, 0), unit(2000, 6, 1)
    calm = gain_sums(queries, sample, 2.0)
    assert not bool(calm.saturated.any())
    hot = gain_sums(queries, sample, 400.0)
    expected = (hot.k2_half > 0.5 * math.log(2000)) | (hot.ess < 50)
    assert torch.equal(hot.saturated, expected)
    assert bool(hot.saturated.all())
    few = gain_sums(queries, sample[:40], 0.5)  # fewer than 50 rows can never be 50 effective ones
    assert bool(few.saturated.all())


def test_float16_input_is_cast_before_the_product() -> None:
    queries, sample = unit(6, 8, 0, torch.float16), unit(300, 8, 1, torch.float16)
    half = gain_sums(queries, sample, 100.0)
    double = gain_sums(queries.double(), sample.double(), 100.0)
    assert half.kl.dtype == torch.float64
    assert torch.equal(half.kl, double.kl)
    G = covariance(sample.double())
    assert torch.equal(cov_norm(queries, G, None, 100.0), cov_norm(queries.double(), G, None, 100.0))


def test_second_order_term_and_both_expansions() -> None:
    """Small scales: kl = k2/2 + k3/3 + k4/8, klr = k2/2 + k3/6 + k4/24, up to the fifth cumulant."""
    queries, sample = unit(6, 8, 0), unit(4000, 8, 1)
    found = gain_sums(queries, sample, 0.5)
    scores = 0.5 * queries @ sample.T
    centred = scores - scores.mean(dim=1, keepdim=True)
    k2, k3 = centred.square().mean(dim=1), centred.pow(3).mean(dim=1)
    k4 = centred.pow(4).mean(dim=1) - 3 * k2.square()
    torch.testing.assert_close(found.kl, k2 / 2 + k3 / 3 + k4 / 8, rtol=5e-4, atol=1e-6)
    torch.testing.assert_close(found.klr, k2 / 2 + k3 / 6 + k4 / 24, rtol=5e-4, atol=1e-6)
    torch.testing.assert_close(found.k2_half, cov_norm(queries, covariance(sample), None, 0.5), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 4, 9, 1000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_norms_equal_plain_loops(chunk: int, dtype: torch.dtype) -> None:
    queries, G, c, a = unit(9, 6, 0), covariance(unit(50, 6, 1)), unit(50, 6, 2).mean(dim=0), 30.0
    found = cov_norm(queries, G, c, a, chunk=chunk, dtype=dtype)
    assert found.dtype == dtype
    for i in range(9):
        x = (queries[i] - c).tolist()
        value = math.fsum(x[j] * float(G[j, k]) * x[k] for j in range(6) for k in range(6))
        assert float(found[i]) == pytest.approx(0.5 * a * a * value, rel=1e-10 if dtype == torch.float64 else 1e-4)
        centred = math.fsum(y * y for y in x)
        assert float(centered_norm(queries, c, a, chunk=chunk)[i]) == pytest.approx(a * a * centred, rel=1e-12)
    torch.testing.assert_close(raw_norm(3 * queries, a), torch.full((9,), 9 * a * a, dtype=torch.float64))


def test_the_queries_are_left_as_they_were() -> None:
    queries = unit(9, 6, 0)
    before = queries.clone()
    cov_norm(queries, covariance(queries), None, 5.0)
    cov_norm(queries, covariance(queries), queries.mean(dim=0), 5.0)
    gain_sums(queries, queries, 5.0)
    assert torch.equal(queries, before)


def test_centered_norm_is_affine_in_conformity() -> None:
    queries, c, a = unit(40, 6, 0), unit(50, 6, 2).mean(dim=0), 12.0
    affine = a * a * (1 + c.square().sum() - 2 * queries @ c)
    torch.testing.assert_close(centered_norm(queries, c, a), affine)


def test_paper_scale_is_the_official_constant() -> None:
    """clip_ig: a^2 (u - c)^T X^T X (u - c) with X the centred sample, not divided by N and without 1/2."""
    queries, sample, c = unit(9, 6, 0), unit(50, 6, 1), unit(9, 6, 0).mean(dim=0)
    centred = sample - sample.mean(dim=0)
    theirs = 25.0**2 * (((queries - c) @ (centred.T @ centred)) * (queries - c)).sum(dim=1)
    G = covariance(sample)
    torch.testing.assert_close(cov_norm(queries, G, c, 25.0, paper_scale=True, sample_size=50), theirs)
    torch.testing.assert_close(theirs / cov_norm(queries, G, c, 25.0), torch.full((9,), 100.0, dtype=torch.float64))
    with pytest.raises(InputError, match="paper_scale without a sample size"):
        cov_norm(queries, G, c, 25.0, paper_scale=True)


def test_fixed_z() -> None:
    queries, sample, a, b, batch = unit(6, 4, 0), unit(50, 4, 1), 12.0, -11.5, 128
    found = gain_sums(queries, sample, a)
    kl, klr = fixed_z(found, b, batch)
    for i, query in enumerate(queries.tolist()):
        plain = slow(query, sample.tolist(), a)
        assert float(kl[i]) == pytest.approx(plain["expected"] + b + math.log(127), abs=1e-9)
        assert float(klr[i]) == pytest.approx(-math.log(127) - b - plain["mean"], abs=1e-9)
    assert fixed_log_z(b, batch) == pytest.approx(11.5 - math.log(127))
    assert bool((fixed_z(found, b - 30, batch)[0] < 0).any()), "the fixed normaliser may give negative values"


def test_fixed_z_is_refused_without_bias_or_training_batch() -> None:
    found = gain_sums(unit(3, 4, 0), unit(9, 4, 1), 12.0)
    with pytest.raises(InputError, match="fixed_z without a bias"):
        fixed_z(found, None, 128)
    with pytest.raises(InputError, match="training batch of None; expected the global batch size"):
        fixed_z(found, -10.0, None)


def test_word_gain_equals_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    words, contexts = (torch.randn(11, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    p = torch.rand(11, generator=generator, dtype=torch.float64)
    p = p / p.sum()
    centre = [math.fsum(float(p[w] * words[w, j]) for w in range(11)) for j in range(4)]
    other = [math.fsum(float(p[w] * contexts[w, j]) for w in range(11)) for j in range(4)]
    found = word_gain(words, contexts, p)
    for w in range(11):
        x = [float(words[w, j]) - centre[j] for j in range(4)]
        square = 0.0
        for v in range(11):
            inner = math.fsum(x[j] * (float(contexts[v, j]) - other[j]) for j in range(4))
            square += float(p[v]) * inner**2
        assert float(found[w]) == pytest.approx(0.5 * square, rel=1e-10)


def test_word_gain_is_the_divergence_where_it_is_small() -> None:
    """p(c | w) proportional to p(c) exp(<u_w - mean, v_c>): its divergence from p is the norm, to second order."""
    generator = torch.Generator().manual_seed(1)
    words = 0.02 * torch.randn(40, 6, generator=generator, dtype=torch.float64)
    contexts = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    p = torch.rand(40, generator=generator, dtype=torch.float64)
    p = p / p.sum()
    logits = (words - p @ words) @ contexts.T + p.log()
    conditional = logits.softmax(dim=1)
    divergence = (conditional * (conditional.log() - p.log())).sum(dim=1)
    torch.testing.assert_close(word_gain(words, contexts, p), divergence, rtol=0.1, atol=1e-5)
    assert float(torch.corrcoef(torch.stack([word_gain(words, contexts, p), divergence]))[0, 1]) > 0.99


def test_word_gain_refuses_what_does_not_fit() -> None:
    words = torch.randn(5, 3)
    with pytest.raises(InputError, match="sums to 5"):
        word_gain(words, words, torch.ones(5))
    with pytest.raises(InputError, match=r"words \[5, 3\], contexts \[4, 3\], p \[5\]"):
        word_gain(words, words[:4], torch.full((5,), 0.2))


def test_bits() -> None:
    assert bits(torch.tensor([math.log(2), 0.0])).tolist() == pytest.approx([1.0, 0.0])


@pytest.mark.parametrize("a", [0.4999, -2.6, 0.0, 501.0, math.exp(100), math.nan, math.inf])
def test_a_scale_out_of_range_is_refused(a: float) -> None:
    with pytest.raises(InputError, match=r"expected 0\.5 to 500; CLIP and SigLIP store the logarithm"):
        check_scale(a)


@pytest.mark.parametrize("scale", [100.0, 1 / 0.07, 10.0])
def test_a_scale_given_as_its_logarithm_is_refused(scale: float) -> None:
    with pytest.raises(InputError, match="the logarithm of"):
        check_scale(round(math.log(scale), 4))
    assert check_scale(scale) == scale


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="queries of 4 dimensions and a sample of 5"):
        gain_sums(unit(3, 4, 0), unit(9, 5, 1), 10.0)
    with pytest.raises(InputError, match="queries of 4 dimensions and a covariance of 5"):
        cov_norm(unit(3, 4, 0), torch.eye(5), None, 10.0)
    with pytest.raises(InputError, match="a sample of 1 rows"):
        gain_sums(unit(3, 4, 0), unit(1, 4, 1), 10.0)
    with pytest.raises(InputError, match="without the query's own pair"):
        gain_sums(unit(3, 4, 0), unit(2, 4, 1), 10.0, exclude=torch.tensor([0, 1, 1]))
    with pytest.raises(InputError, match="rows below 9"):
        gain_sums(unit(3, 4, 0), unit(9, 4, 1), 10.0, exclude=torch.tensor([0, 9, 1]))
