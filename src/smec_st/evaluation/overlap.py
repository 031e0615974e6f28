"""Measure how many nearest neighbours a map keeps, on samples of fixed sizes so that results are comparable."""

from __future__ import annotations

import numpy as np

from smec_st.data.errors import check_seed
from smec_st.data.vectors import unit_rows
from smec_st.evaluation.metrics import exact_search, leave_out, neighbour_overlap
from smec_st.maps import FoldedMap

#: Sizes of samples. The share of neighbours kept depends on the size, so only equal sizes can be compared.
POOLS = (200, 500, 1000, 2000)
NEIGHBORS, QUERIES = 10, 500


def pool_for(rows: int) -> int | None:
    """Return the largest of :data:`POOLS` that is at most ``rows``; None if ``rows`` is below the smallest."""
    return max((pool for pool in POOLS if pool <= rows), default=None)


def kept_neighbors(sample: np.ndarray, folded: FoldedMap) -> float:
    """Return the mean share of a row's ten nearest rows at full width that are also nearest after the map.

    The first 500 rows of the sample are the queries.

    Args:
        sample: ``(n, D)``, any float type.
        folded: The map.
    """
    full = unit_rows(sample)
    return float(neighbour_overlap(_nearest(folded.compress(full)), _nearest(full)).mean())


def _nearest(rows: np.ndarray) -> np.ndarray:
    queries = rows[:QUERIES]
    return leave_out(exact_search(rows, queries, NEIGHBORS + 1)[0], np.arange(len(queries)))[:, :NEIGHBORS]


def drawn(rows: int, count: int, seed: int = 0) -> np.ndarray:
    """Draw ``count`` of ``rows`` row numbers at random, in ascending order."""
    return np.sort(np.random.default_rng(check_seed(seed)).permutation(rows)[:count])
