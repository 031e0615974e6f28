"""Search in Milvus: it runs the head, and candidates are rescored here on vectors fetched from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from smec_st.data.sources.indexes import milvus_calls, milvus_pages
from smec_st.search.backend import Settings
from smec_st.search.filters import Where, milvus_expression
from smec_st.search.milvus_schema import HEADS, LISTS, PREFIX, field

if TYPE_CHECKING:
    from pymilvus import MilvusClient

MAX_RESULTS = 16_384  # of one search, a limit of Milvus
REQUEST_BYTES = 16 << 20
IDS_PER_REQUEST = 4096


class MilvusReader:
    """A :class:`~smec_st.search.backend.Reader` whose keys are ids.

    It caches the vectors that it fetches, so use it for one search only. ``count`` is about the number of rows.
    """

    remote = True

    def __init__(self, uri: str, client: MilvusClient, settings: Settings, count: int) -> None:
        self.uri, self.settings = uri, settings
        self._client, self._count = client, count
        self._name = PREFIX + settings.fingerprint
        self._cache: dict[int, dict[Any, np.ndarray]] = {}  # table to vectors by id

    def __len__(self) -> int:
        return self._count

    def head(
        self, queries: np.ndarray, keep: int, where: Where | None, effort: int | None, next_table: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`~smec_st.search.backend.Reader`."""
        keep = min(keep, MAX_RESULTS)
        kind = HEADS[self.settings.head]
        parameters = {"ef": max(effort or 2 * keep, keep)} if kind.startswith("HNSW") else {}
        if kind.startswith("IVF"):
            parameters = {"nprobe": min(LISTS, effort or LISTS // 8)}
        if next_table is not None:  # fetch its vectors with the candidates, if they are not too large
            if 4 * len(queries) * keep * self.settings.widths[next_table] > REQUEST_BYTES:
                next_table = None
        with milvus_calls(self.uri, "searching"):
            hits = self._client.search(
                self._name,
                data=list(np.ascontiguousarray(queries, dtype=np.float32)),
                anns_field=field(self.settings.sizes[0]),
                limit=keep,
                filter=milvus_expression(where, self.settings.fields) if where else "",
                search_params={"metric_type": "IP", "params": parameters},
                output_fields=["id"] if next_table is None else ["id", field(next_table)],
            )
        if next_table is not None:
            name = field(next_table)
            rows = {hit["id"]: hit["entity"] for found in hits for hit in found}
            self._cache[next_table] = {key: np.array(row[name], dtype=np.float32) for key, row in rows.items()}
        widest = max((len(found) for found in hits), default=0)
        keys = np.full((len(queries), widest), self.settings.no_id, dtype=self.settings.id_dtype)
        scores = np.full(keys.shape, -np.inf, dtype=np.float32)
        for row, found in enumerate(hits):
            keys[row, : len(found)] = [hit["id"] for hit in found]
            scores[row, : len(found)] = [hit["distance"] for hit in found]
        return keys, scores

    def scores(self, table: int, queries: np.ndarray, keys: np.ndarray, found: np.ndarray) -> np.ndarray:
        """See :class:`~smec_st.search.backend.Reader`; fetches each candidate that is not in the cache once."""
        out = np.full(keys.shape, -np.inf, dtype=np.float32)
        known = self._cache.setdefault(table, {})
        missing = sorted(set(keys[found].tolist()) - known.keys())
        step = min(IDS_PER_REQUEST, max(1, REQUEST_BYTES // (4 * self.settings.widths[table])))
        with milvus_calls(self.uri, "fetching vectors"):
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
        """See :class:`~smec_st.search.backend.Reader`."""
        return np.where(found, keys, np.array(self.settings.no_id, dtype=self.settings.id_dtype))

    def fields(self, keys: np.ndarray) -> dict[str, list[Any]]:
        """See :class:`~smec_st.search.backend.Reader`."""
        names, rows = list(self.settings.fields), {}
        with milvus_calls(self.uri, "reading fields"):
            for start in range(0, len(keys), IDS_PER_REQUEST):
                part = keys[start : start + IDS_PER_REQUEST].tolist()
                rows.update({r["id"]: r for r in self._client.get(self._name, ids=part, output_fields=["id", *names])})
        return {name: [rows[key][name] for key in keys.tolist()] for name in names}

    def scan(self, tables: Sequence[int]) -> Iterator[tuple[np.ndarray, dict[int, np.ndarray]]]:
        """See :class:`~smec_st.search.backend.Reader`; rows come in the order of their ids."""
        width = sum(self.settings.widths[table] for table in tables)
        size = int(min(MAX_RESULTS, max(64, REQUEST_BYTES // (8 * width))))
        names = [field(table) for table in tables]
        with milvus_calls(self.uri, "reading all rows"):
            for part in milvus_pages(self._client, self._name, batch_size=size, output_fields=["id", *names]):
                keys = np.array([row["id"] for row in part], dtype=self.settings.id_dtype)
                yield keys, {t: np.array([row[field(t)] for row in part], dtype=np.float32) for t in tables}

    def max_effort(self) -> int:
        """See :class:`~smec_st.search.backend.Reader`."""
        kind = HEADS[self.settings.head]
        if kind.startswith("HNSW"):
            return min(self._count, MAX_RESULTS)
        return LISTS if kind.startswith("IVF") else 0
