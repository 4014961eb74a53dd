"""Membership attacks on a classifier or regressor from its own outputs, and the baseline that never queries it.

Members are rows of the forget set, non-members rows of the test set; larger score = member. The aim is the retrained model's
value, not 0.5: an AUC below it says that forgetting shows too. The published efficacy attack and its own AUC stand beside
(`metrics.classification.mia_efficacy`).

| attack | score |
|---|---|
| loss | log-probability of the label; of a number minus half the squared error |
| entropy | minus the entropy of the classes |
| modified_entropy | Song and Mittal's, negated: small where a row is confidently right, large where confidently wrong |
| margin | the label's logit minus the largest other |
| correctness | 1 where the label has the largest logit |

The blind baseline is a classifier on the rows themselves: what they show, their label, and how far the label agrees with
those of the nearest other rows. Where it tells forget from test rows, they differ in kind (a class, a person, wrong labels)
and no attack on them measures membership, whatever its AUC. From 0.6 on the result is not called membership; the gap to the
retrained model is all that is left to read.

Source: Yeom et al. 2018 (loss, correctness); Song and Mittal, arXiv 2003.10595 (entropy, modified entropy); arXiv 2304.04934
and 2310.12508 (efficacy). The baseline is efface's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from efface.audit.finding import Estimate
from efface.audit.metrics import classification
from efface.audit.metrics.intervals import bootstrap
from efface.audit.metrics.membership import BLIND_LIMIT, Blind
from efface.audit.metrics.roc import TprAtFpr, auc_interval, auc_of_levels, to_levels, tpr_at_fpr
from efface.audit.predictions import Predictions
from efface.data.labelled import is_labelled
from efface.data.pictures import open_picture
from efface.errors import InputError

Floats = npt.NDArray[np.float64]
Score = Callable[[Predictions], Floats]

ROLES = ("unlearned", "original", "retrained")
MEMBERS, OTHERS = "forget", "test"

FOLDS = 4
NEIGHBOURS = 10
WORDS = 2000
"""Most frequent words of texts that the baseline looks at."""
SIDE = 16
"""Pictures are looked at in grey, this many pixels high and wide."""


def loss(table: Predictions) -> Floats:
    """[N] log-probability of the label, or minus half the squared error."""
    return table.own_logp


def correctness(table: Predictions) -> Floats:
    """[N] 1 where the label has the largest logit, else 0."""
    return table.correct.astype(np.float64)


ATTACKS: dict[str, Score] = {
    "loss": loss,
    "entropy": classification.entropy_score,
    "modified_entropy": classification.modified_entropy_score,
    "margin": classification.margin_score,
    "correctness": correctness,
}
FOR_NUMBERS = ("loss",)
"""Attacks that a regressor has, too."""


@dataclass(frozen=True)
class ClassifierMembership:
    """What the attacks say about up to three models.

    Attributes:
        auc: role -> attack -> AUC of forget against test rows.
        tpr: role -> attack -> share of the forget rows that is recognised at 1 % false positives; without an estimate below
            100 test rows.
        efficacy: role -> the published confidence attack; only where there are enough retain and test rows of a classifier.
        blind: the baseline on the rows alone; None where no rows were given.
    """

    auc: Mapping[str, Mapping[str, Estimate]]
    tpr: Mapping[str, Mapping[str, TprAtFpr]]
    efficacy: Mapping[str, classification.Efficacy] = field(default_factory=dict)
    blind: Blind | None = None

    @property
    def is_membership(self) -> bool:
        """Whether the figures measure membership: the baseline was measured and does not tell the sides apart."""
        return self.blind is not None and not self.blind.leaks

    @property
    def reason(self) -> str:
        """Why the figures are not called membership; empty where they are."""
        if self.blind is None:
            return "the baseline that never queries the model was not measured"
        if self.blind.leaks:
            return (
                f"a classifier that never queries the model tells forget from test rows (AUC {self.blind.auc.value:.2f}): they "
                "differ in kind, and no attack on them measures membership"
            )
        return ""

    def gaps(self) -> dict[str, float]:
        """|AUC of the unlearned model - AUC of the retrained one| of every attack; empty without a retrained model."""
        if not {"unlearned", "retrained"} <= self.auc.keys():
            return {}
        own, other = self.auc["unlearned"], self.auc["retrained"]
        return {name: abs(own[name].value - other[name].value) for name in own}


def classifier_membership(
    tables: Mapping[str, Mapping[str, Predictions]], rows: tuple[Dataset, Dataset] | None = None, *, seed: int = 0
) -> ClassifierMembership:
    """Every attack on every model that is there, and the blind baseline.

    Args:
        tables: role (unlearned, original, retrained) -> `forget`, `test` and, for the efficacy attack, `retain`.
        rows: the forget and the test rows themselves, for the baseline.
        seed: of intervals, of the efficacy attack's members and of the baseline's folds.

    Raises:
        InputError: an unknown role, a model without one of the two sets, or models scored on other rows.
    """
    unknown = [role for role in tables if role not in ROLES]
    if unknown or not tables:
        raise InputError(f"tables of {', '.join(unknown) or 'no model'}", f"one or more of {', '.join(ROLES)}")
    first = next(iter(tables.values()))
    for role, sets in tables.items():
        for name in (MEMBERS, OTHERS):
            if name not in sets:
                raise InputError(
                    f"no predictions of the {role} model on the {name} set", "forget and test set", "score it"
                )
            if sets[name].ids != first[name].ids:
                raise InputError(f"the {role} model was scored on another {name} set", "the same rows for all models")
    auc: dict[str, dict[str, Estimate]] = {}
    tpr: dict[str, dict[str, TprAtFpr]] = {}
    efficacy = {}
    for role, sets in tables.items():
        number = sets[MEMBERS].task == "regression"
        chosen = {name: score for name, score in ATTACKS.items() if not number or name in FOR_NUMBERS}
        sides = {name: (score(sets[MEMBERS]), score(sets[OTHERS])) for name, score in chosen.items()}
        auc[role] = {name: auc_interval(*pair, seed=seed) for name, pair in sides.items()}
        tpr[role] = {name: tpr_at_fpr(*pair, 0.01) for name, pair in sides.items()}
        enough = "retain" in sets and min(len(sets["retain"]), len(sets[OTHERS])) >= classification.LEAST
        if enough and not number:
            efficacy[role] = classification.mia_efficacy(sets["retain"], sets[OTHERS], sets[MEMBERS], seed=seed)
    return ClassifierMembership(auc, tpr, efficacy, None if rows is None else blind_rows(*rows, seed=seed))


# -- the baseline --------------------------------------------------------------------------------------------------


def blind_rows(forget: Dataset, test: Dataset, *, seed: int = 0, folds: int = FOLDS) -> Blind:
    """Cross-validated AUC of a logistic regression that tells forget from test rows without any model.

    It sees the standardised content (numbers; grey pixels; which words), the label or target, and the agreement: the share
    of a row's ten nearest neighbours with its label, or minus the distance to their mean target. Neighbours are rows of the
    folds that the regression is fitted on. Rows of one identity are in one fold.

    The value is the mean of the folds' AUC, the interval resamples rows within folds.

    Raises:
        InputError: rows without labels, of two kinds, or fewer than two on a side.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    smaller = min(len(forget), len(test))
    if smaller < 2 or folds < 2:
        raise InputError(f"{len(forget)} forget rows, {len(test)} test rows and {folds} folds", "two or more of each")
    content, answers, numbers = _content(forget, test)
    sides = np.repeat([1, 0], [len(forget), len(test)])
    groups = None
    if all("identity" in data.column_names for data in (forget, test)):
        groups = np.array([*forget["identity"], *test["identity"]])
        few = min(len(np.unique(groups[sides == side])) for side in (0, 1))
        groups = groups if few >= 2 else None
        smaller = smaller if groups is None else few
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    splitter: Any = kind(n_splits=min(folds, smaller), shuffle=True, random_state=seed)
    samples: list[npt.NDArray[np.int64]] = []
    counts: list[int] = []
    known = answers[:, None] if numbers else (answers[:, None] == np.unique(answers)).astype(np.float64)
    for train, other in splitter.split(content, sides, groups):
        if len(np.unique(sides[other])) < 2 or len(np.unique(sides[train])) < 2:
            continue  # a fold of one side, where identities are large
        agreement = _agreement(content, answers, train, numbers)
        seen = np.concatenate([content, known, agreement[:, None]], axis=1)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
        model.fit(seen[train], sides[train])
        scores = np.asarray(model.decision_function(seen[other]), dtype=np.float64)
        inside, outside, levels = to_levels(scores[sides[other] == 1], scores[sides[other] == 0])
        samples += [inside, outside]
        counts.append(levels)
    if not counts:
        raise InputError("no fold with rows of both sides", "more identities on each side", "give more rows")

    def statistic(*parts: npt.NDArray[np.int64]) -> Floats:
        pairs = zip(parts[::2], parts[1::2], counts, strict=True)
        result: Floats = np.mean([auc_of_levels(inside, outside, n) for inside, outside, n in pairs], axis=0)
        return result

    estimate = bootstrap(statistic, *samples, seed=seed)
    return Blind(auc=estimate, leaks=estimate.value >= BLIND_LIMIT)


