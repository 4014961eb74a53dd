"""Streaming mean and variance: chunks merge to what one pass gives, large means included; bad rows are refused."""

from __future__ import annotations

import pytest
import torch

from efface.errors import InputError
from efface.numerics.running_variance import RunningVariance


def test_chunks_merge_to_the_whole() -> None:
    rows = torch.randn(101, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e-3 + 1e4
    merged = None
    for part in rows.split(17):
        merged = RunningVariance.of(part).merge(merged)
    assert merged is not None
    assert merged.n == 101
    torch.testing.assert_close(merged.mean, rows.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(merged.std, rows.std(0, unbiased=False), rtol=1e-6, atol=0)


@pytest.mark.parametrize("rows", [torch.zeros(0, 3), torch.zeros(3), torch.tensor([[1.0, float("nan")]])])
def test_bad_rows_are_refused(rows: torch.Tensor) -> None:
    with pytest.raises(InputError):
        RunningVariance.of(rows)
