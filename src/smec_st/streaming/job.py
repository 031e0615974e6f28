"""A transform of a whole source: shards, a log of what is done, and a manifest when all is.

A kill at any moment loses at most the shard in work. The log is appended to after a shard has its final name; on the
way back in, each logged shard must have its checksum, and anything else is written anew.
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
from smec_st.files import write_text
from smec_st.quantization.head import Head
from smec_st.streaming.shards import FORMATS, Cutter, Shard, shard_name, write_shard
from smec_st.streaming.space import check_space, space_record

JOB, LOG, MANIFEST = "job.json", "shards.jsonl", "manifest.json"
ENGINES = ("local", "ray")
BATCH_ROWS = 1024

Told = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Manifest:
    """What a finished folder says of itself.

    Attributes:
        job: What was done: source, space, format.
        rows: Rows in all.
        shards: The files, in order.
    """

    job: Mapping[str, Any]
    rows: int
    shards: tuple[Shard, ...]

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Of a finished folder; a :class:`DataError` when it is not finished, or a shard is not what it was."""
        if not (folder / MANIFEST).is_file():
            raise DataError(f"{folder} holds no finished transform (no {MANIFEST}).")
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        manifest = cls(content["job"], content["rows"], tuple(Shard(**entry) for entry in content["shards"]))
        for shard in manifest.shards:
            if not shard.is_whole(folder):
                raise DataError(f"{folder / shard.file} is damaged or missing: its checksum is another.")
        return manifest


@dataclass(frozen=True)
class Job:
    """A transform: all that its outcome depends on.

    Attributes:
        compressor: Folder of the compressor.
        source: Path or address of the vectors.
        column: Which column or tensor; None where there is one.
        dim: See :meth:`~smec_st.Compressor.head`.
        precision: Likewise.
        bytes: Likewise.
        kind: Format of the shards, npy or parquet; None for parquet where the source has ids or is parquet.
        shard_rows: Rows per shard.
    """

    compressor: str
    source: str
    column: str | None = None
    dim: int | None = None
    precision: str | None = None
    bytes: int | None = None
    kind: str | None = None
    shard_rows: int = 131_072

    def open(self) -> tuple[VectorSource, Compressor, Head]:
        """Open both ends and see that they fit."""
        if self.shard_rows < 1:
            raise DataError(f"a shard needs at least 1 row, got {self.shard_rows}.")
        compressor = Compressor.load(self.compressor)
        source = open_vectors(self.source, self.column)
        check_space(compressor, source.width, source.record, source.name)
        return source, compressor, compressor.head(self.dim, self.precision, self.bytes)


def transform_files(job: Job, out: Path, engine: str = "local", told: Told | None = None) -> Manifest:
    """Compress a source into a folder of shards, or go on with it.

    Args:
        job: What to do.
        out: The folder; new, empty, or begun by the same job.
        engine: "local", or "ray" for Ray Data on whatever cluster Ray is connected to (paths must be shared).
        told: Called with (rows done, rows in all or None) as it goes.

    Raises:
        DataError: If the input cannot be used, or the folder belongs to another job.
    """
    if engine not in ENGINES or job.kind not in (None, *FORMATS):
        raise DataError(f"engines are {' and '.join(ENGINES)}, formats {' and '.join(FORMATS)}.")
    source, compressor, head = job.open()
    first = next(source.batches(1), None)
    if first is None:
        raise DataError(f"{source.name} has no rows.")
    kind = job.kind or ("parquet" if first.ids is not None or _is_parquet(job.source) else "npy")
    record = space_record(compressor, head)
    about = {
        "source": {"name": source.name, "column": job.column, "state": source.state, "record": dict(source.record)},
        "space": record,
        "format": kind,
        "shard_rows": job.shard_rows,
    }
    with _hold(out, about):
        done = _finished_shards(out)
        if (out / MANIFEST).is_file():
            return Manifest.read(out)
        _clear_drafts(out, done)
        begin = _begin_local if engine == "local" else _begin_ray
        with (out / LOG).open("a", encoding="utf-8") as log:
            for shard in begin(job, source, head, out, kind, record, done):
                log.write(json.dumps(shard.to_dict()) + "\n")
                log.flush()
                os.fsync(log.fileno())
                done.append(shard)
                if told is not None:
                    told(sum(part.rows for part in done), source.rows)
        done.sort(key=lambda shard: shard.start)
        rows = sum(shard.rows for shard in done)
        if source.rows is not None and rows != source.rows:
            raise DataError(f"{source.name} was said to hold {source.rows} rows and gave {rows}; did it change?")
        if open_vectors(job.source, job.column).state != source.state:
            raise DataError(f"{source.name} changed while it was read; remove {out} and start again.")
        content = {"job": about, "rows": rows, "shards": [shard.to_dict() for shard in done]}
        write_text(out / MANIFEST, json.dumps(content, indent=1) + "\n")
    return Manifest(about, rows, tuple(done))


