"""The FAISS engine: the head is in memory, and everything else in memory-mapped files of one folder."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from smec_st.data import DataError
from smec_st.search.backend import Batch, Settings
from smec_st.search.heads import TRAIN_ROWS, Head
from smec_st.search.reader import FaissReader
from smec_st.search.storage import (
    ID,
    Layout,
    Rows,
    Segment,
    read_manifest,
    remove_leftovers,
    write_bytes,
    write_manifest,
    write_segment,
)
from smec_st.search.tables import check_file, damaged, file_crc, sync
from smec_st.system.errors import one_line, some
from smec_st.system.files import new_folder
from smec_st.system.optional import load_optional

if TYPE_CHECKING:
    import pyarrow as pa

    from smec_st.compressor import Compressor

LOCK = ".lock"
MERGE_ROWS = 65536  # small segments are merged up to this many rows
RETRIES = 5  # attempts to load a folder while another process rewrites it
HEAD_COPY_SHARE = 10  # the copy of the head is rewritten once it lacks more than one row in this many

T = TypeVar("T")


class FaissBackend:
    """An index in a folder. Use :meth:`create` or :meth:`open` to make one.

    Any number of processes may read while one writes: a reader keeps the state that it opened. A second writer gets an
    error. Within one process, threads may search while one adds.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.uri = str(folder)
        self._folder = folder
        self._writing = threading.RLock()
        self._lock: Any = None
        self._load(manifest)

    # -- open and close -----------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, folder: Path, settings: Settings, compressor: Compressor) -> FaissBackend:
        """Create an empty index. The folder must not exist, or be empty."""
        with new_folder(folder) as draft:
            (draft / "compressor").mkdir()
            compressor.write_into(draft / "compressor")
            (draft / "segments").mkdir()
            crcs = {path.name: file_crc(path) for path in sorted((draft / "compressor").iterdir())}
            body = {"generation": 0, "segments": [], "deleted": None, "head_copy": None, "compressor": crcs}
            write_manifest(draft, {"settings": settings.to_dict(), **body})
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> FaissBackend:
        """Open an existing index."""
        return _with_newest_manifest(folder, lambda manifest: cls(folder, manifest))

    def _load(self, manifest: dict[str, Any]) -> None:
        """Load everything that a manifest lists."""
        self._manifest = manifest
        try:
            self.settings = Settings.from_dict(manifest["settings"])
            self._layout = _layout_of(self.settings)
            entries = manifest["segments"]
            segments = [Segment(self._segments / entry["name"], entry, self._layout) for entry in entries]
            deleted = manifest["deleted"]
            bits = None if deleted is None else np.frombuffer(self._checked(deleted).read_bytes(), dtype=np.uint8)
            rows = Rows(segments, bits)
            head = self._empty_head()
            copy = manifest["head_copy"]
            if copy is not None and copy["rows"] <= rows.total:
                head.load(self._checked(copy), copy["built_on"])
                if len(head) != copy["rows"]:
                    raise damaged(self._folder / copy["file"], f"it holds {len(head)} rows, not {copy['rows']}")
        except (KeyError, TypeError, OSError) as error:
            raise damaged(self._folder, one_line(error)) from error
        self._reader = FaissReader(self.settings, rows, head)
        self._update_head()

    @property
    def _rows(self) -> Rows:
        return self._reader.rows

    @property
    def _head(self) -> Head:
        return self._reader.faiss_head

    @property
    def _segments(self) -> Path:
        return self._folder / "segments"

    def _checked(self, entry: Mapping[str, Any]) -> Path:
        """Check the file of a manifest entry, and return its path."""
        path = self._folder / str(entry["file"])
        check_file(path, entry["crc"])
        return path

    def close(self) -> None:
        """Release the write lock."""
        with self._writing:
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    def compressor(self) -> Compressor:
        """Load the compressor that is stored in the folder."""
        from smec_st.compressor import Compressor

        for name, crc in self._manifest["compressor"].items():
            check_file(self._folder / "compressor" / name, crc)
        return Compressor.load(self._folder / "compressor")

    # -- write --------------------------------------------------------------------------------------------------------

    @contextmanager
    def _write(self, what: str) -> Iterator[None]:
        """Hold the write lock while the newest state is changed. A failed write leaves the previous state."""
        filelock = load_optional("filelock", "writing an index")

        with self._writing:
            if self._lock is None:
                lock = filelock.FileLock(str(self._folder / LOCK), timeout=0)
                try:
                    lock.acquire()
                except filelock.Timeout as error:
                    raise DataError(f"{self._folder} is being written by another process; try again later.") from error
                except OSError as error:
                    raise DataError(f"{self._folder} cannot be written: {one_line(error)}") from error
                self._lock = lock
                self.refresh()
                remove_leftovers(self._folder, self._manifest)
            try:
                yield
            except OSError as error:
                remove_leftovers(self._folder, self._manifest)
                raise DataError(
                    f"{what} failed: {one_line(error)}. Nothing of it was kept; {self._folder} still holds "
                    f"{self._rows.live_count} rows."
                ) from error

    def _commit(self, rows: Rows, head: Head | None = None, **changes: Any) -> None:
        """Make a new state the current one, first on disk and then in memory."""
        manifest = {**self._manifest, **changes, "generation": self._manifest["generation"] + 1}
        manifest["segments"] = [segment.entry for segment in rows.segments]
        if rows.deleted_count == 0:
            manifest["deleted"] = None
        elif not np.array_equal(rows.deleted, self._rows.deleted):
            name = f"deleted-{manifest['generation']:06d}.bits"
            write_bytes(self._folder / name, rows.deleted.tobytes())
            manifest["deleted"] = {"file": name, "crc": file_crc(self._folder / name)}
        write_manifest(self._folder, manifest)
        self._manifest = manifest
        self.settings = Settings.from_dict(manifest["settings"])
        self._reader = FaissReader(self.settings, rows, head or self._head)
        remove_leftovers(self._folder, manifest)

    def save_settings(self, settings: Settings) -> None:
        """Write settings into the manifest."""
        with self._write("writing settings"):
            self._commit(self._rows, settings=settings.to_dict())

    def add(self, batch: Batch, replace: bool) -> None:
        """Add a batch as one segment, merged with the small segments before it."""
        with self._write(f"adding {len(batch)} rows"):
            rows = self._rows
            existing = rows.find(batch.ids, self.settings.id_type)
            if len(existing) and not replace:
                found = some(rows.ids(existing[:3]).tolist())
                raise DataError(f"{len(existing)} of these {len(batch)} ids are in the index already: {found}.")
            kept = list(rows.segments)
            merged: list[Segment] = []
            count = len(batch)
            while kept and kept[-1].rows <= count and kept[-1].rows + count <= MERGE_ROWS:
                merged.insert(0, kept.pop())
                count += merged[0].rows
            new = self._write_segment(count, self._pieces(merged, batch), _table(self._layout, merged, batch))
            grown = Rows([*kept, new], rows.deleted)
            self._commit(grown.without(existing) if len(existing) else grown)
            self._update_head()

    def _write_segment(self, count: int, pieces: Iterator[Mapping[int, np.ndarray]], table: pa.Table) -> Segment:
        name = f"{self._manifest['generation'] + 1:06d}"
        entry = write_segment(self._segments, name, self._layout, count, pieces, table)
        return Segment(self._segments / name, entry, self._layout)

    def _pieces(self, merged: Sequence[Segment], batch: Batch) -> Iterator[dict[int, np.ndarray]]:
        """Yield the vectors of segments and of a batch, by width."""
        for segment in merged:
            for rows in Rows([segment]).chunks():
                yield {key: table[rows] for key, table in segment.tables.items()}
        yield {self.settings.widths.get(table, table): vectors for table, vectors in batch.vectors.items()}

    def _update_head(self) -> None:
        """Add the rows that the head lacks; rebuild it if it has outgrown its structure."""
        rows, head = self._rows, self._head
        if head.wants_rebuild(rows.total):
            head = self._new_head(rows)
        else:
            self._fill(head, rows)
        self._reader = FaissReader(self.settings, rows, head)

    def _fill(self, head: Head, rows: Rows) -> None:
        for part in rows.chunks(len(head)):
            head.add(rows.vectors(self.settings.head_table, part))

    def _empty_head(self) -> Head:
        codes = self.settings.codes
        if not codes:
            return Head(self.settings.head, self.settings.sizes[0])
        codec = self._head.codec if hasattr(self, "_reader") else self.compressor().head(bytes=codes).codec
        return Head(self.settings.head, 0, codec)

    def _new_head(self, rows: Rows) -> Head:
        head = self._empty_head()
        sample = np.sort(np.random.default_rng(0).permutation(rows.total)[:TRAIN_ROWS])
        head.build(rows.vectors(self.settings.head_table, sample), rows.total)
        self._fill(head, rows)
        return head

    def delete(self, ids: Sequence[object]) -> int:
        """Mark rows as deleted. :meth:`compact` frees their space."""
        with self._write("deleting"):
            rows = self._rows.find(ids, self.settings.id_type)
            if len(rows):
                self._commit(self._rows.without(rows))
            return len(rows)

    def flush(self) -> None:
        """Write a copy of the head if it has grown enough, so that opening the folder need not rebuild it."""
        copy = self._manifest["head_copy"]
        missing = len(self._head) - (copy["rows"] if copy else 0)
        if self._head.is_exact or missing * HEAD_COPY_SHARE <= len(self._head):
            return  # filling a flat head again is fast
        with self._write("writing the head"):
            name = f"head-{self._manifest['generation'] + 1:06d}.faiss"
            path, draft = self._folder / name, self._folder / f".{name}.draft"
            self._head.save(draft)
            sync(draft)
            draft.replace(path)
            entry = {"file": name, "crc": file_crc(path), "rows": len(self._head), "built_on": self._head.built_on}
            self._commit(self._rows, head_copy=entry)

    def compact(self) -> None:
        """Rewrite the live rows as one segment, and build a head over them alone."""
        with self._write("compacting"):
            old = self._rows
            if old.total == 0 or (old.deleted_count == 0 and len(old.segments) == 1):
                return
            if old.live_count == 0:
                self._commit(Rows([]), self._empty_head(), head_copy=None)
                return
            is_live = old.live_mask()
            pieces = (
                {key: old.vectors(key, rows[is_live[rows]]) for key in self._layout.files()} for rows in old.chunks()
            )
            new = Rows([self._write_segment(old.live_count, pieces, old.table().filter(is_live))])
            if old.deleted_count:
                self._commit(new, self._new_head(new), head_copy=None)
            else:
                self._commit(new)  # row numbers stay the same, so the head does too

    # -- read ---------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._reader)

    def reader(self) -> FaissReader:
        """Return the current state."""
        if len(self._head) < self._rows.total and self._writing.acquire(blocking=False):
            try:  # an add was interrupted after its rows were committed
                self._update_head()
            finally:
                self._writing.release()
        return self._reader

    def refresh(self) -> bool:
        """Load what another process has written, and return whether anything changed."""

        def load_if_newer(manifest: dict[str, Any]) -> bool:
            is_newer = bool(manifest["generation"] != self._manifest["generation"])
            if is_newer:
                self._load(manifest)
            return is_newer

        with self._writing:
            return _with_newest_manifest(self._folder, load_if_newer)

    def verify(self) -> None:
        """Read and check every segment and every block of its tables."""
        for segment in self._rows.segments:
            Segment(segment.folder, segment.entry, self._layout)
            for table in segment.tables.values():
                table.check_all()

    def bytes(self) -> dict[str, Any]:
        """Return the bytes of each part. ``ram`` leaves out mapped files, which may stay on disk."""
        disk: dict[str, int] = {}
        for segment in self._rows.segments:
            for name, size in segment.disk_bytes.items():
                is_full = bool(self.settings.originals) and name == str(self.settings.width)
                other = {"rows": "ids and fields", "codes": "codes"}.get(name, f"{name}d")
                label = "originals" if is_full else other
                disk[label] = disk.get(label, 0) + size
        disk["head"] = sum(path.stat().st_size for path in self._folder.glob("head-*.faiss"))
        disk["compressor"] = sum(path.stat().st_size for path in (self._folder / "compressor").iterdir())
        checksums = sum(table.ram_bytes for segment in self._rows.segments for table in segment.tables.values())
        ram = {"head": self._head.ram_bytes, "deleted rows": self._rows.deleted.nbytes, "checksums": checksums}
        return {"ram": ram, "disk": disk}


def _with_newest_manifest(folder: Path, load: Callable[[dict[str, Any]], T]) -> T:
    """Call ``load`` with the newest manifest, and again if a writer removed listed files in the meantime."""
    for _ in range(RETRIES):
        manifest = read_manifest(folder)
        try:
            return load(manifest)
        except DataError:
            if read_manifest(folder)["generation"] == manifest["generation"]:
                raise  # no writer was at work, so the folder is damaged
    raise DataError(f"another process keeps rewriting {folder}; try again later.")


def _layout_of(settings: Settings) -> Layout:
    tables = {size: "float32" for size in settings.sizes}
    if settings.originals:
        tables[settings.width] = settings.originals
    return Layout(tables, settings.id_type, settings.fields, settings.codes)


def _table(layout: Layout, merged: Sequence[Segment], batch: Batch) -> pa.Table:
    """Join ids and fields of segments and of a batch."""
    import pyarrow as pa

    new = pa.table(
        {ID: list(batch.ids), **{name: list(batch.fields[name]) for name in layout.fields}}, layout.schema()
    )
    return pa.concat_tables([*(segment.table for segment in merged), new])
