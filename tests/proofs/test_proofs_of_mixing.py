"""The proofs of MoCHi, SupReMix and SimLAP judge what they say; their claims where there is time to train."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from efface.proofs import hydra_pairs, mochi, supremix
from efface.proofs.proof import Check


def failing(checks: list[Check]) -> list[str]:
    return [check.name for check in checks if not check.holds]


def test_mochi_is_judged_by_its_worst_setting_and_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    base = mochi.Seen(-2.0, 30, 20, 98, 97, 80)
    good = mochi.Seen(-2.1, 31, 18, 97.5, 97, 80, mass=0.2, share=0.1, raised=0.1)
    figures = {("MoCo", seed): base for seed in mochi.SEEDS}
    figures |= {(name, seed): good for name in mochi.SETTINGS for seed in mochi.SEEDS}
    monkeypatch.setattr(mochi, "measured", lambda name, seed: figures[name, seed])
    assert not failing(mochi.checks())
    one = next(iter(mochi.SETTINGS)), 2
    for change, word in (
        ({"uniformity": -1.9}, "uniformity"), ({"mass": 0.1}, "softmax mass"), ({"raised": 0.0}, "loss with mixes"),
        ({"probe": 96.9}, "linear probe"),
    ):  # fmt: skip
        figures[one] = replace(good, **change)
        assert [word in name for name in failing(mochi.checks())] == [True]


def test_supremix_is_judged_by_means(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = dict.fromkeys(supremix.RECIPES, 3.9) | {
        supremix.FULL: 3.5, supremix.DIRECT: 2.6, supremix.TUNED: 2.6, "SimCLR": 4.0,
    }  # fmt: skip
    wobble = {0: -0.2, 1: 0.0, 2: 0.2}
    monkeypatch.setattr(supremix, "measured", lambda name, seed: supremix.Seen(errors[name] + wobble[seed], 0.9))
    assert not failing(supremix.checks())
    for name, value, word in (("SimCLR", 3.7, "SimCLR"), (supremix.TUNED, 2.8, "fine-tuning"),
                              ("SupCon on bins of 10 degrees", 3.5, "SupCon")):  # fmt: skip
        before = errors[name]
        errors[name] = value
        assert [word in said for said in failing(supremix.checks())] == [True]
        errors[name] = before


def test_hydra_pairs_is_judged_on_both_kinds_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    good: dict[str, Any] = {
        "untrained": hydra_pairs.Seen(90, 75, 90), "SupCon": hydra_pairs.Seen(95, 81, 92),
        **{name: hydra_pairs.Seen(94, 80, 92, 0.5, 0.1) for name in hydra_pairs.GATED},
        **{name: hydra_pairs.Seen(91, 76, 90) for name in hydra_pairs.OPEN},
    }  # fmt: skip
    figures = dict(good)
    monkeypatch.setattr(hydra_pairs, "measured", lambda name, seed: figures[name])
    assert not failing(hydra_pairs.checks())
    for name, value, word in (
        ("distinct", hydra_pairs.Seen(93, 80, 92, 0.5, 0.1), "training: gated minus SupCon"),
        ("arbitrary", hydra_pairs.Seen(94, 79, 92, 0.5, 0.1), "new classes: gated minus SupCon"),
        ("distinct, gate open", hydra_pairs.Seen(92, 76, 90), "training: gate open"),
        ("arbitrary, gate open", hydra_pairs.Seen(91, 77, 90), "new classes: gate open"),
        ("distinct", hydra_pairs.Seen(94, 80, 92, 0.97, 0.1), "largest"),
        ("distinct", hydra_pairs.Seen(94, 80, 92, 0.5, 0.001), "deviation of a gate"),
    ):
        figures[name] = value
        assert [word in said for said in failing(hydra_pairs.checks())] == [True]
        figures[name] = good[name]


@pytest.mark.slow
@pytest.mark.parametrize("proof", [mochi.PROOF, supremix.PROOF, hydra_pairs.PROOF], ids=lambda proof: proof.system)
def test_every_check_holds(proof: Any) -> None:
    assert not failing(proof.run().checks)
