"""Measure drift: whether new vectors keep their neighbours as well as those that the compressor was fitted on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from smec_st.compressor import Compressor
from smec_st.compressor.space import check_space
from smec_st.data import DataError, VectorSource
from smec_st.evaluation.overlap import drawn, kept_neighbors, pool_for
from smec_st.stores.bad_rows import BadRows, find_bad_rows


@dataclass(frozen=True)
class Drift:
    """How well new vectors keep their neighbours, compared with those of the fit.

    Attributes:
        pool: Number of vectors in the sample.
        kept: Share of the ten nearest neighbours at full width that are kept, by size.
        at_fit: The same share of the vectors that the compressor was fitted on.
    """

    pool: int
    kept: dict[int, float]
    at_fit: dict[int, float]

    @property
    def drop(self) -> dict[int, float]:
        """The loss of kept neighbours since the fit, by size; negative if more are kept."""
        return {dim: self.at_fit[dim] - kept for dim, kept in self.kept.items()}

    def is_beyond(self, threshold: float) -> bool:
        """Return whether any size lost more than ``threshold``."""
        return max(self.drop.values()) > threshold

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dictionary for JSON."""
        return {"pool": self.pool, "kept": self.kept, "at_fit": self.at_fit, "drop": self.drop}


def measure_drift(compressor: Compressor, source: VectorSource, seed: int = 0) -> Drift:
    """Compare a sample of new vectors with what was recorded at the fit.

    Args:
        compressor: A compressor whose fit recorded the kept neighbours; all since this version do.
        source: New vectors of the same backbone. All are looked at, in batches.
        seed: Random seed of the sample.

    Raises:
        BadRows: If rows cannot be used; the error holds all of them.
        DataError: If the vectors are of another space or too few, or the compressor has no record of its fit.
    """
    check_space(compressor, source.width, source.record, source.name)
    recorded = compressor.info.get("kept_neighbors")
    if not recorded:
        raise DataError("this compressor has no record of its fit to compare with; fit it again.")
    rows, bad = find_bad_rows(source)
    if bad:
        raise BadRows(bad, "mend or remove them.")
    largest = pool_for(rows)
    known = [int(size) for size in recorded]
    possible = [size for size in known if largest is not None and size <= largest]
    if not possible:
        raise DataError(f"{source.name} has {rows} vectors; at least {min(known)} are needed.")
    pool = max(possible)
    sample = _read_rows(source, drawn(rows, pool, seed))
    at_fit = {int(dim): float(kept) for dim, kept in recorded[str(pool)].items()}
    kept = {dim: kept_neighbors(sample, compressor.map_for(dim)) for dim in at_fit}
    return Drift(pool, kept, at_fit)


def _read_rows(source: VectorSource, rows: np.ndarray) -> np.ndarray:
    """Read the rows with these numbers, ``(n, D)`` float32."""
    parts = []
    for batch in source.batches():
        inside = rows[(rows >= batch.start) & (rows < batch.start + len(batch.rows))] - batch.start
        parts.append(np.asarray(batch.rows[inside], dtype=np.float32))
    return np.concatenate(parts)
