"""Paired comparison of methods on the same queries, and how small each may go without loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from smec_st.evaluation import Row

RESAMPLES = 9999
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean difference and its confidence interval."""

    difference: float
    low: float
    high: float


def paired_interval(ours: np.ndarray, theirs: np.ndarray, seed: int = 0) -> Interval:
    """Bootstrap over queries: the mean difference of paired values, with its 95 % percentile interval.

    Args:
        ours: One value per query, ``(Q,)``.
        theirs: The same queries, ``(Q,)``.
        seed: Of the resampling.
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


def sign_flip_p(ours: np.ndarray, theirs: np.ndarray, seed: int = 0) -> float:
    """Two-sided permutation p-value of a mean difference: under the null, each query's difference may turn its sign.

    From 9,999 random flips, so it is never below 0.0002; see :func:`paired_interval` for the arguments.
    """
    differences = ours - theirs
    rng = np.random.default_rng(seed)

    def flipped(size: tuple[int, int]) -> np.ndarray:
        values: np.ndarray = np.where(rng.integers(0, 2, size, dtype=np.int8) == 1, differences, -differences)
        return values

    result = stats.monte_carlo_test(differences, flipped, np.mean, n_resamples=RESAMPLES, batch=64)
    return float(result.pvalue)


@dataclass(frozen=True)
class Lossless:
    """How small a method may go on a collection without losing nDCG@10 to the original.

    Attributes:
        collection: Name.
        method: Name.
        bytes_per_vector: The smallest size that is not below the original; None when there is none.
        byte_ratio: Bytes of the original per byte of that size.
        dim_ratio: The same in numbers per vector.
        sure_bytes_per_vector: The smallest size that is not below with 95 % confidence.
        sure_byte_ratio: Its ratio in bytes.
        sure_dim_ratio: Its ratio in numbers per vector.
    """

    collection: str
    method: str
    bytes_per_vector: int | None
    byte_ratio: float | None
    dim_ratio: float | None
    sure_bytes_per_vector: int | None
    sure_byte_ratio: float | None
    sure_dim_ratio: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able fields."""
        return asdict(self)


def lossless(rows: Sequence[Row]) -> list[Lossless]:
    """The smallest size of each method whose nDCG@10 is not below the original's.

    Args:
        rows: Rows that hold ``original_difference`` and ``original_low``, the mean difference to the original and the
            lower end of its 95 % interval; the method "original" is among them for each collection.

    Returns:
        One entry per collection and method, the original left out.
    """
    originals = {row.collection: row for row in rows if row.method == "original"}
    found = []
    for collection, method in dict.fromkeys((row.collection, row.method) for row in rows):
        if method == "original":
            continue
        own = [row for row in rows if (row.collection, row.method) == (collection, method)]
        original = originals[collection]
        point = _smallest([row for row in own if row.extra["original_difference"] >= 0], original)
        sure = _smallest([row for row in own if row.extra["original_low"] >= 0], original)
        found.append(Lossless(collection, method, *point, *sure))
    return found


def _smallest(rows: Sequence[Row], original: Row) -> tuple[int | None, float | None, float | None]:
    """Bytes of the smallest row, and how many times smaller it is than the original in bytes and in numbers."""
    if not rows:
        return None, None, None
    row = min(rows, key=lambda row: row.bytes_per_vector)
    return row.bytes_per_vector, original.bytes_per_vector / row.bytes_per_vector, original.dim / row.dim
