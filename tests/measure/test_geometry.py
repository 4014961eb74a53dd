"""The behaviour of the contrastive loss: points 1 to 9 of the specification, the report card, its traps."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from efface.errors import ConfigError, InputError
from efface.measure.geometry import (
    CARD,
    GeometryConfig,
    GeometryReport,
    entropy_of,
    geometry,
    gradients,
    log_penalty,
    nearest_negatives,
    penalty_entropy,
    probabilities,
    relative_penalty,
    simple_limit,
    tolerance,
    triplet_limit,
)
from efface.numerics.sphere import unit


def rows(n: int, d: int = 6, seed: int = 0) -> Tensor:
    return unit(torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def losses(s: Tensor, tau: float) -> Tensor:
    return cross_entropy(s / tau, torch.arange(len(s)), reduction="none")


@pytest.mark.parametrize("tau", [0.05, 0.3, 2.0])
def test_gradients_and_penalty_equal_autograd(tau: float) -> None:
    s = (rows(9) @ rows(9, seed=1).T).requires_grad_()
    (found,) = torch.autograd.grad(losses(s, tau).sum(), s)
    torch.testing.assert_close(gradients(s.detach(), tau), found, rtol=0, atol=1e-10)
    r = found.abs() / found.diagonal().abs()[:, None]
    torch.testing.assert_close(relative_penalty(s.detach(), tau), r - torch.diag(r.diagonal()), rtol=0, atol=1e-10)
    torch.testing.assert_close(probabilities(s.detach(), tau).sum(1), torch.ones(9, dtype=torch.float64))
    positive, negative = found.diagonal().abs(), (found - torch.diag(found.diagonal())).sum(1)
    torch.testing.assert_close(
        positive, negative, rtol=0, atol=1e-10
    )  # the positive's equals the sum of the negatives'


@pytest.mark.parametrize("tau", [1e-3, 0.07, 1.0, 1e3])
def test_penalties_of_an_anchor_add_to_one(tau: float) -> None:
    r = relative_penalty(rows(12) @ rows(12, seed=1).T, tau)
    torch.testing.assert_close(r.sum(1), torch.ones(12, dtype=torch.float64), rtol=0, atol=1e-12)
    assert bool((r.diagonal() == 0).all())


def test_entropy_grows_with_temperature_from_one_negative_to_all() -> None:
    x, y = rows(20), rows(20, seed=1)
    h = penalty_entropy(x, y, (1e-4, 0.03, 0.1, 0.3, 1.0, 3.0, 1e4))
    assert bool((h.diff(dim=1) > 0).all())
    assert bool((h[:, 0] < 1e-6).all())
    torch.testing.assert_close(h[:, -1], torch.full((20,), math.log(19), dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("tile", [None, 1, 3, 7, 20, 21])
def test_entropy_equals_a_loop_in_every_tile(tile: int | None) -> None:
    x, y = rows(20), rows(20, seed=1)
    s = (x @ y.T).tolist()
    for k, tau in enumerate((0.05, 0.5)):
        expected = []
        for i in range(20):
            weights = [math.exp(s[i][j] / tau) for j in range(20) if j != i]
            shares = [w / sum(weights) for w in weights]
            expected.append(-sum(p * math.log(p) for p in shares))
        found = penalty_entropy(x, y, (0.05, 0.5), tile)[:, k]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-11)


def test_entropy_at_a_tiny_temperature_is_zero_in_float32_and_never_nan() -> None:
    s = torch.tensor([[0.9, 0.8, -0.7, 0.1]], requires_grad=True)
    h = entropy_of(log_penalty(s, 1e-4, 0))
    assert float(h.detach()) == 0.0
    (found,) = torch.autograd.grad(h.sum(), s)
    assert bool(torch.isfinite(found).all())


def test_limits_of_the_temperature() -> None:
    s = rows(10) @ rows(10, seed=1).T
    torch.testing.assert_close(losses(s, 1e-3), triplet_limit(s, 1e-3), rtol=0, atol=1e-3)
    assert bool((triplet_limit(s, 1e-3) > 0).any())
    torch.testing.assert_close(losses(s, 1e3), simple_limit(s, 1e3), rtol=0, atol=1e-6)
    # to first order in 1/tau: the distance falls as its square
    far = (losses(s, 1e2) - simple_limit(s, 1e2)).abs().max()
    near = (losses(s, 1e1) - simple_limit(s, 1e1)).abs().max()
    assert 50 < float(near / far) < 200


def test_nearest_negatives_equal_a_sort() -> None:
    x, y = rows(15), rows(15, seed=1)
    s = x @ y.T
    expected = torch.stack([torch.cat([s[i, :i], s[i, i + 1 :]]).sort(descending=True).values[:4] for i in range(15)])
    for tile in (None, 1, 4, 15):
        torch.testing.assert_close(nearest_negatives(x, y, 4, tile), expected, rtol=0, atol=1e-14)
    assert nearest_negatives(x, y, 99).shape == (15, 14)


def test_tolerance_equals_loops_and_drops_singletons() -> None:
    z = rows(12)
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 7, 9])
    same = [
        (int(labels[i]), float(z[i] @ z[j])) for i in range(12) for j in range(12) if i != j and labels[i] == labels[j]
    ]
    found = tolerance(z, labels)
    assert found.conditional == pytest.approx(np.mean([value for _, value in same]), abs=1e-12)
    assert found.raw == pytest.approx(sum(value for _, value in same) / (12 * 11), abs=1e-12)
    assert found.raw == pytest.approx(found.conditional * len(same) / (12 * 11), abs=1e-12)
    classes = [np.mean([value for label, value in same if label == c]) for c in (0, 1, 2)]
    assert found.macro == pytest.approx(np.mean(classes), abs=1e-12)
    assert (found.classes, found.singletons) == (5, 2)


def test_influences_of_tolerance_are_derivatives_by_weight() -> None:
    """An item of weight 1 + e in every pair: the figure's slope, up to what a change of all weights alike leaves."""
    z, e = rows(14), 1e-6
    labels = torch.tensor([0] * 6 + [1] * 4 + [2] * 3 + [3])
    same = (labels[:, None] == labels[None]) & ~torch.eye(14, dtype=torch.bool)
    s = z @ z.T
    found = tolerance(z, labels)

    def figures(w: Tensor) -> tuple[float, float, float]:
        pairs = w[:, None] * w[None]
        off = pairs * ~torch.eye(14, dtype=torch.bool)
        macro = [
            float((s * pairs * part).sum() / (pairs * part).sum())
            for c in (0, 1, 2)
            for part in [same & (labels == c)[:, None]]
        ]
        total = float((s * pairs * same).sum())
        return total / float((pairs * same).sum()), total / float(off.sum()), float(np.mean(macro))

    for i in range(14):
        w = torch.ones(14, dtype=torch.float64)
        w[i] += e
        up = figures(w)
        w[i] -= 2 * e
        slope = [(a - b) / (2 * e) * 14 for a, b in zip(up, figures(w), strict=True)]
        for given, expected in zip((found.influence, found.influence_raw, found.influence_macro), slope, strict=True):
            assert float(given[i]) == pytest.approx(expected, abs=0.0 if expected == 0 else 1e-6)


