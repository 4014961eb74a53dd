"""Contrastive objectives against slow plain loops, against other libraries' formulas, and in parts over three processes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, logsigmoid, normalize

from efface.learn.objective import Embedded
from efface.learn.objectives import clip as clip_file
from efface.learn.objectives import info_nce as info_nce_file
from efface.learn.objectives import moco as moco_file
from efface.learn.objectives import nt_xent as nt_xent_file
from efface.learn.objectives import siglip as siglip_file
from efface.learn.objectives import sup_con as sup_con_file
from efface.learn.objectives import sup_nt_xent as sup_nt_xent_file
from efface.learn.objectives import triplet as triplet_file
from efface.learn.objectives import weighted_clip as weighted_file
from efface.learn.objectives.clip import clip
from efface.learn.objectives.info_nce import info_nce
from efface.learn.objectives.moco import moco
from efface.learn.objectives.nt_xent import nt_xent
from efface.learn.objectives.siglip import siglip
from efface.learn.objectives.sup_con import sup_con
from efface.learn.objectives.sup_nt_xent import sup_nt_xent
from efface.learn.objectives.triplet import triplet
from efface.learn.objectives.weighted_clip import weighted_clip

B, D, T = 12, 5, 0.2
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 3, 3, 0, 4])
IDS = torch.tensor([0, 1, 2, 0, 4, 5, 5, 7, 8, 0, 10, 11])  # rows 0, 3, 9 and rows 5, 6 are the same items
FILES = [
    info_nce_file, nt_xent_file, sup_con_file, sup_nt_xent_file, clip_file, siglip_file, triplet_file, moco_file,
    weighted_file,
]  # fmt: skip


def unit(seed: int, rows: int = B, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(rows, D, generator=generator, dtype=torch.float64), dim=1).to(dtype)


def logits(a: Tensor, b: Tensor, scale: float = 1 / T) -> list[list[float]]:
    return [[scale * sum(float(x) * float(y) for x, y in zip(p, q, strict=True)) for q in b] for p in a]


def lse(values: list[float]) -> float:
    return math.log(math.fsum(math.exp(x) for x in values))


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def close(value: Tensor, expected: float, tolerance: float = 1e-12) -> None:
    assert float(value.detach()) == pytest.approx(expected, rel=tolerance, abs=tolerance)


# one function a loss, in plain loops ----------------------------------------------------------------------------------


def slow_one_way(s: list[list[float]], ids: list[int] | None) -> list[float]:
    return [lse([s[i][j] for j in range(B) if j == i or ids is None or ids[i] != ids[j]]) - s[i][i] for i in range(B)]


def slow_nt_xent(z: Tensor, ids: list[int] | None) -> float:
    s, found = logits(z, z), []
    for i in range(2 * B):
        p = (i + B) % (2 * B)
        rest = [
            j for j in range(2 * B)
            if j != i and (j == p or ids is None or ids[i % B] != ids[j % B])
        ]  # fmt: skip
        found.append(lse([s[i][j] for j in rest]) - s[i][p])
    return mean(found)


def slow_sup_con(z: Tensor, labels: list[int]) -> float:
    s, found, n = logits(z, z), [], len(labels)
    for i in range(n):
        positives = [p for p in range(n) if p != i and labels[p] == labels[i]]
        if positives:
            total = lse([s[i][a] for a in range(n) if a != i])
            found.append(-mean([s[i][p] - total for p in positives]))
    return mean(found)


def slow_pairs(z: Tensor, labels: list[int]) -> float:
    s, found, n = logits(z, z), [], len(labels)
    for i in range(n):
        negatives = [s[i][j] for j in range(n) if labels[j] != labels[i]]
        found += [lse([s[i][p], *negatives]) - s[i][p] for p in range(n) if p != i and labels[p] == labels[i]]
    return mean(found)


def slow_siglip(s: list[list[float]], bias: float, ids: list[int] | None) -> float:
    total = 0.0
    for i in range(B):
        for j in range(B):
            if i == j or ids is None or ids[i] != ids[j]:
                total += math.log1p(math.exp(-(1 if i == j else -1) * (s[i][j] + bias)))
    return total / B


def slow_triplets(z: Tensor, labels: list[int], mining: str, margin: float, squared: bool, soft: bool) -> float:
    n = len(labels)
    d = [[math.dist(a.tolist(), b.tolist()) ** (2 if squared else 1) for b in z] for a in z]
    found = []
    for a in range(n):
        near = [d[a][p] for p in range(n) if p != a and labels[p] == labels[a]]
        far = [d[a][x] for x in range(n) if labels[x] != labels[a]]
        if mining == "all":
            chosen = [(p, x) for p in near for x in far]
        elif mining == "batch-hard":
            chosen = [(max(near), min(far))] if near and far else []
        else:
            chosen = [(p, min(x for x in far if x > p)) for p in near if any(x > p for x in far)]
        for p, x in chosen:
            violation = p - x + margin
            if soft:
                found.append(math.log1p(math.exp(violation)))
            elif violation > 0:
                found.append(violation)
    return mean(found) if found else 0.0


@pytest.mark.parametrize("tile", [None, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_against_loops(masked: bool, tile: int | None) -> None:
    a, b = unit(0), unit(1)
    s, ids = logits(a, b), IDS if masked else None
    known = IDS.tolist() if masked else None
    back = [list(row) for row in zip(*s, strict=True)]
    rows, columns = slow_one_way(s, known), slow_one_way(back, known)
    both = [(x + y) / 2 for x, y in zip(rows, columns, strict=True)]
    close(info_nce(a, b, T, ids=ids, tile=tile), mean(rows))
    close(clip(a, b, 1 / T, ids=ids, tile=tile), mean(both))
    close(nt_xent(a, b, T, ids=ids, tile=tile), slow_nt_xent(torch.cat([a, b]), known))
    close(siglip(a, b, 1 / T, -3.0, ids=ids, tile=tile), slow_siglip(s, -3.0, known))
    weights = torch.rand(B, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weighed = mean([w * x for w, x in zip(weights.tolist(), both, strict=True)])
    close(weighted_clip(a, b, 1 / T, weights, paper_exact=True, ids=ids, tile=tile), weighed)
    close(weighted_clip(a, b, 1 / T, weights, ids=ids, tile=tile), weighed / float(weights.mean()))


@pytest.mark.parametrize("tile", [None, 5])
def test_with_labels_against_loops(tile: int | None) -> None:
    z = unit(3)
    close(sup_con(z, LABELS, T, tile=tile), slow_sup_con(z, LABELS.tolist()))
    close(sup_nt_xent(z, LABELS, T, tile=tile), slow_pairs(z, LABELS.tolist()))


@pytest.mark.parametrize("mining", ["all", "batch-hard", "semi-hard"])
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("soft", [False, True])
def test_triplets_against_loops(mining: Any, squared: bool, soft: bool) -> None:
    z = unit(4)
    for margin in (0.05, 0.5):
        slow = slow_triplets(z, LABELS.tolist(), mining, margin, squared, soft)
        for tile in (None, 5):
            fast = triplet(z, LABELS, margin=margin, mining=mining, squared=squared, soft=soft, tile=tile)
            close(fast, slow)
        assert slow > 0


@pytest.mark.parametrize("masked", [False, True])
def test_moco_against_a_loop(masked: bool) -> None:
    a, keys, queue = unit(5), unit(6), unit(7, rows=20)
    queue_ids = torch.arange(20)
    own, s = logits(a, keys), logits(a, queue)
    slow = []
    for i in range(B):
        rest = [s[i][j] for j in range(20) if not masked or int(IDS[i]) != j]
        slow.append(lse([own[i][i], *rest]) - own[i][i])
    for tile in (None, 7):
        close(
            moco(a, keys, queue, T, ids=IDS if masked else None, queue_ids=queue_ids if masked else None, tile=tile),
            mean(slow),
        )


def test_moco_keys_have_no_gradient_and_an_empty_queue_teaches_nothing() -> None:
    a, keys, queue = (unit(seed).requires_grad_() for seed in (5, 6, 7))
    by_a, by_keys, by_queue = torch.autograd.grad(moco(a, keys, queue, T), (a, keys, queue), allow_unused=True)
    assert float(by_a.abs().max()) > 0
    assert by_keys is None
    assert by_queue is None
    for empty in (None, queue[:0]):
        value = moco(a, keys, empty, T)
        assert float(value.detach()) == 0
        assert not torch.autograd.grad(value, a)[0].any()
    # a queue that holds nothing but the anchor's own item
    value = moco(
        a, keys, queue[:1], T, ids=torch.zeros(B, dtype=torch.int64), queue_ids=torch.zeros(1, dtype=torch.int64)
    )
    assert float(value.detach()) == 0
    assert not torch.autograd.grad(value, a)[0].any()


# other libraries' formulas, which cannot be imported here (they need torchvision) -----------------------------------------


def grads_of(value: Tensor, *inputs: Tensor) -> list[Tensor]:
    return [value.detach(), *torch.autograd.grad(value, inputs)]


def same(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-10) -> None:
    for one, other in zip(found, expected, strict=True):
        assert torch.isfinite(one).all()
        assert float((one - other).abs().max()) < tolerance


@pytest.mark.parametrize("tile", [None, 5])
def test_open_clip(tile: int | None) -> None:
    """Two cross-entropies, halved; minus log-sigmoid of labelled logits, summed and divided by B."""
    a, b = unit(8).requires_grad_(), unit(9).requires_grad_()
    scale = torch.tensor(14.3, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-10.0, dtype=torch.float64, requires_grad=True)
    target = torch.arange(B)
    s = scale * a @ b.T
    two = (cross_entropy(s, target) + cross_entropy(scale * b @ a.T, target)) / 2
    same(grads_of(clip(a, b, scale, tile=tile), a, b, scale), grads_of(two, a, b, scale))
    signs = 2 * torch.eye(B, dtype=torch.float64) - 1
    sigmoid = -logsigmoid(signs * (scale * a @ b.T + bias)).sum() / B
    inputs = (a, b, scale, bias)
    same(grads_of(siglip(a, b, scale, bias, tile=tile), *inputs), grads_of(sigmoid, *inputs))
    by_entropy = binary_cross_entropy_with_logits(scale * a @ b.T + bias, (signs + 1) / 2, reduction="sum") / B
    assert float(siglip(a, b, scale, bias).detach()) == pytest.approx(float(by_entropy.detach()), abs=1e-12)


@pytest.mark.parametrize("tile", [None, 5])
def test_lightly(tile: int | None) -> None:
    """Four blocks, the diagonals of the two own-view blocks cut out, cross-entropy to the other view's place."""
    a, b = unit(10).requires_grad_(), unit(11).requires_grad_()
    off = ~torch.eye(B, dtype=torch.bool)
    aa, bb = ((x @ x.T / T)[off].view(B, B - 1) for x in (a, b))
    ab = a @ b.T / T
    blocks = torch.cat([torch.cat([ab, aa], 1), torch.cat([ab.T, bb], 1)])
    expected = cross_entropy(blocks, torch.arange(B).repeat(2))
    same(grads_of(nt_xent(a, b, T, tile=tile), a, b), grads_of(expected, a, b))


