"""Codecs for compressed vectors. Depends on numpy only.

Search is asymmetric: documents are stored as codes, queries stay float, and the score is the inner product of the
query with the decoded document, scaled to length 1. Rounding shortens some vectors more than others, and without the
scaling those would lose rank for no reason (SciFact, 6 bytes: 0.66 without, 0.70 with). A codec holds all its
parameters (ranges, centroids), so the code of a vector does not depend on other vectors. Each codec serves one size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from smec_st.data.vectors import unit_rows
from smec_st.maps.folded import product
from smec_st.system.errors import DataError

PLAIN = ("float32", "float16")
PRECISIONS = (*PLAIN, "int8", "binary", "pq")


@dataclass(frozen=True)
class Plain:
    """Stores vectors as float32 or float16.

    Args:
        dim: Dimensions of a vector.
        precision: "float32" or "float16".
    """

    dim: int
    precision: str = "float32"

    @property
    def bytes(self) -> int:
        """Four or two bytes per dimension."""
        return self.dim * np.dtype(self.precision).itemsize

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Round unit-norm rows to the precision. ``(n, d) float32 -> (n, d)``."""
        return rows.astype(self.precision, copy=False)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Convert to float32, of length 1. ``(n, d) -> (n, d) float32``."""
        rows = _codes(codes, self.dim, self.precision)
        return rows.astype(np.float32, copy=False) if self.precision == "float32" else unit_rows(rows)

    def tensors(self) -> dict[str, np.ndarray]:
        """No parameters."""
        return {}


@dataclass(frozen=True)
class Int8:
    """Stores one byte per dimension: ``x = low + (code + 128) * step``, rounded to the nearest code and clipped.

    Args:
        low: Value of the lowest code of each dimension, ``(d,)`` float32.
        step: Distance between adjacent codes, ``(d,)`` float32, above 0.
    """

    low: np.ndarray
    step: np.ndarray

    precision: ClassVar[str] = "int8"

    @property
    def dim(self) -> int:
        """Dimensions of a vector, ``d``."""
        return len(self.low)

    @property
    def bytes(self) -> int:
        """One byte per dimension."""
        return self.dim

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Encode unit-norm rows. ``(n, d) -> (n, d) int8``."""
        codes = np.subtract(rows, self.low, dtype=np.float32)
        codes /= self.step
        np.rint(codes, out=codes)
        np.clip(codes, 0, 255, out=codes)
        codes -= 128
        return np.asarray(codes.astype(np.int8))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Decode codes. ``(n, d) int8 -> (n, d) float32``."""
        return unit_rows(self.low + (_codes(codes, self.dim, "int8").astype(np.float32) + 128) * self.step)

    def tensors(self) -> dict[str, np.ndarray]:
        """``low`` and ``step``."""
        return {"low": self.low, "step": self.step}


@dataclass(frozen=True)
class Binary:
    """Stores the sign of each dimension as one bit, packed as ``numpy.packbits`` does (first bit highest).

    A bit is decoded to ``+-1 / sqrt(d)``, so that decoded vectors have length 1.

    Args:
        rotation: Orthogonal matrix ``(d, d)``, applied as ``rows @ rotation`` before signs are taken and undone by
            :meth:`decode`; None for no rotation.
        count: Number of dimensions ``d``; needed only without a rotation.
    """

    rotation: np.ndarray | None = None
    count: int = 0

    precision: ClassVar[str] = "binary"

    @property
    def dim(self) -> int:
        """Dimensions of a vector, ``d``."""
        return self.count if self.rotation is None else len(self.rotation)

    @property
    def bytes(self) -> int:
        """One byte per eight dimensions, rounded up."""
        return -(-self.dim // 8)

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Encode rows; values of 0 and below give the bit 0. ``(n, d) -> (n, bytes) uint8``."""
        rotated = rows if self.rotation is None else product(rows, self.rotation)
        return np.packbits(rotated > 0, axis=-1)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Decode codes. ``(n, bytes) uint8 -> (n, d) float32``."""
        bits = np.unpackbits(_codes(codes, self.bytes, "uint8"), axis=-1, count=self.dim)
        signs = (2 * bits.astype(np.float32) - 1) / np.sqrt(np.float32(self.dim))
        return np.asarray(signs if self.rotation is None else signs @ self.rotation.T)

    def tensors(self) -> dict[str, np.ndarray]:
        """The rotation, if there is one."""
        return {} if self.rotation is None else {"rotation": self.rotation}


@dataclass(frozen=True)
class Product:
    """Product quantisation: stores the number of the nearest centroid of each group of adjacent dimensions.

    Args:
        centroids: ``(codes, 256, d / codes)`` float32; fewer than 256 for a tiny corpus.

    Reference:
        Jegou et al., TPAMI 2011.
    """

    centroids: np.ndarray

    precision: ClassVar[str] = "pq"

    @property
    def dim(self) -> int:
        """Dimensions of a vector, ``d``."""
        return int(self.centroids.shape[0] * self.centroids.shape[2])

    @property
    def bytes(self) -> int:
        """One byte per group."""
        return len(self.centroids)

    def encode(self, rows: np.ndarray, chunk: int = 8192) -> np.ndarray:
        """Encode rows. ``(n, d) -> (n, codes) uint8``."""
        groups, _, width = self.centroids.shape
        codes = np.empty((len(rows), groups), dtype=np.uint8)
        half = np.square(self.centroids).sum(axis=2) / 2  # (codes, 256)
        for start in range(0, len(rows), chunk):
            part = rows[start : start + chunk]
            for group in range(groups):
                near = product(part[:, group * width : (group + 1) * width], self.centroids[group].T)
                codes[start : start + chunk, group] = (near - half[group]).argmax(axis=1)
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Decode codes. ``(n, codes) uint8 -> (n, d) float32``."""
        codes = _codes(codes, self.bytes, "uint8")
        if codes.size and codes.max() >= self.centroids.shape[1]:
            raise DataError(f"a code is {codes.max()}, and there are {self.centroids.shape[1]} centroids.")
        parts = self.centroids[np.arange(self.bytes), codes]  # (n, codes, d / codes)
        return unit_rows(parts.reshape(len(codes), self.dim))

    def tensors(self) -> dict[str, np.ndarray]:
        """The centroids."""
        return {"centroids": self.centroids}