def _content(forget: Dataset, test: Dataset) -> tuple[Floats, Floats, bool]:
    """[N, D] what rows show as numbers, [N] labels or targets, and whether these are numbers."""
    columns = [
        name for name in ("features", "image", "text") if all(name in data.column_names for data in (forget, test))
    ]
    answers = [name for name in ("label", "target") if all(name in data.column_names for data in (forget, test))]
    if not columns or not answers or not all(is_labelled(data) for data in (forget, test)):
        raise InputError(
            f"rows with the columns {', '.join(forget.column_names)} and {', '.join(test.column_names)}",
            "labelled rows of one kind on both sides",
        )  # fmt: skip
    items = [item for data in (forget, test) for item in data.with_format(None)[columns[0]]]
    if columns[0] == "features":
        content = np.stack([np.asarray(item, dtype=np.float64).ravel() for item in items])
    elif columns[0] == "image":
        content = np.stack([np.asarray(open_picture(item).convert("L").resize((SIDE, SIDE)), dtype=np.float64).ravel()
                            for item in items])  # fmt: skip
    else:
        from sklearn.feature_extraction.text import CountVectorizer

        try:
            content = CountVectorizer(binary=True, max_features=WORDS).fit_transform(items).toarray().astype(np.float64)
        except ValueError as error:
            raise InputError(f"no words to compare: {error}", "texts with words") from error
    said = np.array([value for data in (forget, test) for value in data[answers[0]]], dtype=np.float64)
    return content, said, answers[0] == "target"


def _agreement(content: Floats, answers: Floats, train: npt.NDArray[np.int64], numbers: bool) -> Floats:
    """[N] how far each row's answer agrees with those of its nearest rows in `train`, itself left out."""
    from sklearn.neighbors import NearestNeighbors
    from sklearn.preprocessing import StandardScaler

    scaled = StandardScaler().fit(content[train]).transform(content)
    count = min(NEIGHBOURS, len(train) - 1)
    found = NearestNeighbors(n_neighbors=count + 1).fit(scaled[train]).kneighbors(scaled, return_distance=False)
    near = train[found]  # [N, count + 1]
    itself = near == np.arange(len(content))[:, None]
    itself[~itself.any(1), -1] = True  # for rows outside of train, and behind exact twins, the farthest is dropped
    others = answers[near[~itself].reshape(len(content), count)]
    agreement = -np.abs(others.mean(1) - answers) if numbers else (others == answers[:, None]).mean(1)
    return np.asarray(agreement, dtype=np.float64)


__all__ = ["ATTACKS", "ClassifierMembership", "blind_rows", "classifier_membership", "correctness", "loss"]
