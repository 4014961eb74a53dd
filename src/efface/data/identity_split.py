"""The task of forgetting persons: labelled rows with an `identity`, cut by persons into forget, retain, test and unseen.

The design of MUFAC and MUCAC (Choi and Na, arXiv 2311.02240, section 3) for any data set with an identity and a task label: the
task stays, all rows of some persons go. The model is trained on forget and retain, judged on test, and attacked with forget
against unseen, persons it never saw. No identity stands in two sets.

Departures from the official code, and why. It forgets the first 1,500 rows, so that one person may straddle forget and retain:
here sets are cut on identities, and an identity (or the same content) in two sets is an error. Forget and unseen persons may
have other labels, so that their losses differ without any membership: `match_labels` thins the unseen rows to the label
shares of the forget set. Headings and actual sizes disagree there: `counts` says what is in a split, for the caller to print.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from pydantic import BaseModel, ConfigDict, Field

from efface.data.labelled import content_key, is_labelled
from efface.data.request import Request
from efface.errors import RequestError, nearest

Persons = int | float | Collection[str]
"""Of a set: how many persons, which share of all persons, or who they are."""

ROLES = ("forget", "retain", "test", "unseen")


class SetCount(BaseModel):
    """What is in one set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    persons: int
    labels: dict[str, int] = Field({}, description="rows by label; empty where rows have numbers")


@dataclass(frozen=True)
class IdentitySplit:
    """Four labelled sets without a person in common.

    Raises:
        RequestError: an empty set, no identities, or an identity or content that stands in two sets; names it.
    """

    forget: Dataset
    retain: Dataset
    test: Dataset
    unseen: Dataset

    def __post_init__(self) -> None:
        whose: dict[str, str] = {}
        shown: dict[str, str] = {}
        for role, data in self.sets().items():
            if len(data) == 0:
                raise RequestError(f"the {role} set of the split is empty", "one person or more", "choose other sizes")
            _need_identities(data)
            for name in sorted(set(data["identity"])):
                if whose.setdefault(name, role) != role:
                    raise RequestError(
                        f"identity '{name}' is in the {whose[name]} and in the {role} set", "each person in one set",
                        "cut on identities, not on rows",
                    )  # fmt: skip
            for index, row in enumerate(data):
                if shown.setdefault(content_key(row), role) != role:
                    raise RequestError(
                        f"{role} row {index} (identity '{row['identity']}') has the same content as a row of the "
                        f"{shown[content_key(row)]} set", "no content in two sets", "drop one of the two",
                    )  # fmt: skip

    def sets(self) -> dict[str, Dataset]:
        """The four sets by name."""
        return {role: getattr(self, role) for role in ROLES}

    def request(self) -> Request:
        """Forget these persons: `holdout` is the unseen set, `evaluate["test"]` the test set."""
        return Request(
            forget=self.forget, retain=self.retain, holdout=self.unseen, evaluate={"test": self.test},
            scope="all rows of some identities",
        )  # fmt: skip

    def counts(self) -> dict[str, SetCount]:
        """Rows, persons and rows by label of every set."""
        return {
            role: SetCount(rows=len(data), persons=len(set(data["identity"])), labels=dict(sorted(_labels(data).items())))
            for role, data in self.sets().items()
        }  # fmt: skip


