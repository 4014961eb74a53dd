"""Masks by tile against the whole matrix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from efface.errors import InputError
from efface.numerics.masks import Dense, Mask, Same, Shifted, counts, slices

CPU = torch.device("cpu")
B, M = 7, 5
ROW_IDS, COL_IDS = torch.tensor([0, 1, 2, 3, 0, 9, 2]), torch.tensor([2, 0, 7, 0, 3])
MATRIX = torch.rand(B, M, generator=torch.Generator().manual_seed(1)) > 0.6


def plain(pairs: object) -> Tensor:
    """[B, M] from a rule for (row, column), by a plain loop."""
    return torch.tensor([[bool(pairs(i, j)) for j in range(M)] for i in range(B)])  # type: ignore[operator]


KNOWN: list[tuple[Mask, Tensor]] = [
    (Same(ROW_IDS, COL_IDS), plain(lambda i, j: ROW_IDS[i] == COL_IDS[j])),
    (Shifted(), plain(lambda i, j: i == j)),
    (Shifted(3), plain(lambda i, j: j == i + 3)),
    (Shifted(-4), plain(lambda i, j: j == i - 4)),
    (Shifted(50), plain(lambda i, j: False)),
    (Dense(MATRIX), MATRIX),
    (Same(ROW_IDS, COL_IDS) | Shifted(1), plain(lambda i, j: ROW_IDS[i] == COL_IDS[j] or j == i + 1)),
    (Dense(MATRIX) & Same(ROW_IDS, COL_IDS), MATRIX & plain(lambda i, j: ROW_IDS[i] == COL_IDS[j])),
    (Dense(MATRIX) & ~Shifted(), MATRIX & plain(lambda i, j: i != j)),
    (~(Shifted() | Dense(MATRIX)), ~(MATRIX | plain(lambda i, j: i == j))),
    (~~Shifted(2), plain(lambda i, j: j == i + 2)),
]


@pytest.mark.parametrize("which", range(len(KNOWN)))
@pytest.mark.parametrize("size", range(1, B + 3))
def test_tiles_make_up_the_matrix(which: int, size: int) -> None:
    mask, whole = KNOWN[which]
    mask.check(B, M)
    for rows in slices(B, size):
        for cols in slices(M, size):
            tile = mask.tile(rows, cols, CPU)
            assert tile.dtype == torch.bool
            assert torch.equal(tile, whole[rows, cols])
            if mask.empty(rows, cols):
                assert not tile.any()
    assert torch.equal(counts(mask, B, M, size), whole.sum(1))


def test_empty_is_certain_where_it_is_cheap() -> None:
    assert Shifted().empty(slice(0, 3), slice(3, 6))
    assert not Shifted().empty(slice(0, 3), slice(2, 6))
    assert Same(ROW_IDS, COL_IDS).empty(slice(5, 6), slice(0, 5))
    assert not Same(ROW_IDS, COL_IDS).empty(slice(4, 6), slice(0, 5))
    assert (Shifted() & Dense(MATRIX)).empty(slice(0, 3), slice(3, 5))
    assert not (Shifted() | Dense(MATRIX)).empty(slice(0, 3), slice(3, 5))


def test_symmetry_is_claimed_only_where_it_holds() -> None:
    ids = torch.tensor([0, 1, 1])
    square = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 1]]).bool()
    for mask in (Shifted(), Same(ids), Same(ids, ids.clone()), Dense(square), ~Dense(square), Shifted() | Same(ids)):
        assert mask.symmetric()
    for mask in (Shifted(1), Same(ids, ids.flip(0)), Dense(torch.ones(3, 3).triu().bool()), Shifted() & Shifted(2)):
        assert not mask.symmetric()


@given(st.lists(st.integers(-2, 3), min_size=1, max_size=12), st.lists(st.integers(-2, 3), min_size=1, max_size=12),
       st.integers(-13, 13), st.integers(1, 14))  # fmt: skip
@settings(deadline=None)
def test_counts_by_loop(left: list[int], right: list[int], start: int, size: int) -> None:
    mask = Same(torch.tensor(left), torch.tensor(right)) & ~Shifted(start)
    expected = [sum(a == b and j != i + start for j, b in enumerate(right)) for i, a in enumerate(left)]
    assert counts(mask, len(left), len(right), size).tolist() == expected


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: Same(ROW_IDS.float(), COL_IDS), r"ids of the rows: float32 of shape \[7\]"),
        (lambda: Same(ROW_IDS, COL_IDS[None]), r"ids of the columns: int64 of shape \[1, 5\]"),
        (lambda: Same([1, 2], COL_IDS), "list"),  # type: ignore[arg-type]
        (lambda: Dense(MATRIX.long()), r"int64 of shape \[7, 5\]"),
        (lambda: Dense(MATRIX[0]), r"bool of shape \[5\]"),
        (lambda: Shifted() | MATRIX, r"Dense\(matrix\)"),  # type: ignore[operator]
        (lambda: counts(Dense(MATRIX), M, B), r"\[7, 5\]; expected shape \[5, 7\]"),
        (lambda: counts(Same(ROW_IDS, COL_IDS) | Shifted(), B, B), r"\[7, 5\]; expected shape \[7, 7\]"),
        (lambda: counts(~Dense(MATRIX), B, M + 1), r"expected shape \[7, 6\]"),
        (lambda: counts(Shifted(), B, M, 0), "tile of side 0"),
    ],
)
def test_bad_masks_name_what_they_got(wrong: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        wrong()  # type: ignore[operator]
