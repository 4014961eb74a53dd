"""Exact selection without sorting, against sorting."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from efface.errors import InputError
from efface.train import mask_threshold
from efface.train.mask_threshold import apply_cuts, cuts, order_keys


def sorted_mask(flat: Tensor, count: int, *, largest: bool) -> Tensor:
    """A stable sort: ties go to the lower index."""
    order = torch.sort(flat if not largest else -flat, stable=True).indices[:count]
    mask = torch.zeros(len(flat), dtype=torch.bool)
    mask[order] = True
    return mask


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), ties=st.booleans(), largest=st.booleans(), piece=st.sampled_from([7, 64, 2**20]))
def test_equal_to_a_stable_sort(seed: int, ties: bool, largest: bool, piece: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = {"a": torch.randn(5, 9, generator=generator), "b": torch.randn(61, generator=generator) * 1e-20}
    if ties:
        scores = {name: (value * 2).round() for name, value in scores.items()}
    flat = torch.cat([value.reshape(-1) for value in scores.values()])
    counts = [0, 1, 17, 53, 105, 106]
    before, mask_threshold.PIECE = mask_threshold.PIECE, piece
    try:
        masks = apply_cuts(scores, cuts(scores, counts, largest=largest), largest=largest)
        for count, own in zip(counts, masks, strict=True):
            made = torch.cat([mask.reshape(-1) for mask in own.values()])
            assert int(made.sum()) == count
            assert torch.equal(made, sorted_mask(flat, count, largest=largest))
    finally:
        mask_threshold.PIECE = before


def test_keys_keep_the_order_and_know_one_zero() -> None:
    x = torch.tensor([-3e38, -1.0, -1e-40, -0.0, 0.0, 1e-40, 1.0, 3e38])
    keys = order_keys(x)
    assert keys[3] == keys[4]
    assert keys.tolist() == sorted(keys.tolist())
    assert len(set(keys.tolist())) == 7
    assert 0 <= int(keys.min()) <= int(keys.max()) < 2**32
    assert torch.equal(order_keys(x, largest=False), 2**32 - 1 - keys)


def test_all_thresholds_from_two_readings_and_all_masks_from_one() -> None:
    reads = {"n": 0}

    class Counted(dict[str, Tensor]):
        def __getitem__(self, name: str) -> Tensor:
            reads["n"] += 1
            return super().__getitem__(name)

    scores = Counted(w=torch.rand(1000, generator=torch.Generator().manual_seed(0)))
    found = cuts(scores, [int(1000 * share) for share in (0.1, 0.2, 0.4, 0.6, 0.8, 0.85, 0.9, 0.95, 0.99, 1.0)])
    assert reads["n"] == 2
    masks = apply_cuts(scores, found)
    assert reads["n"] == 3, "all masks from one more"
    assert [int(own["w"].sum()) for own in masks] == [100, 200, 400, 600, 800, 850, 900, 950, 990, 1000]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_no_number_is_refused(bad: float) -> None:
    with pytest.raises(InputError, match="scores of 'w' hold NaN or infinity"):
        cuts({"w": torch.tensor([1.0, bad])}, [1])


def test_counts_out_of_range() -> None:
    with pytest.raises(InputError, match="3 of 2 scores"):
        cuts({"w": torch.ones(2)}, [3])
