"""DyCE: clusters, balanced assignment and its sign, the ring, and neighbours of other items only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from efface.errors import ConfigError, InputError
from efface.learn.memory.clustered import ClusteredMemory

D, P, M = 6, 4, 40


def blobs(count: int, seed: int = 0, start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Rows near P far directions in turn, of any length; their items and their blobs."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.eye(D)[:P]
    place = torch.arange(start, start + count) % P
    rows = centres[place] + 0.1 * torch.randn(count, D, generator=generator)
    lengths = 0.5 + 5 * torch.rand(count, 1, generator=generator)
    return rows * lengths, torch.arange(start, start + count), place


def filled(**settings: Any) -> ClusteredMemory:
    memory = ClusteredMemory(M, D, P, **settings)
    memory.push(*blobs(M)[:2])
    return memory


def pure(memory: ClusteredMemory) -> float:
    blob = memory.ring.ids % P
    return sum(int(blob[memory.labels == label].bincount().max()) for label in memory.labels.unique()) / M


def test_there_are_clusters_from_the_moment_it_is_full() -> None:
    memory = ClusteredMemory(M, D, P)
    rows, ids, _ = blobs(M)
    memory.push(rows[:30], ids[:30])
    assert not memory.ready
    assert len(memory) == 30
    with pytest.raises(InputError, match="full memory"):
        memory.neighbours(rows[:2], ids[:2], 3)
    memory.push(rows[30:], ids[30:])
    assert memory.ready
    assert pure(memory) == 1
    torch.testing.assert_close(memory.ring.keys.norm(dim=1), torch.ones(M))


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "released"])
def test_minus_the_distance_keeps_clusters_pure_and_plus_mixes_them(metric: Any) -> None:
    memory = filled(metric=metric)
    for turn in range(1, 11):
        memory.push(*blobs(8, seed=turn, start=M + 8 * turn)[:2])
    if metric == "released":
        assert pure(memory) < 0.8
    else:
        assert pure(memory) == 1


def test_a_batch_is_shared_out_evenly_and_eps_is_honoured() -> None:
    memory = filled()
    rows = normalize(blobs(12, seed=3)[0][::4], dim=1)  # all of one blob: some must go elsewhere
    rows = torch.cat([rows, rows + 0.01 * torch.randn(3, D, generator=torch.Generator().manual_seed(0))])
    rows = normalize(torch.cat([rows, rows[:2] + 0.02]), dim=1)
    hard = ClusteredMemory(M, D, P, eps=1e-3, iterations=2000)
    hard.load_state_dict(memory.state_dict())
    assert hard.assign(rows).bincount(minlength=P).tolist() == [2, 2, 2, 2]
    with pytest.raises(InputError, match="eps"):
        ClusteredMemory(M, D, P, eps=0.0).assign(rows)


def test_the_ring_wraps_without_dropping_rows() -> None:
    memory = filled()
    memory.push(*blobs(25, seed=1, start=100)[:2])
    memory.push(*blobs(25, seed=2, start=200)[:2])  # over the end
    kept = sorted(memory.ring.ids.tolist())
    assert kept == [*range(110, 125), *range(200, 225)]
    assert int(memory.labels.min()) >= 0


def test_prototypes_are_means_and_an_empty_cluster_stays() -> None:
    memory = filled()
    before = memory.prototypes.clone()
    rows, ids, place = blobs(M, seed=5, start=400)
    label = {blob: int(memory.labels[(memory.ring.ids % P) == blob][0]) for blob in range(P)}
    keep = place != 2
    memory.ring.labels[:] = torch.tensor([label[int(blob)] for blob in memory.ring.ids % P])
    memory.ring.enqueue(normalize(rows[keep], dim=1), ids[keep], torch.tensor([label[int(b)] for b in place[keep]]))
    memory.ring.enqueue(
        normalize(rows[keep][:10], dim=1), ids[keep][:10], torch.tensor([label[int(b)] for b in place[keep][:10]])
    )
    memory._move_prototypes()
    for blob in range(P):
        mine = memory.ring.keys[memory.labels == label[blob]]
        expected = mine.mean(0) if len(mine) else before[label[blob]]
        assert (len(mine) == 0) == (blob == 2)
        torch.testing.assert_close(memory.prototypes[label[blob]], expected)


def test_momentum_of_prototypes() -> None:
    memory = filled(momentum=0.75)
    before = memory.prototypes.clone()
    memory.push(*blobs(8, seed=1, start=100)[:2])
    for name in range(P):
        mean = memory.ring.keys[memory.labels == name].mean(0)
        torch.testing.assert_close(memory.prototypes[name], 0.75 * before[name] + 0.25 * mean)


def slow_neighbours(memory: ClusteredMemory, row: Tensor, item: int, count: int) -> tuple[set[int], bool]:
    unit = row / row.norm()
    nearest = max(range(P), key=lambda name: float(unit @ memory.prototypes[name] / memory.prototypes[name].norm()))
    cosine = {place: float(unit @ memory.ring.keys[place]) for place in range(M) if int(memory.ring.ids[place]) != item}
    inside = [place for place in cosine if int(memory.labels[place]) == nearest]
    small = len(inside) < count
    chosen = sorted(cosine if small else inside, key=lambda place: -cosine[place])[:count]
    return set(chosen), small


@pytest.mark.parametrize("count", [1, 5, 10, 12])
def test_neighbours_against_a_loop(count: int) -> None:
    """Ten rows a cluster: of these, twelve are not to be had (all clusters are searched), and ten not for its own members."""
    memory = filled()
    rows, ids, _ = blobs(M)
    strange = torch.cat([rows[:9], torch.randn(6, D, generator=torch.Generator().manual_seed(1))])
    items = torch.cat([ids[:9], torch.arange(1000, 1006)])
    found, small = memory.neighbours(strange, items, count)
    for i in range(len(strange)):
        expected, alone = slow_neighbours(memory, strange[i], int(items[i]), count)
        assert set(found[i].tolist()) == expected
        assert bool(small[i]) == alone
    cosines = torch.einsum("bd,bkd->bk", strange, memory.rows(found))
    assert bool((cosines[:, 1:] <= cosines[:, :-1] + 1e-6).all()), "nearest first"


def test_a_row_is_never_its_own_neighbour() -> None:
    """The batch is in the memory when its neighbours are looked up: without the items the nearest row is the row itself."""
    memory = filled()
    rows, ids, _ = blobs(8, seed=9, start=300)
    views = torch.cat([rows, rows + 0.01])
    memory.push(views, ids.repeat(2))
    places, _ = memory.neighbours(views, ids.repeat(2), 3)
    assert not bool((memory.ring.ids[places] == ids.repeat(2)[:, None]).any())
    itself = memory.neighbours(views, torch.full((16,), -5), 1)[0][:, 0]
    torch.testing.assert_close(memory.rows(itself), normalize(views, dim=1))
    # of one item only: its own rows rather than none
    lonely = ClusteredMemory(4, D, 2)
    lonely.push(views[:4], torch.zeros(4, dtype=torch.int64))
    assert lonely.neighbours(views[:1], torch.tensor([0]), 4)[0].shape == (1, 4)


def test_clusters_are_made_anew_by_the_epoch_once() -> None:
    memory = filled(every=3)
    for epoch, expected in ((0, 1), (1, 1), (3, 2), (3, 2), (4, 2), (6, 3)):
        memory.push(*blobs(4, seed=epoch, start=500)[:2], epoch=epoch)
        assert int(memory.clusterings) == expected
    never = filled(every=0)
    never.push(*blobs(4, start=500)[:2], epoch=60)
    assert int(never.clusterings) == 1


def test_fewer_distinct_rows_than_clusters_keep_the_old_ones() -> None:
    memory = filled(every=1)
    same = torch.ones(M, D)
    memory.push(same, torch.arange(M), epoch=0)
    before = memory.prototypes.clone()
    memory._cluster(1)
    assert int(memory.kept) == 1
    assert torch.equal(memory.prototypes, before)
    assert int(memory.clusterings) == 1


def test_the_whole_memory_is_in_the_state() -> None:
    memory = filled()
    memory.push(*blobs(7, seed=1, start=100)[:2])
    again = ClusteredMemory(M, D, P)
    again.load_state_dict(memory.state_dict())
    for one in (memory, again):
        one.push(*blobs(9, seed=2, start=200)[:2], epoch=60)
    for name, value in memory.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_bad_input() -> None:
    for clusters in (1, M + 1):
        with pytest.raises(ConfigError, match="clusters"):
            ClusteredMemory(M, D, clusters)
    memory = filled()
    with pytest.raises(InputError, match="finite"):
        memory.push(torch.full((2, D), np.nan), torch.arange(2))
    with pytest.raises(InputError, match="neighbours"):
        memory.neighbours(torch.ones(1, D), torch.arange(1), M + 1)
