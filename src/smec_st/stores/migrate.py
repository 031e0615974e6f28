"""Migrate an existing store of vectors to compressed vectors, next to it or in its place."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from smec_st.compressor import Compressor
from smec_st.compressor.space import space_record
from smec_st.data import DataError, VectorSource
from smec_st.data.sources import INDEXES
from smec_st.data.sources.columns import ColumnVectors
from smec_st.data.sources.indexes import FaissVectors, MilvusVectors
from smec_st.data.sources.tables import ArrayVectors
from smec_st.evaluation.overlap import drawn, kept_neighbors, pool_for
from smec_st.quantization.head import Head
from smec_st.stores.bad_rows import LEFT_OUT, BadRow, Places, bad_rows_of, usable, write_left_out
from smec_st.stores.check import distinct_sample
from smec_st.stores.files import join_shards
from smec_st.stores.job import Job, Progress, check_output, into_folder, left_out_lists, tell_left_out, transform_files
from smec_st.stores.milvus import copy_collection, finish_copy
from smec_st.stores.swap import finish_swap, swap
from smec_st.system.errors import some, tell
from smec_st.system.files import write_json
from smec_st.system.optional import load_optional

#: Files that Spark, dask and file managers put beside parquet files; they hold no data of their own.
MARKER = re.compile(r"_SUCCESS|_(common_)?metadata|_(started|committed)_\d+|\..+\.crc|\.DS_Store")


@dataclass(frozen=True)
class Plan:
    """A migration.

    Attributes:
        job: The compressor, the store, and how documents will be stored.
        out: The new store: a folder for files, a file for FAISS, the name of a collection for Milvus. None replaces
            the old store.
    """

    job: Job
    out: str | None


@dataclass(frozen=True)
class Estimate:
    """The result of a dry run.

    Attributes:
        rows: Number of vectors in the store.
        bytes_before: Bytes of all vectors as float32 at full width.
        bytes_after: Bytes of all vectors as they will be stored.
        seconds: Time for mapping and encoding, extrapolated from a sample; reading and writing take longer.
        kept_neighbors: Share of the ten nearest neighbours that stay among the ten nearest, on a sample.
        bad: All rows that cannot be used.
    """

    rows: int
    bytes_before: int
    bytes_after: int
    seconds: float | None
    kept_neighbors: float | None
    bad: tuple[BadRow, ...] = ()


def estimate(plan: Plan) -> Estimate:
    """Estimate the cost and the loss of a migration on a sample, and look at all rows for unusable ones.

    The sample is drawn as :func:`~smec_st.stores.check_drift` draws it. Nothing is written.
    """
    if plan.out is not None:
        check_output(plan.job, Path(plan.out))
    source, _, head = plan.job.open()
    tell_left_out(source)
    bad: dict[int, BadRow] = {}
    count, places = 0, Places.of(source)
    for batch in source.batches():
        count += len(batch.rows)
        bad |= {batch.start + at: row for at, row in bad_rows_of(batch, places).items()}
    rows = distinct_sample(source, 0, count, bad=tuple(bad))
    seconds = None
    if len(rows):
        head.encode(rows[:64])  # warms up, so that the timing below is fair
        began = time.perf_counter()
        head.encode(rows)
        seconds = count * (time.perf_counter() - began) / len(rows)
    pool = pool_for(len(rows))
    kept = None if pool is None else kept_neighbors(rows[drawn(len(rows), pool)], head.folded)
    return Estimate(count, count * 4 * source.width, count * head.bytes, seconds, kept, tuple(bad.values()))


def migrate(plan: Plan, progress: Progress | None = None) -> str:
    """Rewrite a store. The old store is kept, or in place removed once the new one is complete.

    Running an interrupted migration in place again finishes it. Of a link, the target is replaced.

    Files become a folder of shards (:func:`~smec_st.stores.transform_files`); in place, a ``.npy`` file becomes one
    ``.npy`` file and parquet a folder of parquet files. A FAISS index becomes a flat index with the same ids and
    metric. A Milvus collection becomes one with the same other fields, partitions, indexes and, in place, aliases.

    Args:
        plan: What to migrate and where to.
        progress: Called with the number of finished rows and the total, or None if it is not known.

    Returns:
        Path or address of the new store.

    Raises:
        DataError: If the store cannot be read, cannot hold such codes, or would lose something in place.
    """
    if plan.out is None:
        plan = replace(plan, job=replace(plan.job, source=_link_target(plan.job.source)))
        if not plan.job.skip_bad and _finish_interrupted(plan.job):
            return plan.job.source
    source, compressor, head = plan.job.open()
    if plan.out is None:
        _check_replaceable(plan.job, source)
    if isinstance(source, FaissVectors):
        return _migrate_faiss(plan, source, compressor, head)
    if isinstance(source, MilvusVectors):
        uri = plan.job.source.rpartition("#")[0]
        left_out: list[BadRow] | None = [] if plan.job.skip_bad else None
        name = copy_collection(source, plan.out, head, space_record(compressor, head), progress, left_out)
        _list_left_out(Path(name if "://" in uri else f"{uri}.{name}"), left_out)
        return f"{uri}#{name}"
    if plan.out is not None:
        manifest = transform_files(plan.job, Path(plan.out), progress=progress)
        count = sum(shard.read - shard.rows for shard in manifest.shards)
        if count:
            tell(f"{count} rows left out, listed in {left_out_lists(Path(plan.out))}")
        return plan.out
    return _migrate_files_in_place(plan.job, progress)


def check_in_place(job: Job) -> None:
    """Check that a store can be replaced by its compressed vectors and ids without losing anything.

    Raises:
        DataError: If it holds more than these, or is of a kind that is not replaced.
    """
    job = replace(job, source=_link_target(job.source))
    _check_replaceable(job, job.open()[0])


def _check_replaceable(job: Job, source: VectorSource) -> None:
    if job.skip_bad:
        raise DataError("rows that are left out would be lost where the store is replaced; write beside it.")
    if isinstance(source, FaissVectors | MilvusVectors):
        return
    store = Path(job.source)
    is_npy = isinstance(source, ArrayVectors) and store.suffix == ".npy"
    if not is_npy and not (isinstance(source, ColumnVectors) and source.parts):
        raise DataError(f"{store} cannot be rewritten in place; name a folder to write beside it.")
    others = _other_content(source, store)
    if others:
        raise DataError(
            f"{store} also holds {some(others, 6)}, which would be lost in place; write a new store with --out."
        )


def _other_content(source: VectorSource, store: Path) -> list[str]:
    """List the columns of a store, and the files of its folder, that hold something else than its vectors and ids."""
    if not isinstance(source, ColumnVectors):
        return []
    read = {Path(file) for file, _ in source.parts}
    files = (path for path in sorted(store.rglob("*")) if not path.is_dir() and path not in read)
    return [*source.others, *(str(path.relative_to(store)) for path in files if not MARKER.fullmatch(path.name))]


def _link_target(source: str) -> str:
    """Return where a link leads, because a rename in its place would leave the store itself as it was.

    Raises:
        DataError: If the link has a record of its own, which would no longer be true.
    """
    path = Path(source)
    if not path.is_symlink():
        return source
    if path.is_file() and _record_of(path).exists():
        raise DataError(f"{_record_of(path)} describes the link {path}; move it beside {path.resolve()}.")
    return str(path.resolve())


def _finish_interrupted(job: Job) -> bool:
    """Do the renames that an earlier run of the same migration left, and return whether that completed it."""
    uri, _, collection = job.source.rpartition("#")
    if uri:
        return _finish_milvus(uri, collection)
    space = finish_swap(Path(job.source))
    if space is None:
        return False
    compressor = Compressor.load(job.compressor)
    return space == space_record(compressor, compressor.head(job.dim, job.precision, job.bytes))


def _migrate_files_in_place(job: Job, progress: Progress | None) -> str:
    store = Path(job.source)
    is_npy = store.suffix == ".npy"
    work = store.with_name(f".{store.name}.migrating")
    manifest = into_folder(replace(job, kind="npy" if is_npy else "parquet"), work, "local", progress)
    space = manifest.job["space"]
    if is_npy:
        joined, record = work / "all.npy", work / "space.json"
        join_shards([work / shard.file for shard in manifest.shards], manifest.rows, space, joined)
        write_json(record, space)
        swap(store, space, [(joined, store), (record, _record_of(store))], [work])
    else:
        before = store.with_name(f".{store.name}.before")
        swap(store, space, [(store, before), (work, store)], [before])
    return str(store)


def _record_of(store: Path) -> Path:
    """Return the file next to a store that describes its vectors."""
    return store.with_name(store.name + ".json")


def _migrate_faiss(plan: Plan, source: FaissVectors, compressor: Compressor, head: Head) -> str:
    faiss = load_optional("faiss", "a FAISS index")
    metric = source.owner.metric_type
    if metric not in (faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2):
        raise DataError(f"{source.name} compares by neither inner product nor L2, and compressed vectors by angles.")
    out = Path(plan.out or plan.job.source)
    if out.suffix.lower() not in INDEXES:
        raise DataError(f"{out}: a FAISS index is a file ending in {' or '.join(INDEXES)}.")
    if plan.out is not None and out.exists():
        raise DataError(f"{out} exists already; choose another name or remove it.")
    left_out: list[BadRow] | None = [] if plan.job.skip_bad else None
    index, has_ids = head.to_faiss(metric="l2" if metric == faiss.METRIC_L2 else "ip"), source.ids is not None
    has_ids |= plan.job.skip_bad  # the others keep the numbers of their rows
    index = faiss.IndexIDMap(index) if has_ids else index
    for batch in source.batches():
        part = usable(batch, Places(source.name), left_out)
        rows = head.queries(part.rows)
        if has_ids:
            index.add_with_ids(rows, np.array(part.ids, dtype=np.int64))
        else:
            index.add(rows)
    draft = out.with_name(out.name + ".partial")
    faiss.write_index(index, str(draft))
    space, record = space_record(compressor, head), _record_of(out)
    record_draft = record.with_name(record.name + ".draft")
    write_json(record_draft, space)
    swap(out, space, [(draft, out), (record_draft, record)])
    _list_left_out(out, left_out)
    return str(out)


def _list_left_out(store: Path, rows: Sequence[BadRow] | None) -> None:
    if rows:
        path = store.with_name(store.name + LEFT_OUT)
        write_left_out(path, rows)
        tell(f"{len(rows)} rows left out, listed in {path}")


def _finish_milvus(uri: str, collection: str) -> bool:
    """Rename the new collection, if a run was interrupted after it had removed the old one."""
    if "://" not in uri and not Path(uri).exists():
        return False
    pymilvus = load_optional("pymilvus", "reading Milvus")
    try:
        client = pymilvus.MilvusClient(uri)
    except pymilvus.MilvusException:
        return False  # opening the store reports why
    try:
        return finish_copy(client, collection)
    finally:
        client.close()
