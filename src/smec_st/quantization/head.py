"""A way to store documents: a map, and the codec behind it. Needs numpy alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from smec_st.data.errors import DataError
from smec_st.maps import FoldedMap
from smec_st.quantization.codecs import Codec


@dataclass(frozen=True)
class Head:
    """Documents as codes, queries as floats, and the score between them.

    Attributes:
        folded: Map from the backbone's vectors to the codec's.
        codec: Encodes and decodes.
        has_own_map: Whether the map was trained with the codes; otherwise it is the compressor's own.
        info: How it came to be.
    """

    folded: FoldedMap
    codec: Codec
    has_own_map: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dim(self) -> int:
        """Numbers that a code stands for, and the width of queries."""
        return self.codec.dim

    @property
    def precision(self) -> str:
        """float32, float16, int8, binary or pq."""
        return self.codec.precision

    @property
    def bytes(self) -> int:
        """Bytes per document."""
        return self.codec.bytes

    @property
    def digest(self) -> str:
        """A short hash of map and codec: codes of different digests must not meet."""
        digest = hashlib.sha256(f"{self.precision} {self.dim} {self.bytes}".encode())
        tensors = {f"layer {i}": layer.weight for i, layer in enumerate(self.folded.layers)}
        for name, tensor in sorted({**tensors, **self.codec.tensors()}.items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensor).tobytes())
        return digest.hexdigest()[:16]

    def encode(self, vectors: np.ndarray, chunk: int = 65536) -> np.ndarray:
        """Documents to codes.

        Args:
            vectors: The backbone's, ``(n, D)`` or ``(D,)``, any float type.
            chunk: Rows at a time.

        Returns:
            ``(n, w)`` or ``(w,)``: float32, float16 or int8 with ``w`` numbers, uint8 with ``w`` bytes otherwise. A
            row gives the same code alone and among others.

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
        """Queries as floats of length 1. ``(n, D) -> (n, d)`` or ``(D,) -> (d,)``, float32."""
        table, shape = check_table(vectors, self.folded.in_dim)
        out = np.empty((len(table), self.dim), dtype=np.float32)
        for start, rows in self.folded.compress_chunks(table, chunk):
            out[start : start + len(rows)] = rows
        return out.reshape(*shape, self.dim)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """What codes stand for, float32 of length 1. ``(n, w) -> (n, d)`` or ``(w,) -> (d,)``."""
        table = np.atleast_2d(codes)
        decoded = self.codec.decode(table)
        return decoded[0] if codes.ndim == 1 else decoded

    def scores(self, queries: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Cosine of float queries, from :meth:`queries`, and stored documents. ``(q, d), (n, w) -> (q, n)``."""
        return np.asarray(queries @ self.decode(codes).T)


def check_table(vectors: np.ndarray, width: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """Vectors ``(n, D)`` or ``(D,)`` as a table, and the shape in front of ``D``."""
    rows = np.asarray(vectors)
    if rows.ndim not in (1, 2) or rows.shape[-1] != width:
        raise DataError(f"Vectors must be {width} wide, got shape {tuple(rows.shape)}.")
    if rows.dtype.kind != "f":
        raise DataError(f"Vectors must be floats, got {rows.dtype}.")
    return rows.reshape(-1, width), rows.shape[:-1]
