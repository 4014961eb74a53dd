"""The proof of infonce-core: what can be checked in seconds; the whole of it runs by `efface prove`."""

from __future__ import annotations

import torch

from efface.proofs import infonce_core as proof


def test_exactness_holds_and_would_be_noticed() -> None:
    assert proof.gradient_error() <= 1e-10
    assert proof.caching_error() <= 1e-10
    dense = proof.dense_nt_xent
    proof.dense_nt_xent = lambda a, b, t: dense(a, b, t) * (1 + 1e-6)  # type: ignore[assignment]
    try:
        assert proof.gradient_error() > 1e-8
    finally:
        proof.dense_nt_xent = dense  # type: ignore[assignment]


def test_memory_is_of_the_loss_alone() -> None:
    small = proof.extra_mb(proof.dense_nt_xent, 512)
    large = proof.extra_mb(proof.dense_nt_xent, 1024)
    assert large > 1.8 * small > 0, "the dense form must be seen to grow"
    assert proof.unit_rows(3, 4, 0, torch.float32).norm(dim=1).allclose(torch.ones(3))
