"""What a compressor applies: a short stack of dense layers. Needs numpy alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from smec_st.data.vectors import unit_rows
from smec_st.system.errors import DataError

LEAST_WORK = 1 << 20  # multiplications of a matrix product below which BLAS libraries take other kernels


def product(rows: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Multiply rows ``(n, k)`` by a matrix ``(k, m)``, so that the bits of a row do not depend on ``n``.

    BLAS libraries have special kernels for small matrices, which round otherwise. Few rows are therefore padded with
    zeros until the general kernel takes them. OpenBLAS, which numpy comes with on Linux and Windows, then gives every
    row the same bits in any batch.
    """
    count = len(rows)
    least = LEAST_WORK // max(1, weight.size) + 2
    if count < least:
        padded = np.zeros((least, rows.shape[1]), dtype=rows.dtype)
        padded[:count] = rows
        rows = padded
    out: np.ndarray = (rows @ weight)[:count]
    return out


def _erf(x: np.ndarray) -> np.ndarray:
    try:
        from scipy.special import erf
    except ImportError:  # slow, and exact
        erf = np.frompyfunc(math.erf, 1, 1)
    return np.asarray(erf(x), dtype=np.float32)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)), dtype=np.float32)


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: 0.5 * x * (1 + _erf(x / np.float32(math.sqrt(2)))),
    "silu": lambda x: x * _sigmoid(x),
}


@dataclass(frozen=True)
class Layer:
    """``x -> a(W x)``.

    Attributes:
        weight: ``(out, in)`` float32.
        activation: A name in :data:`ACTIVATIONS`, or None.
    """

    weight: np.ndarray
    activation: str | None = None


@dataclass(frozen=True)
class FoldedMap:
    """A short stack of bias-free dense layers, the last one linear."""

    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        if not self.layers or self.layers[-1].activation is not None:
            raise DataError("a map needs layers, and the last one is linear.")
        if any(layer.weight.ndim != 2 or layer.weight.dtype != np.float32 for layer in self.layers):
            raise DataError("the weights of a map must be float32 matrices.")
        for below, above in zip(self.layers, self.layers[1:], strict=False):
            if above.weight.shape[1] != below.weight.shape[0]:
                raise DataError(f"layers of {len(below.weight)} and {above.weight.shape[1]} numbers do not fit.")
        unknown = [each.activation for each in self.layers if each.activation not in (None, *ACTIVATIONS)]
        if unknown:
            raise DataError(f"unknown activation {unknown[0]!r}; known are {', '.join(ACTIVATIONS)}.")

    @property
    def in_dim(self) -> int:
        """Width it reads."""
        return int(self.layers[0].weight.shape[1])

    @property
    def out_dim(self) -> int:
        """Width it writes."""
        return int(self.layers[-1].weight.shape[0])

    def first(self, dim: int) -> FoldedMap:
        """Return the map to the first ``dim`` outputs."""
        if not 1 <= dim <= self.out_dim:
            raise DataError(f"`dim` must be in [1, {self.out_dim}], got {dim}.")
        return self.ending(self.layers[-1].weight[:dim])

    def after(self, weight: np.ndarray) -> FoldedMap:
        """Return the map that applies a linear one ``(in_dim, D)`` before this one."""
        first, *rest = self.layers
        joined = (first.weight.astype(np.float64) @ weight.astype(np.float64)).astype(np.float32)
        return FoldedMap((Layer(joined, first.activation), *rest))

    def ending(self, weight: np.ndarray) -> FoldedMap:
        """Return the same map with another last layer."""
        return FoldedMap((*self.layers[:-1], Layer(np.ascontiguousarray(weight, dtype=np.float32))))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Map ``(n, in_dim)`` to ``(n, out_dim)``, float32, not normalised."""
        for layer in self.layers:
            x = product(x, layer.weight.T)
            if layer.activation is not None:
                x = ACTIVATIONS[layer.activation](x)
        return x

    def compress(self, table: np.ndarray, start: int = 0) -> np.ndarray:
        """Map rows of any length to rows of length 1. ``(n, in_dim) -> (n, out_dim)`` float32.

        Args:
            table: Any float type.
            start: Number of the first row, for messages.

        Raises:
            DataError: If a row is zero, NaN or infinite.
        """
        if len(self.layers) > 1:
            return self._compress_any(table, np.arange(len(table)), start)
        # Lengths pass through a linear map, so they need not be evened out before it.
        with np.errstate(over="ignore", invalid="ignore"):
            out = self(np.ascontiguousarray(table, dtype=np.float32))
            square = np.einsum("nd,nd->n", out, out)
        extreme = np.flatnonzero(~((square > 1e-24) & (square < 1e24)))
        square[extreme] = 1
        out *= (1 / np.sqrt(square))[:, None]
        if len(extreme):
            out[extreme] = self._compress_any(table[extreme], extreme, start)
        return out

    def _compress_any(self, table: np.ndarray, numbers: np.ndarray, start: int) -> np.ndarray:
        """:meth:`compress` for any layers and lengths; ``numbers`` are those of the rows, after ``start``."""
        rows = unit_rows(table)
        length = np.linalg.norm(rows, axis=1)
        wrong = np.flatnonzero(~(np.abs(length - 1) < 1e-3))
        if len(wrong):
            raise DataError(f"Row {start + numbers[wrong[0]]} is zero, NaN or infinite: it has no direction.")
        return unit_rows(self(rows))

    def compress_chunks(self, table: np.ndarray, chunk: int) -> Iterator[tuple[int, np.ndarray]]:
        """:meth:`compress`, ``chunk`` rows at a time: number of the first row, and the rows."""
        for start in range(0, len(table), chunk):
            yield start, self.compress(table[start : start + chunk], start)
