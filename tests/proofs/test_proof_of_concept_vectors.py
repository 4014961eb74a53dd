"""The proof of concept-vectors: its rows fall into three parts; all of it in the slow run."""

from __future__ import annotations

import pytest

from efface.measure.value_vectors import Place, parse_places
from efface.proofs.concept_vectors import BLOCKS, PROOF, parts, random_vectors, trained_rows


def test_parts_are_a_partition() -> None:
    data = trained_rows()
    assert len(data) == 110 * 4 * 3
    for block in BLOCKS:
        own, other, rest = parts(data, block)
        assert len(own) + len(other) + len(rest) == len(data)
        assert {answer.split()[0] for answer in own["answer"]} == {block}
        assert block not in {answer.split()[0] for answer in other["answer"]}
        assert all("/block/" in i for i in [*own["id"], *other["id"]])
        assert not any("/block/" in i for i in rest["id"])


def test_random_vectors_are_others(tiny: object) -> None:
    chosen = [Place(0, j) for j in range(90)]
    found = parse_places(random_vectors(tiny, chosen, 1))  # type: ignore[arg-type]
    assert len(found) == 90
    assert not set(found) & set(chosen)


@pytest.mark.slow
def test_every_check_holds() -> None:
    result = PROOF.run()
    assert not [check.model_dump() for check in result.checks if not check.holds]