def split_identities(
    data: Dataset, *, forget: Persons, test: Persons, unseen: Persons, seed: int = 0, match_labels: bool = False
) -> IdentitySplit:
    """Cut labelled rows by persons; who is in none of the three sets is retained.

    Args:
        data: labelled rows with an `identity` (see `efface.data.labelled`).
        forget: persons to forget: a number, a share of all persons (a float), or their identities.
        test: persons on whom the task is judged.
        unseen: persons that no model is trained on, to be told from the forgotten ones.
        seed: of the drawing of persons, and of the rows that `match_labels` keeps.
        match_labels: thin the unseen set to the label shares of the forget set (`matched_labels`).

    Returns:
        rows in the order of `data` within each set.

    Raises:
        RequestError: no identities, a size that is none, an unknown identity, one that is named for two sets, nobody left to
            retain, or labels that cannot be matched.
    """
    _need_identities(data)
    known = sorted(set(data["identity"]))
    wanted: dict[str, Persons] = {"forget": forget, "test": test, "unseen": unseen}
    chosen: dict[str, set[str]] = {}
    for role, persons in wanted.items():
        if not isinstance(persons, (int, float)):
            chosen[role] = _named(role, persons, known, chosen)
    taken = set().union(*chosen.values())
    free = [known[i] for i in np.random.default_rng(seed).permutation(len(known)) if known[i] not in taken]
    for role, persons in wanted.items():
        if isinstance(persons, (int, float)):
            count = _size(role, persons, len(known))
            chosen[role], free = set(free[:count]), free[count:]
            if len(chosen[role]) < count:
                raise RequestError(
                    f"{count} persons for the {role} set, {len(chosen[role])} of {len(known)} are left",
                    "sets that fit together", "choose smaller sets",
                )  # fmt: skip
    if not free:
        raise RequestError(f"all {len(known)} persons are forgotten, tested or unseen", "some to retain", "take fewer")
    chosen["retain"] = set(free)
    rows = {
        role: data.select([i for i, name in enumerate(data["identity"]) if name in persons])
        for role, persons in chosen.items()
    }  # fmt: skip
    if match_labels:
        rows["unseen"] = matched_labels(rows["unseen"], rows["forget"], seed=seed)
    return IdentitySplit(**{role: rows[role] for role in ROLES})


def matched_labels(data: Dataset, like: Dataset, *, seed: int = 0) -> Dataset:
    """The largest part of `data` whose label shares are those of `like`, up to rounding down.

    With u_c rows of label c in `data` and f_c in `like`, floor(s f_c) rows of c are kept, s = min over c of u_c / f_c.

    Args:
        seed: of the rows that are kept.

    Raises:
        RequestError: rows without labels, or a label of `like` with too few rows in `data`.
    """
    if "label" not in data.column_names or "label" not in like.column_names:
        raise RequestError("numbers instead of labels", "a column 'label' to match", "set match_labels=false")
    there, needed = Counter(data["label"]), Counter(like["label"])
    scarce = min(needed, key=lambda label: (there[label] / needed[label], label))
    share = there[scarce] / needed[scarce]
    keep = {label: int(share * count + 1e-9) for label, count in needed.items()}
    if not all(keep.values()):
        raise RequestError(
            f"{there[scarce]} unseen rows of label {scarce} and {needed[scarce]} to forget",
            "enough rows of every label to match their shares", "take more unseen persons, or set match_labels=false",
        )  # fmt: skip
    own = np.asarray(data["label"])
    rng = np.random.default_rng([seed, 0x1D])
    kept = [rng.permutation(np.flatnonzero(own == label))[:count] for label, count in sorted(keep.items())]
    return data.select(sorted(np.concatenate(kept).tolist()))


def _need_identities(data: Dataset) -> None:
    if not is_labelled(data) or "identity" not in data.column_names:
        raise RequestError(
            f"rows with the columns {', '.join(data.column_names)}", "labelled rows with a column 'identity'",
            "say whose row each is",
        )  # fmt: skip


def _named(role: str, persons: Collection[str], known: Sequence[str], chosen: dict[str, set[str]]) -> set[str]:
    """Identities that are named for a set."""
    named = {persons} if isinstance(persons, str) else {str(name) for name in persons}
    if not named:
        raise RequestError(f"nobody is named for the {role} set", "one identity or more", "name some, or give a number")
    for name in sorted(named):
        if name not in known:
            raise RequestError(f"no identity '{name}' for the {role} set", None, nearest(name, known))
        for other, there in chosen.items():
            if name in there:
                raise RequestError(
                    f"identity '{name}' is named for the {other} and for the {role} set",
                    "each person in one set",
                    "drop it from one",
                )
    return named


def _size(role: str, persons: float, known: int) -> int:
    """A number of persons from a number or a share."""
    count = round(persons * known) if isinstance(persons, float) else int(persons)
    if isinstance(persons, bool) or not 0 < count < known or (isinstance(persons, float) and not 0 < persons < 1):
        raise RequestError(
            f"{role}={persons!r} of {known} persons",
            f"a number below {known}, or a share between 0 and 1 of one person or more",
            "choose another size",
        )
    return count


def _labels(data: Dataset) -> Counter[str]:
    """Rows by the name of their label."""
    if "label" not in data.column_names:
        return Counter()
    names = getattr(data.features["label"], "names", None)
    return Counter(str(names[label]) if names else str(label) for label in data["label"])


__all__ = ["IdentitySplit", "Persons", "SetCount", "matched_labels", "split_identities"]