def test_sup_con_of_single_labels_is_nt_xent() -> None:
    a, b, each = unit(12), unit(13), torch.arange(B)
    value = float(nt_xent(a, b, T))
    assert float(sup_con(torch.cat([a, b]), each.repeat(2), T)) == pytest.approx(value, abs=1e-12)
    assert float(sup_nt_xent(torch.cat([a, b]), each.repeat(2), T)) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("mining", ["all", "batch-hard", "semi-hard"])
def test_triplet_gradients(mining: Any, soft: bool) -> None:
    """Against dense autograd, written with torch's indices; twins at distance 0 give no NaN."""
    z = unit(14, rows=8).requires_grad_()
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    one = labels[:, None] == labels[None, :]
    pairs, terms = (one & ~torch.eye(8, dtype=torch.bool)).nonzero().tolist(), []
    d = (z[:, None] - z[None, :] + 1e-300).norm(dim=2)
    for a, p in pairs:
        negatives = d[a][~one[a]]
        if mining == "all":
            terms += [d[a, p] - x for x in negatives]
        elif mining == "semi-hard" and bool((negatives > d[a, p]).any()):
            terms.append(d[a, p] - negatives[negatives > d[a, p]].min())
    if mining == "batch-hard":
        eye = torch.eye(8, dtype=torch.bool)
        terms = [d[a][one[a] & ~eye[a]].max() - d[a][~one[a]].min() for a in range(8)]
    values = [term + 0.3 for term in terms]
    kept = [torch.log1p(v.exp()) if soft else v for v in values if soft or float(v.detach()) > 0]
    found = triplet(z, labels, margin=0.3, mining=mining, soft=soft, tile=3)
    same(grads_of(found, z), grads_of(torch.stack(kept).mean(), z))
    twins = z.detach().clone()
    twins[1] = twins[0]
    twins.requires_grad_()
    assert torch.isfinite(
        torch.autograd.grad(triplet(twins, labels, margin=0.3, mining=mining, soft=soft), twins)[0]
    ).all()


