"""Milvus collections of an index: one for its rows, and one that stores settings and compressors as text."""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from smec_st.data import DataError
from smec_st.search.backend import FULL, Settings

if TYPE_CHECKING:
    from pymilvus import CollectionSchema, MilvusClient
    from pymilvus.milvus_client import IndexParams

    from smec_st.compressor import Compressor

PREFIX = "smec_"
SETTINGS = "smec_settings"
PART_CHARACTERS = 60_000  # a text field holds at most 65,535 bytes
MAX_TEXT_BYTES = 4096
HEADS = {"flat": "FLAT", "hnsw": "HNSW", "ivf": "IVF_FLAT", "hnsw-int8": "HNSW_SQ", "ivf-int8": "IVF_SQ8"}
BUILD = {"HNSW": {"M": 32, "efConstruction": 64}, "HNSW_SQ": {"M": 32, "efConstruction": 64, "sq_type": "SQ8"}}
LISTS = 128


def field(table: int) -> str:
    """Return the name of the field that holds a table (a size, or :data:`FULL`)."""
    return "full" if table == FULL else f"head_{table}"


def _create(client: MilvusClient, name: str, schema: CollectionSchema, indexes: IndexParams) -> None:
    client.create_collection(name, schema=schema, consistency_level="Strong")
    client.create_index(name, indexes, sync=False)  # waiting takes half a second, and there is nothing to index yet
    client.load_collection(name)


def create_collection(client: MilvusClient, settings: Settings) -> None:
    """Create and load the collection of an index."""
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    if settings.id_type == "int":
        schema.add_field("id", DataType.INT64, is_primary=True)
    else:
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=512)
    indexes = client.prepare_index_params()
    for table, width in settings.widths.items():
        schema.add_field(field(table), DataType.FLOAT_VECTOR, dim=width)
        kind = HEADS[settings.head] if table == settings.sizes[0] else "FLAT"
        build = {"nlist": LISTS} if kind.startswith("IVF") else BUILD.get(kind, {})
        indexes.add_index(field(table), index_type=kind, metric_type="IP", params=build)
    types = {"int": DataType.INT64, "float": DataType.DOUBLE, "str": DataType.VARCHAR, "bool": DataType.BOOL}
    for name, kind in settings.fields.items():
        more = {"max_length": MAX_TEXT_BYTES} if kind == "str" else {}
        schema.add_field(name, types[kind], nullable=True, **more)
    _create(client, PREFIX + settings.fingerprint, schema, indexes)


def create_settings(client: MilvusClient) -> None:
    """Create and load the collection of settings and compressors."""
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=512)
    schema.add_field("content", DataType.VARCHAR, max_length=65_535)
    schema.add_field("none", DataType.FLOAT_VECTOR, dim=2)  # Milvus requires a vector field in every collection
    indexes = client.prepare_index_params()
    indexes.add_index("none", index_type="FLAT", metric_type="IP")
    _create(client, SETTINGS, schema, indexes)


def write_text(client: MilvusClient, fingerprint: str, name: str, text: str) -> None:
    """Store a text of any length in parts. The last row, with the number of parts, makes it readable."""
    parts = [text[start : start + PART_CHARACTERS] for start in range(0, len(text), PART_CHARACTERS)]
    keys = [f"{fingerprint}/{name}/{i}" for i in range(len(parts))]
    for start in range(0, len(parts), 64):
        rows = [
            {"id": key, "content": part, "none": [1.0, 0.0]}
            for key, part in zip(keys[start : start + 64], parts[start : start + 64], strict=True)
        ]
        client.upsert(SETTINGS, rows)
    client.upsert(SETTINGS, [{"id": f"{fingerprint}/{name}", "content": str(len(parts)), "none": [1.0, 0.0]}])


def read_text(client: MilvusClient, fingerprint: str, name: str) -> str:
    """Read the text of that name; empty if there is none."""
    count = client.get(SETTINGS, ids=[f"{fingerprint}/{name}"], output_fields=["content"])
    if not count:
        return ""
    keys = [f"{fingerprint}/{name}/{i}" for i in range(int(count[0]["content"]))]
    parts = {row["id"]: row["content"] for row in client.get(SETTINGS, ids=keys, output_fields=["id", "content"])}
    if len(parts) != len(keys):
        raise DataError(f"{name} of the index {fingerprint} is incomplete: {len(parts)} of {len(keys)} parts.")
    return "".join(parts[key] for key in keys)


def write_compressor(client: MilvusClient, compressor: Compressor) -> None:
    """Store the files of a compressor."""
    with tempfile.TemporaryDirectory() as folder:
        compressor.write_into(Path(folder))
        for path in sorted(Path(folder).iterdir()):
            write_text(client, compressor.fingerprint, path.name, base64.b64encode(path.read_bytes()).decode())
