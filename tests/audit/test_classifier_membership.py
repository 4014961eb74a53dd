"""Attacks from a classifier's own outputs against plain loops, and the baseline that must see a difference in kind."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from PIL import Image

from efface.audit.attacks.classifier_membership import ATTACKS, blind_rows, classifier_membership
from efface.audit.predictions import Predictions
from efface.errors import InputError


def table(outputs: Any, targets: Any, prefix: str = "r", task: str = "classification") -> Predictions:
    said = np.asarray(outputs, dtype=np.float64)
    ids = [f"{prefix}{i}" for i in range(len(said))]
    return Predictions(ids, np.asarray(targets, dtype=np.float64), said, np.zeros((len(said), 1)), task=task)


def world(gap: float, n: int = 60, seed: int = 0, prefix: str = "") -> dict[str, Predictions]:
    """Logits of three classes; the label's is larger by `gap` for forget and retain rows."""
    rng = np.random.default_rng(seed)

    def side(name: str, more: float) -> Predictions:
        targets = rng.integers(0, 3, n)
        outputs = rng.normal(size=(n, 3))
        outputs[np.arange(n), targets] += more
        return table(outputs, targets, prefix + name)

    return {"forget": side("f", gap), "retain": side("r", gap), "test": side("t", 0.0)}


def probabilities(logits: list[float]) -> list[float]:
    top = max(logits)
    parts = [math.exp(value - top) for value in logits]
    return [part / sum(parts) for part in parts]


def test_scores_equal_plain_loops() -> None:
    rng = np.random.default_rng(0)
    given = table(3 * rng.normal(size=(40, 4)), rng.integers(0, 4, 40))
    slow: dict[str, list[float]] = {name: [] for name in ATTACKS}
    for row, y in zip(given.outputs.tolist(), given.labels.tolist(), strict=True):
        p = probabilities(row)
        others = [value for v, value in enumerate(row) if v != y]
        slow["loss"].append(math.log(p[y]))
        slow["entropy"].append(sum(q * math.log(q) for q in p))
        slow["modified_entropy"].append(
            (1 - p[y]) * math.log(p[y]) + sum(q * math.log(1 - q) for v, q in enumerate(p) if v != y)
        )
        slow["margin"].append(row[y] - max(others))
        slow["correctness"].append(float(row[y] > max(others)))
    for name, score in ATTACKS.items():
        assert score(given) == pytest.approx(slow[name], abs=1e-9), name


def test_modified_entropy_is_not_the_published_slip() -> None:
    """SVC_MIA's m_entropy edits every listed column of every row and takes log p where log(1 - p) is meant."""
    rng = np.random.default_rng(1)
    given = table(2 * rng.normal(size=(30, 4)), rng.integers(0, 4, 30))
    p = np.exp(given.logp)
    reverse, columns = 1 - p, p.copy()
    columns[:, given.labels] = reverse[:, given.labels]
    slip = -np.sum(columns * -np.log(np.maximum(columns, 1e-30)), axis=1)
    right = ATTACKS["modified_entropy"](given)
    assert np.abs(right - slip).max() > 0.1
    assert abs(float(np.corrcoef(right, slip)[0, 1])) < 0.9
    confident = table(
        [[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]], [0, 0]
    )  # rightly, wrongly: plain entropy cannot tell them apart
    score = ATTACKS["modified_entropy"](confident)
    assert score[0] == pytest.approx(0.0, abs=0.01)
    assert score[1] < -5
    assert ATTACKS["entropy"](confident)[0] == pytest.approx(ATTACKS["entropy"](confident)[1])


def test_suppressed_logits_give_numbers() -> None:
    """0 * log 0 where an unlearned model gives a class no probability."""
    given = table([[0.0, -np.inf, 1.0], [800.0, 0.0, 0.0], [0.0, 900.0, 0.0]], [0, 0, 0])
    with np.errstate(all="ignore"):
        for name in ("entropy", "modified_entropy", "margin", "correctness"):
            assert np.isfinite(ATTACKS[name](given)).all(), name


