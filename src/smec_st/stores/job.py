"""Transform a whole source into a folder of shards, a log of finished shards, and a manifest at the end.

A kill at any time loses at most the shard in progress. A shard is logged after it has its final name. When a job
continues, every logged shard must have its checksum, and all others are written again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smec_st.compressor import Compressor
from smec_st.data import DataError, VectorSource, open_vectors
from smec_st.data.sources.columns import parquet_parts
from smec_st.quantization.head import Head
from smec_st.stores.on_ray import shards_on_ray
from smec_st.stores.shards import BATCH_ROWS, FORMATS, Cutter, Output, Shard, write_shard
from smec_st.stores.space import check_space, space_record
from smec_st.system.files import write_text

JOB, LOG, MANIFEST = "job.json", "shards.jsonl", "manifest.json"
ENGINES = ("local", "ray")

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Manifest:
    """The description of a finished folder.

    Attributes:
        job: What was transformed and how: source, space, format.
        rows: Total number of rows.
        shards: The shards, in the order of the rows.
    """

    job: Mapping[str, Any]
    rows: int
    shards: tuple[Shard, ...]

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of a folder; a :class:`DataError` if it is not finished or a shard is damaged."""
        if not (folder / MANIFEST).is_file():
            raise DataError(f"{folder} holds no finished transform (no {MANIFEST}).")
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        manifest = cls(content["job"], content["rows"], tuple(Shard(**entry) for entry in content["shards"]))
        for shard in manifest.shards:
            if not shard.is_intact(folder):
                raise DataError(f"{folder / shard.file} is damaged or missing: its checksum differs.")
        return manifest

    def write(self, folder: Path) -> None:
        """Write the manifest, which marks the folder as finished."""
        content = {"job": self.job, "rows": self.rows, "shards": [shard.to_dict() for shard in self.shards]}
        write_text(folder / MANIFEST, json.dumps(content, indent=1) + "\n")


@dataclass(frozen=True)
class Job:
    """A transform: everything that its result depends on.

    Attributes:
        compressor: Folder of the compressor.
        source: Path or address of the vectors.
        column: Column or tensor that holds the vectors; None if there is only one.
        dim: See :meth:`~smec_st.Compressor.head`.
        precision: See :meth:`~smec_st.Compressor.head`.
        bytes: See :meth:`~smec_st.Compressor.head`.
        kind: Format of the shards, npy or parquet; by default parquet if the source has ids or is parquet, else npy.
        shard_rows: Rows per shard.
        codes: What whole numbers in the source are; see :func:`~smec_st.data.open_vectors`.
    """

    compressor: str
    source: str
    column: str | None = None
    dim: int | None = None
    precision: str | None = None
    bytes: int | None = None
    kind: str | None = None
    shard_rows: int = 131_072
    codes: str | None = None

    def open(self) -> tuple[VectorSource, Compressor, Head]:
        """Open the source and the compressor, and check that they fit together."""
        if self.shard_rows < 1:
            raise DataError(f"a shard needs at least 1 row, got {self.shard_rows}.")
        compressor = Compressor.load(self.compressor)
        source = open_vectors(self.source, self.column, self.codes)
        check_space(compressor, source.width, source.record, source.name)
        return source, compressor, compressor.head(self.dim, self.precision, self.bytes)


def transform_files(job: Job, out: Path, engine: str = "local", told: Progress | None = None) -> Manifest:
    """Compress a source into a folder of shards, or continue an interrupted run.

    Args:
        job: What to transform and how.
        out: A folder that is new, empty, or was begun by the same job.
        engine: "local", or "ray" for Ray Data on the cluster that Ray is connected to, which must share the paths.
        told: Called with the number of finished rows and the total, or None if it is not known.

    Raises:
        DataError: If the input cannot be used, or the folder belongs to another job.
    """
    if engine not in ENGINES or job.kind not in (None, *FORMATS):
        raise DataError(f"engines are {' and '.join(ENGINES)}, formats {' and '.join(FORMATS)}.")
    source, compressor, head = job.open()
    first = next(source.batches(1), None)
    if first is None:
        raise DataError(f"{source.name} has no rows.")
    kind = job.kind or ("parquet" if first.ids is not None or is_parquet(job.source) else "npy")
    output = Output(out, kind, job.shard_rows, space_record(compressor, head))
    description = {
        "source": {
            "name": source.name,
            "column": job.column,
            "codes": job.codes,
            "state": source.state,
            "record": dict(source.record),
        },
        "space": output.record,
        "format": kind,
        "shard_rows": job.shard_rows,
    }
    with _locked(out, description):
        shards = _intact_shards(out)
        if (out / MANIFEST).is_file():
            return Manifest.read(out)
        _remove_unlogged(out, shards)
        finished = {shard.start for shard in shards}
        if engine == "local":
            new = _local_shards(source, head, output, finished)
        else:
            new = _ray_shards(job, source, output, finished)
        for shard in _logged(new, out / LOG):
            shards.append(shard)
            if told is not None:
                told(sum(part.rows for part in shards), source.rows)
        shards.sort(key=lambda shard: shard.start)
        manifest = Manifest(description, sum(shard.rows for shard in shards), tuple(shards))
        if source.rows is not None and manifest.rows != source.rows:
            raise DataError(
                f"{source.name} was expected to hold {source.rows} rows but gave {manifest.rows}; did it change?"
            )
        if open_vectors(job.source, job.column, job.codes).state != source.state:
            raise DataError(f"{source.name} changed while it was read; remove {out} and start again.")
        manifest.write(out)
    return manifest


