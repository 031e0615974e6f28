"""Milvus: a local file (Milvus Lite), a server or a cluster, by the URI alone.

Every index is one collection named by its fingerprint, with a field per size and one for the originals. Settings and
the compressor lie in a small collection beside it, so that a URI is all that a reader needs.
"""

from __future__ import annotations

import base64
import json
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smec_st.data import DataError
from smec_st.data.errors import some
from smec_st.search.backend import Batch, Settings
from smec_st.search.connection import calls, connect, disconnect, is_local
from smec_st.search.filters import Where, milvus_expression
from smec_st.search.milvus_schema import (
    HEADS,
    LISTS,
    MOST_TEXT,
    PREFIX,
    SETTINGS,
    create_collection,
    create_settings,
    field,
    read_text,
    write_compressor,
    write_text,
)

if TYPE_CHECKING:
    from smec_st.compressor import Compressor

MOST_KEPT = 16_384  # results of one search, by Milvus's own limit
REQUEST_BYTES = 16 << 20
IDS_AT_A_TIME = 4096
PARTLY = "Some rows of this batch may be there: add it again with replace."


class MilvusBackend:
    """Rows in a Milvus collection; made by :meth:`create` or :meth:`open`. Keys are ids.

    Args:
        uri: Of the file or server.
        client: A ``pymilvus.MilvusClient``.
        settings: Of the index.
    """

    def __init__(self, uri: str, client: Any, settings: Settings) -> None:
        self.uri, self.settings = uri, settings
        self._client = client
        self._name = PREFIX + settings.fingerprint
        self._writing = threading.RLock()  # writes to one collection of Milvus Lite must come one by one
        self._unflushed = False

    # -- open and close -----------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, uri: str, settings: Settings, compressor: Compressor) -> MilvusBackend:
        """A new, empty collection; settings are written last, so that a half-made one is made again."""
        if settings.head not in HEADS:
            raise DataError(f"Milvus has no head {settings.head!r}; use {', '.join(HEADS)}.")
        if settings.originals not in (None, "float32"):
            raise DataError("Milvus keeps originals as float32 or not at all.")
        client = connect(uri, new=True)
        try:
            with calls(uri, "creating the index"):
                if not client.has_collection(SETTINGS):
                    create_settings(client)
                client.load_collection(SETTINGS)
                if read_text(client, settings.fingerprint, "settings"):
                    raise DataError(f"{uri} holds an index of the compressor {settings.fingerprint} already.")
                if client.has_collection(PREFIX + settings.fingerprint):
                    client.drop_collection(PREFIX + settings.fingerprint)
                create_collection(client, settings)
                write_compressor(client, compressor)
            self = cls(uri, client, settings)
            self.save_settings(settings)
        except BaseException:
            disconnect(uri, client)
            raise
        return self

    @classmethod
    def open(cls, uri: str, fingerprint: str | None) -> MilvusBackend:
        """The index of that compressor; without one, the only index there."""
        client = connect(uri, new=False)
        try:
            with calls(uri, "opening the index"):
                names = client.list_collections()
                if SETTINGS not in names:
                    raise DataError(f"{uri} holds no index.")
                client.load_collection(SETTINGS)
                found = [name[len(PREFIX) :] for name in names if name.startswith(PREFIX) and name != SETTINGS]
                if fingerprint is None and len(found) > 1:
                    raise DataError(f"{uri} holds several indexes; name the compressor of one: {some(found, 9)}.")
                wanted = fingerprint or (found or [""])[0]
                written = read_text(client, wanted, "settings") if wanted in found else ""
                if not written:
                    held = f" for the compressor {wanted}; it holds {some(found, 9)}" if fingerprint and found else ""
                    raise DataError(f"{uri} holds no complete index{held}.")
                client.load_collection(PREFIX + wanted)
            return cls(uri, client, Settings.from_dict(json.loads(written)))
        except BaseException:
            disconnect(uri, client)
            raise

    def close(self) -> None:
        """Close the connection; of a local file, give back its lock."""
        if self._client is not None:
            client, self._client = self._client, None
            disconnect(self.uri, client)

    def compressor(self) -> Compressor:
        """The one that was stored in the database."""
        from smec_st.compressor import CONFIG_FILE, WEIGHTS_FILE, Compressor

        with tempfile.TemporaryDirectory() as folder, calls(self.uri, "reading the compressor"):
            for name in (CONFIG_FILE, WEIGHTS_FILE):
                content = base64.b64decode(read_text(self._client, self.settings.fingerprint, name))
                Path(folder, name).write_bytes(content)
            return Compressor.load(folder)

    def save_settings(self, settings: Settings) -> None:
        """Into the collection of settings."""
        with self._writing, calls(self.uri, "writing settings"):
            write_text(self._client, settings.fingerprint, "settings", json.dumps(settings.to_dict()))
        self.settings = settings

    # -- write --------------------------------------------------------------------------------------------------------

    def add(self, batch: Batch, replace: bool) -> None:
        """Rows in requests of at most 16 MB; when one fails, those of this batch that went before are removed."""
        width = sum(vectors.shape[1] for vectors in batch.vectors.values())
        step = max(1, REQUEST_BYTES // (4 * width))
        with self._writing:
            if not replace and (there := self._there(batch.ids)):
                raise DataError(f"{len(there)} of these ids are in the index already: {some(there)}.")
            done: list[Any] = []
            try:
                with calls(self.uri, f"adding {len(batch)} rows"):
                    for start in range(0, len(batch), step):
                        rows = [self._row(batch, i) for i in range(start, min(start + step, len(batch)))]
                        done += [row["id"] for row in rows]
                        (self._client.upsert if replace else self._client.insert)(self._name, rows)
            except BaseException as error:
                if not replace and done and not self._take_back(done):
                    raise DataError(f"{error} {PARTLY}") from error
                raise
            self._unflushed = True

    def _take_back(self, ids: Sequence[Any]) -> bool:
        """Remove what a failed batch left behind; whether that worked."""
        try:
            with calls(self.uri, "taking back"):
                self._client.delete(self._name, ids=list(ids))
        except DataError:
            return False
        return True

    def _row(self, batch: Batch, i: int) -> dict[str, Any]:
        values = {name: column[i] for name, column in batch.fields.items()}
        long = [name for name, value in values.items() if isinstance(value, str) and len(value.encode()) > MOST_TEXT]
        if long:
            raise DataError(f"field {long[0]!r} of {batch.ids[i]!r} is longer than {MOST_TEXT} bytes.")
        vectors = {field(table): vectors[i] for table, vectors in batch.vectors.items()}
        return {"id": batch.ids[i], **vectors, **values}

    def _there(self, ids: Sequence[Any]) -> list[Any]:
        """Those of these ids that the collection holds."""
        there = []
        with calls(self.uri, "looking ids up"):
            for start in range(0, len(ids), IDS_AT_A_TIME):
                part = list(ids[start : start + IDS_AT_A_TIME])
                there += [row["id"] for row in self._client.get(self._name, ids=part, output_fields=["id"])]
        return there

    def present(self, ids: Sequence[Any]) -> int:
        """How many of these ids are there."""
        return len(self._there(ids))

    def delete(self, ids: Sequence[Any]) -> int:
        """Rows by id; counted before, because Milvus does not say."""
        with self._writing:
            there = self._there(ids)
            with calls(self.uri, "deleting"):
                for start in range(0, len(there), IDS_AT_A_TIME):
                    self._client.delete(self._name, ids=there[start : start + IDS_AT_A_TIME])
            self._unflushed = self._unflushed or bool(there)
        return len(there)

    def flush(self) -> None:
        """Seal what was added, so that it is indexed."""
        with self._writing, calls(self.uri, "flushing"):
            if self._unflushed:
                self._client.flush(self._name)
                self._unflushed = False

    def compact(self) -> None:
        """Let Milvus merge segments and drop deleted rows."""
        self.flush()
        if not is_local(self.uri):  # Milvus Lite does so by itself
            with self._writing, calls(self.uri, "compacting"):
                self._client.compact(self._name)

    # -- read ---------------------------------------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Nothing to do: every search sees what the engine holds. Settings are read again."""
        with calls(self.uri, "reading settings"):
            newest = Settings.from_dict(json.loads(read_text(self._client, self.settings.fingerprint, "settings")))
        changed, self.settings = newest != self.settings, newest
        return changed

    def reader(self) -> MilvusBackend:
        """Itself: the engine keeps searches and writes apart."""
        if self._unflushed and is_local(self.uri):  # rows that are not flushed are searched many times slower
            self.flush()
        return self

    def __len__(self) -> int:
        with calls(self.uri, "counting"):
            return int(self._client.query(self._name, filter="", output_fields=["count(*)"])[0]["count(*)"])

    def head(
        self, queries: np.ndarray, keep: int, where: Where | None, effort: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`~smec_st.search.backend.Reader`."""
        keep = min(keep, MOST_KEPT)
        kind = HEADS[self.settings.head]
        knob = {"ef": max(effort or 2 * keep, keep)} if kind.startswith("HNSW") else {}
        if kind.startswith("IVF"):
            knob = {"nprobe": min(LISTS, effort or LISTS // 8)}
        with calls(self.uri, "searching"):
            hits = self._client.search(
                self._name,
                data=list(np.ascontiguousarray(queries, dtype=np.float32)),
                anns_field=field(self.settings.sizes[0]),
                limit=keep,
                filter=milvus_expression(where, self.settings.fields) if where else "",
                search_params={"metric_type": "IP", "params": knob},
                output_fields=["id"],
            )
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
        """Fetch the candidates of all queries once, and compare here."""
        out = np.full(keys.shape, -np.inf, dtype=np.float32)
        wanted = sorted(set(keys[found].tolist()))
        if not wanted:
            return out
        width = self.settings.widths[table]
        step = min(IDS_AT_A_TIME, max(1, REQUEST_BYTES // (4 * width)))
        place: dict[Any, int] = {}
        vectors = np.empty((len(wanted), width), dtype=np.float32)
        with calls(self.uri, "fetching vectors"):
            for start in range(0, len(wanted), step):
                part = wanted[start : start + step]
                for row in self._client.get(self._name, ids=part, output_fields=["id", field(table)]):
                    vectors[len(place)] = row[field(table)]
                    place[row["id"]] = len(place)
        for query in range(len(keys)):
            here = [
                place.get(key, -1) if ok else -1 for key, ok in zip(keys[query].tolist(), found[query], strict=True)
            ]
            rows = np.array(here)  # a row may have been deleted since
            out[query, rows >= 0] = vectors[rows[rows >= 0]] @ queries[query]
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
        return min(len(self), MOST_KEPT) if kind.startswith("HNSW") else LISTS if kind.startswith("IVF") else 0

    def verify(self) -> None:
        """Every row can be read, and there are as many as there should be."""
        seen = sum(len(keys) for keys, _ in self.scan(tuple(self.settings.widths)))
        if seen != len(self):
            raise DataError(f"{self.uri} is damaged: {seen} of {len(self)} rows can be read.")

    def bytes(self) -> dict[str, Any]:
        """A local file's bytes on disk; a server does not say, and memory is the engine's own affair."""
        if not is_local(self.uri):
            return {"ram": None, "disk": None}
        disk: dict[str, int] = {}
        for path in Path(self.uri).rglob("*"):
            if path.is_file():
                label = "indexes" if path.suffix == ".idx" else "rows"
                disk[label] = disk.get(label, 0) + path.stat().st_size
        return {"ram": None, "disk": disk}