def test_larger_speaks_for_membership() -> None:
    """A planted gap: members are more confident and right; every attack says so, on every model where it is planted."""
    found = classifier_membership(
        {"original": world(6.0), "unlearned": world(1.0, seed=1), "retrained": world(0.0, seed=2)}
    )
    for name in ATTACKS:
        assert found.auc["original"][name].value > 0.75, name
    assert (
        found.auc["original"]["loss"].value
        > found.auc["unlearned"]["loss"].value
        > found.auc["retrained"]["loss"].value
    )
    assert found.auc["retrained"]["loss"].value == pytest.approx(0.5, abs=0.1)
    gaps = found.gaps()
    assert set(gaps) == set(ATTACKS)
    assert gaps["loss"] == pytest.approx(found.auc["unlearned"]["loss"].value - found.auc["retrained"]["loss"].value)
    low, value = found.auc["unlearned"]["loss"].low, found.auc["unlearned"]["loss"].value
    assert low is not None
    assert low < value


def test_a_gap_needs_a_retrained_model_and_a_rate_enough_rows() -> None:
    few = classifier_membership({"unlearned": world(1.0)})
    assert few.gaps() == {}
    assert few.tpr["unlearned"]["loss"].estimate is None
    assert "60 non-members" in few.tpr["unlearned"]["loss"].reason
    many = classifier_membership({"unlearned": world(4.0, n=200)})
    assert many.tpr["unlearned"]["loss"].estimate is not None
    assert many.efficacy["unlearned"].own_auc.value > 0.8
    without = {name: part for name, part in world(1.0).items() if name != "retain"}
    assert classifier_membership({"unlearned": without}).efficacy == {}


def test_numbers_have_the_loss_alone() -> None:
    rng = np.random.default_rng(0)
    targets = rng.normal(size=50)
    sides = {
        name: table((targets + noise * rng.normal(size=50))[:, None], targets, name, "regression")
        for name, noise in (("forget", 0.1), ("retain", 0.1), ("test", 1.0))
    }
    found = classifier_membership({"unlearned": sides})
    assert set(found.auc["unlearned"]) == {"loss"}
    assert found.auc["unlearned"]["loss"].value > 0.8
    assert found.efficacy == {}


# -- the baseline --------------------------------------------------------------------------------------------------


def rows(
    n: int, seed: int, classes: tuple[int, ...] = (0, 1, 2, 3), wrong: bool = False, identities: Any = None
) -> Dataset:
    """Four clusters with their labels, or with wrong ones."""
    rng = np.random.default_rng(seed)
    label = rng.choice(classes, n)
    centre = np.array([[3.0, 0, 0, 0], [0, 3.0, 0, 0], [0, 0, 3.0, 0], [0, 0, 0, 3.0]])
    x = centre[label] + 0.5 * rng.normal(size=(n, 4))
    said = (label + rng.integers(1, 4, n)) % 4 if wrong else label
    kinds = {"id": Value("string"), "features": List(Value("float32")), "label": ClassLabel(names=list("abcd"))}
    columns = {"id": [f"{seed}-{i}" for i in range(n)], "features": list(x.astype(np.float32)), "label": said.tolist()}
    if identities is not None:
        kinds["identity"], columns["identity"] = Value("string"), list(identities)
    return Dataset.from_dict(columns, features=Features(kinds))


def test_rows_alike_in_kind_are_membership() -> None:
    found = classifier_membership({"unlearned": world(1.0)}, (rows(120, 0), rows(160, 1)))
    assert found.blind is not None
    assert found.blind.auc.value == pytest.approx(0.5, abs=0.1)
    assert found.is_membership
    assert found.reason == ""


@pytest.mark.parametrize(
    "forget",
    [rows(80, 0, classes=(2,)), rows(80, 0, wrong=True)],
    ids=["a class", "wrong labels: what is shown and which labels there are does not differ, only what goes with what"],
)
def test_rows_that_differ_in_kind_are_refused(forget: Dataset) -> None:
    found = classifier_membership({"unlearned": world(1.0)}, (forget, rows(160, 1)))
    assert found.blind is not None
    assert found.blind.auc.value > 0.8  # of a class, a quarter of the test rows too: the best there is is 0.875
    assert found.blind.leaks
    assert not found.is_membership
    assert "differ in kind" in found.reason


