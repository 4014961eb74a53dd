"""The frame of a proof: relations, NaN, the headline, and finding one by name."""

from __future__ import annotations

import math
from typing import Any

import pytest

from efface.errors import ConfigError
from efface.proofs.proof import Check, Proof, find_proof, proofs


@pytest.mark.parametrize(
    ("figure", "relation", "threshold", "holds"),
    [
        (2, ">", 1, True), (1, ">", 1, False), (1, ">=", 1, True), (0, ">=", 1, False), (0, "<", 1, True),
        (1, "<", 1, False), (1, "<=", 1, True), (2, "<=", 1, False), (1, "==", 1, True), (1.1, "==", 1, False),
    ],
)  # fmt: skip
def test_relations(figure: float, relation: Any, threshold: float, holds: bool) -> None:
    assert Check(name="x", figure=figure, relation=relation, threshold=threshold).holds is holds


@pytest.mark.parametrize("relation", [">", ">=", "<", "<=", "=="])
def test_nan_never_holds(relation: Any) -> None:
    assert not Check(name="x", figure=math.nan, relation=relation, threshold=0.0).holds
    assert not Check(name="x", figure=0.0, relation=relation, threshold=math.nan).holds


def test_one_failing_check_fails_the_proof() -> None:
    good = Check(name="good", figure=2, relation=">", threshold=1, baseline=0.5)
    bad = Check(name="bad", figure=math.nan, relation=">", threshold=1)
    result = Proof(system="x", claim="c", checks=lambda: [good, bad], note="n").run()
    assert (result.holds, result.holding) == (False, [True, False])
    assert (result.figure, result.baseline, result.threshold, result.note) == (2, 0.5, 1, "n")
    assert Proof(system="x", claim="c", checks=lambda: [good]).run().holds


def test_proofs_are_found_and_misspellings_answered() -> None:
    assert {"npo", "tofu"} <= set(proofs())
    assert find_proof("npo").system == "npo"
    with pytest.raises(ConfigError, match="did you mean 'tofu'"):
        find_proof("tofuu")


def test_a_reported_figure_has_no_threshold_and_is_no_headline() -> None:
    told = Check(name="beside", figure=0.3, relation="reported", baseline=0.1)
    assert told.holds
    assert told.bound == "reported"
    assert Check(name="x", figure=1, relation=">=", threshold=0.5).bound == ">= 0.5"
    for bad in ({"relation": "reported", "threshold": 0.0}, {"relation": ">="}):
        with pytest.raises(ValueError, match="every relation but 'reported'"):
            Check(name="x", figure=0.0, **bad)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="headline"):
        Proof("x", "claim", lambda: [told]).run()
