"""The head of a funnel in FAISS: an index over the smallest size that searches everything.

Names: ``flat`` (exact), ``hnsw``, ``ivf``; each also with quantised vectors: ``-float16``, ``-int8``, ``-int4`` or
``-pq``.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from smec_st.data import DataError
from smec_st.data.errors import one_line

KINDS = ("flat", "hnsw", "ivf")
PRECISIONS = {"float32": "Flat", "float16": "SQfp16", "int8": "SQ8", "int4": "SQ4", "pq": "PQ"}
NEIGHBOURS = 32  # M of HNSW
CONSTRUCTION = 100  # efConstruction: head vectors are narrow, so a careful graph is cheap
EXACT_BELOW = 4096  # rows up to which a flat head is faster than any other
TRAIN_ROWS = 100_000
ADD_ROWS = 512  # added at a time, so that searches get their turn
REBUILD_AT = 4  # a head that was trained on a quarter of the rows is trained anew


def load_faiss() -> Any:
    """The library, which is an extra."""
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise DataError("this needs FAISS: pip install 'smec-st[search]'.") from error


def check_kind(name: str) -> tuple[str, str]:
    """``"hnsw-int8"`` as ``("hnsw", "int8")``; :class:`DataError` for an unknown name."""
    kind, _, precision = name.partition("-")
    precision = precision or "float32"
    if kind not in KINDS or precision not in PRECISIONS:
        raise DataError(
            f"unknown head {name!r}; use {', '.join(KINDS)}, each also with -{', -'.join(list(PRECISIONS)[1:])}."
        )
    if (kind, precision) == ("hnsw", "pq"):
        raise DataError("FAISS has no sound HNSW over product-quantised inner products; use ivf-pq or hnsw-int8.")
    return kind, precision


def factory(name: str, size: int, rows: int) -> str:
    """The FAISS factory string of a head over that many rows."""
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
    """Memory of one row in a head of that kind, links and list entries counted."""
    kind, precision = check_kind(name)
    codes = {"float32": 4.0, "float16": 2.0, "int8": 1.0, "int4": 0.5, "pq": 0.5}[precision] * size
    return codes + {"flat": 0, "hnsw": 8 * NEIGHBOURS + 16, "ivf": 8}[kind]


class ReadersWriter:
    """Many readers or one writer."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._readers = 0
        self._writing = False
        self._waiting = 0

    @contextmanager
    def read(self) -> Iterator[None]:
        """With others who read."""
        with self._condition:
            while self._writing or self._waiting:
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
        """Alone."""
        with self._condition:
            self._waiting += 1
            while self._writing or self._readers:
                self._condition.wait()
            self._waiting -= 1
            self._writing = True
        try:
            yield
        finally:
            with self._condition:
                self._writing = False
                self._condition.notify_all()


