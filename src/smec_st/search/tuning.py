"""Choose a schedule from the rows of an index, then search with it and see whether it keeps its word."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from smec_st.data import DataError, check_vectors
from smec_st.search.backend import FULL
from smec_st.search.calibration import Truth, exact_neighbours, neighbour_ranks, recall
from smec_st.search.encoding import encode, steps_for
from smec_st.search.schedule import JUMP, Schedule, Step, choose_schedule, head_cost, lower_bound
from smec_st.search.steps import run

if TYPE_CHECKING:
    from smec_st.search.funnel import FunnelIndex, Progress

LEAST_EFFORT = 32
REMOTE_EFFORT = 256  # next to a round trip, searching the graph costs nothing
REMOTE_FACTOR = 4  # up to so many times of that; then longer lists are tried
NEAR = 1.15  # an effort within this factor of one that is too little is settled on
STRETCHES = (1.0, 1.5, 2.25, 3.5, 5.0)  # of the shortlists that would do for an exact head
GROW = 1.5  # shortlists grow by this until they reach the target
CONFIRM = 3  # one query in this many has no part in the choice, and must agree with it
ENOUGH = 60  # of fewer queries than this none can be spared


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
    every = Trial(index, encoded, truth, own is not None)
    choosing, unseen = every.split()
    ranks = neighbour_ranks(reader, sizes, choosing.queries, choosing.truth, progress)
    cost = head_cost(settings.head, len(reader))
    schedule = choose_schedule(ranks, settings.full, len(reader), cost, target=target, heads=sizes[:1])
    schedule = measured(choosing, replace(schedule, k=k))
    return schedule if unseen is None else confirmed(every, unseen, schedule)


@dataclass(frozen=True)
class Trial:
    """Real searches with queries whose exact neighbours are known.

    Args:
        index: To search.
        queries: Per table.
        truth: Their exact neighbours.
        among: Whether each query is itself a row of the index, and its own first result.
    """

    index: FunnelIndex
    queries: dict[int, np.ndarray]
    truth: Truth
    among: bool

    def __call__(self, schedule: Schedule, effort: int | None) -> Schedule:
        """The schedule with the recall that it has."""
        reader = self.index._backend.reader()
        steps = steps_for(self.index.settings, schedule, schedule.k, len(reader), self.queries)
        table, last = steps[-1]
        steps[-1] = table, Step(last.size, last.keep + self.among)
        known = reader.ids(self.truth.keys, np.ones(self.truth.keys.shape, dtype=bool))
        share = recall(run(reader, steps, self.queries, None, effort).ids, known)
        low = lower_bound(share)
        return replace(schedule, effort=effort, recall=float(share.mean()), recall_low=low, queries=len(share))

    def split(self) -> tuple[Trial, Trial | None]:
        """Queries to choose by, and others that had no part in the choice; None where none can be spared."""
        count = len(self.truth.keys)
        if count < ENOUGH:
            return self, None
        spared = np.arange(count) % CONFIRM == 0
        return self._of(~spared), self._of(spared)

    def _of(self, rows: np.ndarray) -> Trial:
        queries = {table: vectors[rows] for table, vectors in self.queries.items()}
        return replace(self, queries=queries, truth=Truth(self.truth.keys[rows], self.truth.scores[rows]))


def measured(trial: Trial, schedule: Schedule) -> Schedule:
    """A schedule as it does in real searches; searched harder, then longer, until it reaches its target.

    Args:
        trial: Searches with the queries to choose by.
        schedule: Chosen by ranks, which know nothing of approximate or quantised heads.
    """
    reader = trial.index._backend.reader()
    target = schedule.target or 0.0
    most, kind = reader.most_effort(), trial.index.settings.head

    def settled(schedule: Schedule, cheapest: float) -> Schedule:
        """With the least effort that will do; given up when it cannot become cheaper than that."""
        least = REMOTE_EFFORT if reader.remote else LEAST_EFFORT
        effort, failed = min(most, max(least, schedule.steps[0].keep)), 0
        hardest = min(most, REMOTE_FACTOR * effort) if reader.remote else most
        result = trial(schedule, effort or None)
        while not reaches(result, target) and effort < hardest and price(result, kind, most, len(reader)) < cheapest:
            failed, effort = effort, min(hardest, effort * 2)
            result = trial(schedule, effort)
        while reaches(result, target) and failed and effort > failed * NEAR and not reader.remote:
            middle = round((failed * effort) ** 0.5)
            easier = trial(schedule, middle)
            if reaches(easier, target):
                result, effort = easier, middle
            else:
                failed = middle
        return result

    best, cheapest = schedule, math.inf
    for stretch in STRETCHES:  # longer lists forgive a head that searches less hard
        candidate = settled(longer(schedule, stretch, len(reader)), cheapest)
        own = price(candidate, kind, most, len(reader))
        if reaches(candidate, target) and own < cheapest:
            best, cheapest = candidate, own
        if (reader.remote or not most) and reaches(candidate, target):
            break
    while not reaches(best, target):
        best = settled(longer(candidate, GROW, len(reader)), math.inf)
        if candidate.steps == best.steps:
            break  # everything is rescored already
        candidate = best
    return best


def confirmed(every: Trial, unseen: Trial, schedule: Schedule) -> Schedule:
    """Searched longer until queries that had no part in the choice reach the target too.

    The cheapest of many schedules looks better on the queries it was chosen by than on others.
    """
    reader = every.index._backend.reader()
    target, most = schedule.target or 0.0, reader.most_effort()
    while True:
        found = every(schedule, schedule.effort)
        if reaches(found, target) and (unseen(schedule, schedule.effort).recall or 0.0) >= target:
            return found
        effort = schedule.effort and min(most, round(schedule.effort * GROW))
        more = replace(longer(schedule, GROW, len(reader)), effort=effort)
        if (more.steps, more.effort) == (schedule.steps, schedule.effort):
            return found  # everything is rescored already
        schedule = more


def reaches(schedule: Schedule, target: float) -> bool:
    """Whether a measured schedule keeps its word."""
    return schedule.recall_low is not None and schedule.recall_low >= target


def price(schedule: Schedule, kind: str, most: int, rows: int) -> float:
    """Multiply-adds of a schedule with its effort, by the same model that lists are chosen by."""
    first = schedule.steps[0]
    if kind.startswith("ivf") and most:
        price = ((schedule.effort or most) / most * rows + most) * first.size
    else:
        price = head_cost(kind, rows)(first.size, max(first.keep, schedule.effort or 0))
    for step, wider in pairwise(schedule.steps):
        price += step.keep * (wider.size + JUMP)
    return price


def longer(schedule: Schedule, factor: float, rows: int) -> Schedule:
    """The same with longer shortlists."""
    steps = [Step(step.size, min(rows, math.ceil(step.keep * factor))) for step in schedule.steps[:-1]]
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
