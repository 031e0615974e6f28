"""Search in Milvus: the head there, the rescoring here, on vectors that come along with the candidates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from smec_st.search.backend import Settings
from smec_st.search.connection import calls
from smec_st.search.filters import Where, milvus_expression
from smec_st.search.milvus_schema import HEADS, LISTS, PREFIX, field

MOST_KEPT = 16_384  # results of one search, by Milvus's own limit
REQUEST_BYTES = 16 << 20
IDS_AT_A_TIME = 4096


class MilvusReader:
    """See :class:`~smec_st.search.backend.Reader`; keys are ids. For one search: it remembers what it fetched.

    Args:
        uri: For messages.
        client: A ``pymilvus.MilvusClient``.
        settings: Of the index.
        count: Rows, at least about.
    """

    remote = True

    def __init__(self, uri: str, client: Any, settings: Settings, count: int) -> None:
        self.uri, self.settings = uri, settings
        self._client, self._count = client, count
        self._name = PREFIX + settings.fingerprint
        self._known: dict[int, dict[Any, np.ndarray]] = {}  # vectors that came along, per table

    def __len__(self) -> int:
        return self._count

    def head(
        self, queries: np.ndarray, keep: int, where: Where | None, effort: int | None, then: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`~smec_st.search.backend.Reader`."""
        keep = min(keep, MOST_KEPT)
        kind = HEADS[self.settings.head]
        knob = {"ef": max(effort or 2 * keep, keep)} if kind.startswith("HNSW") else {}
        if kind.startswith("IVF"):
            knob = {"nprobe": min(LISTS, effort or LISTS // 8)}
        along = then is not None and 4 * len(queries) * keep * self.settings.widths[then] <= REQUEST_BYTES
        with calls(self.uri, "searching"):
            hits = self._client.search(
                self._name,
                data=list(np.ascontiguousarray(queries, dtype=np.float32)),
                anns_field=field(self.settings.sizes[0]),
                limit=keep,
                filter=milvus_expression(where, self.settings.fields) if where else "",
                search_params={"metric_type": "IP", "params": knob},
                output_fields=["id", field(then)] if then is not None and along else ["id"],
            )
        if then is not None and along:
            name = field(then)
            rows = {hit["id"]: hit["entity"] for found in hits for hit in found}
            self._known[then] = {key: np.array(row[name], dtype=np.float32) for key, row in rows.items()}
        widest = max((len(found) for found in hits), default=0)
        keys = np.full((len(queries), widest), self._none, dtype=self._key_type)
        scores = np.full(keys.shape, -np.inf, dtype=np.float32)
        for row, found in enumerate(hits):
            keys[row, : len(found)] = [hit["id"] for hit in found]
            scores[row, : len(found)] = [hit["distance"] for hit in found]
        return keys, scores

    @property
    def _none(self) -> Any:
        return "" if self.settings.id_type == "str" else -1

    @property
    def _key_type(self) -> Any:
        return object if self.settings.id_type == "str" else np.int64

    def scores(self, table: int, queries: np.ndarray, keys: np.ndarray, found: np.ndarray) -> np.ndarray:
        """Fetch the candidates of all queries once, unless they came along, and compare here."""
        out = np.full(keys.shape, -np.inf, dtype=np.float32)
        known = self._known.setdefault(table, {})
        missing = sorted(set(keys[found].tolist()) - known.keys())
        step = min(IDS_AT_A_TIME, max(1, REQUEST_BYTES // (4 * self.settings.widths[table])))
        with calls(self.uri, "fetching vectors"):
            for start in range(0, len(missing), step):
                part = missing[start : start + step]
                for row in self._client.get(self._name, ids=part, output_fields=["id", field(table)]):
                    known[row["id"]] = np.array(row[field(table)], dtype=np.float32)
        for query in range(len(keys)):
            # A row may have been deleted since the head found it.
            places = [place for place in np.flatnonzero(found[query]).tolist() if keys[query, place] in known]
            if places:
                vectors = np.stack([known[keys[query, place]] for place in places])
                out[query, places] = vectors @ queries[query]
        return out

    def ids(self, keys: np.ndarray, found: np.ndarray) -> np.ndarray:
        """Keys are ids."""
        return np.where(found, keys, np.array(self._none, dtype=self._key_type))

    def fields(self, keys: np.ndarray) -> dict[str, list[Any]]:
        """See :class:`~smec_st.search.backend.Reader`."""
        names, rows = list(self.settings.fields), {}
        with calls(self.uri, "reading fields"):
            for start in range(0, len(keys), IDS_AT_A_TIME):
                part = keys[start : start + IDS_AT_A_TIME].tolist()
                rows.update({r["id"]: r for r in self._client.get(self._name, ids=part, output_fields=["id", *names])})
        return {name: [rows[key][name] for key in keys.tolist()] for name in names}

    def scan(self, tables: Sequence[int]) -> Iterator[tuple[np.ndarray, dict[int, np.ndarray]]]:
        """See :class:`~smec_st.search.backend.Reader`; in the order of ids."""
        width = sum(self.settings.widths[table] for table in tables)
        size = int(min(MOST_KEPT, max(64, REQUEST_BYTES // (8 * width))))
        names = [field(table) for table in tables]
        with calls(self.uri, "reading all rows"):
            rows = self._client.query_iterator(self._name, batch_size=size, output_fields=["id", *names])
            try:
                while part := rows.next():
                    keys = np.array([row["id"] for row in part], dtype=self._key_type)
                    yield keys, {t: np.array([row[field(t)] for row in part], dtype=np.float32) for t in tables}
            finally:
                rows.close()

    def most_effort(self) -> int:
        """See :class:`~smec_st.search.backend.Reader`."""
        kind = HEADS[self.settings.head]
        return min(self._count, MOST_KEPT) if kind.startswith("HNSW") else LISTS if kind.startswith("IVF") else 0
