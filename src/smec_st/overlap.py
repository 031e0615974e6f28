"""How many neighbours of full width a map keeps, on samples of fixed sizes, so that two figures can be compared."""

from __future__ import annotations

import numpy as np

from smec_st.data.vectors import unit_rows
from smec_st.maps import FoldedMap
from smec_st.metrics import exact_search, leave_out, neighbour_overlap

#: Sizes of the samples that are searched; the share kept depends on the size.
POOLS = (200, 500, 1000, 2000)
NEIGHBORS, ASKING = 10, 500


def pool_for(rows: int) -> int | None:
    """The largest of :data:`POOLS` that so many rows fill; None below the smallest."""
    return max((pool for pool in POOLS if pool <= rows), default=None)


def kept_neighbors(sample: np.ndarray, folded: FoldedMap) -> float:
    """Share of the ten nearest at full width that are among the ten nearest after the map, mean over the sample.

    Args:
        sample: ``(n, D)``, any float type.
        folded: The map.
    """
    full = unit_rows(sample)
    return float(neighbour_overlap(_nearest(folded.compress(full)), _nearest(full)).mean())


def _nearest(rows: np.ndarray) -> np.ndarray:
    asking = rows[:ASKING]
    return leave_out(exact_search(rows, asking, NEIGHBORS + 1)[0], np.arange(len(asking)))[:, :NEIGHBORS]


def drawn(rows: int, count: int, seed: int = 0) -> np.ndarray:
    """``count`` of so many row numbers, rising."""
    return np.sort(np.random.default_rng(seed).permutation(rows)[:count])
