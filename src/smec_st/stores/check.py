"""Check for drift: whether new documents and queries keep their neighbours as well as those of the fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from smec_st.compressor import Compressor
from smec_st.compressor.space import check_space
from smec_st.data import DataError, VectorSource
from smec_st.data.sources.tables import ArrayVectors
from smec_st.evaluation.overlap import ROWS_READ, distinct_rows, drawn, kept_neighbors
from smec_st.stores.bad_rows import BadRows, find_bad_rows

Side = Literal["documents", "queries"]
THRESHOLD = 0.05  # of the neighbours; samples of 1,000 vectors of one kind differ by about .01
RECORDS = {"documents": "kept_neighbors", "queries": "kept_query_neighbors"}


@dataclass(frozen=True)
class Drift:
    """How well new vectors keep their neighbours, compared with those of the fit.

    Attributes:
        side: "documents" or "queries".
        pool: Number of vectors in the sample.
        kept: Share of the ten nearest neighbours at full width that are kept, by size.
        at_fit: The same share of the vectors that the compressor was fitted on.
        threshold: Largest share that may be lost at any size.
    """

    side: Side
    pool: int
    kept: dict[int, float]
    at_fit: dict[int, float]
    threshold: float = THRESHOLD

    @property
    def drop(self) -> dict[int, float]:
        """The loss of kept neighbours since the fit, by size; negative if more are kept."""
        return {dim: self.at_fit[dim] - kept for dim, kept in self.kept.items()}

    @property
    def is_beyond(self) -> bool:
        """Whether any size lost more than the threshold."""
        return max(self.drop.values()) > self.threshold

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dictionary for JSON."""
        return {
            "pool": self.pool,
            "kept": self.kept,
            "at_fit": self.at_fit,
            "drop": self.drop,
            "threshold": self.threshold,
            "drifted": self.is_beyond,
        }


def check_drift(
    compressor: Compressor,
    documents: VectorSource | np.ndarray | None = None,
    queries: VectorSource | np.ndarray | None = None,
    *,
    threshold: float = THRESHOLD,
    query_threshold: float = THRESHOLD,
    last: int | None = None,
    seed: int = 0,
) -> list[Drift]:
    """Compare samples of new documents and of new queries with what was recorded at the fit.

    Neighbours of documents are sought among documents, and those of queries among queries, so the two results
    show which side has changed. Repeated vectors count once.

    Args:
        compressor: A compressor whose fit recorded the kept neighbours; all since this version do.
        documents: New documents of the same backbone, ``(N, D)`` or an opened source; they are read in batches.
        queries: New queries, likewise.
        threshold: Largest share of kept neighbours that documents may lose at any size.
        query_threshold: The same for queries.
        last: Only look at the last rows of each, the newest of a log; None for all.
        seed: Random seed of the samples.

    Returns:
        The drift of documents, then of queries, of those that are given.

    Raises:
        BadRows: If rows cannot be used; the error holds all of them.
        DataError: If neither is given, vectors are of another space or too few, or there is no record of the fit.
    """
    given: list[tuple[Side, VectorSource | np.ndarray | None, float]] = [
        ("documents", documents, threshold),
        ("queries", queries, query_threshold),
    ]
    found = [
        _measure(compressor, side, vectors, limit, last, seed) for side, vectors, limit in given if vectors is not None
    ]
    if not found:
        raise DataError("nothing to check: give new documents, new queries, or both.")
    return found


def _measure(
    compressor: Compressor, side: Side, given: VectorSource | np.ndarray, threshold: float, last: int | None, seed: int
) -> Drift:
    source = ArrayVectors(f"the {side}", given) if isinstance(given, np.ndarray) else given
    if not 0 <= threshold <= 1:
        raise DataError(f"the threshold of {side} is a share of the neighbours, from 0 to 1, got {threshold}.")
    check_space(compressor, source.width, source.record, source.name)
    recorded = compressor.info.get(RECORDS[side])
    if not recorded:
        raise DataError(
            f"this compressor has no record of the {side} of its fit to compare with; "
            f"fit it again with at least 200 {side}."
        )
    count = source.rows if source.rows is not None else sum(len(batch.rows) for batch in source.batches())
    start = 0 if last is None else max(0, count - last)
    bad = find_bad_rows(source, start)
    if bad:
        raise BadRows(bad, "mend or remove them.")
    sample = distinct_sample(source, start, count, seed)
    pool = max((size for size in map(int, recorded) if size <= len(sample)), default=None)
    if pool is None:
        distinct = "distinct " if len(sample) < count - start else ""
        where = source.name if last is None else f"the end of {source.name} (--last {last})"
        raise DataError(f"{where} has {len(sample)} {distinct}vectors; at least {min(map(int, recorded))} are needed.")
    sample = sample[drawn(len(sample), pool, seed)]
    at_fit = {int(dim): float(kept) for dim, kept in recorded[str(pool)].items()}
    kept = {dim: kept_neighbors(sample, compressor.map_for(dim)) for dim in at_fit}
    return Drift(side, pool, kept, at_fit, threshold)


def distinct_sample(source: VectorSource, start: int, stop: int, seed: int = 0, bad: Sequence[int] = ()) -> np.ndarray:
    """Draw rows from ``start`` to before ``stop``, without ``bad`` and repeated ones, ``(n, D)`` float32."""
    rows = np.setdiff1d(start + drawn(stop - start, ROWS_READ, seed), np.asarray(bad, dtype=np.int64))
    return distinct_rows(_read_rows(source, rows))


def _read_rows(source: VectorSource, rows: np.ndarray) -> np.ndarray:
    """Read the rows with these ascending numbers, ``(n, D)`` float32."""
    parts = [np.empty((0, source.width), dtype=np.float32)]
    for batch in source.batches(start=int(rows[0]) if len(rows) else 0):
        inside = rows[(rows >= batch.start) & (rows < batch.start + len(batch.rows))] - batch.start
        parts.append(np.asarray(batch.rows[inside], dtype=np.float32))
    return np.concatenate(parts)