class Head:
    """Approximate search over all rows at one size. Rows are numbered in the order they are added.

    Args:
        name: See :func:`check_kind`.
        size: Width of its vectors.
    """

    def __init__(self, name: str, size: int) -> None:
        faiss = load_faiss()
        check_kind(name)
        self.name, self.size = name, size
        self.built_on = 0  # rows when its structure was chosen and trained
        self._lock = ReadersWriter()
        self._index: Any = faiss.IndexFlatIP(size)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def is_exact(self) -> bool:
        """Whether it finds the best at its size without fail."""
        faiss = load_faiss()
        return type(self._index) is faiss.IndexFlatIP

    def wants_rebuild(self, rows: int) -> bool:
        """Whether so many rows call for another structure, or for training anew."""
        if rows < EXACT_BELOW or self.name == "flat":
            return False
        trained = self.name not in ("hnsw", "hnsw-float16", "flat-float16")
        return self.built_on < EXACT_BELOW or (trained and rows >= REBUILD_AT * self.built_on)

    def build(self, sample: np.ndarray, rows: int) -> None:
        """Begin anew: the structure for that many rows, trained on a sample ``(n, size)``. Rows are added after."""
        faiss = load_faiss()
        index = faiss.index_factory(self.size, factory(self.name, self.size, rows), faiss.METRIC_INNER_PRODUCT)
        inner = faiss.downcast_index(index)
        if isinstance(inner, faiss.IndexHNSW):
            inner.hnsw.efConstruction = CONSTRUCTION
        if not index.is_trained:
            index.train(np.ascontiguousarray(sample, dtype=np.float32))
        with self._lock.write():
            self._index, self.built_on = index, rows

    def add(self, vectors: np.ndarray) -> None:
        """More rows, ``(n, size)``; searches go on meanwhile."""
        part = np.ascontiguousarray(vectors, dtype=np.float32)
        for start in range(0, len(part), ADD_ROWS):
            with self._lock.write():
                self._index.add(part[start : start + ADD_ROWS])

    def search(
        self, queries: np.ndarray, keep: int, allowed: np.ndarray | None = None, effort: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best rows of each query.

        Args:
            queries: ``(Q, size)`` float32.
            keep: Rows per query.
            allowed: Bits of rows that may be found (little-endian); None for all.
            effort: ``efSearch`` or ``nprobe``.

        Returns:
            Rows ``(Q, keep)`` int64 by falling score, -1 where there are no more, and scores.
        """
        faiss = load_faiss()
        selector = None if allowed is None else faiss.IDSelectorBitmap(allowed)
        with self._lock.read():
            index = faiss.downcast_index(self._index)
            if isinstance(index, faiss.IndexHNSW):
                ef = max(effort or max(2 * keep, 64), keep)
                parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=ef)
            elif isinstance(index, faiss.IndexIVF):
                probes = min(effort or max(1, index.nlist // 16), index.nlist)
                parameters = faiss.SearchParametersIVF(sel=selector, nprobe=probes)
            elif isinstance(index, faiss.IndexPQ):
                return self._filtered(index, queries, keep, allowed)  # it takes no selector
            else:
                parameters = faiss.SearchParameters(sel=selector)
            scores, rows = index.search(np.ascontiguousarray(queries), keep, params=parameters)
        return rows, scores

    def _filtered(
        self, index: Any, queries: np.ndarray, keep: int, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        if allowed is None:
            scores, rows = index.search(np.ascontiguousarray(queries), min(keep, index.ntotal))
            return rows, scores
        barred = index.ntotal - int(np.unpackbits(allowed, count=index.ntotal, bitorder="little").sum())
        scores, rows = index.search(np.ascontiguousarray(queries), min(keep + barred, index.ntotal))
        kept = (rows >= 0) & ((allowed[rows >> 3] >> (rows & 7)) & 1 == 1)
        order = np.argsort(~kept, axis=1, kind="stable")[:, :keep]
        rows = np.take_along_axis(np.where(kept, rows, -1), order, axis=1)
        return rows, np.take_along_axis(np.where(kept, scores, -np.inf), order, axis=1)

    @property
    def most_effort(self) -> int:
        """The effort beyond which nothing more is found; 0 for a head that has no such knob."""
        faiss = load_faiss()
        index = faiss.downcast_index(self._index)
        if isinstance(index, faiss.IndexHNSW):
            return int(index.ntotal)
        return int(index.nlist) if isinstance(index, faiss.IndexIVF) else 0

    @property
    def ram_bytes(self) -> int:
        """Memory of codes, links, lists and codebooks."""
        faiss = load_faiss()
        index = faiss.downcast_index(self._index)
        count = int(index.ntotal)
        if isinstance(index, faiss.IndexHNSW):
            graph = index.hnsw
            links = graph.neighbors.size() * 4 + graph.offsets.size() * 8 + graph.levels.size() * 4
            return int(faiss.downcast_index(index.storage).sa_code_size()) * count + int(links)
        if isinstance(index, faiss.IndexIVF):
            return (int(index.code_size) + 8) * count + 4 * self.size * int(index.nlist)
        return int(index.sa_code_size()) * count

    def save(self, path: Path) -> None:
        """Write the FAISS index to a file, in FAISS's own format."""
        faiss = load_faiss()
        with self._lock.read():
            try:
                faiss.write_index(self._index, str(path))
            except RuntimeError as error:
                raise OSError(f"cannot write {path}: {one_line(error)}") from error

    def load(self, path: Path, built_on: int) -> None:
        """Read what :meth:`save` wrote; check the file's checksum first."""
        faiss = load_faiss()
        try:
            index = faiss.read_index(str(path))
        except RuntimeError as error:
            raise DataError(f"{path} is not a readable FAISS index: {one_line(error)}") from error
        if index.d != self.size:
            raise DataError(f"{path} holds vectors {index.d} wide, not {self.size}.")
        with self._lock.write():
            self._index, self.built_on = index, built_on
