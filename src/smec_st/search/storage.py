"""The files of an index folder: immutable segments, and one manifest that lists the current ones.

::

    manifest.json       settings, schedule, segments and checksums; it is replaced atomically
    compressor/         the compressor, as ``Compressor.save`` writes it
    segments/000003/    one WIDTH.npy per size, codes.npy if there are codes, and rows.arrow with ids and fields
    deleted-000007.bits one bit per row: whether it is deleted
    head-000007.faiss   a copy of the head over the first rows; later rows are added when the folder is opened

A file that the manifest does not list is left over from an interrupted write. The next writer removes it.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smec_st.data import DataError
from smec_st.search.backend import CODES
from smec_st.search.tables import Table, TableWriter, check_file, damaged, file_crc, sync
from smec_st.system.errors import one_line

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST = "manifest.json"
ROWS = "rows.arrow"
ID = "_id"
CHUNK = 16384  # rows that are read together


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: write a draft, flush it to disk, and rename it; see :func:`remove_leftovers`."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_bytes(content)
    sync(draft)
    os.replace(draft, path)
    sync(path.parent)


def write_manifest(folder: Path, body: Mapping[str, Any]) -> None:
    """Replace the manifest atomically."""
    text = json.dumps(body, indent=1, sort_keys=True)
    write_bytes(folder / MANIFEST, json.dumps({"crc": zlib.crc32(text.encode()), "index": body}, indent=1).encode())


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest and check its checksum.

    Raises:
        DataError: If the folder holds no index, or its manifest is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(f"{folder} holds no index (no {MANIFEST}).")
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        body, crc = read["index"], read["crc"]
        if zlib.crc32(json.dumps(body, indent=1, sort_keys=True).encode()) != crc:
            raise damaged(path, "its checksum differs")
    except (KeyError, TypeError, ValueError) as error:
        raise error if isinstance(error, DataError) else damaged(path, one_line(error)) from error
    return dict(body)


@dataclass(frozen=True)
class Layout:
    """The tables and columns that every segment of an index has.

    Args:
        tables: Width to data type of each table of vectors.
        id_type: ``int`` or ``str``.
        fields: Name to type of each scalar field.
        codes: Bytes of the codes; 0 for none.
    """

    tables: Mapping[int, str]
    id_type: str
    fields: Mapping[str, str]
    codes: int = 0

    def files(self) -> dict[int, tuple[str, int, str]]:
        """Return name, width and data type of the file of each table, by width, and by :data:`CODES` for codes."""
        files = {width: (f"{width}.npy", width, dtype) for width, dtype in self.tables.items()}
        return {**files, CODES: ("codes.npy", self.codes, "uint8")} if self.codes else files

    def schema(self) -> pa.Schema:
        """Return the Arrow schema of ``rows.arrow``."""
        import pyarrow as pa

        types = {"int": pa.int64(), "float": pa.float64(), "str": pa.large_string(), "bool": pa.bool_()}
        return pa.schema([(ID, types[self.id_type]), *((name, types[kind]) for name, kind in self.fields.items())])


class Segment:
    """Rows that were written together, in a folder of their own.

    Raises:
        DataError: If a file is missing or damaged. Vectors are checked later, when they are read.
    """

    def __init__(self, folder: Path, entry: Mapping[str, Any], layout: Layout) -> None:
        import pyarrow as pa

        self.folder, self.entry = folder, dict(entry)
        self.rows = int(entry["rows"])
        self.tables = {key: Table(folder / n, self.rows, w, t) for key, (n, w, t) in layout.files().items()}
        for name, crc in entry["crc"].items():
            check_file(folder / name, crc)
        with pa.memory_map(str(folder / ROWS)) as source:
            self.table: pa.Table = pa.ipc.open_file(source).read_all()
        if len(self.table) != self.rows or not self.table.schema.equals(layout.schema()):
            raise damaged(folder / ROWS, "it has other rows or fields than expected")
        # Integer ids are a view of the mapped file, so they take no memory.
        self._int_ids: np.ndarray | None = None
        if layout.id_type == "int":
            self._int_ids = self.table[ID].chunk(0).to_numpy(zero_copy_only=True)

    def ids(self, rows: np.ndarray) -> np.ndarray:
        """Return the ids of rows of this segment, ``(n,)`` int64 or object."""
        found: np.ndarray = self.table[ID].take(rows).to_numpy() if self._int_ids is None else self._int_ids[rows]
        return found

    @property
    def disk_bytes(self) -> dict[str, int]:
        """Bytes on disk of each table, and of ids and fields."""
        sizes = {table.path.stem: table.bytes for table in self.tables.values()}
        return {**sizes, "rows": (self.folder / ROWS).stat().st_size}


def write_segment(
    folder: Path,
    name: str,
    layout: Layout,
    count: int,
    chunks: Iterator[Mapping[int, np.ndarray]],
    table: pa.Table,
) -> dict[str, Any]:
    """Write a segment of ``count`` rows atomically, and return its entry in the manifest.

    It becomes part of the index once the manifest lists it. ``chunks`` are pieces of every table, by width, and
    ``table`` holds ids and fields.
    """
    import pyarrow as pa

    draft, final = folder / f".{name}.draft", folder / name
    shutil.rmtree(draft, ignore_errors=True)
    shutil.rmtree(final, ignore_errors=True)
    draft.mkdir(parents=True)
    writers: dict[int, TableWriter] = {}
    try:
        for key, (file, width, dtype) in layout.files().items():
            writers[key] = TableWriter(draft / file, count, width, dtype)
        for chunk in chunks:
            for key, writer in writers.items():
                writer.append(chunk[key])
        for writer in writers.values():
            writer.close()
        with pa.OSFile(str(draft / ROWS), "wb") as sink, pa.ipc.new_file(sink, layout.schema()) as file:
            file.write_table(table.combine_chunks())
        sync(draft / ROWS)
        crc = {path.name: file_crc(path) for path in sorted(draft.iterdir()) if path.suffix != ".npy"}
        sync(draft)
        os.replace(draft, final)
        sync(folder)
    except BaseException:
        for writer in writers.values():
            writer.abort()
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return {"name": name, "rows": count, "crc": crc}


def remove_leftovers(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Remove files of interrupted writes. The caller must hold the write lock."""
    listed = {entry["name"] for entry in manifest["segments"]}
    segments = folder / "segments"
    for path in segments.iterdir() if segments.is_dir() else ():
        if path.name not in listed:
            shutil.rmtree(path, ignore_errors=True)
    kept = {(manifest[kind] or {}).get("file") for kind in ("deleted", "head_copy")}
    for path in folder.iterdir():
        is_versioned = path.name.startswith(("deleted-", "head-", ".deleted-", ".head-", f".{MANIFEST}"))
        if is_versioned and path.name not in kept:
            path.unlink(missing_ok=True)


