"""Drift: do new vectors keep their neighbours as well as those the compressor was fitted on?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from smec_st.compressor import Compressor
from smec_st.data import DataError, VectorSource
from smec_st.overlap import drawn, kept_neighbors, pool_for


@dataclass(frozen=True)
class Drift:
    """New vectors against those of the fit.

    Attributes:
        pool: Vectors in the sample.
        kept: Share of the ten nearest neighbours of full width that are kept, by size.
        at_fit: The same of the vectors that the compressor was fitted on.
    """

    pool: int
    kept: dict[int, float]
    at_fit: dict[int, float]

    @property
    def drop(self) -> dict[int, float]:
        """How much less is kept, by size; below 0 where more is."""
        return {dim: self.at_fit[dim] - kept for dim, kept in self.kept.items()}

    def is_beyond(self, threshold: float) -> bool:
        """Whether any size lost more than this."""
        return max(self.drop.values()) > threshold

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"pool": self.pool, "kept": self.kept, "at_fit": self.at_fit, "drop": self.drop}


def measure_drift(compressor: Compressor, source: VectorSource, seed: int = 0) -> Drift:
    """Compare a sample of new vectors with what was recorded at the fit.

    Args:
        compressor: Fitted by this version or a later one, so that it has a record to compare with.
        source: New vectors of the same backbone; read once, in batches.
        seed: Of the sample.

    Raises:
        DataError: If the vectors are of another space or too few, or the compressor has no record.
    """
    from smec_st.streaming.space import check_space

    check_space(compressor, source.width, source.record, source.name)
    recorded = compressor.info.get("kept_neighbors")
    if not recorded:
        raise DataError("this compressor has no record of its fit to compare with; fit it anew.")
    rows = source.rows if source.rows is not None else sum(len(batch.rows) for batch in source.batches())
    pool = pool_for(rows)
    known = [int(size) for size in recorded]
    fitting = [size for size in known if pool is not None and size <= pool]
    if not fitting:
        raise DataError(f"{source.name} has {rows} vectors; at least {min(known)} are needed.")
    pool = max(fitting)
    wanted, parts = drawn(rows, pool, seed), []
    for batch in source.batches():
        inside = wanted[(wanted >= batch.start) & (wanted < batch.start + len(batch.rows))] - batch.start
        parts.append(np.asarray(batch.rows[inside], dtype=np.float32))
    sample = np.concatenate(parts)
    if not (np.isfinite(sample).all() and sample.any(axis=1).all()):
        raise DataError(f"{source.name} holds vectors that are zero, NaN or infinite.")
    at_fit = {int(dim): float(kept) for dim, kept in recorded[str(pool)].items()}
    kept = {dim: kept_neighbors(sample, compressor.map_for(dim)) for dim in at_fit}
    return Drift(pool, kept, at_fit)
