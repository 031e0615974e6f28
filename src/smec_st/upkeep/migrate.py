"""An existing store of vectors to a smaller one, beside it or in its place."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smec_st.compressor import Compressor
from smec_st.data import DataError, VectorSource
from smec_st.data.sources.indexes import FaissVectors, MilvusVectors
from smec_st.files import write_text
from smec_st.overlap import kept_neighbors, pool_for
from smec_st.quantization.head import Head
from smec_st.streaming import Job, Manifest, space_record, transform_files
from smec_st.upkeep.swap import finish_swap, swap

MIGRATING = "_migrating"
Told = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Plan:
    """What is to become of a store.

    Attributes:
        job: Compressor, store and how documents are stored.
        out: Where to, beside the store: a folder for files, a file for FAISS, a collection's name for Milvus. None to
            take the store's place.
    """

    job: Job
    out: str | None


@dataclass(frozen=True)
class Estimate:
    """A dry run.

    Attributes:
        rows: Vectors in the store.
        bytes_before: Of all vectors, as float32 at full width.
        bytes_after: Of all vectors, as they will be stored.
        seconds: Time that mapping and encoding will take, from a sample; reading and writing come on top.
        kept_neighbors: Share of the ten nearest that stay among the ten nearest, on a sample.
    """

    rows: int | None
    bytes_before: int | None
    bytes_after: int | None
    seconds: float | None
    kept_neighbors: float | None


def estimate(plan: Plan, sample: int = 4096) -> Estimate:
    """What a migration will cost and lose, measured on the first vectors; nothing is written."""
    source, _, head = plan.job.open()
    parts = []
    for batch in source.batches():
        parts.append(np.asarray(batch.rows))
        if sum(map(len, parts)) >= sample:
            break
    rows = np.concatenate(parts)[:sample]
    head.encode(rows[:64])
    began = time.perf_counter()
    head.encode(rows)
    seconds = (time.perf_counter() - began) / len(rows)
    pool = pool_for(len(rows))
    kept = None if pool is None else kept_neighbors(rows[:pool], head.folded)
    count = source.rows
    return Estimate(
        rows=count,
        bytes_before=count and count * 4 * source.width,
        bytes_after=count and count * head.bytes,
        seconds=count and count * seconds,
        kept_neighbors=kept,
    )


def migrate(plan: Plan, told: Told | None = None) -> str:
    """Rewrite a store; the old one is left as it is, or goes only when the new one is complete.

    In place, a run that was cut off is finished by running it again, wherever it stopped.

    Files become a folder of shards (:func:`~smec_st.streaming.transform_files`); in place, a ``.npy`` file becomes one
    ``.npy`` file and parquet a folder of parquet files. A FAISS index becomes a flat index with the same ids. A
    Milvus collection becomes one with the same other fields.

    Returns:
        Where the new store is.

    Raises:
        DataError: If the store cannot be read, or cannot hold such codes.
    """
    if plan.out is None and _was_cut_off(plan.job):
        return plan.job.source
    source, compressor, head = plan.job.open()
    if isinstance(source, FaissVectors):
        return _faiss(plan, source, compressor, head)
    if isinstance(source, MilvusVectors):
        return _milvus(plan, source, compressor, head, told)
    if plan.out is not None:
        transform_files(plan.job, Path(plan.out), told=told)
        return plan.out
    return _files_in_place(plan.job, source, told)


def _files_in_place(job: Job, source: VectorSource, told: Told | None) -> str:
    store = Path(job.source)
    is_npy = store.suffix == ".npy"
    if not is_npy and not (store.suffix == ".parquet" or any(store.glob("*.parquet"))):
        raise DataError(f"{store} cannot be rewritten in place; name a folder to write beside it.")
    kind = "npy" if is_npy else "parquet"
    work = store.with_name(f".{store.name}.migrating")
    manifest = transform_files(Job(**{**vars(job), "kind": kind}), work, told=told)
    space = manifest.job["space"]
    if is_npy:
        whole, record = work / "all.npy", work / "space.json"
        join_npy(manifest, work, whole)
        write_text(record, json.dumps(space, indent=1) + "\n")
        swap(store, space, [(whole, store), (record, store.with_name(store.name + ".json"))], [work])
    else:
        before = store.with_name(f".{store.name}.before")
        swap(store, space, [(store, before), (work, store)], [before])
    return str(store)


def _was_cut_off(job: Job) -> bool:
    """Whether an earlier run of the same migration had only renames left to do; they are done now."""
    uri, _, collection = job.source.rpartition("#")
    if uri:
        return _finish_milvus(uri, collection)
    now = finish_swap(Path(job.source))
    if now is None:
        return False
    compressor = Compressor.load(job.compressor)
    return now == space_record(compressor, compressor.head(job.dim, job.precision, job.bytes))


def join_npy(manifest: Manifest, folder: Path, path: Path) -> None:
    """The shards of a folder as one ``.npy`` file."""
    first = np.load(folder / manifest.shards[0].file, mmap_mode="r")
    whole = np.lib.format.open_memmap(path, "w+", first.dtype, (manifest.rows, first.shape[1]))
    for shard in manifest.shards:
        whole[shard.start : shard.start + shard.rows] = np.load(folder / shard.file, mmap_mode="r")
    whole.flush()


def _faiss(plan: Plan, source: FaissVectors, compressor: Compressor, head: Head) -> str:
    import faiss

    kinds = {"float32": "Flat", "float16": "SQfp16"}
    if head.precision not in kinds:
        raise DataError(f"a FAISS index is rewritten as {' or '.join(kinds)}, not {head.precision}.")
    index = faiss.index_factory(head.dim, kinds[head.precision], faiss.METRIC_INNER_PRODUCT)
    if source.ids is not None:
        index = faiss.IndexIDMap(index)
    for batch in source.batches():
        rows = head.queries(batch.rows)
        if source.ids is None:
            index.add(rows)
        else:
            index.add_with_ids(rows, source.ids[batch.start : batch.start + len(rows)])
    out = Path(plan.out or plan.job.source)
    draft = out.with_name(out.name + ".partial")
    faiss.write_index(index, str(draft))
    space, record = space_record(compressor, head), out.with_name(out.name + ".json")
    space_draft = record.with_name(record.name + ".draft")
    write_text(space_draft, json.dumps(space, indent=1) + "\n")
    swap(out, space, [(draft, out), (space_draft, record)])
    return str(out)


def _milvus(plan: Plan, source: MilvusVectors, compressor: Compressor, head: Head, told: Told | None) -> str:
    from pymilvus import DataType

    kinds = {
        "float32": DataType.FLOAT_VECTOR,
        "float16": DataType.FLOAT16_VECTOR,
        "binary": DataType.BINARY_VECTOR,
    }
    if head.precision not in kinds or (head.precision == "binary" and head.dim % 8):
        raise DataError(f"a Milvus collection cannot hold {head.precision} of {head.dim} numbers; choose another.")
    client, uri = source.client, plan.job.source.rpartition("#")[0]
    name = plan.out or f"{source.collection}{MIGRATING}"
    if plan.out is not None and client.has_collection(plan.out):
        raise DataError(f"{uri} has a collection {plan.out} already.")
    if client.has_collection(name):
        client.drop_collection(name)  # of a run that was cut off
    about = client.describe_collection(source.collection)
    schema = client.create_schema(
        auto_id=False,
        enable_dynamic_field=bool(about.get("enable_dynamic_field")),
        description=json.dumps(space_record(compressor, head)),
    )
    for field in about["fields"]:
        if field["name"] == source.column:
            schema.add_field(source.column, kinds[head.precision], dim=head.dim)
        else:
            schema.add_field(
                field["name"], field["type"], is_primary=bool(field.get("is_primary")), **(field.get("params") or {})
            )
    client.create_collection(name, schema=schema)
    done = 0
    for entities in _entities(source):
        rows = np.stack([source.row(entity[source.column]) for entity in entities])
        for entity, code in zip(entities, head.encode(rows), strict=True):
            entity[source.column] = code.tobytes() if head.precision == "binary" else code
            if head.precision == "float32":
                entity[source.column] = code.tolist()
        client.insert(name, entities)
        done += len(entities)
        if told is not None:
            told(done, source.rows)
    client.flush(name)
    if plan.out is None:
        client.drop_collection(source.collection)
        client.rename_collection(name, source.collection)
        name = source.collection
    return f"{uri}#{name}"


def _finish_milvus(uri: str, collection: str) -> bool:
    """Give a new collection its name, when a run was cut off after it had removed the old one."""
    if "://" not in uri and not Path(uri).exists():
        return False
    try:  # where this fails, opening the store says why
        from pymilvus import MilvusClient, MilvusException
    except ImportError:
        return False
    try:
        client, new = MilvusClient(uri), f"{collection}{MIGRATING}"
    except MilvusException:
        return False
    try:
        if client.has_collection(collection) or not client.has_collection(new):
            return False
        client.rename_collection(new, collection)
    finally:
        client.close()
    return True


def _entities(source: MilvusVectors) -> Iterator[list[dict[str, Any]]]:
    pages = source.client.query_iterator(source.collection, batch_size=1000, output_fields=["*"])
    try:
        while page := pages.next():
            yield [dict(entity) for entity in page]
    finally:
        pages.close()
