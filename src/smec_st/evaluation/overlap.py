"""Measure how many nearest neighbours a map keeps, on samples of fixed sizes so that results are comparable."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from smec_st.data.vectors import unit_rows
from smec_st.evaluation.metrics import neighbour_overlap, search_others
from smec_st.maps import FoldedMap
from smec_st.system.errors import check_seed

#: Sizes of samples. The share of neighbours kept depends on the size, so only equal sizes can be compared.
POOLS = (200, 500, 1000, 2000)
NEIGHBORS, QUERIES = 10, 500
#: Rows to read for the largest sample, so that enough are left when repeated ones are dropped.
ROWS_READ = 4 * POOLS[-1]


def pool_for(rows: int) -> int | None:
    """Return the largest of :data:`POOLS` that is at most ``rows``; None if ``rows`` is below the smallest."""
    return max((pool for pool in POOLS if pool <= rows), default=None)


def kept_by_pool(rows: np.ndarray, maps: Mapping[int, FoldedMap]) -> dict[str, dict[str, float]]:
    """Measure :func:`kept_neighbors` on samples of all :data:`POOLS` that there are enough distinct rows for.

    Args:
        rows: ``(N, D)``, any float type; at most :data:`ROWS_READ` of them are read.
        maps: The map of each size.

    Returns:
        Share of the neighbours that are kept, by number of rows and size, both as text for JSON.
    """
    distinct = distinct_rows(rows[drawn(len(rows), ROWS_READ)])
    return {
        str(pool): {
            str(dim): kept_neighbors(distinct[drawn(len(distinct), pool)], folded) for dim, folded in maps.items()
        }
        for pool in POOLS
        if pool <= len(distinct)
    }


def distinct_rows(rows: np.ndarray) -> np.ndarray:
    """Drop repeated rows, which are their own nearest neighbours at every size: the same query is asked many times."""
    first: np.ndarray = np.sort(np.unique(rows, axis=0, return_index=True)[1])
    return np.asarray(rows[first])


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
    return search_others(rows, queries, NEIGHBORS, np.arange(len(queries)))


def drawn(rows: int, count: int, seed: int = 0) -> np.ndarray:
    """Draw ``count`` of ``rows`` row numbers at random, in ascending order."""
    return np.sort(np.random.default_rng(check_seed(seed)).permutation(rows)[:count])
