"""Ranks of true neighbours at each size: what a schedule is chosen from. Exact, in passes over all rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from smec_st.search.backend import Reader

ROUNDING = 1e-6  # the same product, summed in another order, differs by less


@dataclass(frozen=True)
class Truth:
    """Exact neighbours of calibration queries.

    Args:
        keys: ``(Q, k)``, by falling score.
        scores: Cosine at full width, ``(Q, k)``.
    """

    keys: np.ndarray
    scores: np.ndarray


def exact_neighbours(
    reader: Reader,
    table: int,
    queries: np.ndarray,
    k: int,
    own: np.ndarray | None = None,
    progress: Callable[[int], object] | None = None,
) -> Truth:
    """The ``k`` nearest rows of each query among all, in one pass.

    Args:
        reader: Rows to search.
        table: Table to compare in.
        queries: ``(Q, width)`` unit vectors.
        k: Neighbours per query; cut to the number of rows.
        own: Key of the row that is the query itself and does not count, ``(Q,)``; None for none.
        progress: Called with the number of rows seen at each step.
    """
    keys: np.ndarray | None = None
    best = np.full((len(queries), 0), -np.inf, dtype=np.float32)
    for part, vectors in reader.scan((table,)):
        scores = queries @ vectors[table].T
        if own is not None:
            scores[own[:, None] == part[None, :]] = -np.inf
        top = min(k, len(part))
        near = np.argpartition(-scores, top - 1, axis=1)[:, :top]
        best = np.concatenate([best, np.take_along_axis(scores, near, axis=1)], axis=1)
        keys = part[near] if keys is None else np.concatenate([keys, part[near]], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :k]
        best, keys = np.take_along_axis(best, order, axis=1), np.take_along_axis(keys, order, axis=1)
        if progress is not None:
            progress(len(part))
    if keys is None:
        raise ValueError("An empty index has no neighbours.")
    if own is not None:
        keep = min(k, len(reader) - 1)
        keys, best = keys[:, :keep], best[:, :keep]
    return Truth(keys, best)


def neighbour_ranks(
    reader: Reader,
    sizes: Sequence[int],
    queries: Mapping[int, np.ndarray],
    truth: Truth,
    progress: Callable[[int], object] | None = None,
) -> dict[int, np.ndarray]:
    """How many rows stand before each true neighbour at each size, in one pass.

    Args:
        reader: The rows that ``truth`` was found in.
        sizes: Sizes to count at.
        queries: Per size, ``(Q, size)``.
        truth: Of the same queries.
        progress: Called with the number of rows seen at each step.

    Returns:
        Per size ``(Q, k)`` int64; 0 for the first.
    """
    found = np.ones(truth.keys.shape, dtype=bool)
    levels = {size: reader.scores(size, queries[size], truth.keys, found) + ROUNDING for size in sizes}
    ranks = {size: np.zeros(truth.keys.shape, dtype=np.int64) for size in sizes}
    for _, vectors in reader.scan(tuple(sizes)):
        for size in sizes:
            scores = queries[size] @ vectors[size].T
            for place in range(truth.keys.shape[1]):
                ranks[size][:, place] += np.count_nonzero(scores > levels[size][:, place, None], axis=1)
        if progress is not None:
            progress(len(next(iter(vectors.values()))))
    return ranks


def recall(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Share of true neighbours that were found, per query: ``(Q, n)`` and ``(Q, k)`` to ``(Q,)``."""
    hits = (truth[:, :, None] == found[:, None, :]).any(axis=2)
    share: np.ndarray = hits.mean(axis=1)
    return share
