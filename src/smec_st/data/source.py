"""Get the vectors of a collection from a file, or from a model that embeds its texts or images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from smec_st.data.embedding import Items, embed_tables
from smec_st.data.ids import join_by_id
from smec_st.data.sources import load_tables
from smec_st.data.vectors import check_vectors, check_widths
from smec_st.system.errors import DataError

SINGULAR = {"corpus": "corpus", "queries": "query", "images": "image"}


@dataclass(frozen=True)
class Tables:
    """File or folder with the vectors of a collection, and what their numbers are; see :mod:`smec_st.data.codes`."""

    path: Path
    codes: str | None = None


def vectors_of(
    items: Mapping[str, Items],
    name: str,
    vectors: Tables | None,
    model: str | None,
    ids: Mapping[str, Sequence[str]] | None = None,
) -> list[np.ndarray]:
    """Return one checked table of vectors for each named list of texts or image files, one row per item.

    Args:
        items: Texts or image paths by name of their tensor: "corpus" and "queries", or "images" alone.
        name: Name of the collection, for error messages.
        vectors: File or folder of the tables; None with ``model``. Rows are in the order of the items, or have ids.
        model: Sentence-transformers model (id or path) that embeds the items instead.
        ids: Ids of the items by name of their tensor. A table that has ids of its own is joined by them.

    Raises:
        DataError: If the tables are broken, or do not match the items or each other.
    """
    if model is not None:
        tables = embed_tables(items, model)
    else:
        assert vectors is not None
        tables = []
        for side, (table, keys) in zip(items, load_tables(vectors.path, list(items), vectors.codes), strict=True):
            if keys is not None and ids is not None:
                rows = join_by_id(ids[side], keys, f"the {SINGULAR[side]} vectors of {name}")
                table = table if len(rows) == len(table) and (rows == np.arange(len(rows))).all() else table[rows]
            tables.append(table)
    for side, table in zip(items, tables, strict=True):
        check_vectors(table, SINGULAR[side])
        if len(table) != len(items[side]):
            raise DataError(
                f"{len(table)} {SINGULAR[side]} vectors for {len(items[side])} ids in {name}: "
                "rows must be in the order of the file."
            )
    if len(tables) > 1:
        check_widths(*tables)
    return tables
