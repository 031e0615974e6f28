"""Compare methods on the same queries, and find the smallest size of each that loses nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from smec_st.evaluation.report import Row

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

    Returns:
        The mean and its interval; the whole range from -1 to 1 where there is one query, which tells nothing.
    """
    differences = ours - theirs
    if len(differences) == 1:
        return Interval(float(differences[0]), -1.0, 1.0)
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


def sign_flip_p(ours: np.ndarray, theirs: np.ndarray, seed: int = 0) -> float:
    """Test a mean difference by permutation: under the null hypothesis the sign of each query's difference is random.

    Args:
        ours: One value per query, ``(Q,)``.
        theirs: Values of the same queries, ``(Q,)``.
        seed: Random seed of the permutations.

    Returns:
        The two-sided p-value from 9,999 random permutations, which is never below 0.0002.
    """
    differences = ours - theirs
    rng = np.random.default_rng(seed)

    def flip_signs(size: tuple[int, int]) -> np.ndarray:
        values: np.ndarray = np.where(rng.integers(0, 2, size, dtype=np.int8) == 1, differences, -differences)
        return values

    result = stats.monte_carlo_test(differences, flip_signs, np.mean, n_resamples=RESAMPLES, batch=64)
    return float(result.pvalue)


@dataclass(frozen=True)
class Lossless:
    """The smallest size of a method on a collection whose nDCG@10 is not below the original's.

    Attributes:
        collection: Name of the collection.
        method: Name of the method.
        bytes_per_vector: The smallest size whose mean is not below the original's; None when there is none.
        byte_ratio: Bytes of the original divided by those of that size.
        dim_ratio: Dimensions of the original divided by those of that size.
        sure_bytes_per_vector: The smallest size that is not below the original's with 95 % confidence, or None.
        sure_byte_ratio: Its ratio in bytes.
        sure_dim_ratio: Its ratio in dimensions.
    """

    collection: str
    method: str
    bytes_per_vector: int | None
    byte_ratio: float | None
    dim_ratio: float | None
    sure_bytes_per_vector: int | None
    sure_byte_ratio: float | None
    sure_dim_ratio: float | None


def lossless(rows: Sequence[Row]) -> list[Lossless]:
    """Find the smallest size of each method whose nDCG@10 is not below the original's.

    Args:
        rows: Rows with ``original_difference`` and ``original_low`` in ``extra``: the mean difference to the original
            and the lower end of its 95 % interval. Each collection needs a row of the method "original".

    Returns:
        One entry per collection and method except the original.
    """
    originals = {row.collection: row for row in rows if row.method == "original"}
    entries = []
    for collection, method in dict.fromkeys((row.collection, row.method) for row in rows):
        if method == "original":
            continue
        of_method = [row for row in rows if (row.collection, row.method) == (collection, method)]
        original = originals[collection]
        point = _smallest([row for row in of_method if row.extra["original_difference"] >= 0], original)
        sure = _smallest([row for row in of_method if row.extra["original_low"] >= 0], original)
        entries.append(Lossless(collection, method, *point, *sure))
    return entries


def _smallest(rows: Sequence[Row], original: Row) -> tuple[int | None, float | None, float | None]:
    """Return the bytes of the smallest row, and the original's size over its size in bytes and in dimensions."""
    if not rows:
        return None, None, None
    row = min(rows, key=lambda row: row.bytes_per_vector)
    return row.bytes_per_vector, original.bytes_per_vector / row.bytes_per_vector, original.dim / row.dim
