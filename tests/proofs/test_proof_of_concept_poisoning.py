"""The proof of Concept poisoning judges what its specification says, on the worst of the seeds; F_r is refused with reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from efface.audit.predictions import Predictions
from efface.proofs import concept_poisoning
from efface.proofs.concept_poisoning import FR, JUDGED, NAMES, PATCHED, Figures, digit_concepts, f_r, quantities
from efface.proofs.proof import find_proof


def made(seed: int) -> Figures:
    bad = seed == 1
    target = dict.fromkeys([*JUDGED, *PATCHED, "random", "random, class included"], 0.02) | {"localized": 0.4}
    return Figures(
        bottleneck=0.79 if bad else 0.9, target={**target, "full": 0.06 if bad else 0.0},
        drop={"head": 0.005, "full": 0.01, "localized": 0.3},
        probe={"original": 0.99, "retrained": 0.9, "head": 0.97 if bad else 0.98, "full": 0.95},
        attack=FR(0.3, 0.62) if bad else FR(None, 0.5),
    )  # fmt: skip


def test_thresholds_and_the_worst_of_seeds_and_scopes(monkeypatch: pytest.MonkeyPatch) -> None:
    proof = find_proof("concept-poisoning")
    assert proof.system == "concept-poisoning"
    assert len(concept_poisoning.SEEDS) == 3
    assert (concept_poisoning.STEPS, concept_poisoning.LEAST_AUC, len(NAMES)) == (256, 0.6, 8)
    monkeypatch.setattr(concept_poisoning, "figures", made)
    monkeypatch.setattr(concept_poisoning, "completeness", lambda seed: (0.002 + 0.01 * (seed == 2), 0.05))
    checks = concept_poisoning.checks()
    target, drop, bottleneck, completeness = checks[:4]
    assert (target.relation, target.threshold, target.figure) == ("<=", 5.0, 6.0)
    assert (drop.relation, drop.threshold) == ("<=", 1.5)
    assert drop.figure == pytest.approx(1.0), "patched runs are not judged"
    assert (bottleneck.relation, bottleneck.threshold, bottleneck.figure) == (">=", 0.8, 0.79)
    assert (completeness.relation, completeness.threshold) == ("<", 0.01)
    assert [check.holds for check in checks[:4]] == [False, True, False, False]
    assert all(check.relation == "reported" for check in checks[4:])
    named = {check.name: check for check in checks}
    probe = next(check for name, check in named.items() if "probe" in name and ", head" in name)
    assert (probe.figure, probe.baseline) == (0.97, 0.99)
    assert next(check for name, check in named.items() if "localized" in name).figure == pytest.approx(40.0)
    assert checks[-1].name.startswith("F_r of head-only training, 1 of 3 seeds")
    monkeypatch.setattr(concept_poisoning, "figures", lambda seed: made(0))
    assert "0.6 F_r is refused" in concept_poisoning.checks()[-1].name


def table(p: Any) -> Predictions:
    """Rows whose probability of class 0 of two is given."""
    p = np.asarray(p, dtype=np.float64)
    logits = np.stack([np.log(p), np.log(1 - p)], 1)
    return Predictions([str(i) for i in range(len(p))], np.zeros(len(p)), logits, np.zeros((len(p), 1)))


def test_f_r_only_where_the_attack_tells_members_apart_on_the_original() -> None:
    rng = np.random.default_rng(0)
    alike = f_r(table(rng.uniform(0.4, 0.9, 60)), table(rng.uniform(0.4, 0.9, 30)), table(np.full(60, 0.1)))
    assert alike.value is None
    assert alike.own_auc < 0.6
    members, others = table(rng.uniform(0.8, 0.99, 60)), table(rng.uniform(0.2, 0.7, 40))
    assert f_r(members, others, members).value == 0.0
    gone = f_r(members, others, table(np.full(60, 0.1)))
    assert gone.value == 1.0
    assert gone.own_auc == pytest.approx(1.0)


def test_the_concepts_by_a_loop() -> None:
    image = np.zeros((8, 8))
    image[0, 0] = image[7, 7] = image[4, 4] = 1.0
    image[5, 2] = 0.5
    found = dict(zip(NAMES, quantities(image[None])[0], strict=True))
    assert found == {
        "top-heavy": 1 - 2.5, "left-heavy": 1.5 - 2, "dark centre": -1, "low ink": -3.5, "ink lower left": 0.5,
        "ink upper left": 0, "ink upper right": 0, "broad foot": 1,
    }  # fmt: skip


def test_half_of_the_rows_show_a_concept() -> None:
    from efface.lab.classified import digit_rows

    train, test = digit_rows(0)
    shares = digit_concepts([train, test]).mean(0)
    assert ((shares > 0.3) & (shares <= 0.5)).all()
