"""The deletion plan: an even and shuffled deal, copies, unknown ids, the ledger and what stays live."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from efface.data.deletion_plan import DeletionPlan, longest
from efface.errors import ConfigError, RequestError, RunError
from efface.numerics.slice_orders import rotations

RECORDS = {f"r{i}": {"text": f"record {i}", "label": i // 10} for i in range(30)}


def plan(shards: int = 2, slices: int = 4, budget: int = 2, records: dict[str, object] | None = None) -> DeletionPlan:
    orders = [rotations(slices, budget)] * shards
    return DeletionPlan.make(RECORDS if records is None else records, orders, slices=slices, seed=3)


def test_the_deal_is_even_complete_and_shuffled() -> None:
    found = plan()
    sizes = [len(found.rows(shard, [s])) for shard in range(2) for s in range(4)]
    assert sum(sizes) == 30
    assert max(sizes) - min(sizes) == 1, "the remainder is spread"
    for shard in range(2):
        for s in range(4):
            assert len({RECORDS[name]["label"] for name in found.rows(shard, [s])}) > 1, "a sorted set, a pure slice"
    again = DeletionPlan.make(dict(reversed(RECORDS.items())), found.orders, slices=4, seed=3)
    assert again.places == found.places, "the order of the rows does not matter"
    assert DeletionPlan.make(RECORDS, found.orders, slices=4, seed=4).places != found.places


def test_copies_are_one_record() -> None:
    records = {**RECORDS, "copy": RECORDS["r5"]}
    found = plan(records=records)
    assert found.places["copy"] == found.places["r5"]
    everything = [name for shard in range(2) for name in found.rows(shard, range(4))]
    assert len(everything) == 30, "a copy is not trained on twice"
    entry = found.delete("copy")
    assert entry.copies == 2
    assert found.delete("r5").repeated, "the copy's deletion deleted it"


def test_the_order_of_rows_depends_on_their_digests_alone() -> None:
    found = plan()
    whole = found.rows(0, [0, 1])
    assert [name for name in whole if name in set(found.rows(0, [1]))] == found.rows(0, [1])
    assert found.rows(0, [1, 0]) == whole


def test_a_deletion_cuts_every_order_of_its_shard() -> None:
    found = plan()
    name = next(name for name, place in found.places.items() if place == (0, 1))
    assert found.prefixes() == [[4, 4], [4, 4]]
    found.delete(name, RECORDS[name])
    assert found.prefixes() == [[1, 0], [4, 4]]  # (0 1 2 3) keeps 0; (1 2 3 0) is dead
    assert found.serving() == [(0,), (0, 1, 2, 3)]
    with pytest.raises(RequestError, match="slice with deleted records"):
        found.rows(0, [1])


def test_deleting_twice_changes_nothing_but_counts() -> None:
    found = plan()
    found.delete("r0")
    before = found.prefixes()
    again = found.delete("r0")
    assert again.repeated
    assert found.prefixes() == before
    assert int(found.requests().sum()) == len(found.ledger) == 2


def test_a_shard_without_live_orders_has_failed() -> None:
    found = plan(shards=1, budget=1)
    found.delete(next(name for name, place in found.places.items() if place == (0, 0)))
    assert found.serving() == [None]


def test_ties_go_to_the_first_order() -> None:
    assert longest([[(0, 1), (1, 0)]], [[1, 1]]) == [(0,)]


def test_what_is_refused() -> None:
    found = plan()
    with pytest.raises(RequestError, match="'nobody' is not in the deletion plan"):
        found.delete("nobody")
    with pytest.raises(RequestError, match="another content"):
        found.delete("r1", RECORDS["r2"])
    assert not found.ledger
    with pytest.raises(ConfigError, match="30 different records for 8 shards of 4 slices; expected at least 32"):
        plan(shards=8)
    with pytest.raises(ConfigError, match="permutation"):
        DeletionPlan.make(RECORDS, [[(0, 0, 1)]], slices=3, seed=0)
    with pytest.raises(ConfigError, match="without an order"):
        DeletionPlan.make(RECORDS, [[]], slices=3, seed=0)


def test_it_is_stored_with_its_digest(tmp_path: Path) -> None:
    found = plan()
    found.delete("r7")
    path = tmp_path / "plan.json"
    found.save(path)
    again = DeletionPlan.load(path)
    assert again == found
    assert again.digest == found.digest
    assert "r7" not in json.dumps(json.loads(path.read_text())["ledger"]), "the ledger holds digests, not ids"
    path.write_text(path.read_text().replace('"repeated": false', '"repeated": true'))
    with pytest.raises(RunError, match="changed after it was written"):
        DeletionPlan.load(path)
    path.write_text("[]")
    with pytest.raises(RunError, match="not a deletion plan"):
        DeletionPlan.load(path)
