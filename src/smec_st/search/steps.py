"""Walk down a funnel: the head over everything, then each step over what the one before kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from smec_st.search.backend import Reader
from smec_st.search.filters import Where
from smec_st.search.schedule import Step


class Hits(NamedTuple):
    """What a search found.

    Args:
        ids: ``(Q, n)`` by falling score, ``n <= k``; -1 (int ids) or "" (str ids) where there are no more.
        scores: Cosine at full width, ``(Q, n)`` float32; -inf where there are no more.
    """

    ids: np.ndarray
    scores: np.ndarray


def run(
    reader: Reader,
    steps: Sequence[tuple[int, Step]],
    queries: Mapping[int, np.ndarray],
    where: Where | None,
    effort: int | None,
) -> Hits:
    """Search one block of queries: the head over everything, then each step over what the one before kept.

    Args:
        reader: State to search.
        steps: Table and step, smallest size first.
        queries: Per table, ``(Q, width)``.
        where: Filter.
        effort: Of the head.
    """
    table, step = steps[0]
    keys, scores = reader.head(queries[table], step.keep, where, effort)
    for table, step in steps[1:]:
        found = scores > -np.inf
        scores = reader.scores(table, queries[table], keys, found)
        keep = min(step.keep, scores.shape[1])
        if keep < scores.shape[1]:
            best = np.argpartition(-scores, keep - 1, axis=1)[:, :keep] if keep else np.empty((len(scores), 0), int)
            keys, scores = np.take_along_axis(keys, best, axis=1), np.take_along_axis(scores, best, axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")
    keys, scores = np.take_along_axis(keys, order, axis=1), np.take_along_axis(scores, order, axis=1)
    return Hits(reader.ids(keys, scores > -np.inf), scores)


def pad(parts: Sequence[Hits], id_type: str) -> Hits:
    """Blocks of results as one, as wide as the widest."""
    width = max(part.ids.shape[1] for part in parts)
    text = id_type == "str"
    ids = np.full((sum(len(p.ids) for p in parts), width), "" if text else -1, dtype=object if text else np.int64)
    scores = np.full(ids.shape, -np.inf, dtype=np.float32)
    start = 0
    for part in parts:
        place = (slice(start, start + len(part.ids)), slice(0, part.ids.shape[1]))
        ids[place], scores[place] = part.ids, part.scores
        start += len(part.ids)
    return Hits(ids, scores)
