"""Read vectors from FAISS index files and Milvus collections."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smec_st.data.errors import DataError, one_line, some
from smec_st.data.sources.batch import Batch, choose_column, file_state, metadata_record, sidecar_record
from smec_st.system.optional import load_optional


@dataclass(frozen=True)
class FaissVectors:
    """The vectors of a FAISS index. A compressing index gives the decoded vectors, not the originals.

    Attributes:
        name: Path, for error messages.
        index: The index, memory-mapped if its kind allows it.
        ids: Ids in row order, or None.
        record: The record in ``NAME.json`` next to the file.
        state: See :class:`~smec_st.data.VectorSource`.
        owner: The outer index, which owns the memory of ``index`` and must stay alive.
    """

    name: str
    index: Any
    ids: np.ndarray | None
    record: Mapping[str, Any]
    state: str
    owner: Any

    @property
    def width(self) -> int:
        """Numbers per vector, ``D``."""
        return int(self.index.d)

    @property
    def rows(self) -> int:
        """Number of vectors, ``N``."""
        return int(self.index.ntotal)

    def batches(self, size: int = 8192, start: int = 0) -> Iterator[Batch]:
        """See :class:`~smec_st.data.VectorSource`."""
        for first in range(start, self.rows, size):
            count = min(size, self.rows - first)
            try:
                rows = self.index.reconstruct_n(first, count)
            except RuntimeError as error:
                raise DataError(f"{self.name}: this kind of index does not give its vectors back.") from error
            ids = None if self.ids is None else [str(key) for key in self.ids[first : first + count].tolist()]
            yield Batch(first, rows, ids)


def open_faiss(path: Path, column: str | None = None) -> FaissVectors:
    """Open a file that ``faiss.write_index`` wrote."""
    faiss = load_optional("faiss", "reading a FAISS index")
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
    except RuntimeError as error:
        raise DataError(f"{path} is not a readable FAISS index: {one_line(error)}") from error
    ids, owner = None, index
    if isinstance(index, faiss.IndexIDMap):
        ids = faiss.vector_to_array(index.id_map)
        index = faiss.downcast_index(index.index)
    if isinstance(index, faiss.IndexIVF):
        index.make_direct_map()
    if index.ntotal == 0:
        raise DataError(f"{path} is an empty index.")
    return FaissVectors(str(path), index, ids, sidecar_record(path), file_state(path), owner)


@dataclass(frozen=True)
class MilvusVectors:
    """The vectors of a Milvus collection, in ascending order of their primary keys.

    Attributes:
        name: Address and collection, for error messages.
        client: The open client.
        collection: Name of the collection.
        column: Name of the vector field.
        key: Name of the primary key.
        kind: Type of the vector field.
        width: Numbers per vector, ``D``.
        rows: Number of vectors according to the collection's statistics.
        record: The collection's description, if it is JSON. Milvus Lite stores no description, so the record is the
            collection's property ``smec_st``, or ``FILE.json`` next to the file.
    """

    name: str
    client: Any
    collection: str
    column: str
    key: str
    kind: str
    width: int
    rows: int | None
    record: Mapping[str, Any]

    @property
    def state(self) -> str:
        """Name and row count; Milvus offers no better sign of a change."""
        return f"{self.name} {self.rows}"

    def batches(self, size: int = 8192, start: int = 0) -> Iterator[Batch]:
        """See :class:`~smec_st.data.VectorSource`."""
        pages = self.client.query_iterator(
            self.collection, batch_size=min(size, 16384 * 8 // max(self.width // 128, 1)), output_fields=[self.column]
        )
        seen = 0
        try:
            while page := pages.next():
                fresh = page[max(0, start - seen) :]
                seen += len(page)
                if fresh:
                    rows = np.stack([self.row(entity[self.column]) for entity in fresh])
                    yield Batch(seen - len(fresh), rows, [str(entity[self.key]) for entity in fresh])
        finally:
            pages.close()

    def row(self, value: Any) -> np.ndarray:
        """Convert a vector from the form that pymilvus returns, ``(D,)`` float32."""
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], bytes):
            value = value[0]
        if isinstance(value, bytes):
            if self.kind == "BFLOAT16_VECTOR":
                return (np.frombuffer(value, dtype="<u2").astype("<u4") << 16).view("<f4")
            return np.frombuffer(value, dtype="<f2").astype(np.float32)
        return np.asarray(value, dtype=np.float32)


def open_milvus(address: str, column: str | None = None) -> MilvusVectors:
    """Open ``URI#COLLECTION``: a Milvus Lite file (``docs.db#docs``) or a server (``http://host:19530#docs``)."""
    pymilvus = load_optional("pymilvus", "reading Milvus")
    uri, _, collection = address.rpartition("#")
    if "://" not in uri and not Path(uri).exists():
        raise DataError(f"no such file: {uri}")
    try:
        client = pymilvus.MilvusClient(uri)
        names = client.list_collections()
        if collection not in names:
            raise DataError(f"{uri} has no collection {collection}; it has {some(sorted(names)) or 'none'}.")
        description = client.describe_collection(collection)
        client.load_collection(collection)
        rows = client.get_collection_stats(collection).get("row_count")
    except pymilvus.MilvusException as error:
        raise DataError(f"cannot read {address}: {one_line(error)}") from error
    kinds = {getattr(pymilvus.DataType, f"{name}_VECTOR") for name in ("FLOAT", "FLOAT16", "BFLOAT16")}
    fields = {field["name"]: field for field in description["fields"]}
    found = [name for name, field in fields.items() if field["type"] in kinds]
    column = choose_column(found, column, address, "fields of float vectors")
    key = next(name for name, field in fields.items() if field.get("is_primary"))
    try:
        record = json.loads(description.get("description") or "{}")
    except ValueError:
        record = {}
    kind = pymilvus.DataType(fields[column]["type"]).name
    width = int(fields[column]["params"]["dim"])
    record = record if isinstance(record, dict) else {}
    if "://" not in uri:
        record |= sidecar_record(Path(uri)) | metadata_record(description.get("properties"))
    return MilvusVectors(address, client, collection, column, key, kind, width, rows and int(rows), record)
