"""The engine in this process: a FAISS head in memory, everything else in memory-mapped files of one folder."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smec_st.data import DataError
from smec_st.data.errors import one_line, some
from smec_st.files import new_folder
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
from smec_st.search.tables import damaged, file_crc, sync

if TYPE_CHECKING:
    import pyarrow as pa

    from smec_st.compressor import Compressor

LOCK = ".lock"
MERGE_ROWS = 65536  # small segments are merged up to this many rows
RETRIES = 5  # of opening, while another process rewrites the folder
HEAD_COPY_SHARE = 10  # the head is written again when it grew by more than one row in so many


class FaissBackend:
    """Rows in a folder; made by :meth:`create` or :meth:`open`.

    Any number of processes may read while one writes: a reader keeps what it opened. The second writer is refused.
    Within one process, threads may search while one adds.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.uri = str(folder)
        self._folder = folder
        self._writing = threading.RLock()
        self._lock: Any = None
        self._take(manifest)

    # -- open and close -----------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, folder: Path, settings: Settings, compressor: Compressor) -> FaissBackend:
        """A new, empty index; the folder must be new or empty."""
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
        """An index that exists."""
        for _ in range(RETRIES):
            manifest = read_manifest(folder)
            try:
                return cls(folder, manifest)
            except DataError:
                if read_manifest(folder)["generation"] == manifest["generation"]:
                    raise  # it was not a writer who took a file away meanwhile
        raise DataError(f"{folder} is being rewritten all the time; try again later.")

    def _take(self, manifest: dict[str, Any]) -> None:
        """Load everything a manifest names."""
        try:
            self.settings = Settings.from_dict(manifest["settings"])
            self._layout = self._layout_of(self.settings)
            entries = manifest["segments"]
            segments = [Segment(self._segments / entry["name"], entry, self._layout) for entry in entries]
            deleted = self._checked_bytes(manifest["deleted"])
            rows = Rows(segments, None if deleted is None else np.frombuffer(deleted, dtype=np.uint8))
            head = Head(self.settings.head, self.settings.sizes[0])
            copy = manifest["head_copy"]
            if copy is not None and copy["rows"] <= rows.total:
                self._check_file(copy)
                head.load(self._folder / copy["file"], copy["built_on"])
                if len(head) != copy["rows"]:
                    raise damaged(self._folder / copy["file"], f"it holds {len(head)} rows, not {copy['rows']}")
        except (KeyError, TypeError, OSError) as error:
            raise damaged(self._folder, one_line(error)) from error
        self._manifest = manifest
        self._reader = FaissReader(self.settings, rows, head)
        self._catch_up()

    @staticmethod
    def _layout_of(settings: Settings) -> Layout:
        tables = {size: "float32" for size in settings.sizes}
        if settings.originals:
            tables[settings.width] = settings.originals
        return Layout(tables, settings.id_type, settings.fields)

    @property
    def _rows(self) -> Rows:
        return self._reader.rows

    @property
    def _head(self) -> Head:
        return self._reader.faiss_head

    @property
    def _segments(self) -> Path:
        return self._folder / "segments"

    def _check_file(self, entry: Mapping[str, Any]) -> None:
        path = self._folder / entry["file"]
        if not path.is_file() or file_crc(path) != entry["crc"]:
            raise damaged(path, "it is missing" if not path.is_file() else "its checksum differs")

    def _checked_bytes(self, entry: Mapping[str, Any] | None) -> bytes | None:
        if entry is None:
            return None
        self._check_file(entry)
        return Path(self._folder, str(entry["file"])).read_bytes()

    def close(self) -> None:
        """Give the lock back."""
        with self._writing:
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    def compressor(self) -> Compressor:
        """The one that is kept in the folder."""
        from smec_st.compressor import Compressor

        for name, crc in self._manifest["compressor"].items():
            self._check_file({"file": f"compressor/{name}", "crc": crc})
        return Compressor.load(self._folder / "compressor")

    # -- write --------------------------------------------------------------------------------------------------------

    @contextmanager
    def _write(self, what: str) -> Iterator[None]:
        """Hold the lock, on the newest state; a failed write leaves what was there."""
        from filelock import FileLock, Timeout

        with self._writing:
            if self._lock is None:
                lock = FileLock(str(self._folder / LOCK), timeout=0)
                try:
                    lock.acquire()
                except Timeout as error:
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
                    f"{self._rows.live} rows."
                ) from error

    def _commit(self, rows: Rows, head: Head | None = None, **changes: Any) -> None:
        """Make a new state the current one, on disk and then in memory."""
        manifest = {**self._manifest, **changes, "generation": self._manifest["generation"] + 1}
        manifest["segments"] = [segment.entry for segment in rows.segments]
        if rows.gone == 0:
            manifest["deleted"] = None
        elif not np.array_equal(rows.deleted, self._rows.deleted):
            manifest["deleted"] = self._put(f"deleted-{manifest['generation']:06d}.bits", rows.deleted.tobytes())
        write_manifest(self._folder, manifest)
        self._manifest = manifest
        self.settings = Settings.from_dict(manifest["settings"])
        self._reader = FaissReader(self.settings, rows, head or self._head)
        remove_leftovers(self._folder, manifest)

    def _put(self, name: str, content: bytes) -> dict[str, Any]:
        write_bytes(self._folder / name, content)
        return {"file": name, "crc": file_crc(self._folder / name)}

    def save_settings(self, settings: Settings) -> None:
        """Into the manifest."""
        with self._write("writing settings"):
            self._commit(self._rows, settings=settings.to_dict())

    def add(self, batch: Batch, replace: bool) -> None:
        """One segment, or the last small ones and this as one; there when the manifest names it."""
        with self._write(f"adding {len(batch)} rows"):
            rows = self._rows
            there = rows.find(batch.ids, self.settings.id_type)
            if len(there) and not replace:
                raise DataError(
                    f"{len(there)} of these ids are in the index already: {some(rows.ids(there[:3]).tolist())}."
                )
            kept = list(rows.segments)
            merged: list[Segment] = []
            count = len(batch)
            while kept and kept[-1].rows <= count and kept[-1].rows + count <= MERGE_ROWS:
                merged.insert(0, kept.pop())
                count += merged[0].rows
            table, pieces = _table(self._layout, merged, batch), self._pieces(merged, batch)
            entry = write_segment(self._segments, self._next_name(), self._layout, count, pieces, table)
            new = Segment(self._segments / entry["name"], entry, self._layout)
            grown = Rows([*kept, new], rows.deleted)
            self._commit(grown.without(there) if len(there) else grown)
            self._catch_up()

    def _next_name(self) -> str:
        return f"{self._manifest['generation'] + 1:06d}"

    def _pieces(self, merged: Sequence[Segment], batch: Batch) -> Iterator[dict[int, np.ndarray]]:
        for segment in merged:
            for rows, _ in Rows([segment]).chunks(self.settings.sizes[0]):
                yield {width: table[rows] for width, table in segment.tables.items()}
        yield {self.settings.widths[table]: vectors for table, vectors in batch.vectors.items()}

    def _catch_up(self) -> None:
        """Bring the head up to all rows; build it anew where it has outgrown itself."""
        rows, head = self._rows, self._head
        if head.wants_rebuild(rows.total):
            head = self._new_head(rows)
        else:
            self._fill(head, rows)
        self._reader = FaissReader(self.settings, rows, head)

    def _fill(self, head: Head, rows: Rows) -> None:
        for _, vectors in rows.chunks(self.settings.sizes[0], len(head)):
            head.add(vectors)

    def _new_head(self, rows: Rows) -> Head:
        head = Head(self.settings.head, self.settings.sizes[0])
        sample = np.sort(np.random.default_rng(0).permutation(rows.total)[:TRAIN_ROWS])
        head.build(rows.vectors(self.settings.sizes[0], sample), rows.total)
        self._fill(head, rows)
        return head

    def delete(self, ids: Sequence[Any]) -> int:
        """Mark rows; their space comes back with :meth:`compact`."""
        with self._write("deleting"):
            rows = self._rows.find(ids, self.settings.id_type)
            if len(rows):
                self._commit(self._rows.without(rows))
            return len(rows)

    def flush(self) -> None:
        """Write a copy of the head, when it grew, so that opening need not build it."""
        copy = self._manifest["head_copy"]
        behind = len(self._head) - (copy["rows"] if copy else 0)
        if self._head.is_exact or behind * HEAD_COPY_SHARE <= len(self._head):
            return  # a flat head is quickly filled again
        with self._write("writing the head"):
            name = f"head-{self._manifest['generation'] + 1:06d}.faiss"
            path, draft = self._folder / name, self._folder / f".{name}.draft"
            try:
                self._head.save(draft)
                sync(draft)
            except OSError:
                draft.unlink(missing_ok=True)
                raise
            draft.replace(path)
            entry = {"file": name, "crc": file_crc(path), "rows": len(self._head), "built_on": self._head.built_on}
            self._commit(self._rows, head_copy=entry)

    def compact(self) -> None:
        """Live rows as one segment, and a head over them alone."""
        with self._write("compacting"):
            old = self._rows
            if old.total == 0 or (old.gone == 0 and len(old.segments) == 1):
                return
            if old.live == 0:
                self._commit(Rows([]), Head(self.settings.head, self.settings.sizes[0]), head_copy=None)
                return
            alive = old.alive()
            pieces = (
                {width: old.vectors(width, live) for width in self._layout.tables}
                for start in range(0, old.total, 16384)
                if len(live := start + np.flatnonzero(alive[start : start + 16384]))
            )
            table = old.table().filter(alive)
            entry = write_segment(self._segments, self._next_name(), self._layout, old.live, pieces, table)
            new = Rows([Segment(self._segments / entry["name"], entry, self._layout)])
            if old.gone:
                self._commit(new, self._new_head(new), head_copy=None)
            else:
                self._commit(new)  # rows keep their numbers

    # -- read ---------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._reader)

    def present(self, ids: Sequence[Any]) -> int:
        """How many of these ids are there."""
        return len(self._rows.find(ids, self.settings.id_type))

    def reader(self) -> FaissReader:
        """The current state."""
        if len(self._head) < self._rows.total and self._writing.acquire(blocking=False):
            try:  # an add was interrupted after its rows were committed
                self._catch_up()
            finally:
                self._writing.release()
        return self._reader

    def refresh(self) -> bool:
        """Take what another process wrote meanwhile; whether there was something."""
        with self._writing:
            for _ in range(RETRIES):
                newest = read_manifest(self._folder)
                if newest["generation"] == self._manifest["generation"]:
                    return False
                try:
                    self._take(newest)
                except DataError:
                    if read_manifest(self._folder)["generation"] == newest["generation"]:
                        raise
                else:
                    return True
        raise DataError(f"{self._folder} is being rewritten all the time; try again later.")

    def verify(self) -> None:
        """Every block of every table."""
        for segment in self._rows.segments:
            Segment(segment.folder, segment.entry, self._layout)
            for table in segment.tables.values():
                for _ in table.chunks():
                    pass

    def bytes(self) -> dict[str, Any]:
        """RAM is what this process must hold; mapped files may stay on disk."""
        disk: dict[str, int] = {}
        for segment in self._rows.segments:
            for name, size in segment.disk_bytes.items():
                full = bool(self.settings.originals) and name == str(self.settings.width)
                label = "originals" if full else "ids and fields" if name == "rows" else f"{name}d"
                disk[label] = disk.get(label, 0) + size
        disk["head"] = sum(path.stat().st_size for path in self._folder.glob("head-*.faiss"))
        disk["compressor"] = sum(path.stat().st_size for path in (self._folder / "compressor").iterdir())
        checksums = sum(table.ram_bytes for segment in self._rows.segments for table in segment.tables.values())
        ram = {"head": self._head.ram_bytes, "deleted rows": self._rows.deleted.nbytes, "checksums": checksums}
        return {"ram": ram, "disk": disk}


def _table(layout: Layout, merged: Sequence[Segment], batch: Batch) -> pa.Table:
    import pyarrow as pa

    new = pa.table(
        {ID: list(batch.ids), **{name: list(batch.fields[name]) for name in layout.fields}}, layout.schema()
    )
    return pa.concat_tables([*(segment.table for segment in merged), new])
