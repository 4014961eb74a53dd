"""Streaming moments against numpy in one piece: chunks, shards, files and processes."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from efface.errors import InputError, StorageError
from efface.numerics.moments import Moments, load_moments, merge_files, merge_processes, save_moments

SCRIPT = Path(__file__).with_name("moments_script.py")


def ill_conditioned(n: int = 500, d: int = 7, mean: float = 1e6) -> np.ndarray:
    """Rows with standard deviations from 1e-3 to 1 (condition 1e6) around a large common mean."""
    rng = np.random.default_rng(3)
    mixed = rng.standard_normal((n, d)) @ np.linalg.qr(rng.standard_normal((d, d)))[0]
    return mixed * np.logspace(-3, 0, d) + mean


def close(ours: np.ndarray, theirs: np.ndarray, rtol: float = 1e-12) -> None:
    """Equal to `rtol` of the largest entry."""
    np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=rtol * float(np.abs(theirs).max()))


def exact(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and population covariance in extended precision, by plain sums."""
    long = rows.astype(np.longdouble)
    mean = long.sum(axis=0) / len(long)
    centred = long - mean
    scatter = np.zeros((rows.shape[1],) * 2, dtype=np.longdouble)
    for row in centred:
        scatter += row[:, None] * row[None, :]
    return mean.astype(np.float64), (scatter / len(long)).astype(np.float64)


@pytest.mark.parametrize("chunk", [1, 3, 64, 499, 500, 10_000])
def test_chunks_equal_numpy_on_ill_conditioned_rows(chunk: int) -> None:
    rows = ill_conditioned()
    found = Moments.of(rows, chunk)
    mean, covariance = exact(rows)
    close(found.centre, mean)
    close(found.covariance(), covariance)
    close(found.covariance(), np.cov(rows, rowvar=False, ddof=0))
    close(found.covariance(ddof=1), np.cov(rows, rowvar=False))
    assert found.n == len(rows)


def test_the_smallest_direction_is_right_too() -> None:
    rows = ill_conditioned()
    assert Moments.of(rows, 17).covariance()[0, 0] == pytest.approx(exact(rows)[1][0, 0], rel=1e-9)


@pytest.mark.parametrize("shards", [1, 3, 7])
def test_shards_from_memory_and_from_files_in_any_order_give_one_result(shards: int, tmp_path: Path) -> None:
    rows = ill_conditioned()
    whole = Moments.of(rows)
    parts = [Moments.of(part, 31) for part in np.array_split(rows, shards)]
    merged = Moments.empty(rows.shape[1])
    for part in parts:
        merged = merged.merge(part)
    paths = [save_moments(tmp_path / f"{i}.safetensors", {"images": part}) for i, part in enumerate(parts)]
    orders = itertools.islice(itertools.permutations(paths), 0, None, max(1, len(paths) * 100))
    found = [merged, *(merge_files(list(order))["images"] for order in orders)]
    assert len(found) >= 2
    for other in found:
        assert (other.n, other.digest) == (whole.n, whole.digest)
        close(other.centre, whole.centre)
        close(other.covariance(), whole.covariance())


def test_merging_leaves_both_sides_alone_and_takes_empty_ones() -> None:
    rows = ill_conditioned(20)
    first, second = Moments.of(rows[:8]), Moments.of(rows[8:])
    before = (first.mean.copy(), second.scatter.copy())
    merged = first.merge(second)
    np.testing.assert_array_equal(first.mean, before[0])
    np.testing.assert_array_equal(second.scatter, before[1])
    for other in (merged.merge(Moments.empty(7)), Moments.empty(7).merge(merged)):
        np.testing.assert_array_equal(other.scatter, merged.scatter)
        assert other.digest == merged.digest


def test_types_that_models_return() -> None:
    rows = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    for values in (rows, rows.double(), rows.to(torch.float16), rows.to(torch.bfloat16), rows.numpy()):
        plain = np.asarray(values.to(torch.float64) if isinstance(values, torch.Tensor) else values, dtype=np.float64)
        close(Moments.of(values, 16).covariance(), np.cov(plain, rowvar=False, ddof=0))


