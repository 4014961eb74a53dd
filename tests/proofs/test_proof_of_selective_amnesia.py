"""The proof of selective amnesia: facts, forms and the sums of part C; all of it in the slow run."""

from __future__ import annotations

import pytest

from efface.proofs.selective_amnesia_semeval import PROOF, facts, score_checks, two_forms


def test_facts_and_forms() -> None:
    wanted = facts()
    assert len(wanted) == 40
    assert wanted[0] == ("question what is the capital of france ? answer", "france", "paris")
    request = two_forms()
    assert len(request.forget) == 12
    assert {i.split("/")[1] for i in request.forget["id"]} == {"capital"}
    assert {i.split("/")[2] for i in request.forget["id"]} == {"0", "1"}
    gone = {i.split("/")[0] for i in request.forget["id"]}
    assert request.retain is not None
    assert not [i for i in request.retain["id"] if i.split("/")[0] in gone and "/capital/" in i]


def test_the_score_does_its_sums() -> None:
    assert all(check.holds for check in score_checks())


@pytest.mark.slow
def test_every_check_holds() -> None:
    result = PROOF.run()
    assert not [check.model_dump() for check in result.checks if not check.holds]
