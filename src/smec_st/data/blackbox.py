"""Collections of nothing but vectors and judgements: no text anywhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smec_st.data.beir import beir_collection, read_qrels
from smec_st.data.collection import Collection
from smec_st.data.errors import DataError
from smec_st.data.safetensors import Safetensors
from smec_st.data.sources import find_table, open_vectors, spoken
from smec_st.data.sources.batch import beside

SIDES = ("corpus", "queries")


def is_vector_folder(folder: Path) -> bool:
    """Whether a folder has tables of vectors for both sides."""
    return all(find_table(folder, side) for side in SIDES)


def load_vector_folder(folder: Path, vectors: Path | None, model: str | None) -> Collection:
    """Read a folder with a table ``corpus`` and a table ``queries`` of any kind, and ``qrels/SPLIT.tsv``.

    Ids are those of the tables; a table without any has its row numbers, from 0, as ids.
    """
    if vectors is not None or model is not None:
        raise DataError(f"{folder} holds its own vectors; leave out the file of vectors and the model.")
    judged = {path.stem: read_qrels(path) for path in sorted((folder / "qrels").glob("*.tsv"))}
    records = {}
    for side in SIDES:
        source = open_vectors(find_table(folder, side) or folder / side)
        ids: list[str] = []
        for batch in source.batches():
            count = range(batch.start, batch.start + len(batch.rows))
            ids += map(str, count) if batch.ids is None else batch.ids
        records[side] = [{"_id": key} for key in ids]
    return beir_collection(folder.name, records["corpus"], records["queries"], judged, folder, None)


def with_backbone(collection: Collection, folder: Path, vectors: Path | None) -> Collection:
    """The collection, with what its files of vectors say of the model that made them.

    Raises:
        DataError: If corpus and queries name different models.
    """
    backbone = backbone_of_files(vectors or folder)
    return dataclasses.replace(collection, backbone=backbone) if backbone else collection


def backbone_of_files(path: Path) -> dict[str, Any]:
    """What a safetensors file, or the tables of a folder, say of their model; empty when they say nothing."""
    if path.suffix == ".safetensors" and path.is_file():
        return {**spoken(Safetensors.open(path).metadata), **beside(path)}
    found: dict[str, Any] = {}
    for side in SIDES:
        table = find_table(path, side) if path.is_dir() else None
        record: Mapping[str, Any] = open_vectors(table).record if table else {}
        if found.get("model", record.get("model")) != record.get("model", found.get("model")):
            raise DataError(
                f"{path}: the corpus was made by {found['model']} and the queries by {record['model']}; "
                "both must come from the same model."
            )
        found.update(record)
    return found
