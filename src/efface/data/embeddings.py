"""Read embeddings that somebody else made: .npy, .safetensors or Parquet, as one [N, D] array of numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from efface.errors import RequestError

SUFFIXES = (".npy", ".safetensors", ".parquet")
NAMES = ("embeddings", "embedding", "features", "vectors")
"""What a tensor or column is called where the file holds several."""


def read_embeddings(path: str | Path, *, name: str | None = None) -> np.ndarray:
    """Read embeddings.

    Args:
        path: .npy (memory-mapped, read-only), .safetensors or .parquet (a column of lists of one length).
        name: tensor or column to take where there are several; default: the only one with two axes, or one that is
            called embeddings, embedding, features or vectors.

    Returns:
        [N, D] floating point, in the file's precision (bfloat16 becomes float32). Values are not looked at: NaN and
        infinity are the business of whoever computes with them.

    Raises:
        RequestError: no file, another format, a broken file, pickled objects, other than two axes, no rows, no numbers.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        raise RequestError(f"{file} is a folder", f"a file ({', '.join(SUFFIXES)})", "name the file in it")
    if not file.exists():
        raise RequestError(f"no file at '{path}'", f"embeddings ({', '.join(SUFFIXES)})", "check the path")
    readers = {".npy": _npy, ".safetensors": _safetensors, ".parquet": _parquet}
    if file.suffix not in readers:
        raise RequestError(f"{file}: unknown format '{file.suffix}'", f"one of {', '.join(SUFFIXES)}", "convert it")
    found = readers[file.suffix](file, name)
    if found.ndim != 2:
        raise RequestError(f"{file}: shape {list(found.shape)}", "[N, D], one row an item", "reshape and save it again")
    if found.shape[0] == 0 or found.shape[1] == 0:
        raise RequestError(f"{file}: shape {list(found.shape)}", "at least one row and one column", "save it again")
    if not np.issubdtype(found.dtype, np.floating):
        raise RequestError(f"{file}: values of type {found.dtype}", "floating-point numbers", "save it as float32")
    return found


def _npy(file: Path, name: str | None) -> np.ndarray:
    try:
        found: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
    except PermissionError as error:
        raise RequestError(f"cannot read {file}: {error.strerror}", None, "check its permissions") from error
    except (ValueError, OSError, EOFError) as error:
        said = " ".join(str(error).split())[:120]
        raise RequestError(
            f"{file} cannot be read as one array of numbers ({said})", "a whole .npy without pickled objects",
            "save it again with numpy.save as float32",
        ) from error  # fmt: skip
    if not isinstance(found, np.ndarray):  # an .npz under another name
        raise RequestError(f"{file} is an archive of arrays", "one array", "save the one array with numpy.save")
    return found


def _pick(candidates: list[str], every: list[str], file: Path, what: str, name: str | None) -> str:
    if name is not None:
        if name not in every:
            raise RequestError(f"{file} has no {what} '{name}'", f"one of: {', '.join(every) or 'none'}", "choose one")
        return name
    called = [known for known in NAMES if known in candidates]
    if len(candidates) == 1 or called:
        return called[0] if called else candidates[0]
    raise RequestError(
        f"{file} holds {', '.join(every) or 'nothing'}", f"one {what} of embeddings, or one called {NAMES[0]}",
        "save the embeddings in a file of their own",
    )  # fmt: skip


def _safetensors(file: Path, name: str | None) -> np.ndarray:
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            keys = list(opened.keys())
            flat = [key for key in keys if len(opened.get_slice(key).get_shape()) == 2]
            tensor = opened.get_tensor(_pick(flat or keys, keys, file, "tensor", name))
    except (SafetensorError, OSError) as error:
        raise RequestError(
            f"{file} is not a whole safetensors file ({' '.join(str(error).split())[:120]})", None, "copy it again"
        ) from error
    found: np.ndarray = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return found


def _parquet(file: Path, name: str | None) -> np.ndarray:
    try:
        with pa.parquet.ParquetFile(file) as opened:
            schema = opened.schema_arrow
            lists = [field.name for field in schema if _is_list(field.type)]
            column = _pick(lists, schema.names, file, "column", name)
            values = opened.read(columns=[column]).column(column).combine_chunks()
    except (pa.ArrowInvalid, OSError) as error:
        said = " ".join(str(error).split())[:120]
        raise RequestError(f"{file} is not a Parquet file ({said})", None, "export it again") from error
    if not _is_list(values.type):
        raise RequestError(f"{file}, column '{column}': {values.type}", "lists of numbers", "choose another column")
    if values.null_count:
        row = values.is_null().to_pylist().index(True)
        raise RequestError(f"{file}, row {row}, column '{column}': null", "a list of numbers", "fill or drop the row")
    lengths = np.asarray(values.value_lengths()) if len(values) else np.zeros(0, dtype=np.int64)
    wrong = np.flatnonzero(lengths != lengths[:1]) if len(lengths) else lengths
    if len(wrong):
        raise RequestError(
            f"{file}, row {int(wrong[0])}, column '{column}': {int(lengths[wrong[0]])} numbers, row 0 has "
            f"{int(lengths[0])}", "rows of one length", "mend the row",
        )  # fmt: skip
    flat = values.flatten()
    if not (pa.types.is_floating(flat.type) or pa.types.is_integer(flat.type)):
        raise RequestError(f"{file}, column '{column}': lists of {flat.type}", "lists of numbers", "export it again")
    if flat.null_count:
        row = flat.is_null().to_pylist().index(True) // max(1, int(lengths[0]))
        raise RequestError(f"{file}, row {row}, column '{column}': a null among the numbers", "numbers", "mend the row")
    found: np.ndarray = flat.to_numpy(zero_copy_only=False).reshape(len(values), int(lengths[0]) if len(lengths) else 0)
    return found


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
