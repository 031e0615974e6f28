"""The Milvus engine: a local file (Milvus Lite), a server or a cluster, depending on the URI.

Each index is one collection named after its fingerprint, with a field per size and one for the originals. A second,
small collection stores settings and compressors, so that the URI is enough to open an index.
"""

from __future__ import annotations

import base64
import json
import math
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smec_st.data import DataError
from smec_st.data.sources.indexes import milvus_calls
from smec_st.search.backend import Batch, Settings
from smec_st.search.connection import connect, disconnect, is_local
from smec_st.search.milvus_reader import IDS_PER_REQUEST, REQUEST_BYTES, MilvusReader
from smec_st.search.milvus_schema import (
    HEADS,
    MAX_TEXT_BYTES,
    PREFIX,
    SETTINGS,
    create_collection,
    create_settings,
    field,
    read_text,
    write_compressor,
    write_text,
)
from smec_st.system.errors import some

if TYPE_CHECKING:
    from pymilvus import MilvusClient

    from smec_st.compressor import Compressor

COUNT_SECONDS = 30.0  # the number of rows, by which shortlists are scaled, is cached this long
PARTLY_ADDED = "Some rows of this batch may have been added: add it again with replace."


class MilvusBackend:
    """An index in a Milvus collection. Use :meth:`create` or :meth:`open` to make one."""

    def __init__(self, uri: str, client: MilvusClient, settings: Settings) -> None:
        self.uri, self.settings = uri, settings
        self._client = client
        self._name = PREFIX + settings.fingerprint
        self._writing = threading.RLock()  # Milvus Lite needs writes to a collection one at a time
        self._unflushed = False
        self._count, self._counted = 0, -math.inf

    # -- open and close -----------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, uri: str, settings: Settings, compressor: Compressor) -> MilvusBackend:
        """Create an empty collection. Settings are written last, so that an interrupted creation can be repeated."""
        if settings.head not in HEADS:
            raise DataError(f"Milvus has no head {settings.head!r}; use {', '.join(HEADS)}.")
        if settings.originals not in (None, "float32"):
            raise DataError("Milvus keeps originals as float32 or not at all.")
        client = connect(uri, new=True)
        try:
            with milvus_calls(uri, "creating the index"):
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
        """Open the index of the compressor with this fingerprint; None opens the only index in the database."""
        client = connect(uri, new=False)
        try:
            with milvus_calls(uri, "opening the index"):
                names = client.list_collections()
                if SETTINGS not in names:
                    raise DataError(f"{uri} holds no index.")
                client.load_collection(SETTINGS)
                found = [name[len(PREFIX) :] for name in names if name.startswith(PREFIX) and name != SETTINGS]
                if fingerprint is None and len(found) > 1:
                    raise DataError(f"{uri} holds several indexes; name the compressor of one: {some(found, 9)}.")
                wanted = fingerprint or (found or [""])[0]
                text = read_text(client, wanted, "settings") if wanted in found else ""
                if not text:
                    which = f" for the compressor {wanted}; it holds {some(found, 9)}" if fingerprint and found else ""
                    raise DataError(f"{uri} holds no complete index{which}.")
                client.load_collection(PREFIX + wanted)
            return cls(uri, client, Settings.from_dict(json.loads(text)))
        except BaseException:
            disconnect(uri, client)
            raise

    def close(self) -> None:
        """Close the connection. For a local file this also releases its lock."""
        if self._client is not None:
            client, self._client = self._client, None
            disconnect(self.uri, client)

    def compressor(self) -> Compressor:
        """Load the compressor that is stored in the database."""
        from smec_st.compressor import Compressor
        from smec_st.compressor.files import CONFIG_FILE, WEIGHTS_FILE

        with tempfile.TemporaryDirectory() as folder, milvus_calls(self.uri, "reading the compressor"):
            for name in (CONFIG_FILE, WEIGHTS_FILE):
                content = base64.b64decode(read_text(self._client, self.settings.fingerprint, name))
                Path(folder, name).write_bytes(content)
            return Compressor.load(folder)

    def save_settings(self, settings: Settings) -> None:
        """Write settings into their collection."""
        with self._writing, milvus_calls(self.uri, "writing settings"):
            write_text(self._client, settings.fingerprint, "settings", json.dumps(settings.to_dict()))
        self.settings = settings

    # -- write --------------------------------------------------------------------------------------------------------

    def add(self, batch: Batch, replace: bool) -> None:
        """Add rows in requests of at most 16 MB. If one fails, the rows of the earlier requests are removed again."""
        width = sum(vectors.shape[1] for vectors in batch.vectors.values())
        step = max(1, REQUEST_BYTES // (4 * width))
        with self._writing:
            if not replace and (existing := self._existing_ids(batch.ids)):
                found = f"{len(existing)} of these {len(batch)} ids are in the index already"
                raise DataError(f"{found}: {some(existing)}.")
            done: list[Any] = []
            try:
                with milvus_calls(self.uri, f"adding {len(batch)} rows"):
                    for start in range(0, len(batch), step):
                        rows = [self._row(batch, i) for i in range(start, min(start + step, len(batch)))]
                        done += [row["id"] for row in rows]
                        (self._client.upsert if replace else self._client.insert)(self._name, rows)
            except BaseException as error:
                if not replace and done and not self._roll_back(done):
                    raise DataError(f"{error} {PARTLY_ADDED}") from error
                raise
            self._unflushed, self._counted = True, -math.inf

    def _roll_back(self, ids: Sequence[object]) -> bool:
        """Remove the rows of a failed batch, and return whether that succeeded."""
        try:
            with milvus_calls(self.uri, "rolling back"):
                self._client.delete(self._name, ids=list(ids))
        except DataError:
            return False
        return True

    def _row(self, batch: Batch, i: int) -> dict[str, Any]:
        values = {name: column[i] for name, column in batch.fields.items()}
        for name, value in values.items():
            if isinstance(value, str) and len(value.encode()) > MAX_TEXT_BYTES:
                raise DataError(f"field {name!r} of {batch.ids[i]!r} is longer than {MAX_TEXT_BYTES} bytes.")
        vectors = {field(table): vectors[i] for table, vectors in batch.vectors.items()}
        return {"id": batch.ids[i], **vectors, **values}

    def _existing_ids(self, ids: Sequence[object]) -> list[Any]:
        """Return those of these ids that are in the collection."""
        existing = []
        with milvus_calls(self.uri, "looking ids up"):
            for start in range(0, len(ids), IDS_PER_REQUEST):
                part = list(ids[start : start + IDS_PER_REQUEST])
                existing += [row["id"] for row in self._client.get(self._name, ids=part, output_fields=["id"])]
        return existing

    def delete(self, ids: Sequence[object]) -> int:
        """Remove rows by id. They are counted before, because Milvus does not report how many it removed."""
        with self._writing:
            existing = self._existing_ids(ids)
            with milvus_calls(self.uri, "deleting"):
                for start in range(0, len(existing), IDS_PER_REQUEST):
                    self._client.delete(self._name, ids=existing[start : start + IDS_PER_REQUEST])
            self._unflushed, self._counted = self._unflushed or bool(existing), -math.inf
        return len(existing)

    def flush(self) -> None:
        """Seal added rows, so that Milvus indexes them."""
        with self._writing, milvus_calls(self.uri, "flushing"):
            if self._unflushed:
                self._client.flush(self._name)
                self._unflushed = False

    def compact(self) -> None:
        """Let Milvus merge segments and remove deleted rows permanently."""
        self.flush()
        if not is_local(self.uri):  # Milvus Lite compacts by itself
            with self._writing, milvus_calls(self.uri, "compacting"):
                self._client.compact(self._name)

    # -- read ---------------------------------------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Read the settings again, and return whether they changed. Searches always see the current rows."""
        with milvus_calls(self.uri, "reading settings"):
            newest = Settings.from_dict(json.loads(read_text(self._client, self.settings.fingerprint, "settings")))
        changed, self.settings = newest != self.settings, newest
        return changed

    def reader(self) -> MilvusReader:
        """Return a reader for one search."""
        if self._unflushed and is_local(self.uri):  # searching rows that are not flushed is many times slower
            self.flush()
        if time.monotonic() > self._counted + COUNT_SECONDS:
            self._count, self._counted = len(self), time.monotonic()
        return MilvusReader(self.uri, self._client, self.settings, self._count)

    def __len__(self) -> int:
        with milvus_calls(self.uri, "counting"):
            return int(self._client.query(self._name, filter="", output_fields=["count(*)"])[0]["count(*)"])

    def verify(self) -> None:
        """Read every row, and compare their number with that of the collection."""
        seen = sum(len(keys) for keys, _ in self.reader().scan(tuple(self.settings.widths)))
        if seen != len(self):
            raise DataError(f"{self.uri} is damaged: {seen} of {len(self)} rows can be read.")

    def bytes(self) -> dict[str, Any]:
        """Return the bytes of a local file on disk. A server reports none, and the engine manages its own memory."""
        if not is_local(self.uri):
            return {"ram": None, "disk": None}
        disk: dict[str, int] = {}
        for path in Path(self.uri).rglob("*"):
            if path.is_file():
                label = "indexes" if path.suffix == ".idx" else "rows"
                disk[label] = disk.get(label, 0) + path.stat().st_size
        return {"ram": None, "disk": disk}