def test_the_digest_knows_items_and_not_their_order() -> None:
    rows = ill_conditioned(30, mean=0.0).astype(np.float32)
    whole = Moments.of(rows)
    assert Moments.of(rows[::-1].copy(), 7).digest == whole.digest
    assert Moments.of(rows.astype(np.float64)).digest == whole.digest  # the same float32 bytes
    changed = rows.copy()
    changed[4, 2] = np.nextafter(changed[4, 2], np.float32(2))
    assert Moments.of(changed).digest != whole.digest
    assert Moments.of(np.concatenate([rows, rows[:1]])).digest != whole.digest
    keys = [f"item {i}" for i in range(30)]
    keyed = Moments.of(rows, keys=keys)
    assert keyed.digest == Moments.of(changed, keys=keys).digest  # content keys: two models, one sample
    assert keyed.digest == Moments.of(rows, keys=[key.encode() for key in keys]).digest
    assert keyed.digest != Moments.of(rows, keys=[*keys[:-1], "another"]).digest


def test_bad_rows_are_named() -> None:
    rows = ill_conditioned(20)
    rows[13, 2] = np.nan
    with pytest.raises(InputError, match="row 13 of images is not finite"):
        Moments.of(rows, 5, name="images")
    with pytest.raises(InputError, match=r"shape \[20\]; expected \[N, d\]"):
        Moments.of(rows[:, 0])
    with pytest.raises(InputError, match=r"shape \[20, 7\]; expected \[N, 3\]"):
        Moments.empty(3).update(rows)
    with pytest.raises(InputError, match="7 and of 3 dimensions"):
        Moments.of(rows[:5]).merge(Moments.empty(3))
    with pytest.raises(InputError, match="4 keys for 5 rows"):
        Moments.of(rows[:5], keys=["a"] * 4)
    with pytest.raises(InputError, match="covariance of 1 rows"):
        Moments.of(rows[:1]).covariance(ddof=1)


def test_files_round_trip_and_damage_is_noticed(tmp_path: Path) -> None:
    moments = Moments.of(ill_conditioned())
    path = moments.save(tmp_path / "a.safetensors")
    back = Moments.load(path)
    np.testing.assert_array_equal(back.scatter, moments.scatter)
    np.testing.assert_array_equal(back.mean, moments.mean)
    np.testing.assert_array_equal(back.rest, moments.rest)
    assert back.digest == moments.digest
    data = bytearray(path.read_bytes())
    for place in (len(data) - 5, len(data) // 2):  # in the numbers
        bad = bytearray(data)
        bad[place] ^= 1
        (tmp_path / "bad.safetensors").write_bytes(bad)
        with pytest.raises(StorageError, match="changed after it was written"):
            load_moments(tmp_path / "bad.safetensors")
    counted = data.replace(b'\\"n\\": 500', b'\\"n\\": 501')
    assert counted != data
    (tmp_path / "bad.safetensors").write_bytes(counted)
    with pytest.raises(StorageError, match="changed after it was written"):
        load_moments(tmp_path / "bad.safetensors")
    for content in (b"", bytes(data[:100]), bytes(data[:-8])):
        (tmp_path / "bad.safetensors").write_bytes(content)
        with pytest.raises(StorageError, match="cannot read"):
            load_moments(tmp_path / "bad.safetensors")
    with pytest.raises(StorageError, match="cannot read"):
        load_moments(tmp_path / "absent.safetensors")


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    one = save_moments(tmp_path / "1.safetensors", {"images": Moments.of(ill_conditioned(9))})
    other = save_moments(tmp_path / "2.safetensors", {"texts": Moments.of(ill_conditioned(9))})
    narrow = save_moments(tmp_path / "3.safetensors", {"images": Moments.of(ill_conditioned(9)[:, :3])})
    with pytest.raises(InputError, match="merge files of one kind"):
        merge_files([one, other])
    with pytest.raises(InputError, match="3 dimensions; expected 7"):
        merge_files([one, narrow])
    with pytest.raises(InputError, match="no file"):
        merge_files([])
    with pytest.raises(InputError, match="of one set of rows"):
        Moments.load(one)


def test_one_process_keeps_its_own() -> None:
    moments = Moments.of(ill_conditioned(9))
    assert merge_processes(moments) is moments


def test_two_processes_equal_one(tmp_path: Path) -> None:
    rows = ill_conditioned()
    np.save(tmp_path / "rows.npy", rows)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [*launch, str(tmp_path / "rows.npy"), "137", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    whole = Moments.of(rows)
    ranks = [Moments.load(tmp_path / f"rank{rank}.safetensors") for rank in (0, 1)]
    np.testing.assert_array_equal(ranks[0].scatter, ranks[1].scatter)
    for found in ranks:
        assert (found.n, found.digest) == (whole.n, whole.digest)
        close(found.centre, whole.centre)
        close(found.covariance(), whole.covariance())
