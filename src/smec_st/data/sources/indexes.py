"""Read vectors from FAISS index files and Milvus collections."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smec_st.data.sources.batch import Batch, choose_column, file_state, metadata_record, sidecar_record
from smec_st.system.errors import DataError, one_line, some, tell
from smec_st.system.optional import load_optional


@dataclass(frozen=True)
class FaissVectors:
    """The vectors of a FAISS index, a :class:`~smec_st.data.VectorSource`.

    A compressing index gives the decoded vectors, not the originals.

    Attributes:
        owner: The index as it was read. It owns the memory of ``index`` and must stay alive.
        index: The innermost index, which stores the vectors; memory-mapped if its kind allows it.
        transforms: What is applied to vectors before they are stored, first one first.
        ids: Ids in row order, or None if rows are numbered from 0.
        places: Inverted list and position in it of each row, ``(N, 2)``; None if the index has no inverted lists.
        record: The record in ``NAME.json`` next to the file.
    """

    name: str
    owner: Any
    index: Any
    transforms: tuple[Any, ...]
    ids: np.ndarray | None
    places: np.ndarray | None
    record: Mapping[str, Any]
    state: str

    @property
    def width(self) -> int:
        """Numbers per vector, ``D``."""
        return int(self.owner.d)

    @property
    def rows(self) -> int:
        """Number of vectors, ``N``."""
        return int(self.owner.ntotal)

    def batches(self, size: int = 8192, start: int = 0) -> Iterator[Batch]:
        """See :class:`~smec_st.data.VectorSource`."""
        for first in range(start, self.rows, size):
            rows = self.read(first, min(size, self.rows - first))
            ids = None if self.ids is None else [str(key) for key in self.ids[first : first + len(rows)].tolist()]
            yield Batch(first, rows, ids)

    def read(self, first: int, count: int) -> np.ndarray:
        """Decode consecutive rows, ``(count, D)`` float32."""
        try:
            if self.places is None:
                rows = self.index.reconstruct_n(first, count)
            else:  # `reconstruct_n` leaves rows of uninitialised memory where an id is missing
                rows = np.empty((count, self.index.d), dtype=np.float32)
                pointer = load_optional("faiss", "reading a FAISS index").swig_ptr
                for row, (number, position) in zip(rows, self.places[first : first + count].tolist(), strict=True):
                    self.index.reconstruct_from_offset(number, position, pointer(row))
            for transform in reversed(self.transforms):
                rows = transform.reverse_transform(rows)
        except RuntimeError as error:
            raise DataError(f"{self.name}: this kind of index does not give its vectors back.") from error
        return np.asarray(rows)


def open_faiss(path: Path) -> FaissVectors:
    """Open a file that ``faiss.write_index`` wrote.

    Inverted lists keep no order, so their rows come in ascending order of their ids.
    """
    faiss = load_optional("faiss", "reading a FAISS index")
    with path.open("rb") as file:
        if file.read(2) == b"IB":
            raise DataError(f"{path} is a FAISS index of packed bits, not of vectors.")
    try:
        owner = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
    except RuntimeError as error:
        raise DataError(f"{path} is not a readable FAISS index: {one_line(error)}") from error
    if owner.ntotal == 0:
        raise DataError(f"{path} is an empty index.")
    index, ids, transforms = _unwrap(faiss, owner)
    if _is_compressed(faiss, index, transforms):
        tell(f"{path} holds compressed vectors; they are decoded, and are no longer those of the model.")
    places = None
    if isinstance(index, faiss.IndexIVF):
        if isinstance(index, faiss.IndexIVFFastScan) and not isinstance(index, faiss.IndexIVFRaBitQFastScan):
            raise DataError(f"{path} is an IVF index of 4-bit fast-scan codes, which FAISS cannot decode from a file.")
        keys, places = _inverted_lists(faiss, index)
        is_numbered = np.array_equal(keys, np.arange(len(keys)))
        if ids is not None and not is_numbered:
            raise DataError(
                f"{path} is an id map around inverted lists from which rows were removed. FAISS does not keep the two "
                "in step, so the ids of the rows are lost; build the index again."
            )
        ids = ids if is_numbered else keys
    if len(ids if ids is not None else places if places is not None else range(owner.ntotal)) != owner.ntotal:
        raise DataError(f"{path} is damaged: its ids or lists do not hold as many rows as the index, {owner.ntotal}.")
    source = FaissVectors(
        str(path), owner, index, tuple(transforms), ids, places, sidecar_record(path), file_state(path)
    )
    source.read(0, 1)  # refuses an index that cannot be decoded before anything is written
    return source


def _unwrap(faiss: Any, owner: Any) -> tuple[Any, np.ndarray | None, list[Any]]:
    """Return the index that stores the vectors, the ids of a map around it or None, and the transforms before it."""
    index, ids, transforms = owner, None, []
    while isinstance(index, (faiss.IndexIDMap, faiss.IndexPreTransform)):
        if isinstance(index, faiss.IndexIDMap):
            ids = faiss.vector_to_array(index.id_map)
        else:
            chain = [index.chain.at(i) for i in range(index.chain.size())]
            transforms += [faiss.downcast_VectorTransform(transform) for transform in chain]
            for transform in transforms:
                if isinstance(transform, faiss.LinearTransform):
                    transform.set_is_orthonormal()  # reading a file sets it to true without a look at the matrix
        index = faiss.downcast_index(index.index)
    return index, ids, transforms


def _is_compressed(faiss: Any, index: Any, transforms: Sequence[Any]) -> bool:
    """Return whether an index stores less than float32 numbers of full width."""
    stored = faiss.downcast_index(index.storage) if hasattr(index, "storage") else index  # that of a graph
    is_cut = any(transform.d_out < transform.d_in for transform in transforms)
    return is_cut or getattr(stored, "code_size", 4 * stored.d) < 4 * stored.d


def _inverted_lists(faiss: Any, index: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of an inverted file, ascending ``(N,)``, and the list and position of each, ``(N, 2)``."""
    lists = index.invlists
    keys, places = [np.empty(0, dtype=np.int64)], [np.empty((0, 2), dtype=np.int64)]
    for number in range(index.nlist):
        size = lists.list_size(number)
        if size:
            pointer = lists.get_ids(number)
            keys.append(faiss.rev_swig_ptr(pointer, size).copy())
            lists.release_ids(number, pointer)
            places.append(np.stack([np.full(size, number), np.arange(size)], axis=1))
    joined = np.concatenate(keys)
    order = np.argsort(joined, kind="stable")
    return joined[order], np.concatenate(places)[order]


