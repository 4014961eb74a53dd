"""The proof of tiny-multimodal-testbed: what can be checked in seconds; the whole of it runs by `efface prove`."""

from __future__ import annotations

import pytest

from efface.lab.tiny_clip import Quality
from efface.proofs import tiny_multimodal_testbed as proof

GOOD = {"colour_swap": 0.98, "digit_swap": 0.97, "digit_change": 1.0, "relation_flip": 0.5}


@pytest.mark.parametrize(
    ("changes", "bad"),
    [({}, 0), ({"recall_1": 0.4}, 1), ({"zero_shot": 0.8}, 1), ({"flip": 0.9}, 1), ({"swap": 0.5}, 1)],
)
def test_each_check_can_fail(changes: dict[str, float], bad: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"recall_1": 0.88, "recall_5": 0.99, "text_recall_1": 0.9, "text_recall_5": 0.99, "zero_shot": 0.97}
    negatives = GOOD | ({"relation_flip": changes["flip"]} if "flip" in changes else {})
    negatives |= {"colour_swap": changes["swap"]} if "swap" in changes else {}
    found = Quality(**(values | {k: v for k, v in changes.items() if k in values}), negatives=negatives)
    monkeypatch.setattr(proof, "measured", lambda seed: found)
    assert sum(not check.holds for check in proof.checks()) == bad
