"""The figures of forgetting in classifiers: accuracy, the confidence attack, the average gap, and the scores of membership.

The published `m_entropy` (SVC_MIA in Unlearn-Sparse and Unlearn-Saliency) is wrong twice; each slip is here by itself.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from efface.audit.finding import Estimate
from efface.audit.metrics.classification import (
    Report,
    accuracy,
    average_gap,
    entropy_score,
    error,
    margin_score,
    mia_efficacy,
    modified_entropy_score,
    report,
)
from efface.audit.predictions import Predictions
from efface.errors import InputError

Floats = npt.NDArray[np.float64]


def table(outputs: Any, labels: Any) -> Predictions:
    outputs, labels = np.asarray(outputs, dtype=float), np.asarray(labels, dtype=float)
    return Predictions([str(i) for i in range(len(labels))], labels, outputs, np.zeros((len(labels), 2)))


def random_table(n: int, k: int, seed: int, scale: float = 2.0) -> Predictions:
    rng = np.random.default_rng(seed)
    return table(scale * rng.normal(size=(n, k)), rng.integers(0, k, n))


def slow_modified_entropy(logits: Floats, label: int) -> float:
    """(1 - p_y) log p_y + sum over v != y of p_v log(1 - p_v), for one row."""
    top = max(logits)
    total = sum(math.exp(x - top) for x in logits)
    p = [math.exp(x - top) / total for x in logits]
    return sum((1 - p[v]) * math.log(p[v]) if v == label else p[v] * math.log1p(-p[v]) for v in range(len(p)))


def with_slips(own: Predictions, *, columns: bool, logarithm: bool) -> Floats:
    """Minus the published function with one of its slips, or both."""
    p, logp, y = np.exp(own.logp), own.logp, own.labels
    weight, log = p.copy(), logp.copy() if logarithm else np.log1p(-p)
    where: Any = (slice(None), y) if columns else (np.arange(len(own)), y)
    weight[where], log[where] = (1 - p)[where], logp[where]
    return np.asarray((weight * log).sum(1))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(1, 12), k=st.integers(2, 7))
def test_modified_entropy_against_a_slow_loop(seed: int, n: int, k: int) -> None:
    own = random_table(n, k, seed)
    expected = [slow_modified_entropy(row, int(y)) for row, y in zip(own.outputs, own.labels, strict=True)]
    assert modified_entropy_score(own) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_modified_entropy_has_neither_published_slip() -> None:
    own = random_table(40, 5, 0)
    right = modified_entropy_score(own)
    assert with_slips(own, columns=False, logarithm=False) == pytest.approx(right)
    for slips in ({"columns": True, "logarithm": False}, {"columns": False, "logarithm": True}):
        assert np.abs(with_slips(own, **slips) - right).max() > 0.1, slips
    one = own.part([3])
    assert with_slips(one, columns=True, logarithm=False) == pytest.approx(modified_entropy_score(one)), (
        "a batch of one does not show the first slip"
    )
    alone = np.concatenate([modified_entropy_score(own.part([i])) for i in range(len(own))])
    assert right == pytest.approx(alone), "a row's score does not depend on the other rows' labels"


def test_modified_entropy_orders_what_plain_entropy_cannot() -> None:
    sure_right, sure_wrong = table([[9.0, 0, 0]], [0]), table([[9.0, 0, 0]], [1])
    assert modified_entropy_score(sure_right)[0] > modified_entropy_score(sure_wrong)[0] + 5
    assert entropy_score(sure_right)[0] == entropy_score(sure_wrong)[0]
    extreme = table([[800.0, 0, 0], [800.0, 0, 0]], [0, 1])
    assert np.isfinite(modified_entropy_score(extreme)).all()


def test_entropy_and_margin_by_loops() -> None:
    own = random_table(9, 4, 3)
    for i, (row, y) in enumerate(zip(own.outputs, own.labels, strict=True)):
        p = np.exp(row) / np.exp(row).sum()
        assert entropy_score(own)[i] == pytest.approx(sum(q * math.log(q) for q in p))
        assert margin_score(own)[i] == pytest.approx(row[y] - max(x for v, x in enumerate(row) if v != y))


def test_accuracy_and_error_count_rows() -> None:
    own = table([[1, 0], [1, 0], [0, 1], [0, 1]], [0, 0, 0, 1])
    assert accuracy(own).value == 0.75
    assert error(own).value == 0.25
    found = accuracy(own)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.75 < found.high
    assert found.n == 4


def confident(n: int, p: Floats) -> Predictions:
    """Rows of class 0 out of two with these probabilities of it."""
    return table(np.stack([np.log(p) - np.log1p(-p), np.zeros(n)], axis=1), np.zeros(n))


def sides(seed: int = 0, n: int = 200) -> tuple[Predictions, Predictions]:
    """Members with high, others with low probability of their label."""
    rng = np.random.default_rng(seed)
    return confident(n, rng.uniform(0.9, 0.999, n)), confident(n, rng.uniform(0.3, 0.8, n))


def test_efficacy_is_the_share_that_a_useful_attack_calls_nonmembers() -> None:
    retain, test = sides()
    for share in (0.0, 0.25, 1.0):
        inside = round(40 * (1 - share))
        p = np.concatenate([np.full(inside, 0.95), np.full(40 - inside, 0.5)])
        found = mia_efficacy(retain, test, confident(40, p))
        assert found.nonmember.value == share
        assert found.own_auc.value == 1.0


def test_efficacy_is_that_of_the_plain_support_vector_machine() -> None:
    rng = np.random.default_rng(5)
    retain, test = confident(150, rng.beta(5, 2, 150)), confident(100, rng.beta(3, 2, 100))
    forget = confident(60, rng.beta(4, 2, 60))
    found = mia_efficacy(retain, test, forget, seed=4)
    order = np.random.default_rng(4)
    inside = np.exp(retain.own_logp)[order.permutation(150)[:100]]
    outside = np.exp(test.own_logp)[order.permutation(100)[:100]]
    machine = make_pipeline(StandardScaler(), SVC(C=3, gamma="auto", kernel="rbf"))
    machine.fit(np.concatenate([inside[:50], outside[:50]])[:, None], [1] * 50 + [0] * 50)
    called = machine.predict(np.exp(forget.own_logp)[:, None])
    assert found.nonmember.value == pytest.approx(float(np.mean(called == 0)))
    assert 0.3 < found.own_auc.value < 0.9


def test_members_are_drawn_from_the_whole_retain_set() -> None:
    """The published attack takes the first rows; here the later half, which looks like the test set, must count."""
    rng = np.random.default_rng(0)
    test = confident(100, rng.uniform(0.3, 0.8, 100))
    retain = confident(1000, np.concatenate([rng.uniform(0.9, 0.999, 100), rng.uniform(0.3, 0.8, 900)]))
    found = mia_efficacy(retain, test, confident(20, np.full(20, 0.5)))
    assert found.own_auc.value < 0.75, "with the first hundred as members it would be 1"


def test_a_useless_attack_says_so() -> None:
    rng = np.random.default_rng(1)
    p = rng.uniform(0.5, 0.9, 400)
    found = mia_efficacy(confident(200, p[:200]), confident(200, p[200:]), confident(50, p[:50]))
    assert abs(found.own_auc.value - 0.5) < 0.12
    same = confident(50, np.full(50, 0.7))
    flat = mia_efficacy(same, same, same)
    assert flat.own_auc.value == 0.5
    with pytest.raises(InputError, match="10 or more"):
        mia_efficacy(same, same.part(range(9)), same)


def test_same_seed_same_figure() -> None:
    retain, test = sides(2)
    forget = random_table(30, 2, 1)
    assert mia_efficacy(retain, test, forget, seed=3) == mia_efficacy(retain, test, forget, seed=3)


def known(**figures: float) -> Report:
    return Report({name: Estimate(value=value) for name, value in figures.items()})


def test_the_average_gap_by_hand() -> None:
    own, retrained = known(UA=0.9, MIA=0.7, RA=1.0, TA=0.95), known(UA=1.0, MIA=1.0, RA=0.98, TA=0.96)
    assert average_gap(own, retrained) == pytest.approx((10 + 30 + 2 + 1) / 4)
    assert average_gap(retrained, own) == pytest.approx(average_gap(own, retrained)), "too much counts as too little"
    assert average_gap(own, own) == 0
    assert average_gap(known(UA=0.9, RA=1.0), retrained) == pytest.approx((10 + 2) / 2), "what both have"
    with pytest.raises(InputError, match="no figure"):
        average_gap(known(UA=1.0), known(RA=1.0))


def test_the_report_puts_each_figure_where_it_belongs() -> None:
    retain, test = sides()
    forget = confident(40, np.full(40, 0.4))  # wrong: the other class has 0.6
    found = report(forget, retain, test)
    assert found["UA"] == 1.0
    assert found["RA"] == 1.0
    assert found["TA"] == pytest.approx(float(test.correct.mean()))
    assert found["MIA"] == 1.0
    assert found.attack_auc is not None
    few = report(forget, retain, test.part(range(5)))
    assert "MIA" not in few.figures
    assert few.attack_auc is None
