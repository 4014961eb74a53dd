"""Losses of many views against plain loops, against each other, in parts, and through the runner; the traps by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import normalize

import efface
from efface.errors import InputError
from efface.learn.objective import Embedded
from efface.learn.objectives import mv_avg as mv_avg_file
from efface.learn.objectives import mv_dhel as mv_dhel_file
from efface.learn.objectives import mv_infonce as mv_infonce_file
from efface.learn.objectives import mv_pvc as mv_pvc_file
from efface.learn.objectives import mv_pwe as mv_pwe_file
from efface.learn.objectives.info_nce import info_nce_losses
from efface.learn.objectives.mv_avg import mv_avg
from efface.learn.objectives.mv_dhel import mv_dhel
from efface.learn.objectives.mv_infonce import mv_infonce, mv_infonce_losses
from efface.learn.objectives.mv_pvc import mv_pvc
from efface.learn.objectives.mv_pwe import mv_pwe
from efface.learn.objectives.nt_xent import nt_xent, nt_xent_losses
from efface.learn.run import learn
from efface.numerics.multi_view import as_views, energies_within
from efface.run.files import read_json

V, B, D, T = 3, 10, 5, 0.2
IDS = torch.tensor([0, 1, 2, 0, 4, 5, 5, 7, 0, 9])
FILES: list[Any] = [mv_infonce_file, mv_dhel_file, mv_pwe_file, mv_avg_file, mv_pvc_file]
LOSSES: list[Callable[..., Tensor]] = [mv_infonce, mv_dhel, mv_pwe, mv_avg, mv_pvc]
Row = list[float]


def unit(seed: int, views: int = V, rows: int = B) -> Tensor:
    raw = torch.randn(views, rows, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return normalize(raw, dim=-1)


# plain loops: s[l][i][m][j], k says which items j may be negatives of i ----------------------------------------------------


def similarities(z: Tensor) -> list[list[list[Row]]]:
    rows = z.tolist()
    return [
        [[[math.fsum(x * y for x, y in zip(a, b, strict=True)) / T for b in m] for m in rows] for a in v] for v in rows
    ]


def lse(values: Row) -> float:
    return math.log(math.fsum(map(math.exp, values)))


def others(i: int, ids: list[int] | None) -> list[int]:
    return [j for j in range(B) if j != i and (ids is None or ids[j] != ids[i])]


def slow_infonce(z: Tensor, ids: list[int] | None, within: bool = True) -> float:
    s, n, found = similarities(z), len(z), []
    for i in range(B):
        top = lse([s[v][i][u][i] for v in range(n) for u in range(n) if u != v])
        bottom = []
        for v in range(n):
            for u in range(n):
                if u != v:
                    bottom.append(s[v][i][u][i])
                if u != v or within:
                    bottom += [s[v][i][u][j] for j in others(i, ids)]
        found.append(lse(bottom) - top)
    return math.fsum(found) / B


def slow_dhel(z: Tensor, ids: list[int] | None) -> float:
    s, n, found = similarities(z), len(z), []
    for i in range(B):
        energy = math.fsum(lse([s[v][i][v][j] for j in others(i, ids)]) for v in range(n))
        found.append(energy - lse([s[v][i][u][i] for v, u in combinations(range(n), 2)]))
    return math.fsum(found) / B


def slow_nt_xent(a: Tensor, b: Tensor, ids: list[int] | None) -> float:
    s, found = similarities(torch.stack([a, b])), []
    for v in range(2):
        for i in range(B):
            rest = [s[v][i][u][j] for u in range(2) for j in others(i, ids)]
            found.append(lse([*rest, s[v][i][1 - v][i]]) - s[v][i][1 - v][i])
    return math.fsum(found) / (2 * B)


def slow_pwe(z: Tensor, ids: list[int] | None) -> float:
    values = [slow_nt_xent(a, b, ids) for a, b in combinations(z, 2)]
    return math.fsum(values) / len(values)


def slow_avg(z: Tensor, ids: list[int] | None) -> float:
    values = [
        slow_nt_xent(z[v], torch.stack([z[u] for u in range(len(z)) if u != v]).mean(0), ids) for v in range(len(z))
    ]
    return math.fsum(values) / len(values)


def slow_pvc(z: Tensor, ids: list[int] | None) -> float:
    s, found = similarities(z), []
    for v, u in permutations(range(len(z)), 2):
        for i in range(B):
            rest = [s[v][i][m][j] for m in range(len(z)) for j in others(i, ids)]
            found.append(lse([*rest, s[v][i][u][i]]) - s[v][i][u][i])
    return math.fsum(found) / len(found)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("views", [2, 4])
def test_against_loops(views: int, masked: bool) -> None:
    z, ids, known = unit(0, views), IDS if masked else None, IDS.tolist() if masked else None
    for fast, slow in zip(LOSSES, (slow_infonce, slow_dhel, slow_pwe, slow_avg, slow_pvc), strict=True):
        for tile in (None, 7):
            assert float(fast(z, T, ids=ids, tile=tile)) == pytest.approx(slow(z, known), abs=1e-12), fast.__name__
    for tile in (None, 7):
        found = mv_infonce(list(z), T, within_view=False, ids=ids, tile=tile)
        assert float(found) == pytest.approx(slow_infonce(z, known, within=False), abs=1e-12)


@pytest.mark.parametrize("within", [False, True])
def test_tiled_and_dense_have_one_gradient(within: bool) -> None:
    z = unit(1).requires_grad_()
    flat = z.reshape(V * B, D)
    s = (flat @ flat.T / T).view(V, B, V, B)
    own = torch.eye(V, dtype=torch.bool)[:, None, :, None]
    left_out = own & torch.eye(B, dtype=torch.bool)[None, :, None, :] if within else own.expand(V, B, V, B)
    energy = s.masked_fill(left_out, -math.inf).permute(1, 0, 2, 3).flatten(1).logsumexp(1)  # [B]
    pairs = torch.einsum("lid,mid->ilm", z, z).masked_fill(torch.eye(V, dtype=torch.bool), -math.inf) / T
    dense = (energy - pairs.flatten(1).logsumexp(1)).mean()
    (expected,) = torch.autograd.grad(dense, z)
    for tile in (None, 4):
        value = mv_infonce(z, T, within_view=within, tile=tile)
        assert float(value.detach()) == pytest.approx(float(dense.detach()), abs=1e-12)
        torch.testing.assert_close(torch.autograd.grad(value, z)[0], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_the_order_of_views_changes_nothing(loss: Callable[..., Tensor]) -> None:
    z = unit(2, 4)
    value = float(loss(z, T))
    for order in ([3, 1, 0, 2], [1, 0, 3, 2]):
        assert float(loss(z[order], T)) == pytest.approx(value, abs=1e-12)
    moved = torch.stack([z[0], z[1].roll(1, 0), z[2], z[3]])
    assert abs(float(loss(moved, T)) - value) > 1e-3  # but which row belongs to which item does


# two views -----------------------------------------------------------------------------------------------------------------


def test_two_views_of_dhel() -> None:
    """-u.v / T + lse_{j != i} u_i.u_j / T + lse_{j != i} v_i.v_j / T."""
    u, v = unit(3, 2)
    off = torch.eye(B, dtype=torch.bool)
    energies = [(x @ x.T / T).masked_fill(off, -math.inf).logsumexp(1) for x in (u, v)]
    expected = (energies[0] + energies[1] - (u * v).sum(1) / T).mean()
    assert float(mv_dhel([u, v], T)) == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize("within", [False, True])
def test_two_views_of_mv_infonce(within: bool) -> None:
    """The mean of both anchors' NT-Xent (or of both directions of InfoNCE), plus log cosh of half of their difference.

    Both losses are log Z - a with one a, so that their difference is that of log Z.
    """
    u, v = unit(4, 2)
    if within:
        one, other = nt_xent_losses(u, v, u, v, 1 / T).view(2, B)
    else:
        one, other = info_nce_losses(u, v, 1 / T), info_nce_losses(v, u, 1 / T)
    found = mv_infonce_losses((u, v), (u, v), 1 / T, within_view=within)
    torch.testing.assert_close(found, (one + other) / 2 + ((one - other) / 2).cosh().log(), atol=1e-12, rtol=0)
    assert bool((found > (one + other) / 2).all())  # never below, by Jensen; equal where the two sums are


def test_equal_partition_sums_make_it_nt_xent() -> None:
    """v is u turned by one angle in every plane: <u_i, v_j> = <v_i, u_j>, so that both anchors' sums agree."""
    angle = torch.rand(B, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 6
    u = torch.stack([angle.cos(), angle.sin(), 0 * angle, 0 * angle], 1)
    v = torch.stack([0.8 * angle.cos(), 0.8 * angle.sin(), 0.6 * angle.cos(), 0.6 * angle.sin()], 1)
    one, other = nt_xent_losses(u, v, u, v, 1 / T).view(2, B)
    torch.testing.assert_close(one, other, atol=1e-12, rtol=0)
    assert float(mv_infonce([u, v], T)) == pytest.approx(float(nt_xent(u, v, T)), abs=1e-12)


@pytest.mark.parametrize("loss", [mv_pwe, mv_avg, mv_pvc], ids=lambda loss: loss.__name__)
def test_two_views_of_the_baselines_are_nt_xent(loss: Callable[..., Tensor]) -> None:
    u, v = unit(6, 2)
    assert float(loss([u, v], T)) == pytest.approx(float(nt_xent(u, v, T)), abs=1e-12)
    assert float(loss([u, v], T, ids=IDS)) == pytest.approx(float(nt_xent(u, v, T, ids=IDS)), abs=1e-12)


# in parts -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.CARD.name)
def test_three_processes_sum_to_one(file: Any, masked: bool) -> None:
    z = unit(7).requires_grad_()
    config = file.CONFIG(unique_ids=masked)
    everyone = tuple(z.unbind(0))

    def run(rows: slice) -> list[Tensor]:
        whole = rows == slice(0, B)
        mine = everyone if whole else tuple(view[rows] for view in everyone)
        batch = Embedded(
            mine[0], mine[1], everyone[0], everyone[1], torch.tensor(1 / T, dtype=torch.float64), start=rows.start,
            views=mine, views_all=everyone, ids=IDS[rows], ids_all=IDS,
        )  # fmt: skip
        value, numbers = file.RECIPE.loss(batch, config)
        assert set(numbers) == {"cosine_0_1", "cosine_0_2", "cosine_1_2"}
        assert all(isinstance(number, float) for number in numbers.values())
        return [value.detach(), *torch.autograd.grad(value, z)]

    whole = run(slice(0, B))
    parts = [run(rows) for rows in (slice(0, 4), slice(4, 6), slice(6, B))]
    for place, expected in enumerate(whole):
        torch.testing.assert_close(sum(part[place] for part in parts), expected, atol=1e-12, rtol=0)
    loss = dict(zip(FILES, LOSSES, strict=True))[file]
    assert float(whole[0]) == pytest.approx(float(loss(z, T, ids=IDS if masked else None).detach()), abs=1e-12)


# traps --------------------------------------------------------------------------------------------------------------------


def test_products_of_partition_sums_would_overflow_and_sums_of_logarithms_do_not() -> None:
    """Eight collapsed views at T = 0.02: each sum is 9 e^50, their product past float32."""
    z = torch.zeros(8, B, D)
    z[:, :, 0] = 1
    assert 8 * (math.log(B - 1) + 50) > math.log(torch.finfo(torch.float32).max)
    expected = 8 * (math.log(B - 1) + 50) - (math.log(28) + 50)
    z.requires_grad_()
    value = mv_dhel(z, 0.02)
    assert float(value.detach()) == pytest.approx(expected, rel=1e-6)
    assert bool(torch.isfinite(torch.autograd.grad(value, z)[0]).all())


def test_the_energy_is_not_divided_by_the_number_of_views() -> None:
    z = unit(8, 4)
    energies = energies_within(z.unbind(0), z.unbind(0), 1 / T)
    assert energies.shape == (4, B)
    pairs = [(z[v] * z[u]).sum(1) / T for v, u in combinations(range(4), 2)]
    expected = (energies.sum(0) - torch.stack(pairs).logsumexp(0)).mean()
    assert float(mv_dhel(z, T)) == pytest.approx(float(expected), abs=1e-12)


def test_a_broken_view_shows_in_the_logged_cosines() -> None:
    """The alignment term is led by the best pair."""
    from efface.learn.objectives.multi_view import pair_cosines

    z = torch.stack([unit(9)[0], unit(9)[0], unit(10)[0]])
    found = pair_cosines(z.unbind(0))
    assert found["cosine_0_1"] == pytest.approx(1)
    assert max(abs(found["cosine_0_2"]), abs(found["cosine_1_2"])) < 0.5


def test_flat_rows_one_view_one_item_and_missing_views_are_refused() -> None:
    z = unit(11)
    for loss in LOSSES:
        with pytest.raises(InputError, match="reshape rows that are view by view"):
            loss(z.reshape(V * B, D), T)
        with pytest.raises(InputError, match="two or more"):
            loss(z[:1], T)
        with pytest.raises(InputError, match="2 rows or more"):
            loss(z[:, :1], T)
        with pytest.raises(InputError, match="every item has every view"):
            loss([z[0], z[1, 1:], z[2]], T)
        with pytest.raises(InputError, match="unit rows"):
            loss([z[0], 2 * z[1], z[2]], T)
    assert len(as_views(z)) == V


def test_half_types_and_autocast_are_computed_in_float32() -> None:
    z = unit(12).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = [float(loss(z, T)) for loss in LOSSES]
    assert inside == pytest.approx([float(loss(z, T)) for loss in LOSSES], rel=1e-6)
    for loss, wide in zip(LOSSES, inside, strict=True):
        found = loss(z.bfloat16(), T)
        assert found.dtype == torch.float32
        assert float(found) == pytest.approx(wide, abs=0.05)


# through the runner ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["mv-infonce", "mv-dhel", "mv-pwe", "mv-avg", "mv-pvc"])
def test_recipes_run_on_three_views(recipe: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 6))
    arrays = [(centres[i % 4] + 0.2 * rng.normal(size=6)).astype("float32").tolist() for i in range(32)]
    rows = Dataset.from_dict({"id": [str(i) for i in range(32)], "features": arrays})
    small: dict[str, Any] = {"start": {"widths": (16, 8)}, "batch_size": 8, "epochs": 8, "learning_rate": 1e-2}
    small["feature_views"] = {"corrupt": 0.1}
    looks = 2 if recipe == "mv-dhel" else 0
    model = learn(recipe, rows, tmp_path / "model", n_views=3, evaluations=looks, **small)
    assert efface.load(tmp_path / "model").digest == model.digest
    losses = [loss for _, loss in read_json(tmp_path / "model" / "learn.json")["losses"]]
    assert all(map(math.isfinite, losses))
    assert sum(losses[-4:]) < sum(losses[:4])  # passes over the data, not single batches
