"""Build an index in one call: choose sizes on a sample, add all rows, and choose the schedule on all of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from smec_st.data import DataError, check_vectors
from smec_st.data.vectors import check_widths, hash_rows
from smec_st.search.backend import CODES, FULL, Backend, Columns, Ids
from smec_st.search.calibration import exact_neighbours, neighbour_ranks
from smec_st.search.checks import ADD_ROWS, Documents, check_fields, check_sizes, new_settings
from smec_st.search.encoding import encode_documents
from smec_st.search.engines import create_backend, open_backend
from smec_st.search.filters import FIELD_TYPES
from smec_st.search.heads import codes_of, row_bytes
from smec_st.search.schedule import choose_schedule, head_cost
from smec_st.search.tuning import NEEDS_QUERIES, check_target, tune
from smec_st.system.errors import whole_number

if TYPE_CHECKING:
    from smec_st.compressor import Compressor

SAMPLE_ROWS = 20_000
SAMPLE_QUERIES = 128

BuildProgress = Callable[[str, int, int], object]


@dataclass(frozen=True)
class BuildOptions:
    """Options of a build; see :meth:`smec_st.search.FunnelIndex.build`."""

    recall: float = 0.99
    k: int = 10
    dims: Sequence[int] | None = None
    head: str = "hnsw-int8"
    originals: str | None = "float32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", whole_number(self.k, "k"))
        check_target(self.recall)


def build(
    uri: str | Path,
    compressor: Compressor,
    vectors: ArrayLike,
    chosen: BuildOptions,
    *,
    ids: Ids | None = None,
    fields: Columns | None = None,
    queries: ArrayLike | None = None,
    progress: BuildProgress | None = None,
) -> Backend:
    """Build an index of these vectors; see :meth:`smec_st.search.FunnelIndex.build`."""
    table = check_vectors(vectors, "document")
    if table.shape[1] != compressor.width:
        raise DataError(f"document vectors are {table.shape[1]} wide; this compressor reads {compressor.width}.")
    if len(table) < 2:
        raise DataError("an index is built from at least 2 vectors; create an empty one and add to it.")
    if queries is None and chosen.originals is None and codes_of(chosen.head):
        raise DataError(NEEDS_QUERIES)
    if queries is not None:
        queries = check_vectors(queries, "query")
        check_widths(table, queries)
    given_ids = range(len(table)) if ids is None else ids
    id_type = "str" if len(given_ids) and isinstance(given_ids[0], str) else "int"
    field_types = {name: kind_of(name, column) for name, column in (fields or {}).items()}
    check_fields(field_types)
    documents = Documents.check(table, given_ids, fields or {}, id_type, field_types)
    source = _input_hash(documents, queries, chosen)
    backend = _open_unfinished(uri, compressor, source)
    if backend is None:
        sizes = choose_sizes(compressor, table, queries, chosen) if chosen.dims is None else chosen.dims
        settings = new_settings(
            compressor, sizes, chosen.originals, None,
            head=chosen.head, id_type=id_type, fields=field_types, building=len(table), source=source,
        )  # fmt: skip
        backend = create_backend(str(uri), settings, compressor)
    try:
        if backend.settings.codes:
            compressor = backend.compressor()  # whose codes an interrupted build has begun with
        _fill(backend, compressor, documents, queries, chosen, progress or (lambda stage, done, total: None))
    except BaseException:
        backend.close()
        raise
    return backend


def _fill(
    backend: Backend,
    compressor: Compressor,
    documents: Documents,
    queries: np.ndarray | None,
    options: BuildOptions,
    report: BuildProgress,
) -> None:
    """Add the documents that are not in the index yet, choose the schedule, and mark the index as complete."""
    added, present = 0, len(backend)
    for part in documents.parts(ADD_ROWS):
        added += len(part)
        if added > present:
            backend.add(encode_documents(backend.settings, compressor, part), replace=True)
        report("adding", added, len(documents))
    backend.compact()
    seen = 0

    def count(rows: int) -> None:
        nonlocal seen
        seen += rows
        report("choosing the schedule", seen, 2 * len(documents))

    schedule = tune(backend, compressor, queries, target=options.recall, k=options.k, progress=count)
    backend.save_settings(replace(backend.settings, schedule=schedule, building=0, source=""))
    backend.flush()


class Sample:
    """Rows in memory, with the methods of a :class:`~smec_st.search.backend.Reader` that calibration needs."""

    def __init__(self, vectors: Mapping[int, np.ndarray]) -> None:
        self.vectors = vectors

    def __len__(self) -> int:
        return len(next(iter(self.vectors.values())))

    def scan(self, tables: Sequence[int]) -> Iterator[tuple[np.ndarray, dict[int, np.ndarray]]]:
        """Yield all rows, in one piece."""
        yield np.arange(len(self)), {table: self.vectors[table] for table in tables}

    def scores(self, table: int, queries: np.ndarray, keys: np.ndarray, found: np.ndarray) -> np.ndarray:
        """Compute the cosine of each query with its own rows."""
        products: np.ndarray = np.einsum("qd,qnd->qn", queries, self.vectors[table][keys])
        return products


def choose_sizes(
    compressor: Compressor, vectors: np.ndarray, queries: np.ndarray | None, options: BuildOptions
) -> tuple[int, ...]:
    """Choose the sizes of the cheapest schedule on a sample of the rows.

    Without originals the widest size is stored too, since it ranks the results.
    """
    keeps_originals = options.originals is not None
    codes = codes_of(options.head)
    possible = tuple(s for s in check_sizes(compressor, None, keeps_originals) if s > codes)
    if not possible:
        return ()
    full = compressor.width if keeps_originals else possible[-1]
    below = [size for size in possible if size < full]
    if not below:
        return possible
    rows = np.sort(np.random.default_rng(0).permutation(len(vectors))[:SAMPLE_ROWS])
    sample = vectors[rows].astype(np.float32)
    self_rows = None
    if queries is None:
        self_rows = np.arange(0, len(sample), -(-len(sample) // SAMPLE_QUERIES))
        sample_queries = sample[self_rows]
    else:
        sample_queries = queries[:: -(-len(queries) // SAMPLE_QUERIES)].astype(np.float32)

    def tables(part: np.ndarray) -> dict[int, np.ndarray]:
        compressed = {size: compressor.transform(part, dim=size) for size in possible}
        return {**compressed, FULL: part / np.linalg.norm(part, axis=1, keepdims=True)}

    head = compressor.head(bytes=codes) if codes else None
    by_row, by_table = tables(sample), tables(sample_queries)
    if head is not None:
        by_row[CODES], by_table[CODES] = head.decode(head.encode(sample)), head.queries(sample_queries)
    reader: Any = Sample(by_row)
    last = FULL if keeps_originals else full
    truth = exact_neighbours(reader, last, by_table[last], min(options.k, len(sample) - 1), self_rows)
    ranks = neighbour_ranks(reader, [CODES, *below] if codes else below, by_table, truth)
    if codes:
        ranks[codes] = ranks.pop(CODES)
    max_bytes = row_bytes("hnsw", compressor.width) / 4
    heads = [size for size in below if row_bytes(options.head, size) <= max_bytes] or below[:1]
    heads = [codes] if codes else heads
    cost, growth = head_cost(options.head, len(vectors)), len(vectors) / len(sample)
    schedule = choose_schedule(ranks, full, len(vectors), cost, target=options.recall, growth=growth, heads=heads)
    return tuple(s for s in (schedule.sizes[:-1] if keeps_originals else schedule.sizes) if s != codes)


def kind_of(name: str, column: Sequence[object] | np.ndarray) -> str:
    """Infer the type of a field from its values."""
    values = column.tolist() if isinstance(column, np.ndarray) else column
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        kinds = {float}
    for kind, python in FIELD_TYPES.items():
        if kinds == {python}:
            return kind
    raise DataError(f"field {name!r} must hold values of one type of {', '.join(FIELD_TYPES)}.")


def _input_hash(documents: Documents, queries: np.ndarray | None, options: BuildOptions) -> str:
    """Hash all that a build depends on: an interrupted build is only continued with the very same input."""
    sizes = None if options.dims is None else sorted(map(int, options.dims))
    settings = {**dataclasses.asdict(options), "sizes": sizes}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=float).encode())
    for table in (documents.vectors, *([] if queries is None else [queries])):
        hash_rows(digest, table)
    for name, column in (("", documents.ids), *sorted(documents.fields.items())):
        digest.update(json.dumps([name, column]).encode())
    return digest.hexdigest()[:16]


def _open_unfinished(uri: str | Path, compressor: Compressor, source: str) -> Backend | None:
    """Open the index that an interrupted build of the same input has left; None if there is no index."""
    try:
        backend = open_backend(str(uri), compressor.fingerprint)
    except DataError:
        return None  # if something is in the way, creating the index reports it
    settings = backend.settings
    if settings.building and (settings.fingerprint, settings.source) == (compressor.fingerprint, source):
        return backend
    backend.close()
    if settings.building:
        raise DataError(
            f"{uri} holds an unfinished index of other vectors or options; remove it or choose another name."
        )
    raise DataError(f"{uri} holds an index of the compressor {settings.fingerprint} already; add to it instead.")
