"""Choose a schedule from the rows of an index, then measure its recall by searching with it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from smec_st.compressor import Compressor
from smec_st.data import DataError, check_vectors
from smec_st.search.backend import CODES, FULL, Backend
from smec_st.search.calibration import Truth, exact_neighbours, neighbour_ranks, recall
from smec_st.search.encoding import encode_originals, steps_for
from smec_st.search.schedule import JUMP, Schedule, Step, choose_schedule, head_cost, lower_bound
from smec_st.search.steps import run
from smec_st.system.errors import whole_number

logger = logging.getLogger(__name__)

MAX_QUERIES = 512
NEEDS_QUERIES = "an index of codes without originals is tuned on queries: give `queries` (--queries) of full width."
MIN_EFFORT = 32
REMOTE_EFFORT = 256  # compared with a round trip, searching the graph costs nothing
REMOTE_FACTOR = 4  # effort is raised up to this many times the first; then longer shortlists are tried
NEAR = 1.15  # the search for the least effort stops within this factor of an effort that is too low
STRETCHES = (1.0, 1.5, 2.25, 3.5, 5.0)  # factors on the shortlists that would suffice for an exact head
GROW = 1.5  # factor by which shortlists grow until they reach the target
CONFIRM = 3  # one query in this many is held out of the choice, and its recall must reach the target too
ENOUGH = 60  # with fewer queries than this, none are held out


def check_target(target: float) -> None:
    """Refuse a recall that no schedule can be chosen for."""
    if not isinstance(target, int | float | np.floating) or not 0 < target <= 1:
        raise DataError(f"a recall target lies above 0 and is at most 1, got {target!r}.")


def tune(
    backend: Backend,
    compressor: Compressor,
    queries: ArrayLike | None,
    *,
    target: float,
    k: int,
    progress: Callable[[int], object] | None = None,
) -> Schedule:
    """Choose and measure a schedule; see :meth:`smec_st.search.FunnelIndex.tune`."""
    check_target(target)
    k = whole_number(k, "k")
    backend.flush()
    settings, reader = backend.settings, backend.reader()
    rows = len(reader)
    if rows < 2:
        raise DataError(f"{backend.uri} holds {rows} rows; a schedule is chosen from at least 2.")
    document_keys = None
    if queries is None:
        document_keys, encoded = sample_documents(backend, MAX_QUERIES)
        if settings.codes:
            if not settings.originals:
                raise DataError(NEEDS_QUERIES)
            encoded = encode_originals(settings, compressor, encoded[FULL])
    else:
        table = check_vectors(queries, "query")
        if table.shape[1] != settings.width:
            raise DataError(f"query vectors are {table.shape[1]} wide, the index {settings.width}.")
        encoded = encode_originals(settings, compressor, table[:: -(-len(table) // MAX_QUERIES)])
    full = FULL if settings.originals else settings.sizes[-1]
    truth = exact_neighbours(reader, full, encoded[full], k, document_keys, progress)
    sizes = [size for size in settings.sizes if size < settings.full]
    if not sizes and not settings.codes:
        return Schedule((Step(settings.full, k),), k=k, rows=rows, recall=1.0, queries=len(truth.keys))
    every = Trial(backend, encoded, truth, document_keys)
    choosing, held_out = every.split()
    tables = [CODES, *sizes] if settings.codes else sizes
    ranks = neighbour_ranks(reader, tables, choosing.queries, choosing.truth, progress)
    by_size = {settings.codes if table == CODES else table: found for table, found in ranks.items()}
    cost, heads = head_cost(settings.head, rows), [settings.codes or sizes[0]]
    schedule = choose_schedule(by_size, settings.full, rows, cost, target=target, heads=heads)
    schedule = schedule.from_codes() if settings.codes else schedule
    limits = Limits(target, rows, settings.head, reader.max_effort(), reader.remote)
    schedule = cheapest_that_reaches(choosing, limits, replace(schedule, k=k))
    schedule = schedule if held_out is None else confirmed(every, held_out, limits, schedule)
    if schedule.misses_target:
        logger.warning(
            "%s: the recall target %s is missed: recall@%d is %.4f, at least %.4f with 95 %% confidence.",
            backend.uri, target, k, schedule.recall, schedule.recall_low,
        )  # fmt: skip
    return schedule


@dataclass(frozen=True)
class Trial:
    """Searches with queries whose exact neighbours are known.

    Args:
        backend: The index to search.
        queries: Vectors per table.
        truth: Exact neighbours of the queries.
        own_keys: Key of each query that is a row of the index and so its own result, ``(Q,)``; None for others.
    """

    backend: Backend
    queries: dict[int, np.ndarray]
    truth: Truth
    own_keys: np.ndarray | None

    def measure(self, schedule: Schedule, effort: int | None) -> Schedule:
        """Search with a schedule, and return it with its effort and recall filled in."""
        reader = self.backend.reader()
        steps = steps_for(reader, schedule, schedule.k, self.queries)
        table, last = steps[-1]
        steps[-1] = table, Step(last.size, last.keep + (self.own_keys is not None))
        hits = run(reader, steps, self.queries, None, effort)
        scores = hits.scores
        if self.own_keys is not None:
            own_ids = reader.ids(self.own_keys[:, None], np.ones((len(self.own_keys), 1), dtype=bool))
            scores = np.where(hits.ids == own_ids, -np.inf, scores)
        share = recall(scores, self.truth)
        low = lower_bound(share)
        return replace(schedule, effort=effort, recall=float(share.mean()), recall_low=low, queries=len(share))

    def split(self) -> tuple[Trial, Trial | None]:
        """Split off the queries that are held out of the choice; None if there are too few queries."""
        count = len(self.truth.keys)
        if count < ENOUGH:
            return self, None
        is_held_out = np.arange(count) % CONFIRM == 0
        return self._subset(~is_held_out), self._subset(is_held_out)

    def _subset(self, rows: np.ndarray) -> Trial:
        queries = {table: vectors[rows] for table, vectors in self.queries.items()}
        own_keys = None if self.own_keys is None else self.own_keys[rows]
        truth = Truth(self.truth.keys[rows], self.truth.scores[rows])
        return replace(self, queries=queries, truth=truth, own_keys=own_keys)


@dataclass(frozen=True)
class Limits:
    """What bounds the choice of a schedule.

    Args:
        target: Recall that the lower end of the interval must reach.
        rows: Number of rows in the index.
        head: Kind of the head.
        max_effort: Effort above which the head finds no more; 0 if it has no such parameter.
        remote: Whether each search costs a network round trip.
    """

    target: float
    rows: int
    head: str
    max_effort: int
    remote: bool

    def is_reached(self, schedule: Schedule) -> bool:
        """Return whether the measured recall of a schedule reaches the target."""
        return schedule.recall_low is not None and schedule.recall_low >= self.target

    def cost(self, schedule: Schedule) -> float:
        """Return the multiply-adds of a schedule with its effort, by the model that shortlists are chosen by."""
        first = schedule.steps[0]
        if self.head.startswith("ivf") and self.max_effort:
            probed = (schedule.effort or self.max_effort) / self.max_effort * self.rows
            cost = (probed + self.max_effort) * first.size
        else:
            cost = head_cost(self.head, self.rows)(first.size, max(first.keep, schedule.effort or 0))
        for step, wider in pairwise(schedule.steps):
            cost += step.keep * (wider.size + JUMP)
        return cost

    def longer(self, schedule: Schedule, factor: float) -> Schedule:
        """Return a schedule with longer shortlists."""
        steps = [replace(s, keep=min(self.rows, math.ceil(s.keep * factor))) for s in schedule.steps[:-1]]
        return replace(schedule, steps=(*steps, schedule.steps[-1]))


def cheapest_that_reaches(trial: Trial, limits: Limits, schedule: Schedule) -> Schedule:
    """Measure a schedule with more effort and longer shortlists, and return the cheapest that reaches the target.

    The schedule was chosen by ranks, which do not account for errors of an approximate or quantised head.
    """
    best, lowest_cost = schedule, math.inf
    for stretch in STRETCHES:  # longer shortlists need less effort of the head
        candidate = with_least_effort(trial, limits, limits.longer(schedule, stretch), lowest_cost)
        cost = limits.cost(candidate)
        if limits.is_reached(candidate) and cost < lowest_cost:
            best, lowest_cost = candidate, cost
        if (limits.remote or not limits.max_effort) and limits.is_reached(candidate):
            break
    while not limits.is_reached(best):
        best = with_least_effort(trial, limits, limits.longer(candidate, GROW), math.inf)
        if candidate.steps == best.steps:
            break  # all rows are rescored already
        candidate = best
    return best


def with_least_effort(trial: Trial, limits: Limits, schedule: Schedule, lowest_cost: float) -> Schedule:
    """Double the effort until the target is reached, then search for the least effort between the last two.

    It gives up as soon as the schedule costs at least ``lowest_cost``.
    """
    effort = min(limits.max_effort, max(REMOTE_EFFORT if limits.remote else MIN_EFFORT, schedule.steps[0].keep))
    highest = min(limits.max_effort, REMOTE_FACTOR * effort) if limits.remote else limits.max_effort
    too_low = 0
    result = trial.measure(schedule, effort or None)
    while not limits.is_reached(result) and effort < highest and limits.cost(result) < lowest_cost:
        too_low, effort = effort, min(highest, effort * 2)
        result = trial.measure(schedule, effort)
    while limits.is_reached(result) and too_low and effort > too_low * NEAR and not limits.remote:
        middle = round((too_low * effort) ** 0.5)
        easier = trial.measure(schedule, middle)
        if limits.is_reached(easier):
            result, effort = easier, middle
        else:
            too_low = middle
    return result


def confirmed(every: Trial, held_out: Trial, limits: Limits, schedule: Schedule) -> Schedule:
    """Raise effort and shortlists until the mean recall of the held-out queries reaches the target too.

    The cheapest of many schedules has a higher recall on the queries that it was chosen by than on others.
    """
    while True:
        measured = every.measure(schedule, schedule.effort)
        if limits.is_reached(measured) and (
            (held_out.measure(schedule, schedule.effort).recall or 0.0) >= limits.target
        ):
            return measured
        effort = schedule.effort and min(limits.max_effort, round(schedule.effort * GROW))
        more = replace(limits.longer(schedule, GROW), effort=effort)
        if (more.steps, more.effort) == (schedule.steps, schedule.effort):
            return measured  # all rows are rescored already
        schedule = more


def sample_documents(backend: Backend, count: int) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Take evenly spaced documents to use as queries: their keys, and their vectors per table."""
    reader, tables = backend.reader(), tuple(backend.settings.widths)
    every = max(1, len(reader) // count)
    keys: list[np.ndarray] = []
    parts: list[dict[int, np.ndarray]] = []
    seen = 0
    for part, vectors in reader.scan(tables):
        pick = np.arange(-seen % every, len(part), every)
        seen += len(part)
        keys.append(part[pick])
        parts.append({table: vectors[table][pick] for table in tables})
    joined = {table: np.concatenate([part[table] for part in parts])[:count] for table in tables}
    return np.concatenate(keys)[:count], joined
