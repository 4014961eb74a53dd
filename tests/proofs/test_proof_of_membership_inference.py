"""The proof of membership inference holds, and its texts give no blind hint."""

from __future__ import annotations

import pytest

from efface.audit.metrics.membership import blind_baseline
from efface.proofs import membership_inference as proof


def test_sentences_are_distinct_and_seeded() -> None:
    texts = proof.sentences(600, 0)
    assert len(set(texts)) == 600
    assert texts == proof.sentences(600, 0)
    assert texts != proof.sentences(600, 1)


def test_members_and_non_members_are_of_one_kind() -> None:
    texts = proof.sentences(proof.BASE_TEXTS + 2 * proof.TEXTS, 0)[proof.BASE_TEXTS :]
    blind = blind_baseline(texts[: proof.TEXTS], texts[proof.TEXTS :])
    assert not blind.leaks
    assert abs(blind.auc.value - 0.5) < 0.1


@pytest.mark.slow
def test_the_proof_holds() -> None:
    result = proof.PROOF.run()
    assert len(result.checks) == 8
    assert [check.name for check, holds in zip(result.checks, result.holding, strict=True) if not holds] == []
    assert result.holds
