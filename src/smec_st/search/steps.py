"""Run the steps of a funnel: the head searches all rows, and each later step rescores the remaining candidates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from smec_st.search.backend import Reader, Settings, Tables
from smec_st.search.filters import Where
from smec_st.search.schedule import Step

QUERY_BLOCK_BYTES = 16 << 20  # size of the candidate vectors that are compared together


Steps = Sequence[tuple[int, Step]]  # each with the table that it reads, smallest size first


class Hits(NamedTuple):
    """The results of a search.

    Args:
        ids: ``(Q, n)`` by descending score, ``n <= k``; -1 (int ids) or "" (str ids) where there are no more results.
        scores: Cosine at full width, ``(Q, n)`` float32; -inf where there are no more results.
    """

    ids: np.ndarray
    scores: np.ndarray


def run(reader: Reader, steps: Steps, queries: Tables, where: Where | None, effort: int | None) -> Hits:
    """Search one block of queries, ``(Q, width)`` per table."""
    table, step = steps[0]
    next_table = steps[1][0] if len(steps) > 1 else None
    keys, scores = reader.head(queries[table], step.keep, where, effort, next_table)
    for table, step in steps[1:]:
        found = scores > -np.inf
        scores = reader.scores(table, queries[table], keys, found)
        keep = min(step.keep, scores.shape[1])
        if keep < scores.shape[1]:
            best = np.argpartition(-scores, keep - 1, axis=1)[:, :keep] if keep else np.empty((len(scores), 0), int)
            keys, scores = np.take_along_axis(keys, best, axis=1), np.take_along_axis(scores, best, axis=1)
    keys, scores = best_first(keys, scores)
    return Hits(reader.ids(keys, scores > -np.inf), scores)


def run_in_blocks(reader: Reader, steps: Steps, queries: Tables, where: Where | None, effort: int | None) -> Hits:
    """Search any number of queries in blocks that bound the memory; see :func:`run`."""
    count = len(next(iter(queries.values())))
    widest = max(reader.settings.widths.get(table, reader.settings.codes) * step.keep for table, step in steps)
    block = max(1, QUERY_BLOCK_BYTES // (4 * widest))
    parts = []
    for start in range(0, count, block):
        part = {table: vectors[start : start + block] for table, vectors in queries.items()}
        parts.append(run(reader, steps, part, where, effort))
    return concatenate(parts, reader.settings)


def concatenate(parts: Sequence[Hits], settings: Settings) -> Hits:
    """Join the results of blocks, padded to the widest."""
    shape = sum(len(part.ids) for part in parts), max(part.ids.shape[1] for part in parts)
    ids = np.full(shape, settings.no_id, dtype=settings.id_dtype)
    scores = np.full(shape, -np.inf, dtype=np.float32)
    start = 0
    for part in parts:
        place = (slice(start, start + len(part.ids)), slice(0, part.ids.shape[1]))
        ids[place], scores[place] = part.ids, part.scores
        start += len(part.ids)
    return Hits(ids, scores)


def best_first(keys: np.ndarray, scores: np.ndarray, keep: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Sort the candidates of each query by descending score, and keep the best ``keep`` (all by default)."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :keep]
    return np.take_along_axis(keys, order, axis=1), np.take_along_axis(scores, order, axis=1)
