"""Get the vectors of a collection from a file, or from a model that embeds its texts or images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from smec_st.data.embedding import Items, embed_tables
from smec_st.data.errors import DataError
from smec_st.data.sources import load_tables
from smec_st.data.vectors import check_vectors, check_widths

SINGULAR = {"corpus": "corpus", "queries": "query", "images": "image"}


def vectors_of(items: Mapping[str, Items], name: str, vectors: Path | None, model: str | None) -> list[np.ndarray]:
    """Return one checked table of vectors for each named list of texts or image files, one row per item.

    Args:
        items: Texts or image paths by name of their tensor: "corpus" and "queries", or "images" alone.
        name: Name of the collection, for error messages.
        vectors: A safetensors file or a folder of ``.npy`` files, rows in the order of the items; None with ``model``.
        model: Sentence-transformers model (id or path) that embeds the items instead.

    Raises:
        DataError: If the tables are broken, or do not match the items or each other.
    """
    if model is not None:
        tables = embed_tables(items, model)
    else:
        assert vectors is not None
        tables = load_tables(vectors, list(items))
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
