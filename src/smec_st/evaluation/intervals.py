"""Confidence intervals of paired differences."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats

RESAMPLES = 9999
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean difference and its confidence interval."""

    difference: float
    low: float
    high: float


def paired_interval(ours: np.ndarray, theirs: np.ndarray, seed: int = 0) -> Interval:
    """Bootstrap the mean difference of paired values over queries: its 95 % percentile interval.

    Args:
        ours: One value per query, ``(Q,)``.
        theirs: Values of the same queries, ``(Q,)``.
        seed: Random seed of the resampling.
    """
    differences = ours - theirs
    result = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=64,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return Interval(float(differences.mean()), float(low), float(high))
