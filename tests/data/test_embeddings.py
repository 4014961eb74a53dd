"""Embeddings from files: the same array from every format, and clear errors for everything else."""

# ruff: noqa: E501 - one case a line

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from efface.data.embeddings import read_embeddings
from efface.errors import RequestError

ROWS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


def table(path: Path, values: Any, **others: Any) -> Path:
    pq.write_table(pa.table({"id": [str(i) for i in range(len(values))], "vectors": values, **others}), path)
    return path


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_npy_is_mapped(dtype: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS.astype(dtype))
    found = read_embeddings(tmp_path / "a.npy")
    assert isinstance(found, np.memmap)
    assert found.dtype == dtype
    assert np.array_equal(found, ROWS.astype(dtype))
    assert not found.flags.writeable


def test_safetensors(tmp_path: Path) -> None:
    save_file({"x": ROWS, "scale": np.ones(1, dtype=np.float32)}, tmp_path / "a.safetensors")
    assert np.array_equal(read_embeddings(tmp_path / "a.safetensors"), ROWS)
    save_file({"other": ROWS * 2, "embeddings": ROWS}, tmp_path / "b.safetensors")
    assert np.array_equal(read_embeddings(tmp_path / "b.safetensors"), ROWS)
    assert np.array_equal(read_embeddings(tmp_path / "b.safetensors", name="other"), ROWS * 2)
    save_torch({"x": torch.from_numpy(ROWS).bfloat16()}, tmp_path / "c.safetensors")
    found = read_embeddings(tmp_path / "c.safetensors")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, ROWS, rtol=1e-2)


@pytest.mark.parametrize("kind", ["list", "large", "fixed", "float64"])
def test_parquet(kind: str, tmp_path: Path) -> None:
    types = {"list": pa.list_(pa.float32()), "large": pa.large_list(pa.float32()), "fixed": pa.list_(pa.float32(), 3)}
    column = pa.array(ROWS.tolist(), type=types.get(kind, pa.list_(pa.float64())))
    found = read_embeddings(table(tmp_path / "a.parquet", column))
    np.testing.assert_array_equal(found.astype(np.float32), ROWS)
    assert found.dtype == (np.float64 if kind == "float64" else np.float32)


def test_parquet_in_several_row_groups(tmp_path: Path) -> None:
    pq.write_table(pa.table({"embedding": ROWS.tolist()}), tmp_path / "a.parquet", row_group_size=2)
    np.testing.assert_allclose(read_embeddings(tmp_path / "a.parquet"), ROWS)


def test_values_are_not_looked_at(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((2, 2), np.nan))
    assert np.isnan(read_embeddings(tmp_path / "a.npy")).all()


def npy(value: Any, **options: Any) -> Any:
    return lambda path: np.save(path, value, **options)


def raw(data: bytes) -> Any:
    return lambda path: path.write_bytes(data)


def safe(**tensors: Any) -> Any:
    return lambda path: save_file(tensors, path)


def parquet(values: Any, **others: Any) -> Any:
    return lambda path: table(path, values, **others)


BAD: list[tuple[str, str, Any, tuple[str, ...]]] = [
    ("one axis", "a.npy", npy(np.ones(3)), ("shape [3]", "[N, D]")),
    ("three axes", "a.npy", npy(np.ones((2, 3, 4))), ("shape [2, 3, 4]", "[N, D]")),
    ("no rows", "a.npy", npy(np.ones((0, 4))), ("shape [0, 4]", "at least one row")),
    ("no columns", "a.npy", npy(np.ones((4, 0))), ("shape [4, 0]", "at least one row")),
    ("whole numbers", "a.npy", npy(np.ones((2, 2), dtype=np.int64)), ("int64", "floating-point", "float32")),
    ("complex", "a.npy", npy(np.ones((2, 2), dtype=complex)), ("complex128", "floating-point")),
    ("pickled objects", "a.npy", npy(np.array([[{}]], dtype=object), allow_pickle=True), ("cannot be read", "pickled objects")),
    ("not npy", "a.npy", raw(b"hello"), ("a.npy cannot be read", "numpy.save")),
    ("nothing", "a.npy", raw(b""), ("a.npy cannot be read",)),
    ("cut off", "a.npy", raw(b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (5, 3), }" + b" " * 57 + b"\n12"), ("a.npy cannot be read",)),
    ("text", "a.npy", npy(np.array([["a", "b"]])), ("<U1", "floating-point")),
    ("unknown format", "a.csv", raw(b"1,2"), ("unknown format '.csv'", ".npy")),
    ("broken safetensors", "a.safetensors", raw(b"123"), ("not a whole safetensors file", "copy it again")),
    ("two tensors", "a.safetensors", safe(a=ROWS, b=ROWS), ("holds a, b", "one tensor of embeddings")),
    ("a flat tensor", "a.safetensors", safe(a=ROWS[0]), ("shape [3]", "[N, D]")),
    ("broken Parquet", "a.parquet", raw(b"123"), ("not a Parquet file", "export it again")),
    ("rows of two lengths", "a.parquet", parquet([[1.0, 2.0], [1.0]]), ("row 1, column 'vectors': 1 numbers, row 0 has 2", "mend")),
    ("a null row", "a.parquet", parquet([[1.0], None]), ("row 1, column 'vectors': null", "drop the row")),
    ("a null number", "a.parquet", parquet([[1.0, 2.0], [1.0, None]]), ("row 1, column 'vectors'", "null among")),
    ("lists of text", "a.parquet", parquet([["a"], ["b"]]), ("lists of string", "lists of numbers")),
    ("lists of whole numbers", "a.parquet", parquet([[1], [2]]), ("int64", "floating-point")),
    ("no list", "a.parquet", parquet([1.0, 2.0]), ("holds id, vectors", "one column of embeddings")),
    ("two lists", "a.parquet", lambda path: pq.write_table(pa.table({"a": [[1.0]], "b": [[1.0]]}), path), ("holds a, b",)),
    ("an empty table", "a.parquet", lambda path: pq.write_table(pa.table({"a": pa.array([], pa.list_(pa.float32()))}), path), ("shape [0, 0]",)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "write", "fragments"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_files(name: str, write: Any, fragments: tuple[str, ...], tmp_path: Path) -> None:
    write(tmp_path / name)
    with pytest.raises(RequestError) as caught:
        read_embeddings(tmp_path / name)
    message = str(caught.value)
    assert "\n" not in message
    assert name in message
    for fragment in fragments:
        assert fragment in message


def test_bad_places(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"is a folder; expected a file"):
        read_embeddings(tmp_path)
    with pytest.raises(RequestError, match=r"no file at .*none.npy.*check the path"):
        read_embeddings(tmp_path / "none.npy")
    np.savez(tmp_path / "a.npz", a=ROWS)
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    with pytest.raises(RequestError, match=r"is an archive of arrays"):
        read_embeddings(tmp_path / "a.npy")
    save_file({"a": ROWS}, tmp_path / "a.safetensors")
    with pytest.raises(RequestError, match=r"has no tensor 'b'; expected one of: a"):
        read_embeddings(tmp_path / "a.safetensors", name="b")