class Rows:
    """The segments of an index as one sequence of rows. It is immutable; a change makes a new object.

    Args:
        segments: In order.
        deleted: One bit per row, 1 where the row is deleted (little-endian, ``ceil(N / 8)`` bytes); None for none.
    """

    def __init__(self, segments: Sequence[Segment], deleted: np.ndarray | None = None) -> None:
        self.segments = tuple(segments)
        self.starts = np.cumsum([0, *(segment.rows for segment in self.segments)])
        self.total = int(self.starts[-1])
        self.deleted = np.zeros(-(-self.total // 8), dtype=np.uint8)
        if deleted is not None:
            self.deleted[: len(deleted)] = deleted[: len(self.deleted)]
        self.deleted_count = int(np.unpackbits(self.deleted).sum())

    @property
    def live_count(self) -> int:
        """Number of rows that are not deleted."""
        return self.total - self.deleted_count

    def live_mask(self) -> np.ndarray:
        """Return which rows are not deleted, ``(N,)`` bool."""
        mask: np.ndarray = np.unpackbits(self.deleted, count=self.total, bitorder="little") == 0
        return mask

    def without(self, rows: np.ndarray) -> Rows:
        """Return a copy in which these rows are deleted."""
        deleted = ~self.live_mask()
        deleted[rows] = True
        return Rows(self.segments, np.packbits(deleted, bitorder="little"))

    def table(self) -> pa.Table:
        """Return ids and fields of all rows, deleted ones included."""
        import pyarrow as pa

        return pa.concat_tables([segment.table for segment in self.segments])

    def ids(self, rows: np.ndarray) -> np.ndarray:
        """Return the ids of rows, ``(n,)`` object."""
        out = np.empty(len(rows), dtype=object)
        for segment, start, inside in self.by_segment(rows):
            out[inside] = segment.ids(rows[inside] - start)
        return out

    def by_segment(self, rows: np.ndarray) -> Iterator[tuple[Segment, int, np.ndarray]]:
        """Yield each segment that holds any of these rows, with its first row and a mask over ``rows``."""
        for segment, start in zip(self.segments, self.starts[:-1].tolist(), strict=True):
            inside = (rows >= start) & (rows < start + segment.rows)
            if inside.any():
                yield segment, start, inside

    def find(self, ids: Sequence[object], id_type: str) -> np.ndarray:
        """Return the live rows that have these ids, ascending; unknown ids are ignored."""
        import pyarrow as pa
        import pyarrow.compute as pc

        wanted = pa.array(ids, type=pa.int64() if id_type == "int" else pa.large_string())
        found = [
            start + np.flatnonzero(pc.is_in(segment.table[ID], value_set=wanted).to_numpy())
            for segment, start in zip(self.segments, self.starts[:-1].tolist(), strict=True)
        ]
        rows = np.concatenate([np.empty(0, dtype=np.int64), *found]).astype(np.int64)
        live: np.ndarray = rows[self.live_mask()[rows]]
        return live

    def vectors(self, key: int, rows: np.ndarray) -> np.ndarray:
        """Read the vectors of rows by width, ``(n, width)`` float32; or by :data:`CODES` their codes, uint8."""
        table = self.segments[0].tables[key].data
        out = np.empty((len(rows), table.shape[1]), dtype=np.uint8 if key == CODES else np.float32)
        for segment, start, inside in self.by_segment(rows):
            out[inside] = segment.tables[key][rows[inside] - start]
        return out

    def chunks(self, first: int = 0) -> Iterator[np.ndarray]:
        """Yield row numbers ``(n,)`` from row ``first`` on, deleted rows included."""
        for start in range(first, self.total, CHUNK):
            yield np.arange(start, min(start + CHUNK, self.total))
