"""The report on two representations: neighbours, chance levels, the same items in the same order."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from efface.errors import InputError
from efface.measure.estimate import estimate
from efface.measure.similarity import (
    SimilarityConfig,
    SimilarityReport,
    common_neighbours,
    nearest_neighbours,
    similarity,
)
from efface.numerics.cka import cka, cka_influence, moments, procrustes


def rows(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def compared(a: Tensor, b: Tensor, **config: int) -> SimilarityReport:
    ids = [f"item{i}" for i in range(len(a))]
    return similarity(a, b, ids_a=ids, ids_b=list(ids), config=SimilarityConfig(**config))


@pytest.mark.parametrize("tile", [None, 1, 7, 30, 31])
def test_neighbours_equal_a_sort(tile: int | None) -> None:
    x, y = rows(30, 4), rows(30, 6, seed=1)
    expected = []
    for z in (x, y):
        s = normalize(z, dim=1) @ normalize(z, dim=1).T
        expected.append(
            [sorted((j for j in range(30) if j != i), key=lambda j: -float(s[i, j]))[:5] for i in range(30)]
        )
    found = [nearest_neighbours(z, 5, tile) for z in (x, y)]
    assert [one.tolist() for one in found] == expected
    share = [len(set(a) & set(b)) / 5 for a, b in zip(*expected, strict=True)]
    assert common_neighbours(x, y, 5, tile).tolist() == pytest.approx(share)


def test_unrelated_features_are_at_chance_and_equal_ones_at_one() -> None:
    x, y = rows(300, 20), rows(300, 20, seed=1)
    report = compared(x, y)
    assert abs(report.cka.value) < 0.02
    assert report.mutual_neighbours_chance == pytest.approx(10 / 299)
    assert abs(report.mutual_neighbours.value - 10 / 299) < 0.012
    assert report.procrustes_chance.low - 0.02 < report.procrustes.value < report.procrustes_chance.high + 0.02
    assert report.cka_biased_chance.low - 0.01 < report.cka_biased.value < report.cka_biased_chance.high + 0.01
    same = compared(x, 3 * x @ torch.linalg.qr(rows(20, 20, seed=2)).Q)
    assert same.cka.value == pytest.approx(1.0, abs=1e-10)
    assert same.mutual_neighbours.value == 1.0
    assert same.procrustes.value == pytest.approx(0.0, abs=1e-10)


def test_figures_carry_intervals_and_the_report_is_plain_json() -> None:
    x = rows(120, 8)
    y = x @ rows(8, 12, seed=1) + 1.5 * rows(120, 12, seed=2)
    report = compared(x, y)
    assert report.cka.value == pytest.approx(cka(x, y), abs=1e-12)
    assert report.cka_biased.value == pytest.approx(cka(x, y, unbiased=False), abs=1e-12)
    assert report.procrustes.value == pytest.approx(procrustes(x, y), abs=1e-12)
    for figure in (report.cka, report.cka_biased, report.procrustes, report.mutual_neighbours):
        assert figure.low < figure.value < figure.high
        assert figure.n == 120
    assert (report.n, report.dimensions) == (120, (8, 12))
    assert SimilarityReport.model_validate(json.loads(report.model_dump_json())) == report
    assert compared(x, y) == report
    assert compared(x, y, seed=1).cka.low != report.cka.low


def test_the_interval_of_cka_covers_the_value_of_many_items() -> None:
    def draw(n: int, seed: int) -> tuple[Tensor, Tensor]:
        x = rows(n, 5, seed)
        return x, x * torch.arange(1, 6) + 2 * rows(n, 5, seed + 10_000)

    truth = cka(*draw(200_000, 999))
    covered, rng = 0, np.random.default_rng(0)
    for seed in range(300):
        x, y = draw(120, seed)
        found = estimate(cka(x, y), cka_influence(moments(x, y)).numpy(), rng=rng, resamples=300)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= truth <= found.high
    assert 0.90 <= covered / 300 <= 0.99


def test_few_items_in_many_dimensions_are_warned_about() -> None:
    report = compared(rows(40, 600), rows(40, 700, seed=1))
    assert abs(report.cka.value) < 4 * math.sqrt(2 / (40 * 37))  # four times its spread, see test_cka
    assert report.cka_biased.value > 0.9
    assert report.cka_biased_chance.value > 0.9
    assert any("40 items in 700 dimensions" in text for text in report.warnings)


def test_dead_features_have_a_reason_and_no_value() -> None:
    x = rows(25, 6)
    report = compared(x, torch.ones(25, 3))
    for figure in (report.cka, report.cka_biased, report.procrustes, report.mutual_neighbours):
        assert figure.value is None
        assert "nothing varies in the second features" in figure.reason
    assert report.dead_columns == (0, 3)
    half = x.clone()
    half[:, :2] = 0
    alive = compared(x, half)
    assert alive.cka.value is not None
    assert alive.dead_columns == (0, 2)
    assert any("2 of 6 columns of the second features never vary" in text for text in alive.warnings)


def test_a_zero_row_has_no_neighbours_but_leaves_the_rest() -> None:
    x = rows(25, 6)
    y = x.clone()
    y[3] = 0
    report = compared(x, y)
    assert report.mutual_neighbours.value is None
    assert "row 3" in report.mutual_neighbours.reason
    assert report.cka.value is not None


def test_other_items_or_another_order_are_refused() -> None:
    x, ids = rows(6, 3), list("abcdef")
    with pytest.raises(InputError, match="the same items in another order, first at row 1"):
        similarity(x, x, ids_a=ids, ids_b=list("acbdef"))
    with pytest.raises(InputError, match="other items: 2 ids are in one only"):
        similarity(x, x, ids_a=ids, ids_b=list("abcdex"))
    with pytest.raises(InputError, match="5 ids for 6 rows of the second features"):
        similarity(x, x, ids_a=ids, ids_b=ids[:5])
    with pytest.raises(InputError, match="the first ids repeat"):
        similarity(x, x, ids_a=list("aacdef"), ids_b=ids)
    bad = x.clone()
    bad[2, 0] = math.nan
    with pytest.raises(InputError, match="row 2 of the first features is not finite"):
        similarity(bad, x, ids_a=ids, ids_b=ids)
    with pytest.raises(InputError, match="6 neighbours among 6 items"):
        nearest_neighbours(x, 6)


def test_a_shuffle_would_have_gone_unseen_in_the_figures() -> None:
    """Why the ids are checked: shuffled rows give a believable low value, not an error."""
    x = rows(100, 5)
    assert cka(x, x[torch.randperm(100, generator=torch.Generator().manual_seed(0))]) < 0.1
