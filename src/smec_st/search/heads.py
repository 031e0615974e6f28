"""The head of a funnel in FAISS: the index that searches all rows at the smallest size.

A head is ``flat`` (exact), ``hnsw`` or ``ivf``. Each can also store quantised vectors, with the suffix ``-float16``,
``-int8``, ``-int4`` or ``-pq``; or the codes of a head of the compressor, as in ``ivf-codes:12``, or ``codes:12``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smec_st.data import DataError
from smec_st.data.vectors import unit_rows
from smec_st.quantization.codecs import Codec
from smec_st.quantization.engines import faiss_codes, faiss_index
from smec_st.system.errors import one_line
from smec_st.system.optional import load_optional

if TYPE_CHECKING:
    import faiss

KINDS = ("flat", "hnsw", "ivf")
PRECISIONS = {"float32": "Flat", "float16": "SQfp16", "int8": "SQ8", "int4": "SQ4", "pq": "PQ"}
NEIGHBOURS = 32  # M of HNSW
CONSTRUCTION = 100  # efConstruction; head vectors are narrow, so building a careful graph is cheap
EXACT_BELOW = 4096  # with fewer rows than this, a flat head is faster than any other
TRAIN_ROWS = 100_000
ADD_ROWS = 512  # rows added per write lock, so that searches can run in between
REBUILD_AT = 4  # a trained head is rebuilt when the index has this many times the rows it was trained for


def check_kind(name: str) -> tuple[str, str]:
    """Split ``"hnsw-int8"`` into ``("hnsw", "int8")``, and ``"codes:12"`` into ``("ivf", "codes:12")``.

    Raises:
        DataError: If the name is unknown.
    """
    kind, _, precision = (f"ivf-{name}" if name.startswith("codes:") else name).partition("-")
    precision = precision or "float32"
    is_codes = precision.startswith("codes:") and precision[6:].isdecimal() and int(precision[6:]) > 0
    if kind not in KINDS or not (precision in PRECISIONS or is_codes):
        raise DataError(
            f"unknown head {name!r}; use {', '.join(KINDS)}, each also with -{', -'.join(list(PRECISIONS)[1:])}, "
            "or codes:BYTES for codes of the compressor."
        )
    if (kind, precision) == ("hnsw", "pq"):
        raise DataError("FAISS has no sound HNSW over product-quantised inner products; use ivf-pq or hnsw-int8.")
    return kind, precision


def codes_of(name: str) -> int:
    """Return the bytes of the codes that a head stores; 0 if it stores vectors."""
    _, precision = check_kind(name)
    return int(precision.removeprefix("codes:")) if precision.startswith("codes:") else 0


def factory(name: str, size: int, rows: int) -> str:
    """Return the FAISS factory string of a head over ``rows`` rows."""
    kind, precision = check_kind(name)
    if rows < EXACT_BELOW:
        return "Flat"
    codes = PRECISIONS[precision]
    if precision == "pq":  # two dimensions per byte
        codes += str(size // 2 if size % 2 == 0 else size)
    if kind == "flat":
        return codes
    if kind == "hnsw":
        return f"HNSW{NEIGHBOURS},{codes}"
    return f"IVF{max(1, min(int(4 * rows**0.5), rows // 39))},{codes}"


def row_bytes(name: str, size: int) -> float:
    """Return the memory that one row takes in a head of this kind, including graph links and list entries."""
    kind, precision = check_kind(name)
    number = {"float32": 4.0, "float16": 2.0, "int8": 1.0, "int4": 0.5, "pq": 0.5}
    codes = codes_of(name) or number[precision] * size
    return codes + {"flat": 0, "hnsw": 8 * NEIGHBOURS + 16, "ivf": 8}[kind]


class ReadWriteLock:
    """A lock that many readers or one writer can hold. Waiting writers go before new readers."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._readers = 0
        self._writing = False
        self._waiting_writers = 0

    @contextmanager
    def read(self) -> Iterator[None]:
        """Hold the lock together with other readers."""
        with self._condition:
            while self._writing or self._waiting_writers:
                self._condition.wait()
            self._readers += 1
        try:
            yield
        finally:
            with self._condition:
                self._readers -= 1
                self._condition.notify_all()

    @contextmanager
    def write(self) -> Iterator[None]:
        """Hold the lock exclusively."""
        with self._condition:
            self._waiting_writers += 1
            while self._writing or self._readers:
                self._condition.wait()
            self._waiting_writers -= 1
            self._writing = True
        try:
            yield
        finally:
            with self._condition:
                self._writing = False
                self._condition.notify_all()


