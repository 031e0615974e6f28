"""A head: a map and the codec that stores its output. Depends on numpy only."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from smec_st.data.vectors import as_numpy
from smec_st.maps import FoldedMap
from smec_st.quantization.codecs import Codec
from smec_st.system.errors import DataError, count, whole_number

if TYPE_CHECKING:
    import faiss


@dataclass(frozen=True, repr=False)
class Head:
    """Encodes documents as codes and queries as floats, and scores one against the other.

    Attributes:
        folded: Map from the backbone's vectors to those that the codec stores.
        codec: Encodes and decodes vectors.
        has_own_map: Whether the map was trained with the codes; otherwise it is the compressor's map.
        info: How the head was made and scored.
    """

    folded: FoldedMap
    codec: Codec
    has_own_map: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dim(self) -> int:
        """Dimensions of a decoded document, and of a query."""
        return self.codec.dim

    @property
    def precision(self) -> str:
        """One of float32, float16, int8, binary and pq."""
        return self.codec.precision

    @property
    def bytes(self) -> int:
        """Bytes per document."""
        return self.codec.bytes

    def __repr__(self) -> str:
        return f"Head({self.precision} of {count(self.dim, 'number')}, {count(self.bytes, 'byte')})"

    @property
    def digest(self) -> str:
        """A short hash of map and codec. Codes with different digests must not be mixed."""
        digest = hashlib.sha256(f"{self.precision} {self.dim} {self.bytes}".encode())
        tensors = {f"layer {i}": layer.weight for i, layer in enumerate(self.folded.layers)}
        for layer in self.folded.layers[:-1]:
            digest.update(f"activation {layer.activation}".encode())
        for name, tensor in sorted({**tensors, **self.codec.tensors()}.items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensor).tobytes())
        return digest.hexdigest()[:16]

    def encode(self, vectors: np.ndarray, chunk: int = 65536) -> np.ndarray:
        """Encode documents.

        Args:
            vectors: Vectors of the backbone, ``(n, D)`` or ``(D,)``, any float type.
            chunk: Rows that are encoded at a time.

        Returns:
            Codes, ``(n, w)`` or ``(w,)``: ``w`` float32, float16 or int8 numbers, or ``w`` bytes as uint8. The code of
            a row does not depend on the other rows.

        Raises:
            DataError: If the width is wrong, or a row is zero, NaN or infinite.
        """
        table, shape = check_table(vectors, self.folded.in_dim)
        parts = [self.codec.encode(rows) for _, rows in self.folded.compress_chunks(table, chunk)]
        if not parts:
            parts = [self.codec.encode(np.empty((0, self.dim), dtype=np.float32))]
        codes = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return codes.reshape(*shape, codes.shape[1])

    def queries(self, vectors: np.ndarray, chunk: int = 65536) -> np.ndarray:
        """Map queries to float32 vectors of length 1. ``(n, D) -> (n, d)`` or ``(D,) -> (d,)``."""
        table, shape = check_table(vectors, self.folded.in_dim)
        out = np.empty((len(table), self.dim), dtype=np.float32)
        for start, rows in self.folded.compress_chunks(table, chunk):
            out[start : start + len(rows)] = rows
        return out.reshape(*shape, self.dim)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Decode documents to float32 vectors of length 1. ``(n, w) -> (n, d)`` or ``(w,) -> (d,)``."""
        table = np.atleast_2d(codes)
        decoded = self.codec.decode(table)
        return decoded[0] if codes.ndim == 1 else decoded

    def scores(self, queries: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Compute cosines of queries, from :meth:`queries`, and encoded documents. ``(q, d), (n, w) -> (q, n)``.

        Raises:
            DataError: If queries or codes have another shape.
        """
        if queries.shape[-1:] != (self.dim,):
            raise DataError(f"queries must be (q, {self.dim}), from `head.queries(vectors)`; got {queries.shape}.")
        return np.asarray(queries @ self.decode(codes).T)

    def to_faiss(self, kind: str = "flat", metric: str = "l2", sample: np.ndarray | None = None) -> faiss.Index:
        """Make an empty FAISS index whose codes are the head's own.

        Add documents with ``index.add(head.queries(vectors))``, which encodes them. FAISS compares with the decoded
        document; it cannot scale int8 and product codes to length 1, so :meth:`search` does, and ranks as
        :meth:`scores`.

        Args:
            kind: "flat", "ivf" (inverted lists) or "hnsw" (a graph).
            metric: "l2" or "ip", which rank documents of length 1 alike; of product codes FAISS alone ranks better by
                L2 (SciFact, 12 bytes, nDCG@10: .516, and .489 by inner product; :meth:`search` .528). A graph of
                binary or product codes has L2 in any case.
            sample: Vectors of the backbone, ``(n, D)``, on which inverted lists are trained. FAISS looks in a single
                list until it is told otherwise, and misses much: ``faiss.extract_index_ivf(index).nprobe = 16``.

        Returns:
            A trained, empty index of :attr:`dim` numbers: ``IndexPQ``, ``IndexIVFPQ``, ``IndexHNSWPQ`` or those of
            scalar codes; binary codes are product codes of eight signs.

        Raises:
            DataError: If FAISS is missing, an argument is unknown, or inverted lists get no sample.
        """
        from smec_st.quantization.engines import faiss_index

        return faiss_index(self.codec, kind, metric, None if sample is None else self.queries(sample))

    def search(self, index: faiss.Index, queries: np.ndarray, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """Search an index of :meth:`to_faiss`, ranked by :meth:`scores`.

        Args:
            index: The index, in memory or read from a file.
            queries: Queries from :meth:`queries`, ``(Q, d)``.
            k: Results per query.

        Returns:
            Rows ``(Q, k)`` by descending score, -1 where there are no more, and their scores, -inf there.

        Raises:
            DataError: If the index or the queries are not those of this head, or ``k`` is below 1.
        """
        from smec_st.quantization.engines import search_codes

        k = whole_number(k, "k")
        if index.d != self.dim:
            raise DataError(
                f"vectors of the index have {index.d} numbers, and of this head {self.dim}; use `to_faiss`."
            )
        table, shape = check_table(queries, self.dim)
        rows = np.full((len(table), k), -1, dtype=np.int64)
        scores = np.full((len(table), k), -np.inf, dtype=np.float32)
        if index.ntotal and len(table):
            found, best = search_codes(index, table, k)
            rows[:, : found.shape[1]], scores[:, : found.shape[1]] = found, best
        return rows.reshape(*shape, k), scores.reshape(*shape, k)


def check_table(vectors: np.ndarray, width: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """Check vectors ``(n, D)`` or ``(D,)``; return them as a table, and their shape without ``D``."""
    rows = as_numpy(vectors)
    if rows.ndim not in (1, 2) or rows.shape[-1] != width:
        raise DataError(f"Vectors must be {width} wide, got shape {tuple(rows.shape)}.")
    if rows.dtype.kind != "f":
        raise DataError(f"Vectors must be floats, got {rows.dtype}.")
    return rows.reshape(-1, width), rows.shape[:-1]
