"""Copy a Milvus collection with compressed vectors: everything else stays, or nothing is written."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from smec_st.data import DataError
from smec_st.data.sources.batch import RECORD
from smec_st.data.sources.indexes import MilvusVectors, milvus_calls, milvus_pages
from smec_st.quantization.head import Head
from smec_st.stores.bad_rows import BadRow, Places, usable
from smec_st.stores.job import Progress
from smec_st.system.errors import some

if TYPE_CHECKING:
    from pymilvus import CollectionSchema, DataType, MilvusClient
    from pymilvus.milvus_client import IndexParams

MIGRATING = "_migrating"
PAGE = 1000
#: What Milvus reports about an index beside its parameters.
INDEX_STATE = {"total_rows", "indexed_rows", "pending_index_rows", "state", "field_name", "index_name"}
FLOAT_METRICS = ("L2", "IP", "COSINE")  # they rank vectors of length 1 alike
VECTOR_BYTES = ("BINARY_VECTOR", "FLOAT16_VECTOR", "BFLOAT16_VECTOR", "INT8_VECTOR")


def copy_collection(
    source: MilvusVectors,
    out: str | None,
    head: Head,
    space: Mapping[str, Any],
    progress: Progress | None = None,
    left_out: list[BadRow] | None = None,
) -> str:
    """Copy a collection with one field of vectors replaced by codes, and return the name of the copy.

    Schema, partitions, indexes and properties are copied and compared. The copy is made under another name and gets
    its own once it is complete; without a name ``out``, it replaces the collection and takes over its aliases.
    ``space`` describes the codes. Rows that cannot be used are added to ``left_out``, or refused if that is None.

    Raises:
        DataError: If something cannot be copied, or rows change meanwhile. The old collection is left as it is.
    """
    client, old = source.client, source.collection
    if out is not None and client.has_collection(out):
        raise DataError(f"{source.name.rpartition('#')[0]} has a collection {out} already.")
    draft = f"{out or old}{MIGRATING}"
    with milvus_calls(source.name, "copying"):
        description = client.describe_collection(old)
        schema = _schema(source, description, _field_type(head), head.dim, space)
        indexes = _indexes(source, head)
        _check_automatic_ids(source, description)
        if client.has_collection(draft):
            client.drop_collection(draft)  # left by an interrupted run
        try:
            _create(source, draft, schema, description, space)
            _compare(source, description, client.describe_collection(draft))
            _fill(source, draft, description, head, progress, left_out)
            client.create_index(draft, indexes)
        except BaseException:
            if client.has_collection(draft):
                client.drop_collection(draft)
            raise
        if out is None:
            for alias in client.list_aliases(old)["aliases"]:
                client.alter_alias(draft, alias)
            client.drop_collection(old)
        client.rename_collection(draft, out or old)
        client.load_collection(out or old)
    return out or old


def _fill(
    source: MilvusVectors,
    draft: str,
    description: Mapping[str, Any],
    head: Head,
    progress: Progress | None,
    left_out: list[BadRow] | None,
) -> None:
    """Copy all partitions and rows, and count them."""
    client, old = source.client, source.collection
    partitions: list[str | None] = [None] if _partition_key(description) else client.list_partitions(old)
    done = 0
    for partition in partitions:
        if partition is not None and partition not in client.list_partitions(draft):
            client.create_partition(draft, partition)
        for rows in _pages(source, description, head, partition, left_out):
            client.insert(draft, rows, **({} if partition is None else {"partition_name": partition}))
            done += len(rows)
            if progress is not None:
                progress(done, source.rows)
    client.flush(draft)
    count = client.query(old, filter="", output_fields=["count(*)"])[0]["count(*)"]
    if count != done + len(left_out or ()):
        raise DataError(f"{source.name}: {done} of {count} rows were copied; it is being written. Try again later.")


def finish_copy(client: MilvusClient, collection: str) -> bool:
    """Rename a complete copy if a run was interrupted after it had removed the old collection.

    ``collection`` is the name of the old collection, or an alias of it.
    """
    draft = f"{collection}{MIGRATING}"
    if client.has_collection(collection):  # by its name, or through an alias that points to the copy already
        draft = client.describe_collection(collection)["collection_name"]
    if not draft.endswith(MIGRATING) or not client.has_collection(draft):
        return False
    if client.has_collection(draft.removesuffix(MIGRATING)):
        return False
    client.rename_collection(draft, draft.removesuffix(MIGRATING))
    return True


def _field_type(head: Head) -> DataType:
    """Return the type of a field that holds the codes."""
    from pymilvus import DataType

    types = {
        "float32": DataType.FLOAT_VECTOR,
        "float16": DataType.FLOAT16_VECTOR,
        "binary": DataType.BINARY_VECTOR,
    }
    if head.precision not in types or (head.precision == "binary" and head.dim % 8):
        raise DataError(f"a Milvus collection cannot hold {head.precision} of {head.dim} numbers; choose another.")
    return types[head.precision]


def _partition_key(description: Mapping[str, Any]) -> bool:
    return any(field.get("is_partition_key") for field in description["fields"])


def _schema(
    source: MilvusVectors, description: Mapping[str, Any], kind: DataType, dim: int, space: Mapping[str, Any]
) -> CollectionSchema:
    """Copy the schema of a collection, with another field of vectors."""
    from pymilvus import CollectionSchema, DataType

    others = [name for name in ("struct_fields", "struct_array_fields") if description.get(name)]
    if others:
        raise DataError(f"{source.name} has fields of structures ({others[0]}), which cannot be copied.")
    wanted = copy.deepcopy(dict(description))
    wanted["description"] = json.dumps(dict(space))
    for field in wanted["fields"]:
        if field["type"] == DataType.ARRAY and field.get("element_type") == DataType.VARCHAR:
            field["params"].setdefault("max_length", 65_535)  # Milvus Lite does not report it
        if field["name"] == source.column:
            field.update(type=kind, params={**field["params"], "dim": dim})
    for function in wanted.get("functions", ()):
        if source.column in function["output_field_names"]:
            raise DataError(f"{source.name}: {source.column} is computed by Milvus ({function['name']}), so it stays.")
    return CollectionSchema.construct_from_dict(wanted)


def _indexes(source: MilvusVectors, head: Head) -> IndexParams:
    """Describe the indexes of the copy: those of the collection, and one over the vectors in any case."""
    indexes = source.client.prepare_index_params()
    has_vectors = False
    for name in source.client.list_indexes(source.collection):
        found = source.client.describe_index(source.collection, name)
        parameters = {key: value for key, value in found.items() if key not in INDEX_STATE}
        kind, metric = parameters.pop("index_type"), parameters.pop("metric_type", None)
        if found["field_name"] == source.column:
            has_vectors = True
            if metric not in FLOAT_METRICS:
                raise DataError(f"{source.name} is compared by {metric}; {' and '.join(FLOAT_METRICS)} can be copied.")
            if head.precision == "binary":
                kind, metric, parameters = "BIN_FLAT", "HAMMING", {}
        metric = None if metric == "NONE" else metric
        more = {"params": parameters} | ({} if metric is None else {"metric_type": metric})
        indexes.add_index(found["field_name"], index_type=kind, index_name=found["index_name"], **more)
    if not has_vectors:
        metric = "HAMMING" if head.precision == "binary" else "COSINE"
        indexes.add_index(source.column, index_type="AUTOINDEX", metric_type=metric)
    return indexes


def _check_automatic_ids(source: MilvusVectors, description: Mapping[str, Any]) -> None:
    """Check that ids which Milvus Lite will hand out in the copy are free; a server derives them from its clock."""
    if not description.get("auto_id") or "://" in source.name:
        return
    keys: set[int] = set()
    for page in _query(source, [source.key], None):
        keys.update(int(entity[source.key]) for entity in page)
    if keys != set(range(1, len(keys) + 1)):
        raise DataError(
            f"{source.name} has automatic ids with gaps, as after a deletion. Milvus Lite would give ids of copied "
            "rows to new ones; copy it on a server, or into a collection with ids of your own."
        )


def _create(
    source: MilvusVectors,
    name: str,
    schema: CollectionSchema,
    description: Mapping[str, Any],
    space: Mapping[str, Any],
) -> None:
    properties = dict(description.get("properties") or {})
    if "://" not in source.name:  # a server keeps the description of a collection, which Milvus Lite does not
        properties[RECORD] = json.dumps(dict(space))
    if description.get("auto_id"):
        properties["allow_insert_auto_id"] = "true"  # so that rows keep their ids
    more = {"num_partitions": description["num_partitions"]} if _partition_key(description) else {}
    source.client.create_collection(
        name,
        schema=schema,
        properties=properties,
        num_shards=description["num_shards"],
        consistency_level=description["consistency_level"],
        **more,
    )


def _compare(source: MilvusVectors, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Compare everything that was asked for with what Milvus made of it."""

    def fields(description: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        found = {field["name"]: {**field, "field_id": 0} for field in description["fields"]}
        return {name: field for name, field in found.items() if name != source.column}

    was, now = fields(old), fields(new)
    lost = [name for name in was if str(now.get(name)) != str(was[name])]
    kept = ("auto_id", "enable_dynamic_field", "num_shards", "consistency_level")
    lost += [name for name in kept if old.get(name) != new.get(name)]
    lost += [name for name in ("functions",) if len(old.get(name) or ()) != len(new.get(name) or ())]
    if lost:
        raise DataError(f"{source.name}: Milvus did not copy {some(lost, 6)} as they are.")


def _query(source: MilvusVectors, names: list[str], partition: str | None) -> Iterator[list[dict[str, Any]]]:
    more = {} if partition is None else {"partition_names": [partition]}
    pages = milvus_pages(source.client, source.collection, batch_size=PAGE, output_fields=names, **more)
    return ([dict(entity) for entity in page] for page in pages)


def _pages(
    source: MilvusVectors,
    description: Mapping[str, Any],
    head: Head,
    partition: str | None,
    left_out: list[BadRow] | None,
) -> Iterator[list[dict[str, Any]]]:
    """Yield all rows of a partition as they are to be inserted."""
    from pymilvus import DataType

    packed = [f["name"] for f in description["fields"] if DataType(f["type"]).name in VECTOR_BYTES]
    computed = [f["name"] for f in description["fields"] if f.get("is_function_output")]
    done = 0
    for page in _query(source, ["*"], partition):
        batch = source.batch(page, done)
        done += len(page)
        part = usable(batch, Places(source.name), left_out)
        kept = set(part.ids or ())
        page = [entity for entity in page if str(entity[source.key]) in kept]
        for entity, code in zip(page, head.encode(part.rows), strict=True):
            for name in computed:
                entity.pop(name, None)
            for name in packed:
                value = entity[name]
                entity[name] = value[0] if isinstance(value, list) and isinstance(value[0], bytes) else value
            entity[source.column] = code.tobytes() if head.precision == "binary" else code
            if head.precision == "float32":
                entity[source.column] = code.tolist()
        yield page
