"""The schedule of a funnel: the sizes at which it compares vectors, and how many candidates it keeps after each.

Everything here is a pure function of ranks: how many documents score above a true neighbour at each size. A table of
ranks predicts the recall of any schedule, so the cheapest schedule can be found without running a search.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

JUMP = 256  # reading a row at a random place in memory costs about as much as this many multiply-adds
GRID = 1.3  # ratio of consecutive shortlist lengths that are tried
SURE = 1.645  # standard errors below the mean: the lower end of a one-sided 95 % interval
MAX_STEPS = 3  # compressed steps before full width

Cost = Callable[[int, int], float]


@dataclass(frozen=True)
class Step:
    """Score candidates at one size and keep the best.

    Args:
        size: Width of the vectors that are compared.
        keep: Number of candidates to keep; ``k`` for the last step.
        codes: Whether codes are compared; ``size`` is then their number of bytes.
    """

    size: int
    keep: int
    codes: bool = False


@dataclass(frozen=True)
class Schedule:
    """Sizes and shortlist lengths, smallest size first and full width last. It is stored with the index.

    Args:
        steps: The first step searches all rows, and each later one the candidates that the previous one kept.
        effort: ``efSearch`` of an HNSW head, ``nprobe`` of an IVF head; None for the default of the head.
        k: Number of results per query that it was chosen for.
        rows: Number of vectors in the index when it was chosen.
        target: Recall@k of exact full-width search that it was chosen to reach; None if it was not chosen from data.
        recall: Recall measured by searching with this schedule; None if it was not measured.
        recall_low: Lower end of a one-sided 95 % interval of that recall over queries.
        queries: Number of queries that it was chosen and measured on.
    """

    steps: tuple[Step, ...]
    effort: int | None = None
    k: int = 10
    rows: int = 0
    target: float | None = None
    recall: float | None = None
    recall_low: float | None = None
    queries: int = 0

    def __post_init__(self) -> None:
        sizes = [step.size for step in self.steps]
        keeps = [step.keep for step in self.steps]
        if not sizes or sizes != sorted(set(sizes)):
            raise ValueError(f"Sizes of a schedule must ascend, got {sizes}.")
        if min(keeps) < 1 or keeps != sorted(keeps, reverse=True):
            raise ValueError(f"Shortlists of a schedule must shrink and hold at least one, got {keeps}.")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Widths of the steps, ascending; the last is full width."""
        return tuple(step.size for step in self.steps)

    def from_codes(self) -> Schedule:
        """Return the schedule whose first step compares codes."""
        return replace(self, steps=(replace(self.steps[0], codes=True), *self.steps[1:]))

    @property
    def misses_target(self) -> bool:
        """Whether the recall that was measured does not reach the target with 95 % confidence."""
        return self.target is not None and self.recall_low is not None and self.recall_low < self.target

    def at(self, k: int, rows: int) -> tuple[Step, ...]:
        """Return the steps adapted to another ``k`` or to an index that has grown.

        The rank of a true neighbour grows with the number of vectors that can score above it, so shortlists grow in
        proportion to the index. They never become shorter than they were chosen.
        """
        factor = max(1.0, k / self.k) * (max(1.0, rows / self.rows) if self.rows else 1.0)
        keeps = [max(k, min(rows, math.ceil(step.keep * factor))) for step in self.steps[:-1]]
        return tuple(replace(step, keep=keep) for step, keep in zip(self.steps, [*keeps, k], strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dictionary for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Schedule:
        """Rebuild a schedule from :meth:`to_dict`."""
        return cls(**{**values, "steps": tuple(Step(**step) for step in values["steps"])})

    def __str__(self) -> str:
        return " > ".join(f"{step.size}{'B' if step.codes else 'd'}:{step.keep}" for step in self.steps)


def default_schedule(sizes: Sequence[int], full: int, codes: int = 0) -> Schedule:
    """Return the schedule of an index that was not tuned, for 10 results.

    100 candidates reach full width, and each earlier step keeps four times as many as the next.

    Args:
        sizes: Compressed sizes below ``full``.
        full: Full width.
        codes: Bytes of the codes that are searched first; 0 for none.
    """
    small = ([codes] if codes else []) + sorted(set(sizes))[-MAX_STEPS:]
    keeps = [100 * 4**i for i in reversed(range(len(small)))]
    schedule = Schedule((*(Step(s, n) for s, n in zip(small, keeps, strict=True)), Step(full, 10)))
    return schedule.from_codes() if codes else schedule


def head_cost(kind: str, rows: int) -> Cost:
    """Return the cost of searching all rows for the best ``keep`` at one size, as ``(size, keep) -> multiply-adds``.

    It is a model and not a measurement, so that the same data gives the same schedule on every machine.
    """
    if kind.startswith("hnsw"):
        return lambda size, keep: 16.0 * max(keep, 32) * (size + JUMP)  # compares about 16 vectors for each it keeps
    if kind.startswith("ivf"):
        return lambda size, keep: (0.05 * rows + 4 * math.sqrt(rows)) * size
    return lambda size, keep: float(rows * size)


def lower_bound(recall: np.ndarray) -> float:
    """Compute the lower end of a one-sided 95 % interval of mean recall over queries, ``(Q,) -> scalar``."""
    spread = float(recall.std(ddof=1)) if len(recall) > 1 else 0.0
    return float(recall.mean()) - SURE * spread / math.sqrt(len(recall))


def choose_schedule(
    ranks: Mapping[int, np.ndarray],
    full: int,
    rows: int,
    cost: Cost,
    *,
    target: float = 0.99,
    growth: float = 1.0,
    heads: Collection[int] | None = None,
) -> Schedule:
    """Choose the cheapest schedule whose predicted recall reaches a target.

    A true neighbour survives a step if fewer than ``keep`` documents score above it at that size. Ranks count all
    documents and not only the shortlist, so the prediction can only be too low.

    Args:
        ranks: Per size below ``full``: number of documents that score above each true neighbour, ``(Q, k)`` int.
        full: Full width, at which the true neighbours were found.
        rows: Number of vectors to search; no shortlist is longer.
        cost: Cost of the first step, see :func:`head_cost`.
        target: Recall@k that the lower end of the interval over queries must reach.
        growth: Size of the index divided by the number of documents that the ranks were counted on.
        heads: Sizes that the first step may have; None for all.

    Returns:
        A schedule that reaches the target by these ranks. If none does, one that rescores all rows.
    """
    if not ranks or not 0 < target <= 1:
        raise ValueError(f"Need ranks at one size or more, and a target in (0, 1], got {target}.")
    queries, k = next(iter(ranks.values())).shape
    need = {size: np.minimum(np.ceil(table * growth) + 1, rows).astype(np.int64) for size, table in ranks.items()}
    grid = _grid(min(k, rows), rows)
    best: tuple[float, tuple[Step, ...]] | None = None
    for chain in _chains(sorted(ranks)):
        if heads is not None and chain[0] not in heads:
            continue
        for keeps in _lengths([need[size] for size in chain], grid, target):
            price = cost(chain[0], keeps[0])
            for n, size in zip(keeps, (*chain[1:], full), strict=True):
                price += n * (size + JUMP)
            if best is None or price < best[0]:
                best = price, tuple(Step(size, n) for size, n in zip(chain, keeps, strict=True))
    if best is None:  # for instance, the lower end of an interval rarely reaches a target of 1
        best = 0.0, (Step(max(ranks if heads is None else heads), rows),)
    last = Step(full, min(k, best[1][-1].keep))
    return Schedule((*best[1], last), k=k, rows=rows, target=target, queries=queries)


def _chains(sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield every ascending choice of 1 to :data:`MAX_STEPS` sizes."""
    for length in range(1, min(MAX_STEPS, len(sizes)) + 1):
        yield from itertools.combinations(sizes, length)


def _grid(first: int, last: int) -> list[int]:
    """Return lengths from ``first`` to ``last``, each about :data:`GRID` times the previous one."""
    grid = [first]
    while grid[-1] < last:
        grid.append(min(last, max(grid[-1] + 1, round(grid[-1] * GRID))))
    return grid


def _lengths(need: Sequence[np.ndarray], grid: Sequence[int], target: float) -> Iterator[tuple[int, ...]]:
    """Yield descending shortlist lengths that reach the target.

    All lengths are tried for the steps before the last; for the last, binary search finds the shortest that suffices.
    """

    def reaches(survives: np.ndarray) -> bool:
        return lower_bound(survives.mean(axis=1)) >= target

    descending = itertools.combinations_with_replacement(reversed(range(len(grid))), len(need) - 1)
    for early in sorted(descending):
        alive = np.ones(need[0].shape, dtype=bool)
        for table, i in zip(need, early, strict=False):
            alive &= table <= grid[i]
        if not reaches(alive):
            continue
        low, high = 0, early[-1] if early else len(grid) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if reaches(alive & (need[-1] <= grid[middle])) else (middle + 1, high)
        if reaches(alive & (need[-1] <= grid[low])):
            yield (*(grid[i] for i in early), grid[low])
