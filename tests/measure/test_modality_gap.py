"""The gap between two encoders: every figure against a plain computation, and the traps."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from efface.errors import InputError
from efface.measure.modality_gap import (
    ModalityGapConfig,
    ModalityGapReport,
    centroid_distance,
    explained_variance,
    linear_separability,
    mean_cosine_across,
    mean_cosine_within,
    modality_gap,
    participation_ratio,
    recall_hits,
)
from efface.numerics.sphere import cross_uniformity, uniformity, unit


def rows(n: int, d: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairs(n: int, noise: float, shift: float = 0.0, d: int = 6) -> tuple[Tensor, Tensor]:
    x = rows(n, d)
    y = x + noise * rows(n, d, seed=1)
    y[:, 0] += shift
    return unit(x), unit(y)


def test_figures_equal_plain_ones() -> None:
    x, y = pairs(40, 0.5, 1.0)
    report = modality_gap(5 * x, 0.1 * y)
    off = ~torch.eye(40, dtype=torch.bool)
    assert report.centroid_distance.value == pytest.approx(float((x.mean(0) - y.mean(0)).norm()), abs=1e-12)
    assert report.alignment.value == pytest.approx(float((x - y).square().sum(1).mean()), abs=1e-12)
    assert report.cosine_matched.value == pytest.approx(float((x * y).sum(1).mean()), abs=1e-12)
    assert report.alignment.value == pytest.approx(2 - 2 * report.cosine_matched.value, abs=1e-12)
    assert report.cosine_across.value == pytest.approx(float((x @ y.T)[off].mean()), abs=1e-12)
    assert report.first.cosine_within.value == pytest.approx(float((x @ x.T)[off].mean()), abs=1e-12)
    assert report.second.cosine_within.value == pytest.approx(float((y @ y.T)[off].mean()), abs=1e-12)
    assert report.first.uniformity.value == pytest.approx(float(uniformity(x)), abs=1e-12)
    assert report.second.uniformity.value == pytest.approx(float(uniformity(y)), abs=1e-12)
    assert report.cross_uniformity.value == pytest.approx(float(cross_uniformity(x, y)), abs=1e-12)
    variance = torch.from_numpy(np.linalg.eigvalsh(np.cov(x.numpy().T))[::-1].copy())
    assert report.first.participation_ratio.value == pytest.approx(
        float(variance.sum() ** 2 / variance.square().sum()), abs=1e-10
    )
    expected = (variance.cumsum(0) / variance.sum()).tolist()
    assert report.first.explained_variance == pytest.approx(expected, abs=1e-10)
    assert ModalityGapReport.model_validate(json.loads(report.model_dump_json())) == report
    for name, value in [*report, *report.first, *((f"recall {r.k}", r.first_to_second) for r in report.recall)]:
        if isinstance(value, type(report.alignment)):
            assert value.low is not None, name
            assert value.low <= value.value <= value.high, name


@pytest.mark.parametrize("figure", ["centroid", "within", "across", "participation"])
def test_influences_are_derivatives_by_weight(figure: str) -> None:
    x, y = pairs(9, 0.5, 1.0)
    off = 1 - torch.eye(9, dtype=torch.float64)

    def value(w: Tensor) -> float:
        share, both = w / w.sum(), w[:, None] * w[None] * off
        if figure == "centroid":
            return float((share @ (x - y)).norm())
        if figure == "participation":
            centred = x - share @ x
            covariance = centred.T @ (centred * share[:, None])
            return float(covariance.trace() ** 2 / covariance.square().sum())
        return float(((x @ (x if figure == "within" else y).T) * both).sum() / both.sum())

    given = {
        "centroid": lambda: centroid_distance(x, y), "within": lambda: mean_cosine_within(x),
        "across": lambda: mean_cosine_across(x, y), "participation": lambda: participation_ratio(x),
    }[figure]()  # fmt: skip
    assert given.value == pytest.approx(value(torch.ones(9, dtype=torch.float64)), abs=1e-12)
    slopes = []
    for i in range(9):
        step = torch.zeros(9, dtype=torch.float64)
        step[i] = 1e-6
        slopes.append(9 * (value(1 + step) - value(1 - step)) / 2e-6)
    influence = given.influence - given.influence.mean()
    assert influence.tolist() == pytest.approx(slopes, abs=1e-6)


def test_separability_tells_shifted_sides_and_not_mixed_ones() -> None:
    x, y = pairs(400, 0.3, 16.0)
    shifted = x.clone()
    shifted[:, 0] -= 2
    assert modality_gap(shifted, y).separability.value == 1.0
    x, y = pairs(400, 0.3)
    mixed = modality_gap(x, y)
    assert abs(mixed.separability.value - 0.5) < 0.06
    assert mixed.separability.n == 320


def test_separability_of_noise_in_many_dimensions_is_near_chance_on_held_out_pairs() -> None:
    """The trap: on the pairs it was trained on, a regression in 100 dimensions tells anything apart."""
    x, y = unit(rows(200, 100)), unit(rows(200, 100, seed=1))
    held = linear_separability(x, y, train_share=0.2, seed=0)
    assert abs(held.mean() - 0.5) < 0.08
    from sklearn.linear_model import LogisticRegression

    both, labels = torch.cat([x[:40], y[:40]]).numpy(), np.repeat([0, 1], 40)
    assert LogisticRegression(C=1e4, max_iter=1000).fit(both, labels).score(both, labels) == 1.0
    assert any("separability trained on 40 pairs in 100 dimensions" in text for text in modality_gap(x, y).warnings)


def test_members_of_a_pair_stand_on_one_side_of_the_split(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.linear_model import LogisticRegression

    seen: list[np.ndarray] = []
    fit = LogisticRegression.fit

    def spy(self: LogisticRegression, features: np.ndarray, labels: np.ndarray) -> LogisticRegression:
        seen.append(features)
        return fit(self, features, labels)

    monkeypatch.setattr(LogisticRegression, "fit", spy)
    marks = torch.arange(50, dtype=torch.float64)
    linear_separability(torch.stack([marks, 0 * marks], 1), torch.stack([marks, 1 + marks], 1), train_share=0.2, seed=0)
    assert len(seen[0]) == 20
    assert seen[0][:10, 0].tolist() == seen[0][10:, 0].tolist()


@pytest.mark.parametrize("tile", [None, 1, 7, 25])
def test_recall_equals_a_sort(tile: int | None) -> None:
    x, y = pairs(25, 1.5)
    s = x @ y.T
    ranks = (s > s.diagonal()[:, None]).sum(1)
    expected = torch.stack([(ranks < k).double() for k in (1, 3, 5, 10)], dim=1)
    assert 0 < float(expected[:, 0].mean()) < 1
    torch.testing.assert_close(recall_hits(x, y, (1, 3, 5, 10), tile=tile), expected)


def test_equal_captions_count_as_right_when_given_and_ties_as_chance() -> None:
    x = unit(rows(12))
    y = x.clone()
    y[1] = y[0]  # one caption twice
    x[1] = x[0]
    plain = recall_hits(x, y, (1, 2))
    assert plain[:2].tolist() == [[0.5, 1.0], [0.5, 1.0]]
    assert plain[2:].min() == 1.0
    ids = torch.tensor([0, 0, *range(2, 12)])
    assert recall_hits(x, y, (1, 2), ids).min() == 1.0
    flat = x[:1].expand(12, -1)
    torch.testing.assert_close(recall_hits(flat, flat, (1, 3)), torch.tensor([[1 / 12, 3 / 12]]).double().expand(12, 2))


def test_recall_runs_both_ways() -> None:
    x, y = pairs(60, 0.8, 2.0)
    report = modality_gap(x, y)
    assert report.recall[0].first_to_second.value == pytest.approx(float(recall_hits(x, y, (1,)).mean()), abs=1e-12)
    assert report.recall[0].second_to_first.value == pytest.approx(float(recall_hits(y, x, (1,)).mean()), abs=1e-12)
    assert [r.k for r in report.recall] == [1, 3, 5, 10]


def test_duplicates_are_reported() -> None:
    x, y = pairs(20, 0.3)
    y[5] = y[4]
    report = modality_gap(x, y)
    assert report.second.duplicate_share.value == pytest.approx(0.1)
    assert report.first.duplicate_share.value == 0.0
    assert any("10.0% of the second rows have a twin" in text for text in report.warnings)


def test_a_collapsed_side_has_reasons_not_numbers() -> None:
    x, _ = pairs(20, 0.3)
    report = modality_gap(x, x[:1].expand(20, -1))
    assert report.second.participation_ratio.value is None
    assert "nothing varies" in report.second.participation_ratio.reason
    assert report.second.explained_variance == []
    assert report.second.uniformity.value == pytest.approx(0.0, abs=1e-12)
    assert math.isnan(participation_ratio(x[:1].expand(20, -1)).value)


def test_identical_sides_have_no_gap() -> None:
    x, _ = pairs(50, 0.0)
    report = modality_gap(x, x)
    assert report.centroid_distance.value == 0.0
    assert report.alignment.value == 0.0
    assert report.recall[0].first_to_second.value == 1.0
    assert abs(report.separability.value - 0.5) < 1e-12


def test_explained_variance_ends_at_one() -> None:
    assert float(explained_variance(unit(rows(30)))[-1]) == pytest.approx(1.0)


def test_traps_are_errors_that_name_them() -> None:
    x, y = pairs(20, 0.3)
    with pytest.raises(InputError, match="9 pairs; expected 10 or more"):
        modality_gap(x[:9], y[:9])
    with pytest.raises(InputError, match=r"\[20, 6\] and \[19, 6\]"):
        modality_gap(x, y[:19])
    y = y.clone()
    y[7, 0] = math.nan
    with pytest.raises(InputError, match="row 7 of second is not finite"):
        modality_gap(x, y)
    with pytest.raises(InputError, match=r"ids of shape \[3\]"):
        modality_gap(x, x, ids=torch.arange(3))
    with pytest.raises(InputError, match="of which 0 train"):
        modality_gap(x, x, config=ModalityGapConfig(train_share=0.01))