def test_without_rows_nothing_is_called_membership() -> None:
    found = classifier_membership({"unlearned": world(1.0)})
    assert not found.is_membership
    assert "not measured" in found.reason


def test_rows_of_one_identity_are_in_one_fold() -> None:
    """Twelve people a side, drawn alike: whoever knows a face can tell its other pictures; the baseline must not."""
    rng = np.random.default_rng(0)
    kinds = Features({
        "id": Value("string"), "features": List(Value("float32")), "label": ClassLabel(names=["a", "b"]),
        "identity": Value("string"),
    })  # fmt: skip

    def people(side: str, known: bool) -> Dataset:
        faces = np.random.default_rng(len(side)).normal(size=(12, 40))
        who = np.repeat(np.arange(12), 8)
        columns = {
            "id": [f"{side}{i}" for i in range(96)], "label": rng.integers(0, 2, 96).tolist(),
            "features": list((faces[who] + 0.1 * rng.normal(size=(96, 40))).astype(np.float32)),
            "identity": [f"{side}{w}" for w in who],
        }  # fmt: skip
        made = Dataset.from_dict(columns, features=kinds)
        return made if known else made.remove_columns("identity")

    assert blind_rows(people("in", False), people("out", False)).auc.value > 0.9
    assert blind_rows(people("in", True), people("out", True)).auc.value < 0.65


def test_texts_pictures_and_numbers_have_a_baseline() -> None:
    def texts(words: str, n: int) -> Dataset:
        rng = np.random.default_rng(len(words))
        parts = words.split()
        return Dataset.from_dict({
            "id": [str(i) for i in range(n)], "text": [" ".join(rng.choice(parts, 5)) for _ in range(n)],
            "label": rng.integers(0, 2, n).tolist(),
        })  # fmt: skip

    shared = "river stone table window garden light paper"
    assert blind_rows(texts(shared, 60), texts(shared, 61)).auc.value < 0.65
    assert blind_rows(texts(shared, 60), texts(shared + " football goal striker league", 60)).leaks

    def pictures(shade: int, n: int, seed: int) -> Dataset:
        rng = np.random.default_rng(seed)
        made = [Image.fromarray((shade + rng.integers(0, 60, (20, 20))).astype(np.uint8)) for _ in range(n)]
        return Dataset.from_dict({"id": [str(i) for i in range(n)], "image": made, "label": [0] * n})

    assert blind_rows(pictures(20, 30, 0), pictures(90, 30, 1)).auc.value == 1.0
    assert blind_rows(pictures(20, 60, 0), pictures(20, 60, 1)).auc.value < 0.65

    def numbers(n: int, seed: int, low: bool) -> Dataset:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(4 * n, 3)).astype(np.float32)
        chosen = x[x[:, 0] < -0.5][:n] if low else x[:n]
        return Dataset.from_dict({
            "id": [str(i) for i in range(len(chosen))], "features": list(chosen), "target": chosen[:, 0].astype(float).tolist(),
        })  # fmt: skip

    assert blind_rows(numbers(50, 0, True), numbers(50, 1, False)).leaks
    assert blind_rows(numbers(80, 0, False), numbers(80, 1, False)).auc.value < 0.65


def test_bad_tables_and_rows_are_refused() -> None:
    with pytest.raises(InputError, match="tables of guessed"):
        classifier_membership({"guessed": world(1.0)})
    with pytest.raises(InputError, match="no model"):
        classifier_membership({})
    with pytest.raises(InputError, match="test set"):
        classifier_membership({"unlearned": {"forget": world(1.0)["forget"]}})
    with pytest.raises(InputError, match="another forget set"):
        classifier_membership({"unlearned": world(1.0), "retrained": world(1.0, prefix="other")})
    with pytest.raises(InputError, match="two or more"):
        blind_rows(rows(1, 0), rows(9, 1))
    with pytest.raises(InputError, match="labelled rows of one kind"):
        blind_rows(rows(9, 0), rows(9, 1).remove_columns("label"))
