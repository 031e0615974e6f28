"""A snapshot of a FAISS index folder for searching: rows that never change, and a head that can only grow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from smec_st.search.backend import CODES, FULL, Settings
from smec_st.search.filters import Where, arrow_mask
from smec_st.search.heads import Head
from smec_st.search.steps import best_first
from smec_st.search.storage import Rows
from smec_st.system.optional import load_optional

EXACT_SHARE = 20  # a filter that leaves at most one row in this many is searched exactly


class FaissReader:
    """A :class:`~smec_st.search.backend.Reader` whose keys are row numbers.

    The head is over the same rows in the same order. It may lack the newest rows, or hold rows that came later.
    """

    remote = False

    def __init__(self, settings: Settings, rows: Rows, head: Head) -> None:
        self.settings, self.rows, self.faiss_head = settings, rows, head

    def __len__(self) -> int:
        return self.rows.live_count

    def _allowed(self, where: Where | None) -> np.ndarray | None:
        """Return one bit per row that may be found; None if all may."""
        if not where:
            return np.invert(self.rows.deleted) if self.rows.deleted_count else None
        mask = arrow_mask(self.rows.table(), where, self.settings.fields) & self.rows.live_mask()
        return np.packbits(mask, bitorder="little")

    def head(
        self, queries: np.ndarray, keep: int, where: Where | None, effort: int | None, next_table: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`~smec_st.search.backend.Reader`."""
        rows, head = self.rows, self.faiss_head
        if rows.live_count == 0:
            return np.empty((len(queries), 0), dtype=np.int64), np.empty((len(queries), 0), dtype=np.float32)
        allowed = self._allowed(where)
        keep = min(keep, rows.live_count)
        if allowed is not None:
            candidates = np.flatnonzero(np.unpackbits(allowed, count=rows.total, bitorder="little"))
            if len(candidates) <= max(keep, rows.total // EXACT_SHARE):
                return self._exact(queries, keep, candidates)
            # The head meets rows that are filtered out, so it must look at more to find enough of the others.
            max_effort = self.max_effort()
            wider = int((effort or keep) * (rows.total / len(candidates))) + 1
            effort = min(max_effort, wider) if max_effort else None
        found, scores = head.search(queries, keep, allowed, effort)
        # A search may find rows that were added after it began.
        scores = np.where((found >= 0) & (found < rows.total), scores, -np.inf)
        return found, scores.astype(np.float32, copy=False)

    def _exact(self, queries: np.ndarray, keep: int, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compare the queries with every one of these rows."""
        keep = min(keep, len(candidates))
        best = np.full((len(queries), 0), -np.inf, dtype=np.float32)
        keys = np.empty((len(queries), 0), dtype=np.int64)
        for start in range(0, len(candidates), 16384):
            part = candidates[start : start + 16384]
            scores = queries @ self.vectors(self.settings.head_table, part).T
            keys = np.concatenate([keys, np.broadcast_to(part, scores.shape)], axis=1)
            keys, best = best_first(keys, np.concatenate([best, scores], axis=1), keep)
        return keys, best

    def vectors(self, table: int, rows: np.ndarray) -> np.ndarray:
        """Read the vectors of rows, ``(n, width)`` float32; those of codes are decoded."""
        if table == CODES:
            return self.faiss_head.decode(self.rows.vectors(CODES, rows))
        return self.rows.vectors(self.settings.widths[table], rows)

    def scores(self, table: int, queries: np.ndarray, keys: np.ndarray, found: np.ndarray) -> np.ndarray:
        """See :class:`~smec_st.search.backend.Reader`."""
        out = np.full(keys.shape, -np.inf, dtype=np.float32)
        if table == CODES or (table == FULL and self.settings.originals == "float16"):
            for query in np.flatnonzero(found.any(axis=1)).tolist():
                out[query, found[query]] = self.vectors(table, keys[query, found[query]]) @ queries[query]
            return out
        width = self.settings.widths[table]
        wanted = np.where(found, keys, -1)
        for segment, start, inside in self.rows.by_segment(wanted):
            source = segment.tables[width]
            source.check(wanted[inside] - start)
            local = np.where(inside, wanted - start, -1)
            out[inside] = _inner_products(source.data, queries, local)[inside]
        return out

    def ids(self, keys: np.ndarray, found: np.ndarray) -> np.ndarray:
        """See :class:`~smec_st.search.backend.Reader`."""
        out = np.full(keys.shape, self.settings.no_id, dtype=self.settings.id_dtype)
        if found.any():
            out[found] = self.rows.ids(keys[found])
        return out

    def fields(self, keys: np.ndarray) -> dict[str, list[Any]]:
        """See :class:`~smec_st.search.backend.Reader`."""
        table = self.rows.table().take(keys)
        return {name: table[name].to_pylist() for name in self.settings.fields}

    def scan(self, tables: Sequence[int]) -> Iterator[tuple[np.ndarray, dict[int, np.ndarray]]]:
        """See :class:`~smec_st.search.backend.Reader`."""
        is_live = self.rows.live_mask()
        for rows in self.rows.chunks():
            live = rows[is_live[rows]]
            if len(live):
                yield live, {table: self.vectors(table, live) for table in tables}

    def max_effort(self) -> int:
        """See :class:`~smec_st.search.backend.Reader`."""
        return self.faiss_head.max_effort


def _inner_products(table: np.ndarray, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Compute inner products with rows of a mapped float32 table, which FAISS reads in place; -inf for row -1."""
    faiss = load_optional("faiss", "this index")
    rows = np.ascontiguousarray(rows, dtype=np.int64)
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    scores = np.empty(rows.shape, dtype=np.float32)
    pointers = [faiss.swig_ptr(array) for array in (scores, queries, table, rows)]
    faiss.fvec_inner_products_by_idx(*pointers, table.shape[1], *rows.shape)
    return scores
