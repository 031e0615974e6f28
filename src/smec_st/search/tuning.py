"""Choose a schedule from the rows of an index, then search with it and see whether it keeps its word."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from smec_st.data import DataError, check_vectors
from smec_st.search.backend import FULL
from smec_st.search.calibration import Truth, exact_neighbours, neighbour_ranks, recall
from smec_st.search.encoding import encode, steps_for
from smec_st.search.schedule import Schedule, Step, choose_schedule, head_cost, lower_bound
from smec_st.search.steps import run

if TYPE_CHECKING:
    from smec_st.search.funnel import FunnelIndex, Progress

TRIES = 24
NEAR = 1.15  # an effort within this factor of one that is too little is settled on
GROW = 1.5  # shortlists grow by this when a harder search no longer helps


def tune(
    index: FunnelIndex,
    queries: Any | None,
    *,
    target: float,
    k: int,
    most_queries: int,
    progress: Progress | None,
) -> Schedule:
    """See :meth:`smec_st.search.FunnelIndex.tune`."""
    if not 0 < target <= 1:
        raise DataError(f"a recall target lies above 0 and is at most 1, got {target}.")
    index.flush()
    settings, reader = index.settings, index._backend.reader()
    if len(reader) < 2:
        raise DataError(f"{index.uri} holds {len(reader)} rows; a schedule is chosen from at least 2.")
    own = None
    if queries is None:
        own, encoded = some_documents(index, most_queries)
    else:
        table = check_vectors(queries, "query")
        if table.shape[1] != settings.width:
            raise DataError(f"query vectors are {table.shape[1]} wide, the index {settings.width}.")
        encoded = encode(settings, index.compressor, table[:: -(-len(table) // most_queries)])
    full = FULL if settings.originals else settings.sizes[-1]
    truth = exact_neighbours(reader, full, encoded[full], k, own, progress)
    sizes = [size for size in settings.sizes if size < settings.full]
    if not sizes:
        return Schedule((Step(settings.full, k),), k=k, rows=len(reader), recall=1.0, queries=len(truth.keys))
    ranks = neighbour_ranks(reader, sizes, encoded, truth, progress)
    cost = head_cost(settings.head, len(reader))
    schedule = choose_schedule(ranks, settings.full, len(reader), cost, target=target, heads=sizes[:1])
    return measured(index, replace(schedule, k=k), encoded, truth, own is not None)


def measured(
    index: FunnelIndex, schedule: Schedule, queries: dict[int, np.ndarray], truth: Truth, among: bool
) -> Schedule:
    """A schedule as it does in real searches; searched harder, then longer, until it reaches its target.

    Args:
        index: To search.
        schedule: Chosen by ranks, which know nothing of approximate or quantised heads.
        queries: Per table.
        truth: Their exact neighbours.
        among: Whether each query is itself a row of the index, and its own first result.
    """
    reader = index._backend.reader()
    target = schedule.target or 0.0
    known = reader.ids(truth.keys, np.ones(truth.keys.shape, dtype=bool))
    most = reader.most_effort()
    effort = min(most, max(64, schedule.steps[0].keep)) if most else None

    def tried(schedule: Schedule, effort: int | None) -> Schedule:
        steps = steps_for(index.settings, schedule, schedule.k, len(reader), queries)
        table, last = steps[-1]
        steps[-1] = table, Step(last.size, last.keep + among)
        share = recall(run(reader, steps, queries, None, effort).ids, known)
        low = lower_bound(share)
        return replace(schedule, effort=effort, recall=float(share.mean()), recall_low=low, queries=len(share))

    before, failed = -1.0, 0
    for _ in range(TRIES):
        schedule = tried(schedule, effort)
        low = schedule.recall_low or 0.0
        if low >= target:
            break
        if effort is not None and effort < most and low > before + (target - low) / 10:
            failed, effort = effort, min(most, effort * 2)
        elif schedule.steps[0].keep < len(reader):
            schedule = longer(schedule, len(reader))
        elif effort is not None and effort < most:
            failed, effort = effort, min(most, effort * 2)
        else:
            break
        before = low
    while failed and effort is not None and effort > failed * NEAR:  # between too little and enough
        middle = round((failed * effort) ** 0.5)
        easier = tried(schedule, middle)
        if (easier.recall_low or 0.0) >= target:
            schedule, effort = easier, middle
        else:
            failed = middle
    return schedule


def longer(schedule: Schedule, rows: int) -> Schedule:
    """The same with longer shortlists."""
    steps = [Step(step.size, min(rows, int(step.keep * GROW) + 1)) for step in schedule.steps[:-1]]
    return replace(schedule, steps=(*steps, schedule.steps[-1]))


def some_documents(index: FunnelIndex, count: int) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Documents spread over the index, in place of queries: their keys, and their vectors per table."""
    reader, tables = index._backend.reader(), tuple(index.settings.widths)
    every = max(1, len(reader) // count)
    keys: list[np.ndarray] = []
    parts: list[dict[int, np.ndarray]] = []
    seen = 0
    for part, vectors in reader.scan(tables):
        pick = np.arange(-seen % every, len(part), every)
        seen += len(part)
        keys.append(part[pick])
        parts.append({table: vectors[table][pick] for table in tables})
    own = np.concatenate(keys)[:count]
    return own, {table: np.concatenate([part[table] for part in parts])[:count] for table in tables}
