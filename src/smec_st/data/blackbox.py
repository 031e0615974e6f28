"""Read collections of vectors and judgements without any text, and what vector files say about their model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smec_st.data.beir import beir_collection
from smec_st.data.collection import Collection
from smec_st.data.judgements import read_splits
from smec_st.data.safetensors import Safetensors
from smec_st.data.source import Tables
from smec_st.data.sources import find_table, load_tables, open_vectors
from smec_st.data.sources.batch import metadata_record, sidecar_record
from smec_st.system.errors import DataError, tell

SIDES = ("corpus", "queries")


def is_vector_folder(folder: Path) -> bool:
    """Return whether a folder has a table of vectors for the corpus and one for the queries."""
    return all(find_table(folder, side) for side in SIDES)


def load_vector_folder(
    folder: Path, vectors: Tables | None, model: str | None, strict: bool = False, codes: str | None = None
) -> Collection:
    """Read a folder with the tables ``corpus`` and ``queries`` in any vector format, and ``qrels/SPLIT.tsv``.

    Ids come from the tables. In a table without ids, the row numbers from 0 are the ids. ``vectors`` are used instead
    of the folder's own: those of another model, joined by the same ids.
    """
    if model is not None:
        raise DataError(f"{folder} holds its own vectors and no texts that a model could embed; leave out the model.")
    records = {}
    for side, (table, ids) in zip(SIDES, load_tables(folder, SIDES, codes), strict=True):
        if ids is None:
            tell(f"{find_table(folder, side)} has no ids: its rows are numbered from 0.")
        records[side] = [{"_id": key} for key in ids or map(str, range(len(table)))]
    tables = vectors or Tables(folder, codes)
    return beir_collection(
        folder.name, records["corpus"], records["queries"], read_splits(folder), tables, None, strict
    )


def with_backbone(collection: Collection, tables: Tables) -> Collection:
    """Add to a collection what its vector files say about the model that made them.

    Raises:
        DataError: If corpus and queries name different models.
    """
    backbone = backbone_of_files(tables)
    return dataclasses.replace(collection, backbone=backbone) if backbone else collection


def backbone_of_files(tables: Tables) -> dict[str, Any]:
    """Read what a file of tables, or the tables in a folder, say about their model; empty if they say nothing."""
    path = tables.path
    if path.suffix == ".safetensors" and path.is_file():
        return {**metadata_record(Safetensors.open(path).metadata), **sidecar_record(path)}
    found: dict[str, Any] = sidecar_record(path) if path.is_file() else {}
    for side in SIDES:
        table = find_table(path, side) if path.is_dir() else None
        record: Mapping[str, Any] = open_vectors(table, codes=tables.codes).record if table else {}
        if found.get("model", record.get("model")) != record.get("model", found.get("model")):
            raise DataError(
                f"{path}: the corpus was made by {found['model']} and the queries by {record['model']}; "
                "both must come from the same model."
            )
        found.update(record)
    return found
