"""The summary against the tables that it speaks of."""

from __future__ import annotations

import numpy as np
import pytest
from gain_samples import A, column, config, sides, unit64

from efface.measure.gain_summary import GainSummary, ngram_coverage, relation
from efface.measure.information_gain import measure
from efface.measure.sides import EmbeddedSide


def test_the_summary_says_what_the_table_holds() -> None:
    images, texts = sides()
    images = EmbeddedSide(images.values, images.ids, images.keys, thumbnail=lambda i: f"png{i}")
    result = measure(images, texts, scale=A, config=config(top=5))
    assert GainSummary.model_validate_json(result.summary.model_dump_json()) == result.summary
    for side in result.summary.sides:
        table = result.tables[side.name]
        kl, zero = column(table, "kl"), column(table, "cov_norm_zero")
        order = np.argsort(kl)
        ids = np.array(table.column("id").to_pylist())
        assert [item.id for item in side.lowest] == ids[order[:5]].tolist()
        assert [item.id for item in side.highest] == ids[order[::-1][:5]].tolist()
        assert side.lowest[0].kl == kl.min() == side.modes["kl"].low
        assert sum(side.histogram.counts) == side.n == len(side.scatter)
        assert side.deciles[0] == kl.min()
        assert side.deciles[10] == kl.max()
        r2 = next(row.r2 for row in side.relations if (row.x, row.y) == ("cov_norm_zero", "kl"))
        slope, offset = np.polyfit(zero, kl, 1)
        assert r2 == pytest.approx(1 - ((kl - slope * zero - offset) ** 2).sum() / ((kl - kl.mean()) ** 2).sum())
        assert side.k2_half_mean == pytest.approx(column(table, "k2_half").mean())
        assert side.saturated_share == column(table, "saturated").astype(float).mean()
    first, second = result.summary.sides
    assert first.lowest[0].thumbnail == f"png{int(first.lowest[0].id[1:])}"
    assert second.lowest[0].text == f"a caption number {second.lowest[0].id[1:]}"
    u, v = unit64(images.values), unit64(texts.values)
    G, c = np.cov(v, rowvar=False, ddof=0), u.mean(axis=0)
    assert first.centre_share == pytest.approx((c @ G @ c) / np.mean([x @ G @ x for x in u]))
    assert first.sample_digest == result.moments["texts"].digest


def test_constant_columns_have_no_relation() -> None:
    ones = np.full(9, 3.0)
    found = relation("x", "y", {"x": ones, "y": np.arange(9.0)})
    assert (found.r2, found.pearson, found.spearman) == (None, None, None)
    falling = relation("x", "y", {"x": np.arange(9.0), "y": -(np.arange(9.0) ** 3)})
    assert falling.spearman == pytest.approx(-1)


def test_coverage_of_word_pairs() -> None:
    texts = ["the same words"] * 10 + [f"new{i} words{i} here{i}" for i in range(10)]
    found = ngram_coverage(texts, np.arange(20))
    assert found[:5] == [2 / 22] * 5
    assert found[5:] == [4 / 22] * 5


def test_one_value_everywhere_can_still_be_summarised() -> None:
    result = measure(np.eye(4, dtype=np.float32)[:3], np.eye(4, dtype=np.float32)[3:].repeat(5, axis=0), scale=A)
    side = result.summary.sides[0]
    assert side.modes["kl"].high == 0
    assert side.centre_share == 0
    assert all(row.r2 is None for row in side.relations)
    assert side.histogram.counts == [3]
