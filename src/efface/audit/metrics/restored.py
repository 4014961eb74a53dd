"""What came back: restoration, forgotten false values, and option gaps, from judged answers of three states.

Scores of RESTOR (arXiv 2411.00204), pure functions of the rows that `attacks.restored_answers.judged` gives. Accuracies are means
over an entity's facts, then over entities, and only facts count that the clean model answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from efface.audit.finding import Estimate
from efface.audit.metrics.intervals import bootstrap
from efface.errors import InputError

Floats = npt.NDArray[np.float64]
Judged = list[dict[str, Any]]
"""One judged answer each: id, entity, relation, majority, right, false, refused."""

LEAST_DAMAGE = 0.05
"""Below this fall from clean to corrupted the ratio explodes, and there was nothing to restore."""
TAKEN = 0.2
"""The fall from which the corruption counts as taken (the benchmark's own stop)."""


def known(rows: Judged, clean: Judged | None) -> Judged:
    """The facts that the clean model answers; what it never knew cannot come back."""
    if clean is None:
        return rows
    right = {row["id"] for row in clean if row["right"]}
    return [row for row in rows if row["id"] in right]


def by_entity(rows: Judged, key: str = "right") -> Floats:
    """Share of an entity's facts, [E] in the order of the entities."""
    own: dict[int, list[bool]] = {}
    for row in rows:
        own.setdefault(row["entity"], []).append(bool(row[key]))
    return np.array([np.mean(own[entity]) for entity in sorted(own)], dtype=np.float64)


def restoration(unlearned: Judged, corrupted: Judged, clean: Judged, *, seed: int = 0) -> Estimate:
    """The ratio, with an interval over entities: 1 all is back, 0 nothing, below 0 worse than corrupted.

    Raises:
        InputError: the clean model knows none of the facts, or the corruption cost less than `LEAST_DAMAGE`.
    """
    if not known(clean, clean):
        raise InputError("the clean model answers none of the facts", "facts that it knows", "nothing can be restored")
    parts = np.stack([by_entity(known(rows, clean)) for rows in (unlearned, corrupted, clean)], axis=1)  # [E, 3]
    damage = float(parts[:, 2].mean() - parts[:, 1].mean())
    if damage < LEAST_DAMAGE:
        raise InputError(
            f"the corrupted model lost only {damage:.3f} of the facts", f"a fall of {LEAST_DAMAGE} or more",
            "corrupt it for longer: the ratio is not defined",
        )  # fmt: skip

    def ratio(x: Floats) -> Floats:  # [B, E, 3] -> [B]
        mean = x.mean(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray((mean[:, 0] - mean[:, 1]) / (mean[:, 2] - mean[:, 1]))

    return bootstrap(ratio, parts, seed=seed)


def forgotten(unlearned: Judged, corrupted: Judged, clean: Judged | None = None) -> float:
    """1 - (share answered with the false value) / (the corrupted model's share): 1 all false values are gone.

    Raises:
        InputError: the corrupted model hardly tells a false value.
    """
    before = float(by_entity(known(corrupted, clean), "false").mean())
    if before < LEAST_DAMAGE:
        raise InputError(f"the corrupted model tells the false value in only {before:.3f}", f"{LEAST_DAMAGE} or more")
    return 1 - float(by_entity(known(unlearned, clean), "false").mean()) / before


def option_gaps(
    ids: Sequence[str], variants: Sequence[int], wrong: Floats, true: Mapping[str, float]
) -> dict[str, Floats]:
    """Mean log-probability per token of the true option minus the false one, and minus the mean of the random ones.

    Args:
        ids, variants, wrong: [N] perturbed answers: fact, place (0 is the false value), mean log-probability.
        true: fact -> mean log-probability of the true answer.

    Returns:
        `false` and `random`, each [n] over the facts in the order of `true`; `random` over those that have random options.
    """
    false: dict[str, float] = {}
    random: dict[str, list[float]] = {}
    for identity, variant, value in zip(ids, variants, wrong, strict=True):
        if variant == 0:
            false[identity] = float(value)
        else:
            random.setdefault(identity, []).append(float(value))
    return {
        "false": np.array([score - false[identity] for identity, score in true.items() if identity in false]),
        "random": np.array(
            [score - np.mean(random[identity]) for identity, score in true.items() if identity in random]
        ),
    }


__all__ = ["LEAST_DAMAGE", "TAKEN", "Judged", "by_entity", "forgotten", "known", "option_gaps", "restoration"]
