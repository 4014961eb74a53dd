"""Few-shot episodes and OpTA."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from efface.errors import InputError
from efface.learn.episodes import EpisodeConfig, class_means, draw_episode, episode_scores, opta, standardised


def clouds(rows: int = 40, classes: int = 6, noise: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian classes in 16 dimensions, of which two shots are a poor sample."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((classes, 16))
    labels = np.repeat(np.arange(classes), rows)
    return centres[labels] + noise * rng.standard_normal((len(labels), 16)), labels


def test_an_episode_is_what_was_asked_for() -> None:
    _, labels = clouds()
    config = EpisodeConfig(ways=3, shots=2, queries=(1, 4, 9))
    episode = draw_episode(labels, config, np.random.default_rng(0))
    rows = np.concatenate([episode.support, episode.queries])
    assert len(set(rows.tolist())) == len(rows) == 3 * 2 + 14
    assert np.bincount(episode.support_classes).tolist() == [2, 2, 2]
    assert np.bincount(episode.query_classes).tolist() == [1, 4, 9]
    for place in range(3):
        mine = labels[np.concatenate([
            episode.support[episode.support_classes == place], episode.queries[episode.query_classes == place],
        ])]  # fmt: skip
        assert len(set(mine.tolist())) == 1


def test_rows_are_standardised_and_constant_ones_are_no_nan() -> None:
    rows = np.array([[1.0, 2.0, 3.0, 6.0], [5.0, 5.0, 5.0, 5.0]])
    found = standardised(rows)
    np.testing.assert_allclose(found[0], (rows[0] - 3) / np.std(rows[0], ddof=1))
    assert not found[1].any()
    np.testing.assert_allclose(standardised(7 * rows + 2)[0], found[0])
    with pytest.raises(InputError, match="finite"):
        standardised(np.array([[1.0, np.nan]]))


def test_opta_against_the_equations() -> None:
    rng = np.random.default_rng(0)
    prototypes, queries = rng.standard_normal((3, 5)), rng.standard_normal((9, 5))

    def once(p: np.ndarray) -> np.ndarray:
        cost = ((p[:, None] - queries[None]) ** 2).sum(2)
        kernel = np.exp(-cost / cost.max() / 0.5)
        u, v = np.ones(3), np.ones(9)
        for _ in range(2000):
            u = (1 / 3) / (kernel @ v)
            v = (1 / 9) / (kernel.T @ u)
        plan = u[:, None] * kernel * v[None]
        found: np.ndarray = 3 * plan @ queries
        return found

    np.testing.assert_allclose(opta(prototypes, queries, shots=1, passes=1, eps=0.5), once(prototypes), atol=1e-3)
    five = opta(prototypes, queries, shots=1, eps=0.5)
    slow = prototypes
    for _ in range(5):
        slow = once(slow)
    np.testing.assert_allclose(five, slow, atol=5e-3)
    np.testing.assert_allclose(
        opta(prototypes, queries, shots=4, eps=0.5), 0.7 * once(prototypes) + 0.3 * prototypes, atol=1e-3
    )


def test_opta_gains_most_at_one_shot_and_results_are_labelled() -> None:
    rows, labels = clouds(noise=1.3)
    gains = []
    for shots in (1, 5):
        found = episode_scores(rows, labels, EpisodeConfig(shots=shots, episodes=20))
        assert found["prototypes"].kind == "inductive"
        assert found["opta"].kind == "transductive"
        gains.append(found["opta"].accuracy - found["prototypes"].accuracy)
    assert gains[0] > 0.05
    assert gains[1] < gains[0]


def test_the_interval_is_of_the_episodes() -> None:
    rows, labels = clouds(rows=20)
    score = episode_scores(rows, labels, EpisodeConfig(episodes=5, queries=5))["prototypes"]
    assert len(score.episodes) == 5
    assert score.accuracy == pytest.approx(np.mean(score.episodes))
    assert score.high - score.low == pytest.approx(2 * 1.96 * np.std(score.episodes, ddof=1) / np.sqrt(5))
    again = episode_scores(rows, labels, EpisodeConfig(episodes=5, queries=5))["prototypes"]
    assert again == score


def test_known_masses_mend_unbalanced_queries() -> None:
    rows, labels = clouds(rows=60, noise=0.7)
    counts = (2, 2, 2, 2, 40)
    config = EpisodeConfig(episodes=10, queries=counts, shots=1)
    blind = episode_scores(rows, labels, config)
    told = episode_scores(rows, labels, config, masses=np.array(counts, dtype=float))
    assert told["prototypes"] == blind["prototypes"]
    assert told["opta"].accuracy > blind["opta"].accuracy + 0.05
    assert blind["opta"].accuracy < blind["prototypes"].accuracy, "OpTA hurts where queries are not balanced"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"ways": 7}, "6 classes for 7 ways"),
        ({"shots": 30}, "45 or more"),
        ({"queries": (1, 2)}, "5 positive numbers"),
        ({"queries": (1, 2, 3, 4, 0)}, "5 positive numbers"),
    ],
)
def test_episodes_that_cannot_be_drawn(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        draw_episode(clouds()[1], EpisodeConfig(**settings), np.random.default_rng(0))


def test_bad_input() -> None:
    with pytest.raises(InputError, match="single ones"):
        opta(np.eye(3), np.ones((1, 3)), shots=1)
    with pytest.raises(InputError, match="one width"):
        opta(np.eye(3), np.ones((5, 4)), shots=1)
    with pytest.raises(InputError, match="1 or more"):
        opta(np.eye(3), np.ones((5, 3)), shots=0)
    with pytest.raises(InputError, match="no labelled row of class 1"):
        class_means(np.ones((2, 3)), np.array([0, 2]), 3)
    with pytest.raises(InputError, match="a label for each"):
        episode_scores(np.ones((3, 4)), [0, 1], EpisodeConfig())
