"""Build an index in one call: choose sizes on a sample, add everything, choose the schedule on the whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smec_st.data import DataError, check_vectors
from smec_st.data.vectors import check_widths
from smec_st.search.backend import FULL
from smec_st.search.calibration import exact_neighbours, neighbour_ranks
from smec_st.search.checks import check_fields, check_sizes, new_fields, new_ids
from smec_st.search.engines import open_backend
from smec_st.search.filters import FIELD_TYPES
from smec_st.search.funnel import ADD_ROWS, FunnelIndex
from smec_st.search.heads import row_bytes
from smec_st.search.schedule import choose_schedule, head_cost

if TYPE_CHECKING:
    from smec_st.compressor import Compressor

SAMPLE_ROWS = 20_000
SAMPLE_QUERIES = 128
FINGERPRINT_ROWS = 256

Report = Callable[[str, int, int], object]


class Sample:
    """Rows in memory, as a :class:`~smec_st.search.backend.Reader` for calibration.

    Args:
        vectors: Table to vectors ``(n, width)``.
    """

    def __init__(self, vectors: Mapping[int, np.ndarray]) -> None:
        self.vectors = vectors

    def __len__(self) -> int:
        return len(next(iter(self.vectors.values())))

    def scan(self, tables: Sequence[int]) -> Iterator[tuple[np.ndarray, dict[int, np.ndarray]]]:
        """All rows, in pieces."""
        for start in range(0, len(self), 4096):
            part = slice(start, start + 4096)
            yield np.arange(len(self))[part], {table: self.vectors[table][part] for table in tables}

    def scores(self, table: int, queries: np.ndarray, keys: np.ndarray, found: np.ndarray) -> np.ndarray:
        """Cosine of queries with their own rows."""
        products: np.ndarray = np.einsum("qd,qnd->qn", queries, self.vectors[table][keys])
        return products


def build(
    uri: str | Path,
    compressor: Compressor,
    vectors: Any,
    *,
    ids: Sequence[Any] | np.ndarray | None = None,
    fields: Mapping[str, Sequence[Any]] | None = None,
    queries: Any | None = None,
    target: float = 0.99,
    k: int = 10,
    sizes: Sequence[int] | None = None,
    head: str = "hnsw-int8",
    originals: str | None = "float32",
    most_ram: float | None = None,
    model: Any | None = None,
    progress: Report | None = None,
) -> FunnelIndex:
    """An index of all these vectors, with a schedule chosen from them.

    Args:
        uri: Where; see :class:`FunnelIndex`.
        compressor: Maps vectors to the sizes.
        vectors: ``(N, D)`` originals; a memory map is read in pieces.
        ids: ``N`` of them, int or str; the row numbers by default.
        fields: Scalar fields to filter by, ``N`` values each, None where missing.
        queries: ``(Q, D)``, of the kind that will be asked, to choose the schedule on; documents by default.
        target: Recall@k of exact full-width search that the schedule must reach.
        k: Results per query that the schedule is chosen for.
        sizes: Sizes to store; by default those of the cheapest schedule on a sample.
        head: See :meth:`FunnelIndex.create`.
        originals: See :meth:`FunnelIndex.create`.
        most_ram: Bytes of memory per row that the head may take when sizes are chosen; by default a quarter of what
            HNSW over float32 vectors of full width takes.
        model: Embeds queries given as text.
        progress: Called with a stage's name, rows done and rows in all.

    Raises:
        DataError: If the input cannot be used, or another index is there.
    """
    table = check_vectors(vectors, "document")
    if table.shape[1] != compressor.width:
        raise DataError(f"document vectors are {table.shape[1]} wide; this compressor reads {compressor.width}.")
    if len(table) < 2:
        raise DataError("an index is built from at least 2 vectors; create an empty one and add to it.")
    if not 0 < target <= 1 or k < 1:
        raise DataError(f"a recall target lies above 0 and is at most 1, and k is at least 1; got {target} and {k}.")
    if queries is not None:
        queries = check_vectors(queries, "query")
        check_widths(table, queries)
    tell = progress or (lambda stage, done, total: None)
    numbered = range(len(table)) if ids is None else ids
    id_type = "str" if len(numbered) and isinstance(numbered[0], str) else "int"
    plain = new_ids(numbered, id_type, len(table))
    kinds = check_fields({name: kind_of(name, column) for name, column in (fields or {}).items()})
    values = new_fields(fields or {}, kinds, len(table))
    source = _source(table, plain)
    index = _unfinished(uri, compressor, source, model)
    if index is None:
        if sizes is None:
            sizes = choose_sizes(compressor, table, queries, head, target, k, originals is not None, most_ram)
        index = FunnelIndex.create(
            uri, compressor, sizes=sizes, head=head, originals=originals, id_type=id_type, fields=kinds, model=model,
            building=len(table), source=source,
        )  # fmt: skip
    try:
        for start in range(0, len(table), ADD_ROWS):
            part = slice(start, min(start + ADD_ROWS, len(table)))
            if index._backend.present(plain[part]) < part.stop - start:
                some_values = {name: column[part] for name, column in values.items()}
                index.add(table[part], plain[part], some_values, replace=True)
            tell("adding", part.stop, len(table))
        index._backend.compact()
        seen = 0

        def count(rows: int) -> None:
            nonlocal seen
            seen += rows
            tell("choosing the schedule", seen, 2 * len(table))

        index.tune(queries, target=target, k=k, progress=count)
        index._backend.save_settings(replace(index.settings, building=0, source=""))
        index.flush()
    except BaseException:
        index.close()
        raise
    return index


def choose_sizes(
    compressor: Compressor,
    vectors: np.ndarray,
    queries: Any | None,
    head: str,
    target: float,
    k: int,
    originals: bool,
    most_ram: float | None = None,
) -> tuple[int, ...]:
    """Sizes of the cheapest schedule on a sample of the rows; the widest too where no originals are kept."""
    room = row_bytes("hnsw", compressor.width) / 4 if most_ram is None else most_ram
    possible = check_sizes(compressor, None, originals)
    rows = np.sort(np.random.default_rng(0).permutation(len(vectors))[:SAMPLE_ROWS])
    sample = vectors[rows].astype(np.float32)
    every = -(-len(sample) // SAMPLE_QUERIES)
    own = np.arange(0, len(sample), every) if queries is None else None
    asked = sample[own] if own is not None else check_vectors(queries, "query")
    if own is None:
        asked = asked[:: -(-len(asked) // SAMPLE_QUERIES)].astype(np.float32)
    tables = {
        name: {size: compressor.transform(part, dim=size) for size in possible}
        for name, part in (("documents", sample), ("queries", asked))
    }
    full = possible[-1]
    if originals:
        full = compressor.width
        for name, part in (("documents", sample), ("queries", asked)):
            tables[name][FULL] = part / np.linalg.norm(part, axis=1, keepdims=True)
    below = [size for size in possible if size < full]
    if not below:
        return possible
    reader: Any = Sample(tables["documents"])
    last = FULL if originals else full
    truth = exact_neighbours(reader, last, tables["queries"][last], min(k, len(sample) - 1), own)
    ranks = neighbour_ranks(reader, below, tables["queries"], truth)
    growth = len(vectors) / len(sample)
    cost = head_cost(head, len(vectors))
    heads = [size for size in below if row_bytes(head, size) <= room] or below[:1]
    chosen = choose_schedule(ranks, full, len(vectors), cost, target=target, growth=growth, heads=heads).sizes[:-1]
    return chosen if originals else (*chosen, full)


def kind_of(name: str, column: Sequence[Any]) -> str:
    """The type of a field by its values."""
    values = column.tolist() if isinstance(column, np.ndarray) else column
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        kinds = {float}
    for kind, python in FIELD_TYPES.items():
        if kinds == {python}:
            return kind
    raise DataError(f"field {name!r} must hold values of one type of {', '.join(FIELD_TYPES)}.")


def _source(vectors: np.ndarray, ids: Sequence[Any] | np.ndarray) -> str:
    """A hash of what is built from: shape, some rows, some ids."""
    rows = np.unique(np.linspace(0, len(vectors) - 1, FINGERPRINT_ROWS).astype(np.int64))
    digest = hashlib.sha256(repr((vectors.shape, [str(ids[row]) for row in rows.tolist()])).encode())
    digest.update(np.ascontiguousarray(vectors[rows], dtype=np.float32).tobytes())
    return digest.hexdigest()[:16]


def _unfinished(uri: str | Path, compressor: Compressor, source: str, model: Any | None) -> FunnelIndex | None:
    """The index that an interrupted build of the same input left, or None."""
    try:
        backend = open_backend(str(uri), compressor.fingerprint)
    except DataError:
        return None  # creating it says what is in the way
    settings = backend.settings
    if settings.building and (settings.fingerprint, settings.source) == (compressor.fingerprint, source):
        return FunnelIndex(backend, compressor, model)
    backend.close()
    if settings.building:
        raise DataError(f"{uri} holds an unfinished index of other vectors; remove it or choose another name.")
    raise DataError(f"{uri} holds an index of the compressor {settings.fingerprint} already; add to it instead.")
