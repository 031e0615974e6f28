"""Check tables of vectors, convert them to numpy, and scale them to unit length."""

from __future__ import annotations

import hashlib
import mmap
from typing import TYPE_CHECKING, Any

import numpy as np

from smec_st.system.errors import DataError, some

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy.typing as npt
    from torch import Tensor

    #: What public functions accept as an array: an array, a memory map, a list of rows, or a torch tensor.
    ArrayLike: TypeAlias = npt.ArrayLike | Tensor


def check_vectors(vectors: ArrayLike, what: str, chunk: int = 65536) -> np.ndarray:
    """Return vectors as a 2-D float array after checking every row.

    Args:
        vectors: Array, memory map or tensor, ``(N, D)``, any float type.
        what: What error messages call the vectors, for instance "corpus".
        chunk: Number of rows checked at a time, so that a memory map is never read whole.

    Returns:
        The same rows as a numpy array, without a copy if it was one.

    Raises:
        DataError: If this is not a table of floats, or a row holds NaN, infinity, or only zeros. The message names
            the rows.
    """
    array = as_vectors(vectors, what)
    for start in range(0, len(array), chunk):
        rows = array[start : start + chunk].astype(np.float32, copy=False)
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            raise DataError(
                f"{what} vectors hold NaN or infinity in {_row_list(start, ~finite)}. Remove or recompute them."
            )
        release(array)
        zero = ~rows.any(axis=1)
        if zero.any():
            raise DataError(
                f"{what} vectors are all zero in {_row_list(start, zero)}, so they have no direction. "
                "Remove these rows (often the embedding of an empty text)."
            )
    return array


def as_vectors(vectors: ArrayLike, what: str) -> np.ndarray:
    """Return vectors as a 2-D float array after checking shape and type only; see :func:`check_vectors`."""
    array = as_numpy(vectors)
    if array.ndim != 2 or 0 in array.shape:
        raise DataError(f"{what} vectors must be a table (rows, width), not empty, got shape {tuple(array.shape)}.")
    if array.dtype.kind != "f":
        raise DataError(f"{what} vectors must be floats, got {array.dtype}.")
    names = getattr(vectors, "columns", None)
    if names is not None:
        _refuse_ids(list(names), array[:1000], what)
    return array


def _refuse_ids(names: list[Any], rows: np.ndarray, what: str) -> None:
    """Refuse columns of a data frame that hold whole numbers among floats: ids or labels look like dimensions."""
    is_whole = (rows == np.floor(rows)).all(axis=0) & (rows != rows[0]).any(axis=0)
    if is_whole.any() and not is_whole.all():
        raise DataError(
            f"the column {some([names[at] for at in np.flatnonzero(is_whole)])} of the {what} vectors holds whole "
            "numbers only, the others do not: an id or a label? Leave it out, or give `frame.to_numpy()` if all are "
            "the vector."
        )


def _row_list(start: int, wrong: np.ndarray | np.bool_) -> str:
    found = (np.flatnonzero(wrong) + start).tolist()
    return f"row{'s' if len(found) > 1 else ''} {some(found)}"


def as_numpy(vectors: ArrayLike) -> np.ndarray:
    """Convert an array, list or torch tensor to numpy; bfloat16, which numpy lacks, becomes float32."""
    if hasattr(vectors, "detach"):  # a torch tensor, recognised without importing torch
        tensor = vectors.detach().cpu()
        return np.asarray((tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy())
    if np.ma.is_masked(vectors):
        raise DataError("vectors hold masked values; fill or remove them.")
    try:
        return np.asarray(vectors)
    except ValueError as error:  # lists of several lengths
        raise DataError("the rows are of several lengths, or hold what is no number.") from error


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Scale rows to float32 vectors of length 1, ``(N, D) -> (N, D)``."""
    rows = np.array(vectors, dtype=np.float32, order="C")  # in another memory order sums would round otherwise
    with np.errstate(over="ignore"):
        length = np.linalg.norm(rows, axis=1, keepdims=True)
    extreme = ~((length[:, 0] > 1e-12) & (length[:, 0] < 1e12))
    if extreme.any():  # their squares overflow or underflow float32
        wide = vectors[extreme].astype(np.float64)
        with np.errstate(invalid="ignore"):  # a row of infinities becomes NaN, which callers check for
            wide /= np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.finfo(np.float64).tiny)
        rows[extreme], length[extreme] = wide, 1.0
    unit: np.ndarray = rows / length
    return unit


def hash_rows(digest: hashlib._Hash, table: np.ndarray, chunk: int = 65536) -> None:
    """Add shape, type and all rows of an array to a hash, whatever its order in memory."""
    digest.update(f"{table.shape} {table.dtype.str}".encode())
    for start in range(0, len(table), chunk):
        digest.update(np.ascontiguousarray(table[start : start + chunk]).data)
        release(table)


def length_range(vectors: np.ndarray, chunk: int = 65536) -> tuple[float, float]:
    """Return the length of the shortest and of the longest row, ``(N, D)``."""
    parts = (vectors[start : start + chunk].astype(np.float64) for start in range(0, len(vectors), chunk))
    lengths = np.concatenate([np.linalg.norm(part, axis=1) for part in parts])
    return float(lengths.min()), float(lengths.max())


def release(array: np.ndarray) -> None:
    """Unmap the pages of a memory map from this process's memory; the system's file cache keeps them.

    Does nothing to an array that is not a view of a memory map.
    """
    base: Any = array
    while base is not None and not isinstance(base, np.memmap):
        base = getattr(base, "base", None)
    pages: Any = getattr(base, "_mmap", None)
    # Pages of a copy-on-write map ("c") may hold changes, which would be lost.
    if base is not None and base.mode != "c" and hasattr(pages, "madvise"):
        pages.madvise(mmap.MADV_DONTNEED)


def check_widths(corpus: np.ndarray, queries: np.ndarray) -> None:
    """Raise :class:`DataError` if corpus and queries have different widths."""
    if corpus.shape[1] != queries.shape[1]:
        raise DataError(
            f"queries are {queries.shape[1]} wide and the corpus {corpus.shape[1]}; "
            "both must come from the same model."
        )
