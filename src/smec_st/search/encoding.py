"""Vectors at every width an index stores, compressed once; and which steps queries of a width can take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from smec_st.compressor import Compressor
from smec_st.data import DataError, check_vectors, unit_rows
from smec_st.data.errors import some
from smec_st.search.backend import FULL, Settings
from smec_st.search.schedule import Schedule, Step


def document_widths(settings: Settings) -> tuple[int, ...]:
    """Widths of documents that an index takes: originals, or without them also its widest size."""
    return (settings.width,) if settings.originals else (settings.width, settings.sizes[-1])


def wrong_width(what: str, width: int, takes: Sequence[int]) -> DataError:
    """The error for vectors of a width that an index does not take."""
    return DataError(
        f"{what} vectors are {width} wide; this index takes {' or '.join(map(str, dict.fromkeys(takes)))}."
    )


def encode(settings: Settings, compressor: Compressor, vectors: np.ndarray) -> dict[int, np.ndarray]:
    """Unit vectors at every stored width.

    Args:
        settings: Of the index.
        compressor: Of the index.
        vectors: Originals ``(n, D)``, or vectors of the widest size.

    Returns:
        Table name (a size, or ``FULL``) to ``(n, width)`` float32.
    """
    sizes = settings.sizes
    if vectors.shape[1] == settings.width:
        widest = compressor.transform(vectors, dim=sizes[-1])
    else:
        widest = unit_rows(vectors)
    encoded = {size: widest if size == sizes[-1] else unit_rows(widest[:, :size]) for size in sizes}
    if settings.originals:
        encoded[FULL] = unit_rows(vectors)
    return encoded


def encode_queries(settings: Settings, compressor: Compressor, queries: Any) -> dict[int, np.ndarray]:
    """The same for queries, ``(Q, width)`` or ``(width,)``; those of a smaller size have only the sizes up to it."""
    array = np.asarray(queries)
    table = check_vectors(array[None] if array.ndim == 1 else array, "query")
    width, sizes = table.shape[1], settings.sizes
    if width == settings.width:
        return encode(settings, compressor, table)
    if width not in sizes:
        raise wrong_width("query", width, (settings.width, *sizes))
    narrow = unit_rows(table)
    return {size: unit_rows(narrow[:, :size]) for size in sizes if size <= width}


def steps_for(
    settings: Settings, schedule: Schedule, k: int, rows: int, queries: Mapping[int, np.ndarray]
) -> list[tuple[int, Step]]:
    """Steps with the table each reads: the head first, none wider than the queries, and the last keeps ``k``.

    Args:
        settings: Of the index.
        schedule: To follow.
        k: Results.
        rows: In the index.
        queries: Per table; those missing are steps that cannot be taken.
    """
    steps: list[tuple[int, Step]] = []
    for step in schedule.at(k, rows):
        table = FULL if settings.originals and step.size == settings.width else step.size
        if table not in settings.widths:
            raise DataError(f"the schedule looks at size {step.size}; the index has {some(settings.sizes, 9)}.")
        if table in queries:
            steps.append((table, step))
    head = settings.sizes[0]
    if not steps or steps[0][0] != head:  # only the smallest size searches everything
        steps.insert(0, (head, Step(head, max([k, *(step.keep for _, step in steps)]))))
    table, last = steps[-1]
    asked = max((size for size in queries if size != FULL), default=head)
    if FULL not in queries and asked != table:
        steps.append((asked, Step(asked, k)))
    else:
        steps[-1] = (table, Step(last.size, k))
    return steps
