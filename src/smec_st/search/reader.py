"""One state of an index in this process, to be searched: rows that never change, and a head that may only grow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from smec_st.search.backend import FULL, Settings
from smec_st.search.filters import Where, arrow_mask
from smec_st.search.heads import Head, load_faiss
from smec_st.search.storage import Rows

EXACT_SHARE = 20  # a filter that leaves less than one row in so many is searched exactly


class FaissReader:
    """See :class:`~smec_st.search.backend.Reader`; keys are row numbers.

    Args:
        settings: Of the index.
        rows: What was committed.
        head: Over the same rows in the same order; it may lag behind, or hold rows that came later.
    """

    def __init__(self, settings: Settings, rows: Rows, head: Head) -> None:
        self.settings, self.rows, self.faiss_head = settings, rows, head

    def __len__(self) -> int:
        return self.rows.live

    def _width(self, table: int) -> int:
        return self.settings.width if table == FULL else table

    def _allowed(self, where: Where | None) -> np.ndarray | None:
        """Bits of rows that may be found; None for all."""
        if not where:
            return np.invert(self.rows.deleted) if self.rows.gone else None
        mask = arrow_mask(self.rows.table(), where, self.settings.fields) & self.rows.alive()
        return np.packbits(mask, bitorder="little")

    def head(
        self, queries: np.ndarray, keep: int, where: Where | None, effort: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`~smec_st.search.backend.Reader`; keys are rows."""
        rows, head = self.rows, self.faiss_head
        if rows.live == 0:
            return np.empty((len(queries), 0), dtype=np.int64), np.empty((len(queries), 0), dtype=np.float32)
        allowed = self._allowed(where)
        keep = min(keep, rows.live)
        if allowed is None:
            found, scores = head.search(queries, keep, None, effort)
        else:
            open_rows = np.flatnonzero(np.unpackbits(allowed, count=rows.total, bitorder="little"))
            if len(open_rows) <= max(keep, rows.total // EXACT_SHARE):
                return self._exact(queries, keep, open_rows)
            wider = rows.total / len(open_rows)
            most = self.most_effort()
            effort = min(most, int((effort or keep) * wider) + 1) if most else None
            found, scores = head.search(queries, keep, allowed, effort)
        # A search may meet rows that were added after it began.
        scores = np.where((found >= 0) & (found < rows.total), scores, -np.inf)
        return found, scores.astype(np.float32, copy=False)

    def _exact(self, queries: np.ndarray, keep: int, open_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All rows that may be found, compared one by one."""
        keep = min(keep, len(open_rows))
        best = np.full((len(queries), 0), -np.inf, dtype=np.float32)
        keys = np.empty((len(queries), 0), dtype=np.int64)
        for start in range(0, len(open_rows), 16384):
            part = open_rows[start : start + 16384]
            scores = queries @ self.rows.vectors(self.settings.sizes[0], part).T
            best = np.concatenate([best, scores], axis=1)
            keys = np.concatenate([keys, np.broadcast_to(part, scores.shape)], axis=1)
            order = np.argsort(-best, axis=1, kind="stable")[:, :keep]
            best, keys = np.take_along_axis(best, order, axis=1), np.take_along_axis(keys, order, axis=1)
        return keys, best

    def scores(self, table: int, queries: np.ndarray, keys: np.ndarray, found: np.ndarray) -> np.ndarray:
        """See :class:`~smec_st.search.backend.Reader`."""
        rows, width = self.rows, self._width(table)
        out = np.full(keys.shape, -np.inf, dtype=np.float32)
        wanted = np.where(found, keys, -1)
        for segment, start in zip(rows.segments, rows.starts[:-1].tolist(), strict=True):
            inside = (wanted >= start) & (wanted < start + segment.rows)
            if not inside.any():
                continue
            source = segment.tables[width]
            source.check(wanted[inside] - start)
            local = np.where(inside, wanted - start, -1)
            _PRODUCTS[source.data.dtype.itemsize](source.data, queries, local, inside, out)
        return out

    def ids(self, keys: np.ndarray, found: np.ndarray) -> np.ndarray:
        """See :class:`~smec_st.search.backend.Reader`."""
        text = self.settings.id_type == "str"
        out = np.full(keys.shape, "" if text else -1, dtype=object if text else np.int64)
        if found.any():
            out[found] = self.rows.ids(keys[found])
        return out

    def fields(self, keys: np.ndarray) -> dict[str, list[Any]]:
        """See :class:`~smec_st.search.backend.Reader`."""
        table = self.rows.table().take(keys)
        return {name: table[name].to_pylist() for name in self.settings.fields}

    def scan(self, tables: Sequence[int]) -> Iterator[tuple[np.ndarray, dict[int, np.ndarray]]]:
        """See :class:`~smec_st.search.backend.Reader`."""
        state, alive = self.rows, self.rows.alive()
        for rows, _ in state.chunks(self.settings.sizes[0]):
            live = rows[alive[rows]]
            if len(live):
                yield live, {table: state.vectors(self._width(table), live) for table in tables}

    def most_effort(self) -> int:
        """See :class:`~smec_st.search.backend.Reader`."""
        return self.faiss_head.most_effort


def _products_float32(
    table: np.ndarray, queries: np.ndarray, local: np.ndarray, inside: np.ndarray, out: np.ndarray
) -> None:
    """Inner products in place: FAISS reads the mapped rows where they lie."""
    faiss = load_faiss()
    ids = np.ascontiguousarray(local, dtype=np.int64)
    asked = np.ascontiguousarray(queries, dtype=np.float32)
    scores = np.empty(ids.shape, dtype=np.float32)
    pointers = [faiss.swig_ptr(array) for array in (scores, asked, table, ids)]
    faiss.fvec_inner_products_by_idx(*pointers, table.shape[1], ids.shape[0], ids.shape[1])
    np.maximum(out, scores, out=out, where=inside)


def _products_float16(
    table: np.ndarray, queries: np.ndarray, local: np.ndarray, inside: np.ndarray, out: np.ndarray
) -> None:
    for query in np.flatnonzero(inside.any(axis=1)).tolist():
        mask = inside[query]
        out[query, mask] = table[local[query, mask]].astype(np.float32) @ queries[query]


_PRODUCTS: dict[int, Callable[..., None]] = {4: _products_float32, 2: _products_float16}
