"""Tables of vectors: read, check, normalise, and number their rows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smec_st.data.errors import DataError, one_line, some

if TYPE_CHECKING:
    from torch import Tensor


def check_vectors(vectors: Any, what: str, chunk: int = 65536) -> np.ndarray:
    """Vectors as a 2-D float array, or a :class:`DataError` that says which rows are wrong.

    Args:
        vectors: Array, memory map or tensor, ``(N, D)``, any float type.
        what: Name for messages, for instance "corpus".
        chunk: Rows looked at together, so that a memory map is never read whole.

    Returns:
        The same rows as a numpy array; no copy of a numpy array is made.
    """
    array = as_numpy(vectors)
    if array.ndim != 2 or 0 in array.shape:
        raise DataError(f"{what} vectors must be a table (rows, width), not empty, got shape {tuple(array.shape)}.")
    if array.dtype.kind != "f":
        raise DataError(f"{what} vectors must be floats, got {array.dtype}.")
    for start in range(0, len(array), chunk):
        rows = array[start : start + chunk].astype(np.float32, copy=False)
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            raise DataError(
                f"{what} vectors hold NaN or infinity in {_rows(start, ~finite)}. Remove or recompute them."
            )
        zero = ~rows.any(axis=1)
        if zero.any():
            raise DataError(
                f"{what} vectors are all zero in {_rows(start, zero)}, so they have no direction. "
                "Remove these rows (often the embedding of an empty text)."
            )
    return array


def _rows(start: int, wrong: Any) -> str:
    found = (np.flatnonzero(wrong) + start).tolist()
    return f"row{'s' if len(found) > 1 else ''} {some(found)}"


def as_numpy(vectors: Any) -> np.ndarray:
    """A numpy view of an array, list or torch tensor (bfloat16 becomes float32, which numpy lacks)."""
    if hasattr(vectors, "detach"):
        tensor = vectors.detach().cpu()
        return np.asarray((tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy())
    return np.asarray(vectors)


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows as float32 of length 1. ``(N, D) -> (N, D)``."""
    rows = vectors.astype(np.float32)
    with np.errstate(over="ignore"):
        length = np.linalg.norm(rows, axis=1, keepdims=True)
    extreme = ~((length[:, 0] > 1e-12) & (length[:, 0] < 1e12))
    if extreme.any():  # their squares leave float32
        wide = vectors[extreme].astype(np.float64)
        with np.errstate(invalid="ignore"):  # a row of infinities becomes NaN, for the caller to see
            wide /= np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.finfo(np.float64).tiny)
        rows[extreme], length[extreme] = wide, 1.0
    unit: np.ndarray = rows / length
    return unit


def load_vectors(path: str | Path, name: str | None = None) -> np.ndarray:
    """Read one table of vectors.

    Args:
        path: A ``.safetensors`` file or a ``.npy`` file (memory-mapped). Pickled arrays are refused.
        name: Which tensor of a safetensors file; needed when it holds several.

    Returns:
        ``(N, D)``, in the type of the file.

    Raises:
        DataError: If the file is missing, broken, or lacks the tensor.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    if path.suffix == ".npy":
        try:
            table: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
            return table
        except (ValueError, OSError, EOFError) as error:
            raise DataError(f"{path} is not a readable .npy file: {one_line(error)}") from error
    if path.suffix == ".safetensors":
        tensors = read_safetensors(path, None if name is None else (name,))
        if len(tensors) != 1:
            raise DataError(f"{path} holds {some(sorted(tensors), 6)}; say which one is meant.")
        return next(iter(tensors.values()))
    raise DataError(f"{path}: vectors are read from .safetensors or .npy files, not {path.suffix or 'this'}.")


def read_safetensors(path: Path, names: Iterable[str] | None) -> dict[str, np.ndarray]:
    """The named tensors of a file, or all; :class:`DataError` when the file is broken or lacks one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            have = set(file.keys())
            wanted = have if names is None else set(names)
            if wanted - have:
                raise DataError(
                    f"{path} lacks the tensor {some(sorted(wanted - have))}; it holds {some(sorted(have), 6)}."
                )
            return {name: as_numpy(file.get_tensor(name)) for name in sorted(wanted)}
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is not a readable safetensors file (truncated?): {one_line(error)}") from error


class VectorTable:
    """Corpus and queries under one row numbering: documents are rows ``0 .. N-1``, queries ``N .. N+Q-1``.

    Rows come out as float32 of length 1. Tables up to ``in_memory_bytes`` are kept that way; larger ones stay where
    they are (a memory map stays on disk) and are converted as they are read.

    Args:
        corpus: ``(N, D)``, any float type.
        queries: ``(Q, D)`` or None.
        in_memory_bytes: Largest float32 table to hold in memory.
    """

    def __init__(self, corpus: Any, queries: Any | None = None, in_memory_bytes: int = 2 << 30) -> None:
        import torch

        corpus = check_vectors(corpus, "corpus")
        parts = [corpus]
        if queries is not None and len(queries):
            queries = check_vectors(queries, "query")
            if queries.shape[1] != corpus.shape[1]:
                raise DataError(
                    f"queries are {queries.shape[1]} wide and the corpus {corpus.shape[1]}; "
                    "both must come from the same model."
                )
            parts.append(queries)
        self.width = int(corpus.shape[1])
        self.corpus_size = len(corpus)
        self.query_size = len(queries) if len(parts) == 2 and queries is not None else 0
        self._parts = parts
        self._table: Tensor | None = None
        if len(self) * self.width * 4 <= in_memory_bytes:
            self._table = torch.from_numpy(np.concatenate([unit_rows(part) for part in parts]))

    def __len__(self) -> int:
        return self.corpus_size + self.query_size

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Vectors of these row ids. ``(n,) int64 -> (n, D)`` float32, unit norm."""
        import torch

        if self._table is not None:
            return self._table[rows]
        ids = rows.numpy()
        out = np.empty((len(ids), self.width), dtype=np.float32)
        document = ids < self.corpus_size
        out[document] = self._parts[0][ids[document]]
        if self.query_size:
            out[~document] = self._parts[1][ids[~document] - self.corpus_size]
        return torch.from_numpy(unit_rows(out))

    def query_ids(self, query_rows: np.ndarray) -> np.ndarray:
        """Row ids in this table of queries numbered from 0."""
        return np.asarray(query_rows) + self.corpus_size
