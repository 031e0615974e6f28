"""Transform a whole source into a folder of shards, a log of finished shards, and a manifest at the end.

A kill at any time loses at most the shard in progress. A shard is logged after it has its final name. When a job
continues, every logged shard must have its checksum, and all others are written again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from smec_st.compressor import Compressor
from smec_st.compressor.space import check_space, space_record
from smec_st.data import DataError, VectorSource, open_vectors
from smec_st.data.sources.batch import JOB
from smec_st.data.sources.columns import ColumnVectors, parquet_parts
from smec_st.quantization.head import Head
from smec_st.stores.bad_rows import LEFT_OUT, Places
from smec_st.stores.files import FILE_FORMATS, join_shards
from smec_st.stores.on_ray import shards_on_ray
from smec_st.stores.shards import BATCH_ROWS, FORMATS, Cutter, InputHash, Output, Shard, write_shard
from smec_st.system.errors import one_line, parse_json, some, tell
from smec_st.system.files import write_text
from smec_st.system.locks import write_lock

#: Readers of parquet folders leave out names that begin with `_`.
LOG, MANIFEST = "_shards.jsonl", "_manifest.json"
PLACING = "placing"  # marks a single file as complete: from then on the name is ours
ENGINES = ("local", "ray")
FILE_ENDING, VERSION = re.compile(r"\.[A-Za-z]\w*"), re.compile(r"\.v\d+")  # a folder may be `docs.v2` or `docs-0.1`

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
        path = folder / MANIFEST
        if not path.is_file():
            raise DataError(f"{folder} holds no finished transform (no {MANIFEST}).")
        content = parse_json(path.read_bytes(), str(path))
        try:
            manifest = cls(content["job"], content["rows"], tuple(Shard(**entry) for entry in content["shards"]))
        except (KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged: {one_line(error)}") from error
        for shard in manifest.shards:
            if not shard.is_intact(folder):
                raise DataError(f"{folder / shard.file} is damaged or missing: its checksum differs.")
        return manifest

    def write(self, folder: Path) -> None:
        """Write the manifest, which marks the folder as finished."""
        write_text(folder / MANIFEST, json.dumps(asdict(self), indent=1) + "\n")


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
        skip_bad: Whether rows without a direction (NaN, infinity, zeros) are left out instead of refused. The rows
            that stay keep their ids, or get the numbers of their rows as ids.
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
    skip_bad: bool = False

    def open(self) -> tuple[VectorSource, Compressor, Head]:
        """Open the source and the compressor, and check that they fit together."""
        if self.shard_rows < 1:
            raise DataError(f"a shard needs at least 1 row, got {self.shard_rows}.")
        compressor = Compressor.load(self.compressor)
        source = open_vectors(self.source, self.column, self.codes)
        check_space(compressor, source.width, source.record, source.name)
        return source, compressor, compressor.head(self.dim, self.precision, self.bytes)


def transform_files(job: Job, out: Path, engine: str = "local", progress: Progress | None = None) -> Manifest:
    """Compress a source into a folder of shards or one file, or continue an interrupted run.

    The source of an interrupted run may have been mended: shards whose rows are the same are kept.

    Args:
        job: What to transform and how.
        out: A name that ends in ``.npy``, ``.parquet`` or ``.safetensors`` becomes one file, and is new. A name
            without an ending becomes a folder of shards, and is new, empty, or was begun by the same job.
        engine: "local", or "ray" for Ray Data on the cluster that Ray is connected to, which must share the paths.
        progress: Called with the number of finished rows and the total, or None if it is not known.

    Returns:
        What was written. In a single file all shards are one.

    Raises:
        DataError: If the input cannot be used, or the output belongs to something else.
    """
    if engine not in ENGINES or job.kind not in (None, *FORMATS):
        raise DataError(f"engines are {' and '.join(ENGINES)}, formats {' and '.join(FORMATS)}.")
    out = Path(os.path.expanduser(out))
    check_output(job, out)
    if out.suffix not in FILE_FORMATS:
        if FILE_ENDING.fullmatch(out.suffix) and not VERSION.fullmatch(out.suffix) and not out.is_dir():
            raise DataError(
                f"{out}: files are written as {', '.join(FILE_FORMATS)}, not {out.suffix}; "
                "a name without an ending becomes a folder of shards."
            )
        return into_folder(job, out, engine, progress)
    if job.kind not in (None, FILE_FORMATS[out.suffix]):
        raise DataError(f"{out} is a {out.suffix} file; leave the format {job.kind} out.")
    work, sidecar = out.with_name(f".{out.name}.unfinished"), out.with_name(out.name + ".json")
    with write_lock(out):
        targets = (out, sidecar) if out.suffix == ".npy" else (out,)
        taken = [path for path in targets if path.exists()]
        if taken and not (work / PLACING).exists():
            raise DataError(f"{taken[0]} exists already; choose another name or remove it.")
        manifest = into_folder(replace(job, kind=FILE_FORMATS[out.suffix]), work, engine, progress)
        joined = work / f"joined{out.suffix}"
        join_shards([work / shard.file for shard in manifest.shards], manifest.rows, manifest.job["space"], joined)
        left_out = "".join(path.read_text(encoding="utf-8") for path in sorted(work.glob("_left-out-*.jsonl")))
        (work / PLACING).touch()
        if left_out:
            write_text(left_out_lists(out), left_out)
        if out.suffix == ".npy":
            write_text(sidecar, json.dumps(manifest.job["space"], indent=1) + "\n")
        os.replace(joined, out)
        shutil.rmtree(work)
    return manifest


def check_output(job: Job, out: Path) -> None:
    """Refuse an output inside the folder of the source, where it would become a part of its own input."""
    source = Path(job.source)
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise DataError(f"{out} is in the folder {source}, which is read; write the output beside it.")


def left_out_lists(out: Path) -> Path:
    """Return the file that lists the rows which a transform leaves out, or the pattern of those in a folder."""
    return out.with_name(out.name + LEFT_OUT) if out.suffix in FILE_FORMATS else out / "_left-out-*.jsonl"


def tell_left_out(source: VectorSource) -> None:
    """Say which columns of a source are not written with the compressed vectors."""
    others = source.others if isinstance(source, ColumnVectors) else ()
    if others:
        tell(f"{source.name}: {some(others, 6)} will be left out of what is written.")


def _description(job: Job, source: VectorSource, record: Mapping[str, Any]) -> dict[str, Any]:
    """Describe all that the shards of a job depend on."""
    first = next(source.batches(1), None)
    if first is None:
        raise DataError(f"{source.name} has no rows.")
    wants_ids = first.ids is not None or job.skip_bad
    kind = job.kind or ("parquet" if wants_ids or is_parquet(job.source) else "npy")
    if job.skip_bad and kind != "parquet":
        raise DataError("rows that are left out need ids for those that stay; write parquet with --skip-bad.")
    return {
        "source": {
            "name": source.name,
            "column": job.column,
            "codes": job.codes,
            "state": source.state,
            "record": dict(source.record),
        },
        "space": record,
        "format": kind,
        "shard_rows": job.shard_rows,
        "bad_rows": "left out" if job.skip_bad else "refused",
        "ids": kind == "parquet" if wants_ids else None,
    }


def into_folder(job: Job, out: Path, engine: str, progress: Progress | None) -> Manifest:
    """Compress a source into a folder of shards; see :func:`transform_files`."""
    source, compressor, head = job.open()
    tell_left_out(source)
    record = space_record(compressor, head)
    description = _description(job, source, record)
    output = Output(out, description["format"], job.shard_rows, record, Places.of(source), job.skip_bad)
    with _locked(out, description) as is_mended:
        shards = _intact_shards(out)
        if (out / MANIFEST).is_file():
            if is_mended:
                raise _other_job(out, "another source", f"what {source.name} holds now")
            return Manifest.read(out)
        if is_mended:
            shards = _unchanged_shards(shards, source, output)
            _write_log(out, shards)
            write_text(out / JOB, json.dumps(description, indent=1) + "\n")
        _remove_unlogged(out, shards)
        finished = {shard.start for shard in shards}
        if engine == "local":
            new = _local_shards(source, head, output, finished)
        else:
            new = _ray_shards(job, source, output, finished)
        for shard in _logged(new, out / LOG):
            shards.append(shard)
            if progress is not None:
                progress(sum(part.read for part in shards), source.rows)
        shards.sort(key=lambda shard: shard.start)
        manifest = Manifest(description, sum(shard.rows for shard in shards), tuple(shards))
        read = sum(shard.read for shard in shards)
        if source.rows is not None and read != source.rows:
            raise DataError(f"{source.name} was expected to hold {source.rows} rows but gave {read}; did it change?")
        if open_vectors(job.source, job.column, job.codes).state != source.state:
            raise DataError(f"{source.name} changed while it was read; run the same command again.")
        if manifest.rows == 0:
            raise DataError(f"{source.name} has no row that can be used.")
        manifest.write(out)
    return manifest


def _unchanged_shards(shards: list[Shard], source: VectorSource, output: Output) -> list[Shard]:
    """Read the source again, and return the shards whose rows are still the same."""
    by_start = {shard.start: shard for shard in shards}
    cutter, kept = Cutter(source, 0, output.batch_rows), []
    for start in range(0, max(by_start, default=-1) + 1, output.shard_rows):
        seen = InputHash()
        for batch in cutter.take(output.shard_rows):
            seen.add(batch)
        if start in by_start and by_start[start].input == seen.hexdigest():
            kept.append(by_start[start])
    if shards and not kept:
        raise _other_job(output.folder, "another source", f"what {source.name} holds now")
    return kept


def _logged(shards: Iterator[Shard], path: Path) -> Iterator[Shard]:
    """Append each shard to the log, flush it to disk, and yield the shard."""
    with path.open("a", encoding="utf-8") as log:
        for shard in shards:
            log.write(json.dumps(asdict(shard)) + "\n")
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
            if shard.read < rows:
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
def _locked(out: Path, description: Mapping[str, Any]) -> Iterator[bool]:
    """Lock a folder against other processes, and check that it belongs to this job.

    Yields:
        Whether only the state of the source is another than when the folder was begun.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is not a folder.")
    with write_lock(out):
        record, now = out / JOB, json.loads(json.dumps(description))
        is_mended = False
        if record.is_file():
            before = parse_json(record.read_bytes(), str(record))
            parts = [before.get(name) for name in ("source", "space")] if isinstance(before, dict) else [None]
            if not all(isinstance(part, dict) for part in parts):
                raise DataError(f"{record} is damaged; remove {out} and start again.")
            is_mended = before["source"].get("state") != now["source"]["state"]
            before["source"]["state"] = now["source"]["state"]
            if before != now:
                if (out / MANIFEST).is_file() or _intact_shards(out):
                    raise _other_job(out, *_differences(before, now))
                write_text(record, json.dumps(description, indent=1) + "\n")  # nothing is finished, so begin anew
                is_mended = False
        else:
            draft = f"{JOB}.partial"  # left over if an earlier run was killed before it wrote the record
            if out.is_dir() and any(path.name != draft for path in out.iterdir()):
                raise DataError(f"{out} holds something else; choose another folder or remove it.")
            out.mkdir(parents=True, exist_ok=True)
            write_text(record, json.dumps(description, indent=1) + "\n")
        yield is_mended


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, str]:
    """Return the settings in which a job differs from the one that began its folder, as they were and as they are."""
    seen: dict[str, list[str]] = {}
    for job in (before, now):
        for name, value in _settings(job).items():
            given = f"no {name}" if value in (None, False) else name if value is True else f"{name} {value}"
            seen.setdefault(name, []).append(given)
    if seen["--dim"][0] != seen["--dim"][1] or seen["--precision"][0] != seen["--precision"][1]:
        del seen["--bytes"]  # they follow from these
    pairs = [(old, new) for old, new in seen.values() if old != new]
    if not pairs:
        keys = " and ".join(key for key in now if now[key] != before.get(key))
        return f"another {keys}", f"this {keys}"
    return " and ".join(old for old, _ in pairs), " and ".join(new for _, new in pairs)


