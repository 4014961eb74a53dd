"""The identity task: persons cut into four sets, disjoint, seeded, label-matched where asked; no person straddles."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from datasets import ClassLabel, Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.data.identity_split import ROLES, IdentitySplit, matched_labels, split_identities
from efface.errors import RequestError


def rows(persons: int = 20, each: int = 5, classes: int = 3) -> Dataset:
    """`persons` with `each` rows of distinct content; labels by turns."""
    n = persons * each
    data = Dataset.from_dict({
        "id": [str(i) for i in range(n)], "features": [[float(i), 1.0] for i in range(n)],
        "label": [i % classes for i in range(n)], "identity": [f"p{i // each}" for i in range(n)],
    })  # fmt: skip
    return data.cast_column("label", ClassLabel(names=[f"c{k}" for k in range(classes)]))


def persons(data: Dataset) -> set[str]:
    return set(data["identity"])


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10), st.integers(1, 6), st.integers(1, 6), st.floats(0.06, 0.3))
def test_every_row_in_one_set_and_persons_whole(seed: int, forget: int, test: int, unseen: float) -> None:
    data = rows()
    split = split_identities(data, forget=forget, test=test, unseen=unseen, seed=seed)
    found = {role: persons(part) for role, part in split.sets().items()}
    assert sum(len(part) for part in found.values()) == len(set().union(*found.values())) == 20
    assert sorted(i for part in split.sets().values() for i in part["id"]) == sorted(data["id"])
    assert (len(found["forget"]), len(found["test"]), len(found["unseen"])) == (forget, test, round(unseen * 20))
    whole = Counter(data["identity"])
    assert all(
        Counter(part["identity"])[name] == whole[name] for part in split.sets().values() for name in persons(part)
    )


def test_seeded_and_named() -> None:
    data = rows()
    first, again, other = (split_identities(data, forget=4, test=4, unseen=4, seed=s) for s in (0, 0, 1))
    assert [first.sets()[role]["id"] for role in ROLES] == [again.sets()[role]["id"] for role in ROLES]
    assert persons(first.forget) != persons(other.forget)
    named = split_identities(data, forget=["p3", "p7"], test=4, unseen={"p0"}, seed=0)
    assert persons(named.forget) == {"p3", "p7"}
    assert persons(named.unseen) == {"p0"}
    assert not persons(named.test) & {"p0", "p3", "p7"}


def test_the_request_and_the_counts() -> None:
    split = split_identities(rows(), forget=4, test=5, unseen=3, seed=0)
    request = split.request()
    assert request.retain is not None
    assert request.holdout is not None
    assert len(request.forget) == 20
    assert set(request.evaluation_sets()) == {"forget", "retain", "test", "holdout"}
    counts = split.counts()
    assert {role: (c.rows, c.persons) for role, c in counts.items()} == {
        "forget": (20, 4), "retain": (40, 8), "test": (25, 5), "unseen": (15, 3),
    }  # fmt: skip
    assert all(sum(c.labels.values()) == c.rows for c in counts.values())
    assert set(counts["retain"].labels) == {"c0", "c1", "c2"}


def test_first_rows_as_the_forget_set_cut_a_person_in_two_and_are_refused() -> None:
    """The benchmark's own split: the forget set is the first N rows."""
    data = rows()
    with pytest.raises(RequestError, match="identity 'p4' is in the forget and in the retain set"):
        IdentitySplit(forget=data.select(range(23)), retain=data.select(range(23, 60)), test=data.select(range(60, 80)),
                      unseen=data.select(range(80, 100)))  # fmt: skip


def test_the_same_content_under_two_persons_is_refused() -> None:
    data = rows()
    features = [*data["features"][:-1], data["features"][0]]
    twin = data.remove_columns("features").add_column("features", features)
    with pytest.raises(RequestError, match="same content as a row of the forget set"):
        split_identities(twin, forget=["p0"], test=2, unseen=["p19"], seed=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"forget": ["p1"], "test": ["p1"]}, "'p1' is named for the forget and for the test set"),
        ({"forget": ["q1"]}, r"no identity 'q1'.*did you mean 'p1'"),
        ({"forget": 0}, "forget=0 of 20 persons"),
        ({"forget": 1.5}, "forget=1.5 of 20 persons"),
        ({"forget": True}, "forget=True"),
        ({"forget": []}, "nobody is named"),
        ({"forget": 10, "test": 9, "unseen": 2}, "2 persons for the unseen set, 1 of 20 are left"),
        ({"forget": 10, "test": 9, "unseen": 1}, "some to retain"),
    ],
)
def test_bad_sizes(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        split_identities(rows(), **{"forget": 2, "test": 2, "unseen": 2, **values})


def test_rows_without_identities_are_refused() -> None:
    with pytest.raises(RequestError, match="column 'identity'"):
        split_identities(rows().remove_columns("identity"), forget=2, test=2, unseen=2)


def test_matched_labels_have_the_shares_of_the_forget_set() -> None:
    like = rows(9, 10)
    like = like.select([i for i, label in enumerate(like["label"]) if label != 2 or i % 10 < 3])
    data = rows(40, 10)
    data = data.select([i for i, label in enumerate(data["label"]) if label != 0 or i % 2])
    kept = matched_labels(data, like, seed=1)
    wanted, found, there = (Counter(part["label"]) for part in (like, kept, data))
    share = min(there[label] / wanted[label] for label in wanted)
    assert found == {label: int(share * count) for label, count in wanted.items()}, "the largest part with these shares"
    there_ids = set(kept["id"])
    assert list(kept["id"]) == [i for i in data["id"] if i in there_ids], "in the order of the data"
    assert list(kept["id"]) == list(matched_labels(data, like, seed=1)["id"])
    split = split_identities(rows(), forget=4, test=4, unseen=5, seed=0, match_labels=True)
    assert set(split.counts()["unseen"].labels) == set(split.counts()["forget"].labels)


def test_labels_that_cannot_be_matched() -> None:
    data = rows()
    with pytest.raises(RequestError, match="0 unseen rows of label 2"):
        matched_labels(data.select([i for i, label in enumerate(data["label"]) if label != 2]), data)
    numbers = data.remove_columns("label").add_column("target", [0.0] * len(data))
    with pytest.raises(RequestError, match="numbers instead of labels"):
        matched_labels(numbers, numbers)
    assert split_identities(numbers, forget=2, test=2, unseen=2).counts()["forget"].labels == {}
