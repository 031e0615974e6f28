"""The schedule of a funnel: at which sizes to look, and how many candidates go on from each.

Everything here is a pure function of ranks: how many documents stand before a true neighbour at each size. One table
of ranks says what recall any schedule would have, so the cheapest one is found without searching at all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

JUMP = 256  # reading a row that lies elsewhere in memory costs about as much as this many multiply-adds
GRID = 1.3  # ratio of neighbouring shortlist lengths that are tried
SURE = 1.645  # standard errors below the mean: the lower end of a one-sided 95 % interval
MOST_STEPS = 3  # compressed steps before full width

Cost = Callable[[int, int], float]


@dataclass(frozen=True)
class Step:
    """Score candidates at one size, and keep the best.

    Args:
        size: Width of the vectors that are compared.
        keep: How many candidates go on; of the last step, ``k``.
    """

    size: int
    keep: int


@dataclass(frozen=True)
class Schedule:
    """Sizes and shortlist lengths, smallest size first, full width last; stored with the index.

    Args:
        steps: The first step searches everything, each later one what the one before kept.
        effort: ``efSearch`` of an HNSW head, ``nprobe`` of an IVF head; None for the head's own default.
        k: Results per query it was chosen for.
        rows: Vectors in the index when it was chosen.
        target: Recall@k of exact full-width search it was chosen to reach; None when it was not chosen from data.
        recall: Measured by searching with this schedule; None when it was not.
        recall_low: Lower end of a one-sided 95 % interval of that recall over queries.
        queries: Queries it was chosen and measured on.
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
            raise ValueError(f"Sizes of a schedule must rise, got {sizes}.")
        if min(keeps) < 1 or keeps != sorted(keeps, reverse=True):
            raise ValueError(f"Shortlists of a schedule must shrink and hold at least one, got {keeps}.")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Widths looked at, rising; the last is full width."""
        return tuple(step.size for step in self.steps)

    def at(self, k: int, rows: int) -> tuple[Step, ...]:
        """The steps for other ``k`` or a grown index.

        The rank of a true neighbour grows with the number of vectors that can push in before it, so lists grow in
        proportion. They never shrink below what was chosen.
        """
        factor = max(1.0, k / self.k) * (max(1.0, rows / self.rows) if self.rows else 1.0)
        keeps = [max(k, min(rows, math.ceil(step.keep * factor))) for step in self.steps[:-1]]
        return tuple(Step(size, keep) for size, keep in zip(self.sizes, [*keeps, k], strict=True))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Schedule:
        """What :meth:`to_dict` gave."""
        return cls(**{**values, "steps": tuple(Step(**step) for step in values["steps"])})

    def __str__(self) -> str:
        return " > ".join(f"{step.size}d:{step.keep}" for step in self.steps)


def default_schedule(sizes: Sequence[int], full: int, k: int = 10) -> Schedule:
    """For an index that was not tuned yet: ten times ``k`` reach full width, four times more each step before.

    Args:
        sizes: Compressed sizes below ``full``.
        full: Full width.
        k: Results per query.
    """
    small = sorted(set(sizes))[-MOST_STEPS:]
    keeps = [10 * k * 4**i for i in reversed(range(len(small)))]
    return Schedule((*(Step(s, n) for s, n in zip(small, keeps, strict=True)), Step(full, k)), k=k)


def head_cost(kind: str, rows: int) -> Cost:
    """Cost of searching everything for the best ``keep`` at one size, in multiply-adds; ``(size, keep) -> cost``.

    A model, not a measurement, so that the same data gives the same schedule on any machine.
    """
    if kind.startswith("hnsw"):
        return lambda size, keep: 16.0 * max(keep, 64) * (size + JUMP)  # about 16 new vectors for each one kept
    if kind.startswith("ivf"):
        return lambda size, keep: (0.05 * rows + 4 * math.sqrt(rows)) * size
    return lambda size, keep: float(rows * size)


def lower_bound(recall: np.ndarray) -> float:
    """Lower end of a one-sided 95 % interval of mean recall over queries, ``(Q,) -> scalar``."""
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
    """The cheapest schedule whose recall stays at or above a target.

    A true neighbour survives a step when fewer than ``keep`` documents stand before it at that size. Counting over all
    documents instead of the shortlist can only make recall look worse than it is.

    Args:
        ranks: Per size below ``full``: documents scored above each true neighbour, ``(Q, k)`` int.
        full: Full width; its ranks are the truth.
        rows: Vectors to be searched; no list is longer.
        cost: Of the first step, see :func:`head_cost`.
        target: Recall@k that the lower end of the interval over queries must reach.
        growth: By how much the index outnumbers the documents that the ranks were counted on.
        heads: Sizes that may come first; None for all.

    Returns:
        A schedule that reaches the target by these ranks; at worst one that rescores everything.
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
    if best is None:  # a target of 1 on an interval: rescore everything
        best = 0.0, (Step(max(ranks if heads is None else heads), rows),)
    last = Step(full, min(k, best[1][-1].keep))
    return Schedule((*best[1], last), k=k, rows=rows, target=target, queries=queries)


def _chains(sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    for length in range(1, min(MOST_STEPS, len(sizes)) + 1):
        yield from itertools.combinations(sizes, length)


def _grid(first: int, last: int) -> list[int]:
    """Lengths from ``first`` to ``last``, each about :data:`GRID` times the one before."""
    grid = [first]
    while grid[-1] < last:
        grid.append(min(last, max(grid[-1] + 1, round(grid[-1] * GRID))))
    return grid


def _lengths(need: Sequence[np.ndarray], grid: Sequence[int], target: float) -> Iterator[tuple[int, ...]]:
    """Shrinking lengths that reach the target: any for the early steps, the shortest that will do for the last."""
    for early in itertools.product(range(len(grid)), repeat=len(need) - 1):
        if list(early) != sorted(early, reverse=True):
            continue
        alive = np.ones(need[0].shape, dtype=bool)
        for table, i in zip(need, early, strict=False):
            alive &= table <= grid[i]
        if lower_bound(alive.mean(axis=1)) < target:
            continue
        low, high = 0, early[-1] if early else len(grid) - 1
        while low < high:
            middle = (low + high) // 2
            reached = lower_bound((alive & (need[-1] <= grid[middle])).mean(axis=1)) >= target
            low, high = (low, middle) if reached else (middle + 1, high)
        if lower_bound((alive & (need[-1] <= grid[low])).mean(axis=1)) >= target:
            yield (*(grid[i] for i in early), grid[low])