def test_the_report_card_holds_what_it_says() -> None:
    x, labels = rows(60), torch.arange(60) % 4
    y = unit(x + 0.4 * rows(60, seed=1))
    report = geometry(3 * x, y, labels, GeometryConfig(temperature=0.15, feature="projector"))
    s = x @ y.T
    assert (report.n, report.negatives, report.dimension, report.keys, report.feature) == (
        60,
        59,
        6,
        "second",
        "projector",
    )
    assert report.normalised is False
    assert report.alignment.value == pytest.approx(float(2 - 2 * s.diagonal().mean()), abs=1e-12)
    off = s.masked_fill(torch.eye(60, dtype=torch.bool), -9).topk(10, dim=1).values
    assert report.gap.value == pytest.approx(float((s.diagonal() - off.mean(1)).mean()), abs=1e-12)
    assert [p.tau for p in report.penalties] == sorted({*GeometryConfig().taus, 0.15})
    normalised = [p.normalised.value for p in report.penalties]
    assert normalised == sorted(normalised)
    assert report.positives is not None
    assert sum(report.positives.counts) == 60
    assert sum(report.nearest.counts) == 600
    assert (report.zero_distances, report.duplicates, report.singletons) == (0, 0, 0)
    for name, value in report:
        if isinstance(value, type(report.gap)):
            assert value.low <= value.value <= value.high, name
    assert GeometryReport.model_validate(json.loads(report.model_dump_json())) == report
    assert geometry(3 * x, y, labels, GeometryConfig(temperature=0.15, feature="projector")) == report
    assert geometry(x, y, labels, GeometryConfig(seed=1)).gap.low != report.gap.low


def test_without_second_view_or_labels_the_rest_is_there() -> None:
    report = geometry(rows(30), None, None)
    assert report.keys == "first"
    assert report.positives is None
    for absent in (report.alignment, report.gap, report.tolerance):
        assert absent.value is None
        assert absent.reason
    assert report.uniformity.value is not None
    assert report.normalised is True


def test_duplicates_are_counted_and_push_uniformity_up() -> None:
    x = rows(40)
    z = torch.cat([x[:-4], x[:1], x[:1], x[1:3]])
    report = geometry(z, None, None)
    assert (report.zero_distances, report.duplicates) == (3 + 2, 3 + 4)
    clean = geometry(x, None, None)
    assert report.uniformity.value is not None
    assert clean.uniformity.value is not None
    assert report.uniformity.value > clean.uniformity.value


def test_collapse_is_no_error() -> None:
    report = geometry(rows(1).expand(12, -1), None, torch.zeros(12, dtype=torch.int64))
    assert report.uniformity.value == pytest.approx(0.0, abs=1e-12)
    assert report.tolerance.value == pytest.approx(1.0)
    assert report.zero_distances == 66


def test_traps_are_errors_that_name_them() -> None:
    x = rows(8)
    with pytest.raises(InputError, match=r"shape \[2, 6\]"):
        geometry(x[:2], None, None)
    with pytest.raises(InputError, match=r"\[8, 6\] and \[7, 6\]"):
        geometry(x, x[:7], None)
    with pytest.raises(InputError, match="row 3 of first is zero"):
        geometry(x * (torch.arange(8) != 3)[:, None], None, None)
    with pytest.raises(InputError, match="8 classes with one sample each"):
        geometry(x, None, torch.arange(8))
    with pytest.raises(InputError, match=r"labels of shape \[7\]"):
        geometry(x, None, torch.zeros(7, dtype=torch.int64))
    with pytest.raises(InputError, match="float32"):
        tolerance(x, torch.zeros(8))
    with pytest.raises(InputError, match="a temperature of 0"):
        relative_penalty(x @ x.T, 0)
    with pytest.raises(InputError, match=r"similarities of shape \[8, 7\]"):
        gradients((x @ x.T)[:, :7], 1.0)
    with pytest.raises(ConfigError, match="did you mean 'taus'"):
        GeometryConfig.parse({"tau": 1})
    assert (CARD.name, CARD.system, CARD.verb) == ("geometry", "contrastive-loss-behaviour", "measure")
