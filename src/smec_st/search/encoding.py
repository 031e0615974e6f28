"""Compress vectors to every width that an index stores, and adapt a schedule to the width of queries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from smec_st.compressor import Compressor
from smec_st.data import DataError, check_vectors, unit_rows
from smec_st.search.backend import CODES, FULL, Batch, Reader, Settings, Tables
from smec_st.search.checks import Documents
from smec_st.search.schedule import Schedule, Step
from smec_st.system.errors import some


def document_widths(settings: Settings) -> tuple[int, ...]:
    """Return the widths of documents that an index accepts: without originals, its widest size as well."""
    return (settings.width,) if settings.originals or settings.codes else (settings.width, settings.sizes[-1])


def wrong_width(what: str, width: int, accepted: Sequence[int]) -> DataError:
    """Return the error for vectors of a width that an index does not accept."""
    return DataError(
        f"{what} vectors are {width} wide; this index takes {' or '.join(map(str, dict.fromkeys(accepted)))}."
    )


def encode(settings: Settings, compressor: Compressor, vectors: np.ndarray) -> dict[int, np.ndarray]:
    """Compute unit vectors ``(n, width)`` per table from originals ``(n, D)`` or from vectors of the widest size."""
    sizes, encoded = settings.sizes, {}
    if sizes:
        is_original = vectors.shape[1] == settings.width
        widest = compressor.transform(vectors, dim=sizes[-1]) if is_original else unit_rows(vectors)
        encoded = {size: widest if size == sizes[-1] else unit_rows(widest[:, :size]) for size in sizes}
    if settings.originals:
        encoded[FULL] = unit_rows(vectors)
    return encoded


def encode_documents(settings: Settings, compressor: Compressor, documents: Documents) -> Batch:
    """Compress documents into a batch that an engine can add."""
    vectors = encode(settings, compressor, documents.vectors)
    if settings.codes:
        codes = compressor.head(bytes=settings.codes).encode(documents.vectors)
        vectors[CODES] = np.ascontiguousarray(codes).view(np.uint8)
    return Batch(documents.ids, vectors, documents.fields)


def encode_originals(settings: Settings, compressor: Compressor, queries: np.ndarray) -> dict[int, np.ndarray]:
    """Compute the vectors of queries ``(Q, D)`` for every stored table, codes included."""
    encoded = encode(settings, compressor, queries)
    if settings.codes:
        encoded[CODES] = compressor.head(bytes=settings.codes).queries(queries)
    return encoded


def encode_queries(settings: Settings, compressor: Compressor, queries: ArrayLike) -> dict[int, np.ndarray]:
    """Compute unit vectors of queries ``(Q, width)`` or ``(width,)`` at every stored width.

    Queries that are already compressed to a smaller size have only the sizes up to it.
    """
    array = np.asarray(queries)
    table = check_vectors(array[None] if array.ndim == 1 else array, "query")
    width, sizes = table.shape[1], settings.sizes
    if width == settings.width:
        return encode_originals(settings, compressor, table)
    accepted = () if settings.codes else sizes  # what codes are compared with is computed from the original query
    if width not in accepted:
        raise wrong_width("query", width, (settings.width, *accepted))
    narrow = unit_rows(table)
    return {size: unit_rows(narrow[:, :size]) for size in sizes if size <= width}


def steps_for(reader: Reader, schedule: Schedule, k: int, queries: Tables) -> list[tuple[int, Step]]:
    """Return the steps of a search, each with the table that it reads.

    The head always comes first, no step is at a table for which there are no queries, and the last step keeps ``k``.
    """
    settings = reader.settings
    steps: list[tuple[int, Step]] = []
    for step in schedule.at(k, len(reader)):
        table = FULL if settings.originals and step.size == settings.width else step.size
        table = CODES if step.codes and step.size == settings.codes else table
        if table not in settings.widths and table != CODES:
            raise DataError(f"the schedule looks at size {step.size}; the index has {some(settings.sizes, 9)}.")
        if table in queries:
            steps.append((table, step))
    head, size = settings.head_table, settings.codes or settings.sizes[0]
    if not steps or steps[0][0] != head:  # only the head can search all rows
        steps.insert(0, (head, Step(size, max([k, *(step.keep for _, step in steps)]), bool(settings.codes))))
    table, last = steps[-1]
    widest = max((size for size in queries if size != FULL), default=head)
    if FULL not in queries and widest != table:
        steps.append((widest, Step(widest, k)))
    else:
        steps[-1] = (table, Step(last.size, k, last.codes))
    return steps
