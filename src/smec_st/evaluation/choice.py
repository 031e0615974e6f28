"""One rule for every choice that held-out queries make: the safest candidate that no bolder one surely beats."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

#: Chance, per comparison, of preferring a bolder candidate that is not better.
LEVEL = 0.1
#: Significance level at which a candidate is dropped before the remaining folds.
HOPELESS = 0.001


@dataclass(frozen=True)
class Decision:
    """What held-out queries chose, and how sure that is.

    Attributes:
        what: What was decided.
        chosen: Name of the candidate that was taken.
        instead_of: Name of the safest candidate.
        gain: Mean score of the chosen one less that of the safest.
        error: Standard error of that gain.
        queries: Held-out queries that were asked; 0 where there were too few.
        means: Mean score of every candidate, from safe to bold.
    """

    what: str
    chosen: str
    instead_of: str
    gain: float = 0.0
    error: float = 0.0
    queries: int = 0
    means: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        if not self.queries:
            return f"{self.what}: {self.chosen}, the safest choice"
        others = ", ".join(f"{name} {mean:.3f}" for name, mean in self.means.items())
        gained = "" if self.chosen == self.instead_of else f" ({self.gain:+.3f} ± {self.error:.3f})"
        return f"{self.what}: {self.chosen}{gained}, by {self.queries} held-out queries: {others}"


def first_unbeaten(scores: Mapping[str, np.ndarray], what: str = "trained or start", level: float = LEVEL) -> Decision:
    """Choose the first candidate that no later one beats in a paired one-sided t test.

    Args:
        scores: Score of each held-out query by candidate, from safe to bold, ``(q,)`` each, all in one order.
        what: What is decided, for the record.
        level: Significance level of each test; with fewer queries the t distribution requires a larger gain.
    """
    names = list(scores)
    safest, queries = names[0], len(scores[names[0]])
    chosen = next(
        name
        for place, name in enumerate(names)
        if not any(_beats(scores[bolder] - scores[name], level) for bolder in names[place + 1 :])
    )
    gain = scores[chosen] - scores[safest]
    return Decision(
        what=what,
        chosen=chosen,
        instead_of=safest,
        gain=float(gain.mean()) if queries else 0.0,
        error=_standard_error(gain),
        queries=queries,
        means={name: float(values.mean()) for name, values in scores.items()} if queries else {},
    )


def still_in_question(scores: Mapping[str, np.ndarray]) -> list[str]:
    """Return the safest candidate, and those that the best one does not beat at the level :data:`HOPELESS`.

    Others need not be tried on more folds (racing; Maron & Moore, 1994).
    """
    safest, best = next(iter(scores)), max(scores, key=lambda name: float(scores[name].mean()))
    return [name for name in scores if name == safest or not _beats(scores[best] - scores[name], HOPELESS)]


def _beats(gain: np.ndarray, level: float) -> bool:
    """Return whether a mean of paired differences, ``(q,)``, is above 0 by a one-sided t test."""
    from scipy.stats import t

    if len(gain) < 2 or gain.mean() <= 0:
        return False
    return bool(gain.mean() > t.isf(level, len(gain) - 1) * _standard_error(gain))


def _standard_error(gain: np.ndarray) -> float:
    return float(gain.std(ddof=1) / math.sqrt(len(gain))) if len(gain) > 1 else 0.0
