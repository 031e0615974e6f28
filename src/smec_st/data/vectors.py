"""Tables of vectors: check and normalise them."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

from smec_st.data.errors import DataError, some


def check_vectors(vectors: Any, what: str, chunk: int = 65536) -> np.ndarray:
    """Vectors as a 2-D float array, or a :class:`DataError` that says which rows are wrong.

    Args:
        vectors: Array, memory map or tensor, ``(N, D)``, any float type.
        what: Name for messages, for instance "corpus".
        chunk: Rows looked at together, so that a memory map is never read whole.

    Returns:
        The same rows as a numpy array; no copy of a numpy array is made.
    """
    array = as_vectors(vectors, what)
    for start in range(0, len(array), chunk):
        rows = array[start : start + chunk].astype(np.float32, copy=False)
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            raise DataError(
                f"{what} vectors hold NaN or infinity in {_rows(start, ~finite)}. Remove or recompute them."
            )
        release(array)
        zero = ~rows.any(axis=1)
        if zero.any():
            raise DataError(
                f"{what} vectors are all zero in {_rows(start, zero)}, so they have no direction. "
                "Remove these rows (often the embedding of an empty text)."
            )
    return array


def as_vectors(vectors: Any, what: str) -> np.ndarray:
    """What :func:`check_vectors` gives, from a look at shape and type alone."""
    array = as_numpy(vectors)
    if array.ndim != 2 or 0 in array.shape:
        raise DataError(f"{what} vectors must be a table (rows, width), not empty, got shape {tuple(array.shape)}.")
    if array.dtype.kind != "f":
        raise DataError(f"{what} vectors must be floats, got {array.dtype}.")
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


def release(array: np.ndarray) -> None:
    """Let go of the pages of a memory map that were read: they stay in the system's cache, not in this process."""
    base: Any = array
    while base is not None and not isinstance(base, np.memmap):
        base = getattr(base, "base", None)
    pages: Any = getattr(base, "_mmap", None)
    if base is not None and base.mode != "c" and hasattr(pages, "madvise"):  # "c": changes live in this process alone
        pages.madvise(mmap.MADV_DONTNEED)


def check_widths(corpus: np.ndarray, queries: np.ndarray) -> None:
    """Refuse two sides of different widths."""
    if corpus.shape[1] != queries.shape[1]:
        raise DataError(
            f"queries are {queries.shape[1]} wide and the corpus {corpus.shape[1]}; "
            "both must come from the same model."
        )
