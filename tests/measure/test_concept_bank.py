"""Concept banks: directions that are planted are found, the bottleneck solves its equation, and scales do not rank."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efface.errors import ConfigError, InputError, RequestError
from efface.measure.concept_bank import (
    GRID,
    Bottleneck,
    ConceptBank,
    bank_of_embeddings,
    fit_bottleneck,
    learn_bank,
    read_concepts,
)


def planted(n: int = 400, d: int = 6, seed: int = 0) -> tuple[Any, Any, Any]:
    """Features, three concepts that are the signs of planted directions, and the directions."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.standard_normal((d, 3)))[0].T
    features = rng.standard_normal((n, d))
    return features, (features @ directions.T > 0.3).astype(int), directions


def test_planted_directions_are_found_and_validated_on_other_rows() -> None:
    features, concepts, directions = planted()
    bank = learn_bank(features, concepts, ["the sky", "a wheel", "fur"], seed=1)
    assert bank.names == ("sky", "wheel", "fur")
    cosines = (bank.vectors * directions).sum(1) / np.linalg.norm(bank.vectors, axis=1)
    assert (cosines > 0.97).all()
    assert (bank.validation > 0.9).all()
    assert set(bank.chosen) <= set(GRID)
    p = bank.project(features)
    for i in (0, 7):
        for k in range(3):
            c, b = bank.vectors[k], bank.intercepts[k]
            expected = (sum(c[j] * features[i, j] for j in range(6)) + b) / sum(x * x for x in c) ** 0.5
            assert p[i, k] == pytest.approx(expected)
    assert ((p > 0) == concepts.astype(bool)).mean() > 0.93


def test_a_projection_does_not_depend_on_the_length_of_its_vector() -> None:
    features, _, directions = planted()
    one, other = (bank_of_embeddings(["x", "y", "z"], scale * directions, scale * np.ones(3)) for scale in (1, 250))
    np.testing.assert_allclose(one.project(features), other.project(features))
    assert np.isnan(one.validation).all()


def three_classes(n: int = 300, seed: int = 0) -> tuple[Any, Any]:
    """Projections [N, 4] of which the last says nothing, and labels of three classes."""
    rng = np.random.default_rng(seed)
    p = rng.standard_normal((n, 4))
    scores = np.stack([2 * p[:, 0] + 0.5 * p[:, 1], 2 * p[:, 0] - 0.5 * p[:, 1], -2 * p[:, 0] + p[:, 2]], 1)
    return p, (scores + rng.gumbel(size=scores.shape)).argmax(1)


@pytest.mark.parametrize("strength", [1e-2, 1e-1])
def test_the_bottleneck_minimises_its_equation(strength: float) -> None:
    """Against proximal gradient descent in a plain loop."""
    p, y = three_classes()
    ratio = 0.99
    found = fit_bottleneck(p, y, 3, regularisation=strength, l1_ratio=ratio)
    x, hot = (p - p.mean(0)) / p.std(0), np.eye(3)[y]

    def value(w: Any, b: Any) -> float:
        z = x @ w.T + b
        loss = -(z - np.log(np.exp(z).sum(1, keepdims=True)))[np.arange(len(y)), y].mean()
        return float(loss + strength * (ratio * np.abs(w).sum() + (1 - ratio) / 2 * (w**2).sum()))

    w, b, step = np.zeros((3, 4)), np.zeros(3), 0.5
    for _ in range(4000):
        z = x @ w.T + b
        g = (np.exp(z) / np.exp(z).sum(1, keepdims=True) - hot) / len(y)
        moved = w - step * (g.T @ x + strength * (1 - ratio) * w)
        w = np.sign(moved) * np.maximum(np.abs(moved) - step * strength * ratio, 0)
        b = b - step * g.sum(0)
    assert value(found.weights, found.intercept) == pytest.approx(value(w, b), rel=1e-4)
    np.testing.assert_allclose(found.weights, w, atol=0.02)