class Head:
    """Approximate search over all rows at one size. Rows are numbered in the order in which they are added.

    Args:
        name: Kind of head, see :func:`check_kind`.
        size: Width of its vectors; that of the codec if there is one.
        codec: What stores the vectors of a head of codes. Rows are then given as codes.
    """

    def __init__(self, name: str, size: int, codec: Codec | None = None) -> None:
        self.kind, _ = check_kind(name)
        self.name, self.size, self.codec = name, codec.dim if codec else size, codec
        self.built_on = 0  # number of rows that its structure was chosen and trained for
        self._faiss = load_optional("faiss", "this index")
        self._lock = ReadWriteLock()
        self._index: Any = faiss_index(codec, metric="l2") if codec else self._faiss.IndexFlatIP(size)
        self._decoder: Any = faiss_index(codec) if codec else None

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def is_exact(self) -> bool:
        """Whether it always finds the best rows at its size."""
        return not self.built_on if self.codec else type(self._index) is self._faiss.IndexFlatIP

    def wants_rebuild(self, rows: int) -> bool:
        """Return whether this many rows need another structure or a new training."""
        if rows < EXACT_BELOW or self.name == "flat" or (self.codec and self.kind == "flat"):
            return False
        is_trained = self.name not in ("hnsw", "hnsw-float16", "flat-float16")
        return self.built_on < EXACT_BELOW or (is_trained and rows >= REBUILD_AT * self.built_on)

    def build(self, sample: np.ndarray, rows: int) -> None:
        """Replace the head by an empty one with the structure for ``rows`` rows, trained on a sample ``(n, size)``."""
        faiss = self._faiss
        if self.codec is not None:
            index = faiss_index(self.codec, self.kind, "l2", self._unscaled(sample))
        else:
            index = faiss.index_factory(self.size, factory(self.name, self.size, rows), faiss.METRIC_INNER_PRODUCT)
            inner = faiss.downcast_index(index)
            if isinstance(inner, faiss.IndexHNSW):
                inner.hnsw.efConstruction = CONSTRUCTION
            if not index.is_trained:
                index.train(np.ascontiguousarray(sample, dtype=np.float32))
        with self._lock.write():
            self._index, self.built_on = index, rows

    def add(self, vectors: np.ndarray) -> None:
        """Add rows, ``(n, size)``. Searches can run while this adds."""
        if self.codec is not None:
            vectors = self._unscaled(vectors)
        part = np.ascontiguousarray(vectors, dtype=np.float32)
        for start in range(0, len(part), ADD_ROWS):
            with self._lock.write():
                self._index.add(part[start : start + ADD_ROWS])

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Decode rows of codes to vectors of length 1, ``(n, bytes) uint8 -> (n, size)``."""
        return unit_rows(self._unscaled(codes)) if len(codes) else np.empty((0, self.size), dtype=np.float32)

    def _unscaled(self, codes: np.ndarray) -> np.ndarray:
        """Decode as FAISS does, so that encoding again gives the same codes."""
        assert self.codec is not None
        return np.asarray(self._decoder.sa_decode(faiss_codes(self.codec, codes)))

    def search(
        self, queries: np.ndarray, keep: int, allowed: np.ndarray | None = None, effort: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the best rows of each query.

        Args:
            queries: ``(Q, size)`` float32.
            keep: Rows per query.
            allowed: One bit per row that may be found (little-endian); None for all rows.
            effort: ``efSearch`` or ``nprobe``.

        Returns:
            Rows ``(Q, keep)`` int64 by descending score, -1 where there are no more, and their scores.
        """
        faiss = self._faiss
        selector = None if allowed is None else faiss.IDSelectorBitmap(allowed)
        queries = np.ascontiguousarray(queries)
        with self._lock.read():
            index, outer = self._inner, faiss.downcast_index(self._index)
            if isinstance(outer, faiss.IndexPreTransform):
                queries = faiss.downcast_VectorTransform(outer.chain.at(0)).apply(queries)
            if isinstance(index, faiss.IndexHNSW):
                ef = max(effort or max(2 * keep, 64), keep)
                parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=ef)
            elif isinstance(index, faiss.IndexIVF):
                probes = min(effort or max(1, index.nlist // 16), index.nlist)
                parameters = faiss.SearchParametersIVF(sel=selector, nprobe=probes)
            elif isinstance(index, faiss.IndexPQ):
                rows, scores = _search_then_filter(index, queries, keep, allowed)
                return rows, -scores if self.codec else scores
            else:
                parameters = faiss.SearchParameters(sel=selector)
            scores, rows = index.search(queries, keep, params=parameters)
        return rows, -scores if self.codec else scores  # codes are compared by L2

    @property
    def _inner(self) -> faiss.Index:
        """The index behind the rotation of a head of codes."""
        index: faiss.Index = self._faiss.downcast_index(self._index)
        if isinstance(index, self._faiss.IndexPreTransform):
            index = self._faiss.downcast_index(index.index)
        return index

    @property
    def max_effort(self) -> int:
        """The effort above which no more rows are found; 0 for a head without this parameter."""
        index = self._inner
        if isinstance(index, self._faiss.IndexHNSW):
            return int(index.ntotal)
        return int(index.nlist) if isinstance(index, self._faiss.IndexIVF) else 0

    @property
    def ram_bytes(self) -> int:
        """Memory of codes, links, lists and codebooks."""
        faiss, index = self._faiss, self._inner
        count = int(index.ntotal)
        if isinstance(index, faiss.IndexHNSW):
            graph = index.hnsw
            links = graph.neighbors.size() * 4 + graph.offsets.size() * 8 + graph.levels.size() * 4
            return int(faiss.downcast_index(index.storage).sa_code_size()) * count + int(links)
        if isinstance(index, faiss.IndexIVF):
            return (int(index.code_size) + 8) * count + 4 * self.size * int(index.nlist)
        return int(index.sa_code_size()) * count

    def save(self, path: Path) -> None:
        """Write the index to a file in FAISS's own format."""
        with self._lock.read():
            try:
                self._faiss.write_index(self._index, str(path))
            except RuntimeError as error:
                raise OSError(f"cannot write {path}: {one_line(error)}") from error

    def load(self, path: Path, built_on: int) -> None:
        """Read a file that :meth:`save` wrote. The caller must have compared its checksum."""
        try:
            index = self._faiss.read_index(str(path))
        except RuntimeError as error:
            raise DataError(f"{path} is not a readable FAISS index: {one_line(error)}") from error
        if index.d != self.size:
            raise DataError(f"{path} holds vectors {index.d} wide, not {self.size}.")
        with self._lock.write():
            self._index, self.built_on = index, built_on


def _search_then_filter(
    index: faiss.Index, queries: np.ndarray, keep: int, allowed: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Search an index that takes no selector, and drop the rows that are not allowed afterwards."""
    if allowed is None:
        scores, rows = index.search(np.ascontiguousarray(queries), min(keep, index.ntotal))
        return rows, scores
    excluded = index.ntotal - int(np.unpackbits(allowed, count=index.ntotal, bitorder="little").sum())
    scores, rows = index.search(np.ascontiguousarray(queries), min(keep + excluded, index.ntotal))
    kept = (rows >= 0) & ((allowed[rows >> 3] >> (rows & 7)) & 1 == 1)
    order = np.argsort(~kept, axis=1, kind="stable")[:, :keep]
    rows = np.take_along_axis(np.where(kept, rows, -1), order, axis=1)
    return rows, np.take_along_axis(np.where(kept, scores, -np.inf), order, axis=1)