def _begin_local(
    job: Job, source: VectorSource, head: Head, out: Path, kind: str, record: Mapping[str, Any], done: list[Shard]
) -> Iterator[Shard]:
    """One shard after another; with what is done as a prefix of the rows, the rest is read once."""
    whole = {shard.start for shard in done}
    number = 0
    while number * job.shard_rows in whole:
        number += 1
    cutter = Cutter(source, number * job.shard_rows, min(BATCH_ROWS, job.shard_rows))
    while True:
        start = number * job.shard_rows
        batches = cutter.take(job.shard_rows)
        if start in whole:  # done out of order, by another engine
            sum(len(batch.rows) for batch in batches)
            number += 1
            continue
        rows = None if source.rows is None else min(job.shard_rows, source.rows - start)
        shard = write_shard(batches, head, out / shard_name(number, kind), start, rows, record)
        if shard is None:
            return
        yield shard
        if shard.rows < job.shard_rows:
            return
        number += 1


def _begin_ray(
    job: Job, source: VectorSource, head: Head, out: Path, kind: str, record: Mapping[str, Any], done: list[Shard]
) -> Iterator[Shard]:
    from smec_st.streaming.on_ray import shards_on_ray

    rows = source.rows
    if rows is None:
        rows = sum(len(batch.rows) for batch in source.batches(BATCH_ROWS))
    whole = {shard.start for shard in done}
    numbers = [n for n in range(-(-rows // job.shard_rows)) if n * job.shard_rows not in whole]
    if numbers:
        yield from shards_on_ray(job, numbers, out, kind, record)


def _is_parquet(source: str) -> bool:
    path = Path(source)
    return path.suffix == ".parquet" or (path.is_dir() and any(path.glob("*.parquet")))


@contextmanager
def _hold(out: Path, about: Mapping[str, Any]) -> Iterator[None]:
    """The folder is ours alone, and of this job."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is not a folder.")
    cut_off = f"{JOB}.partial"  # of a run that was killed before it began
    if out.is_dir() and not (out / JOB).is_file() and any(path.name != cut_off for path in out.iterdir()):
        raise DataError(f"{out} holds something else; choose another folder or remove it.")
    if (out / JOB).is_file():
        before = json.loads((out / JOB).read_text(encoding="utf-8"))
        if before != json.loads(json.dumps(about)):
            wrong = [key for key in about if json.loads(json.dumps(about[key])) != before.get(key)]
            raise DataError(
                f"{out} was begun with another {' and another '.join(wrong)}; two spaces or sources must not mix. "
                "Choose another folder or remove it."
            )
    out.mkdir(parents=True, exist_ok=True)
    if not (out / JOB).is_file():
        write_text(out / JOB, json.dumps(about, indent=1) + "\n")
    with (out / ".lock").open("w") as lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows has none
            pass
        except OSError as error:
            raise DataError(f"{out} is being written by another process.") from error
        yield
    (out / ".lock").unlink(missing_ok=True)


def _finished_shards(out: Path) -> list[Shard]:
    """Logged shards that are whole; the log is rewritten without the others."""
    if not (out / LOG).is_file():
        return []
    found: dict[int, Shard] = {}
    for line in (out / LOG).read_text(encoding="utf-8").splitlines():
        try:
            shard = Shard(**json.loads(line))
        except (ValueError, TypeError):
            continue  # cut off by the kill
        found[shard.start] = shard
    whole = [shard for _, shard in sorted(found.items()) if shard.is_whole(out)]
    write_text(out / LOG, "".join(json.dumps(shard.to_dict()) + "\n" for shard in whole))
    return whole


def _clear_drafts(out: Path, done: list[Shard]) -> None:
    """Files that no log entry speaks for were cut off, or are damaged."""
    known = {shard.file for shard in done}
    for path in (*out.glob("shard-*.partial"), *out.glob("shard-*.npy"), *out.glob("shard-*.parquet")):
        if path.name not in known:
            path.unlink()
