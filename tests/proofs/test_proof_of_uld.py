"""The proof of uld compares what its specification names, at its thresholds, and takes the worst form of the worst seed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from efface.forget.method import find_method
from efface.proofs import uld
from efface.proofs.proof import find_proof

FALLING = {0.0: 0.97, 0.5: 0.6, 0.8: 0.13, 1.0: 0.02}


def figures(**more: Any) -> uld.Figures:
    keys = [(alpha, rho) for rho in uld.FILTERS for alpha in uld.ALPHAS]
    made = uld.Figures(
        forget={key: [FALLING[key[0]]] * 3 for key in keys}, retain={key: [1.0] * 3 for key in keys}, exact=0.0, changed=0,
        assistant={"forget_nll": 0.01, "retain_flatness": 0.99}, difference=(0.0, 0.91), offset=(0.0, 0.8),
    )  # fmt: skip
    return dataclasses.replace(made, **more)


def test_thresholds_are_the_specifications(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uld, "seed_figures", lambda seed: figures())
    checks = find_proof("uld").checks()
    judged = [check for check in checks if check.threshold is not None]
    assert [(check.relation, check.threshold) for check in judged] == [
        ("<", 0.1), (">=", 0.99), (">", 0.0), ("<", 0.0), ("<", 0.0), ("==", 0.0), ("==", 0.0),
    ]  # fmt: skip
    assert all(check.holds for check in checks)
    assert len({check.name for check in checks}) == len(checks)


@pytest.mark.parametrize(
    ("place", "more"),
    [
        (0, {"forget": {(a, r): [0.0, 0.0, 0.11 if a == 1 else FALLING[a]] for r in uld.FILTERS for a in uld.ALPHAS}}),
        (1, {"retain": {(a, r): [1.0, 0.98, 1.0] for r in uld.FILTERS for a in uld.ALPHAS}}),
        (2, {"difference": (0.0, 1.0)}),
        (3, {"forget": {(a, r): [0.0, 0.0, {0.8: 0.7}.get(a, FALLING[a])] for r in uld.FILTERS for a in uld.ALPHAS}}),
        (5, {"exact": 1e-6}),
        (6, {"changed": 1}),
    ],
)
def test_one_bad_seed_fails(monkeypatch: pytest.MonkeyPatch, place: int, more: dict[str, Any]) -> None:
    monkeypatch.setattr(uld, "seed_figures", lambda seed: figures(**(more if seed == 1 else {})))
    assert not uld.checks()[place].holds


def test_the_assistant_has_two_layers_and_two_hundred_steps() -> None:
    config: Any = find_method("uld").configure(uld.ULD)
    assert (config.assistant_layers, config.learning_rate, config.retain_weight) == (2, 1e-3, 5.0)
    assert config.epochs * len(uld.capitals_request().forget) / config.batch_size == 200
    find_method("uld").configure(uld.OFFSET)