def _settings(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a user chose of a job, by name."""
    source, space = description["source"], description["space"]
    return {
        "the compressor": space.get("fingerprint"),
        "the source": source.get("name"),
        **{f"--{name}": source.get(name) for name in ("column", "codes")},
        **{f"--{name}": space.get(name) for name in ("dim", "precision", "bytes")},
        "--format": description.get("format"),
        "--shard-rows": description.get("shard_rows"),
        "--skip-bad": description.get("bad_rows") == "left out",
    }


def _other_job(out: Path, before: str, now: str) -> DataError:
    return DataError(
        f"{out} was begun with {before}, not with {now}; they cannot be mixed. "
        f"Remove {out} to begin anew, or choose another output."
    )


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
    _write_log(out, intact)
    return intact


def _write_log(out: Path, shards: list[Shard]) -> None:
    write_text(out / LOG, "".join(json.dumps(asdict(shard)) + "\n" for shard in shards))


def _remove_unlogged(out: Path, shards: list[Shard]) -> None:
    """Remove the files of shards that are not in the log: they are incomplete or damaged."""
    known = {shard.file for shard in shards}
    known |= {f"_left-out-{Path(name).stem.partition('-')[2]}.jsonl" for name in known}
    kinds = ("shard-*.partial", "shard-*.npy", "shard-*.parquet", "_left-out-*.jsonl")
    for path in (path for kind in kinds for path in out.glob(kind)):
        if path.name not in known:
            path.unlink()