def _logged(shards: Iterator[Shard], path: Path) -> Iterator[Shard]:
    """Append each shard to the log, flush it to disk, and yield the shard."""
    with path.open("a", encoding="utf-8") as log:
        for shard in shards:
            log.write(json.dumps(shard.to_dict()) + "\n")
            log.flush()
            os.fsync(log.fileno())
            yield shard


def _local_shards(source: VectorSource, head: Head, output: Output, finished: set[int]) -> Iterator[Shard]:
    """Write one shard after another, except those whose first row is in ``finished``."""
    rows = output.shard_rows
    number = 0
    while number * rows in finished:  # begin reading after the finished prefix
        number += 1
    cutter = Cutter(source, number * rows, output.batch_rows)
    while True:
        start = number * rows
        batches = cutter.take(rows)
        if start in finished:  # Ray finishes shards in any order
            for _ in batches:
                pass
        else:
            expected = None if source.rows is None else min(rows, source.rows - start)
            shard = write_shard(batches, head, output, number, expected)
            if shard is None:
                return
            yield shard
            if shard.rows < rows:
                return
        number += 1


def _ray_shards(job: Job, source: VectorSource, output: Output, finished: set[int]) -> Iterator[Shard]:
    rows = source.rows
    if rows is None:
        rows = sum(len(batch.rows) for batch in source.batches(BATCH_ROWS))
    numbers = [n for n in range(-(-rows // output.shard_rows)) if n * output.shard_rows not in finished]
    if numbers:
        yield from shards_on_ray(job.open, numbers, output)


def is_parquet(source: str) -> bool:
    """Return whether a source is a parquet file or a folder of them."""
    path = Path(source)
    return path.suffix == ".parquet" or (path.is_dir() and bool(parquet_parts(path)))


@contextmanager
def _locked(out: Path, description: Mapping[str, Any]) -> Iterator[None]:
    """Lock a folder against other processes, and check that it belongs to this job."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is not a folder.")
    record = out / JOB
    if record.is_file():
        before, now = json.loads(record.read_text(encoding="utf-8")), json.loads(json.dumps(description))
        if before != now:
            different = [key for key in now if now[key] != before.get(key)]
            raise DataError(
                f"{out} was begun with another {' and another '.join(different)}; they cannot be mixed. "
                "Choose another folder or remove it."
            )
    else:
        draft = f"{JOB}.partial"  # left over if an earlier run was killed before it wrote the record
        if out.is_dir() and any(path.name != draft for path in out.iterdir()):
            raise DataError(f"{out} holds something else; choose another folder or remove it.")
        out.mkdir(parents=True, exist_ok=True)
        write_text(record, json.dumps(description, indent=1) + "\n")
    with (out / ".lock").open("w") as lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows
            pass
        except OSError as error:
            raise DataError(f"{out} is being written by another process.") from error
        yield
    (out / ".lock").unlink(missing_ok=True)


def _intact_shards(out: Path) -> list[Shard]:
    """Return the logged shards that are intact, and remove the others from the log."""
    if not (out / LOG).is_file():
        return []
    logged: dict[int, Shard] = {}
    for line in (out / LOG).read_text(encoding="utf-8").splitlines():
        try:
            shard = Shard(**json.loads(line))
        except (ValueError, TypeError):
            continue  # a kill can truncate the last line
        logged[shard.start] = shard
    intact = [shard for _, shard in sorted(logged.items()) if shard.is_intact(out)]
    write_text(out / LOG, "".join(json.dumps(shard.to_dict()) + "\n" for shard in intact))
    return intact


def _remove_unlogged(out: Path, shards: list[Shard]) -> None:
    """Remove the files of shards that are not in the log: they are incomplete or damaged."""
    known = {shard.file for shard in shards}
    for path in (*out.glob("shard-*.partial"), *out.glob("shard-*.npy"), *out.glob("shard-*.parquet")):
        if path.name not in known:
            path.unlink()