def test_the_ranking_of_weights_is_no_ranking_of_scales() -> None:
    p, y = three_classes()
    scales = np.array([1e-3, 1.0, 50.0, 1e3])
    one, other = fit_bottleneck(p, y, 3), fit_bottleneck(p * scales + 7, y, 3)
    np.testing.assert_allclose(one.weights, other.weights, rtol=1e-4, atol=1e-4)
    assert one.ranked(0) == other.ranked(0)
    assert one.accuracy(p, y) == other.accuracy(p * scales + 7, y)
    assert one.ranked(0)[0] == 0
    raw = np.abs(one.weights / one.scale / scales)  # what a model of unscaled projections would hold
    assert raw[0].argmax() == 0 != np.abs(one.weights[0]).argmin(), "there, the smallest scale would come first"


def test_the_donor_is_the_class_with_the_most_similar_weights() -> None:
    p, y = three_classes()
    found = fit_bottleneck(p, y, 3)
    assert found.most_similar(0) == 1
    assert found.most_similar(1) == 0
    weights = np.array([[1.0, 0, 0], [5.0, 5.0, 0], [-1, 0, 0], [0.1, 0.01, 0]])
    made = Bottleneck(weights, np.zeros(4), np.zeros(3), np.ones(3), 1)
    assert made.most_similar(0) == 3, "by angle, not by product"
    with pytest.raises(InputError, match="by its concepts"):
        dataclasses.replace(made, weights=np.zeros((4, 3))).most_similar(0)


def test_two_classes_have_weights_of_opposite_sign() -> None:
    p, y = three_classes()
    found = fit_bottleneck(p, (y == 2).astype(int), 2)
    np.testing.assert_allclose(found.weights[0], -found.weights[1])
    assert found.accuracy(p, (y == 2).astype(int)) > 0.8


def test_same_seed_same_bank() -> None:
    features, concepts, _ = planted()
    one, two, other = (learn_bank(features, concepts, ["x", "y", "z"], samples=40, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(one.vectors, two.vectors)
    assert not np.array_equal(one.vectors, other.vectors)


def test_what_is_refused() -> None:
    features, concepts, directions = planted()
    few = concepts.copy()
    few[:, 1] = 0
    few[:3, 1] = 1
    with pytest.raises(RequestError, match="'wheel': 3 rows with it and 397 without"):
        learn_bank(features, few, ["sky", "wheel", "fur"])
    with pytest.raises(InputError, match="neither 0 nor 1"):
        learn_bank(features, concepts * 2, ["sky", "wheel", "fur"])
    with pytest.raises(InputError, match="for 2 names"):
        learn_bank(features, concepts, ["sky", "wheel"])
    with pytest.raises(InputError, match="'sky' twice"):
        learn_bank(features, concepts, ["sky", "a sky", "fur"])
    with pytest.raises(InputError, match="zero"):
        bank_of_embeddings(["x", "y"], np.zeros((2, 3)))
    bank: ConceptBank = bank_of_embeddings(["sky", "wheel", "fur"], directions)
    with pytest.raises(InputError, match=r"features \[2, 5\] for concepts of width 6"):
        bank.project(np.zeros((2, 5)))
    with pytest.raises(ConfigError, match=r"no concept 'weel'.*did you mean 'wheel'"):
        bank.place("weel")
    p, y = three_classes()
    with pytest.raises(InputError, match="2 of 3 classes"):
        fit_bottleneck(p[y < 2], y[y < 2], 3)
    p[:, 1] = 4.0
    with pytest.raises(InputError, match="concept 1 is the same on every row"):
        fit_bottleneck(p, y, 3)


def test_concept_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing is fetched from the network.*concepts=FILE"):
        read_concepts("ConceptNet")
    with pytest.raises(RequestError, match="no concept file"):
        read_concepts(tmp_path / "none.npz")
    good, bad, objects = tmp_path / "good.npz", tmp_path / "bad.npz", tmp_path / "objects.npz"
    np.savez(good, names=np.array(["x", "y"]), vectors=np.eye(2))
    assert set(read_concepts(good)) == {"names", "vectors"}
    np.savez(bad, names=np.array(["x", "y"]), concepts=np.eye(2))
    with pytest.raises(RequestError, match="one of ids, features, images"):
        read_concepts(bad)
    np.savez(objects, names=np.array(["x", None], dtype=object), vectors=np.eye(2))
    with pytest.raises(RequestError, match="plain arrays"):
        read_concepts(objects)["names"]
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(RequestError, match="not a whole"):
        read_concepts(tmp_path / "broken.npz")