def test_no_violating_triplet_is_zero_with_a_gradient() -> None:
    z = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [-1, 0]], requires_grad=True)
    value = triplet(z, torch.tensor([0, 0, 1, 1]))
    assert float(value.detach()) == 0
    assert not torch.autograd.grad(value, z)[0].any()
    one_class = triplet(unit(0), torch.zeros(B, dtype=torch.int64))
    assert float(one_class) == 0
    assert float(sup_nt_xent(unit(0), torch.zeros(B, dtype=torch.int64), T)) == 0


# in parts ------------------------------------------------------------------------------------------------------------


def batch(first: Tensor, second: Tensor, rows: slice, scale: Tensor, ids: Tensor | None, **more: Any) -> Embedded:
    def part(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[rows]

    whole = len(first) == rows.stop - rows.start
    return Embedded(
        first=first if whole else first[rows], second=second if whole else second[rows], first_all=first,
        second_all=second, scale=scale, start=rows.start, labels=LABELS[rows], labels_all=LABELS, ids=part(ids),
        ids_all=ids, **more,
    )  # fmt: skip


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.CARD.name)
def test_three_processes_sum_to_one(file: Any, masked: bool) -> None:
    """What each of three processes returns for its own anchors sums to the single process's value and gradient."""
    a, b = unit(15).requires_grad_(), unit(16).requires_grad_()
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
    queue, queue_ids = unit(17, rows=9), torch.arange(9)
    weights = torch.rand(B, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    exact: dict[str, Any] = {}
    config = file.CONFIG(unique_ids=masked, **exact)

    def run(rows: slice) -> Tensor:
        parts = batch(
            a,
            b,
            rows,
            scale,
            IDS,
            bias=bias,
            queue=queue,
            queue_ids=queue_ids,
            weights=weights[rows],
            weights_all=weights,
        )
        value, numbers = file.RECIPE.loss(parts, config)
        assert value.shape == ()
        assert all(isinstance(number, float) for number in numbers.values())
        return value

    def gradients(value: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(value, (a, b, scale, bias), allow_unused=True)
        used = [x if x is not None else torch.zeros(()) for x in found]
        assert float(used[0].abs().max()) > 1e-4
        return [value.detach(), *used]

    whole = gradients(run(slice(0, B)))
    same(gradients(torch.stack([run(slice(0, 5)), run(slice(5, 9)), run(slice(9, B))]).sum()), whole, 1e-12)
    if masked:
        config = file.CONFIG(unique_ids=False, **exact)
        assert abs(float(run(slice(0, B)).detach() - whole[0])) > 1e-4  # the mask does something


def test_recipes_give_the_equations() -> None:
    """In one process each recipe's loss is its pure function's mean."""
    a, b, scale = unit(18), unit(19), torch.tensor(1 / T, dtype=torch.float64)
    z, labels = torch.cat([a, b]), LABELS.repeat(2)
    weights, bias = torch.arange(1.0, B + 1, dtype=torch.float64), torch.tensor(-2.0, dtype=torch.float64)
    queue = unit(20, rows=9)
    one = batch(a, b, slice(0, B), scale, None, bias=bias, queue=queue, weights=weights)
    expected = [
        info_nce(a, b, T), nt_xent(a, b, T), sup_con(z, labels, T), sup_nt_xent(z, labels, T), clip(a, b, 1 / T),
        siglip(a, b, 1 / T, bias), triplet(z, labels), moco(a, b, queue, T), weighted_clip(a, b, 1 / T, weights),
    ]  # fmt: skip
    for file, value in zip(FILES, expected, strict=True):
        found, _ = file.RECIPE.loss(one, file.CONFIG())
        close(found, float(value))


def test_same_item_under_another_label_is_no_negative() -> None:
    """Row 9 has the id of row 0 but another label: with the mask it pushes nowhere, in all three losses with labels."""
    a, b, scale = unit(21), unit(22), torch.tensor(1 / T, dtype=torch.float64)
    z, labels, ids = torch.cat([a, b]), LABELS.repeat(2).tolist(), IDS.repeat(2).tolist()
    s, n = logits(z, z), 2 * B
    d = [[math.dist(p.tolist(), q.tolist()) for q in z] for p in z]
    out, pairs, triplets = [], [], []
    for i in range(n):
        positives = [j for j in range(n) if j != i and labels[j] == labels[i]]
        negatives = [j for j in range(n) if labels[j] != labels[i] and ids[j] != ids[i]]
        total = lse([s[i][j] for j in positives + negatives])
        out.append(mean([total - s[i][p] for p in positives]))
        pairs += [lse([s[i][j] for j in [p, *negatives]]) - s[i][p] for p in positives]
        triplets += [d[i][p] - d[i][x] + 0.05 for p in positives for x in negatives]
    one = batch(a, b, slice(0, B), scale, IDS)
    for file, expected in (
        (sup_con_file, mean(out)), (sup_nt_xent_file, mean(pairs)), (triplet_file, mean([x for x in triplets if x > 0])),
    ):  # fmt: skip
        value, _ = file.RECIPE.loss(one, file.CONFIG(unique_ids=True))
        close(value, expected)
        unmasked, _ = file.RECIPE.loss(one, file.CONFIG(unique_ids=False))
        assert abs(float(value - unmasked)) > 1e-6  # the mask matters, far beyond the 1e-12 of `close`


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32(dtype: torch.dtype) -> None:
    a, b = unit(23).to(dtype), unit(24).to(dtype)
    z, labels = torch.cat([a, b]), LABELS.repeat(2)
    wide_a, wide_b, wide_z = a.float(), b.float(), z.float()
    for found, expected in (
        (clip(a, b, 100.0), clip(normalize(wide_a, dim=1), normalize(wide_b, dim=1), 100.0)),
        (siglip(a, b, 100.0, -10.0), siglip(normalize(wide_a, dim=1), normalize(wide_b, dim=1), 100.0, -10.0)),
        (sup_con(z, labels, 0.01), sup_con(normalize(wide_z, dim=1), labels, 0.01)),
        (triplet(z, labels), triplet(normalize(wide_z, dim=1), labels)),
    ):
        assert found.dtype == torch.float32
        assert float(found) == pytest.approx(float(expected), rel=0.02)
