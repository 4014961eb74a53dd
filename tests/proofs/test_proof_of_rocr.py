"""The proof of rocr: what it asks and what it keeps away from the baselines; all of it in the slow run."""

from __future__ import annotations

import pytest

from efface.proofs.rocr import EDITS, PROOF, TEMPLATES, asked, one_form, others


def test_rows_and_contexts() -> None:
    assert len(TEMPLATES) == 9
    assert all(text.count("{subject}") == 1 for text in TEMPLATES)
    assert [row["answer"] for row in asked()] == ["paris"] * 3
    assert {row["answer"] for row in asked("berlin")} == {"berlin"}
    assert len(others()) == 59 * 9
    request = one_form()
    assert request.forget["id"] == ["france/capital/0"]
    assert request.retain is not None
    assert not [i for i in request.retain["id"] if i.startswith("france/capital/")]
    assert EDITS["rocr, lambda 1"] == {"ridge": 1.0}


@pytest.mark.slow
def test_every_check_holds() -> None:
    result = PROOF.run()
    assert not [check.model_dump() for check in result.checks if not check.holds]