Codec = Plain | Int8 | Binary | Product


def _codes(codes: np.ndarray, width: int, kind: str) -> np.ndarray:
    if codes.ndim != 2 or codes.shape[1] != width or codes.dtype != np.dtype(kind):
        raise DataError(f"codes must be (n, {width}) {kind}, got {tuple(codes.shape)} {codes.dtype}.")
    return codes


def make_codec(precision: str, dim: int, tensors: dict[str, np.ndarray]) -> Codec:
    """Rebuild a codec from what its ``tensors`` returned.

    Raises:
        DataError: If the tensors do not fit the precision or the size.
    """
    try:
        codec = _make(precision, dim, tensors)
    except KeyError as error:
        raise DataError(f"a {precision} code of {dim} numbers lacks its tensor {error}.") from error
    wrong = [name for name, tensor in tensors.items() if tensor.dtype != np.float32 or not np.isfinite(tensor).all()]
    if wrong or codec.dim != dim:
        raise DataError(f"the tensors of a {precision} code do not fit {dim} numbers; the file is damaged.")
    return codec


def _make(precision: str, dim: int, tensors: dict[str, np.ndarray]) -> Codec:
    if precision in PLAIN:
        return Plain(dim, precision)
    if precision == "int8":
        return Int8(tensors["low"], tensors["step"])
    if precision == "binary":
        return Binary(tensors.get("rotation"), dim)
    if precision == "pq":
        return Product(tensors["centroids"])
    raise DataError(f"unknown precision {precision!r}; known are {', '.join(PRECISIONS)}.")