@dataclass(frozen=True)
class MilvusVectors:
    """The vectors of a Milvus collection, a :class:`~smec_st.data.VectorSource` in ascending order of primary keys.

    Attributes:
        client: The open client.
        collection: Name of the collection.
        column: Name of the vector field.
        key: Name of the primary key.
        kind: Type of the vector field.
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
        size, seen = min(size, 16384 * 8 // max(self.width // 128, 1)), 0
        for page in milvus_pages(self.client, self.collection, batch_size=size, output_fields=[self.column]):
            fresh = page[max(0, start - seen) :]
            seen += len(page)
            if fresh:
                yield self.batch(fresh, seen - len(fresh))

    def batch(self, page: Sequence[Mapping[str, Any]], start: int) -> Batch:
        """Make a batch of the entities of a page, the first of which is row ``start``."""
        values = [entity[self.column] for entity in page]
        faults = {at: "holds no vector" for at, value in enumerate(values) if value is None}
        nothing = np.full(self.width, np.nan, dtype=np.float32)
        rows = np.stack([nothing if value is None else self.row(value) for value in values])
        return Batch(start, rows, [str(entity[self.key]) for entity in page], faults)

    def row(self, value: object) -> np.ndarray:
        """Convert a vector from the form that pymilvus returns, ``(D,)`` float32."""
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], bytes):
            value = value[0]
        if isinstance(value, bytes):
            if self.kind == "BFLOAT16_VECTOR":
                return (np.frombuffer(value, dtype="<u2").astype("<u4") << 16).view("<f4")
            return np.frombuffer(value, dtype="<f2").astype(np.float32)
        return np.asarray(value, dtype=np.float32)


def milvus_pages(client: Any, collection: str, **options: Any) -> Iterator[list[dict[str, Any]]]:
    """Yield the entities of a collection, a page at a time; the options are those of ``query_iterator``."""
    pages = client.query_iterator(collection, **options)
    try:
        while page := pages.next():
            yield page
    finally:
        pages.close()


@contextmanager
def milvus_calls(uri: str, what: str) -> Iterator[None]:
    """Raise the exceptions of the engine as a one-line :class:`DataError`."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        module = type(error).__module__
        if not module.startswith(("pymilvus", "grpc", "milvus_lite")) and not isinstance(error, OSError):
            raise
        raise DataError(f"{what} failed in {uri}: {one_line(error)}") from error


def open_milvus(address: str, column: str | None = None) -> MilvusVectors:
    """Open ``URI#COLLECTION``: a Milvus Lite file (``docs.db#docs``) or a server (``http://host:19530#docs``)."""
    pymilvus = load_optional("pymilvus", "reading Milvus")
    uri, _, collection = address.rpartition("#")
    if "://" not in uri and not Path(uri).exists():
        raise DataError(f"no such file: {uri}")
    try:
        client = pymilvus.MilvusClient(uri)
        names = client.list_collections()
        if client.has_collection(collection):
            collection = client.describe_collection(collection)["collection_name"]  # the address may hold an alias
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
