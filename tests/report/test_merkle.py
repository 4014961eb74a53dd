"""The Merkle root: order does not count, members are provable, others are not, and the key stays apart."""

from __future__ import annotations

import hashlib
import hmac
import stat
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efface.errors import RunError
from efface.report.merkle import (
    InclusionProof,
    check_inclusion,
    leaf_hash,
    load_or_create_key,
    merkle_root,
    prove_inclusion,
)
from efface.run.digests import canonical

KEY, OTHER = b"k" * 32, b"o" * 32
ROWS = st.lists(st.tuples(st.text(max_size=6), st.binary(max_size=12)), min_size=1, max_size=20)


def rows_of(count: int) -> list[tuple[str, bytes]]:
    return [(f"row-{i}", canonical({"question": f"q{i}", "answer": "é"})) for i in range(count)]


def slow_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, by recursion: the left subtree is the largest power of two below n."""
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\x01" + slow_root(leaves[:split]) + slow_root(leaves[split:])).digest()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 8, 9, 21])
def test_root_is_the_tree_of_rfc_6962(count: int) -> None:
    rows = rows_of(count)
    leaves = sorted(
        hmac.new(KEY, b"\x00" + len(name).to_bytes(8, "big") + name.encode() + row, "sha256").digest()
        for name, row in rows
    )
    assert merkle_root(rows, KEY) == "sha256:" + slow_root(leaves).hex()


@given(rows=ROWS, data=st.data())
def test_any_order_gives_one_root_and_every_row_has_a_proof(rows: list[tuple[str, bytes]], data: st.DataObject) -> None:
    root = merkle_root(rows, KEY)
    assert merkle_root(data.draw(st.permutations(rows)), KEY) == root
    for row in rows:
        proof = prove_inclusion(rows, row, KEY)
        assert check_inclusion(root, row, proof, KEY)
        assert not check_inclusion(root, row, proof, OTHER)


@given(rows=ROWS, stranger=st.tuples(st.text(max_size=6), st.binary(max_size=12)))
def test_a_stranger_has_no_proof_and_can_borrow_none(
    rows: list[tuple[str, bytes]], stranger: tuple[str, bytes]
) -> None:
    if stranger in rows:
        return
    root = merkle_root(rows, KEY)
    with pytest.raises(RunError, match="not in the forget set"):
        prove_inclusion(rows, stranger, KEY)
    for row in rows:
        assert not check_inclusion(root, stranger, prove_inclusion(rows, row, KEY), KEY)


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_a_changed_proof_fails(count: int) -> None:
    rows = rows_of(count)
    root = merkle_root(rows, KEY)
    for row in rows:
        proof = prove_inclusion(rows, row, KEY)
        wrong = [
            replace(proof, index=-1),
            replace(proof, index=count),
            replace(proof, index=proof.index ^ 1) if proof.index ^ 1 < count else replace(proof, index=count),
            replace(proof, path=proof.path[:-1]),
            replace(proof, path=(*proof.path, "00" * 32)),
            replace(proof, path=("zz", *proof.path[1:])),
            replace(proof, path=("00" * 32, *proof.path[1:])),
        ]
        assert not any(check_inclusion(root, row, bad, KEY) for bad in wrong)


def test_a_node_does_not_pass_for_a_leaf() -> None:
    rows = rows_of(2)
    left, right = sorted(leaf_hash(row, KEY) for row in rows)
    forged = ("", left + right)
    assert not check_inclusion(merkle_root(rows, KEY), forged, InclusionProof(0, 1, ()), KEY)


def test_an_odd_row_is_not_doubled() -> None:
    rows = sorted(rows_of(3), key=lambda row: leaf_hash(row, KEY))
    assert merkle_root(rows, KEY) != merkle_root([*rows, rows[-1]], KEY)


def test_id_and_row_do_not_run_together() -> None:
    assert leaf_hash(("a", b"bc"), KEY) != leaf_hash(("ab", b"c"), KEY)


def test_no_rows_and_a_short_key_are_refused() -> None:
    with pytest.raises(RunError, match="no rows"):
        merkle_root([], KEY)
    with pytest.raises(RunError, match="expected 32 bytes"):
        merkle_root(rows_of(2), b"")


def test_key_is_made_once_for_its_owner_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_HOME", str(tmp_path / "home"))
    key = load_or_create_key()
    path = tmp_path / "home" / "keys" / "merkle.key"
    assert len(key) == 32
    assert path.read_bytes() == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert load_or_create_key() == key
    assert load_or_create_key(tmp_path / "second.key") != key


def test_key_made_by_many_at_once_is_one_key(tmp_path: Path) -> None:
    keys: list[bytes] = []
    threads = [threading.Thread(target=lambda: keys.append(load_or_create_key(tmp_path / "k"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8
    assert len(set(keys)) == 1


@pytest.mark.parametrize("mark", ["run.json", "runs/one/run.json", "manifest.json"])
def test_key_inside_a_run_is_refused(tmp_path: Path, mark: str) -> None:
    file = tmp_path / mark
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('{"files": {}, "digest": "x"}', encoding="utf-8")
    with pytest.raises(RunError, match="inside the run folder"):
        load_or_create_key(tmp_path / "deep" / "merkle.key")
    assert not (tmp_path / "deep").exists()


def test_another_programs_manifest_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "a web page"}', encoding="utf-8")
    assert len(load_or_create_key(tmp_path / "merkle.key")) == 32


def test_key_that_others_can_read_or_that_is_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "merkle.key"
    load_or_create_key(path)
    path.chmod(0o644)
    with pytest.raises(RunError, match="chmod 600"):
        load_or_create_key(path)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(RunError, match="holds 5 bytes"):
        load_or_create_key(path)
