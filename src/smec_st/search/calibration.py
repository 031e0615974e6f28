"""Exact neighbours of calibration queries and their ranks at each size, from which a schedule is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from smec_st.search.backend import Reader
from smec_st.search.steps import best_first

ROUNDING = 1e-6  # upper bound on the difference of two float32 sums of the same product in another order


@dataclass(frozen=True)
class Truth:
    """Exact neighbours of calibration queries.

    Args:
        keys: ``(Q, k)``, by descending score.
        scores: Cosine at full width, ``(Q, k)``.
    """

    keys: np.ndarray
    scores: np.ndarray


def exact_neighbours(
    reader: Reader,
    table: int,
    queries: np.ndarray,
    k: int,
    self_keys: np.ndarray | None = None,
    progress: Callable[[int], object] | None = None,
) -> Truth:
    """Find the ``k`` nearest rows of each query ``(Q, width)`` by comparing it with all rows, in one pass.

    ``self_keys`` ``(Q,)`` are the keys of queries that are rows of the index; these do not count as neighbours.
    ``progress`` is called with the number of rows in each piece.
    """
    keys: np.ndarray | None = None
    best = np.full((len(queries), 0), -np.inf, dtype=np.float32)
    for part, vectors in reader.scan((table,)):
        scores = queries @ vectors[table].T
        if self_keys is not None:
            scores[self_keys[:, None] == part[None, :]] = -np.inf
        top = min(k, len(part))
        near = np.argpartition(-scores, top - 1, axis=1)[:, :top]
        keys = part[near] if keys is None else np.concatenate([keys, part[near]], axis=1)
        best = np.concatenate([best, np.take_along_axis(scores, near, axis=1)], axis=1)
        keys, best = best_first(keys, best, k)
        if progress is not None:
            progress(len(part))
    if keys is None:
        raise ValueError("An empty index has no neighbours.")
    if self_keys is not None:
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
    """Count the rows that score above each true neighbour of the queries at each size, in one pass.

    Returns:
        Ranks per size, ``(Q, k)`` int64; 0 is the best.
    """
    found = np.ones(truth.keys.shape, dtype=bool)
    levels = {size: reader.scores(size, queries[size], truth.keys, found) + ROUNDING for size in sizes}
    ranks = {size: np.zeros(truth.keys.shape, dtype=np.int64) for size in sizes}
    for keys, vectors in reader.scan(tuple(sizes)):
        for size in sizes:
            scores = queries[size] @ vectors[size].T
            for place in range(truth.keys.shape[1]):
                ranks[size][:, place] += np.count_nonzero(scores > levels[size][:, place, None], axis=1)
        if progress is not None:
            progress(len(keys))
    return ranks


def recall(scores: np.ndarray, truth: Truth) -> np.ndarray:
    """Compute the share of true neighbours that were found per query.

    A result counts if it scores as high as the last true neighbour. Which of several equal rows is found says nothing
    about the search, and asking for one of them by its id would never be satisfied.

    Args:
        scores: Full-width cosines of the results, ``(Q, n)``; -inf for none.
        truth: Exact neighbours, ``k`` per query.

    Returns:
        ``(Q,)``.
    """
    k = truth.scores.shape[1]
    count = np.count_nonzero(scores >= truth.scores[:, -1:] - ROUNDING, axis=1)
    share: np.ndarray = np.minimum(count, k) / k
    return share
