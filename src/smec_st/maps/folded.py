"""What a compressor applies: a short stack of dense layers. Needs numpy alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from smec_st.data.errors import DataError
from smec_st.data.vectors import unit_rows


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
    """A short stack of bias-free dense layers, the last one linear: all there is to apply."""

    layers: tuple[Layer, ...]

    @property
    def in_dim(self) -> int:
        """Width it reads."""
        return int(self.layers[0].weight.shape[1])

    @property
    def out_dim(self) -> int:
        """Width it writes."""
        return int(self.layers[-1].weight.shape[0])

    def first(self, dim: int) -> FoldedMap:
        """The map to the first ``dim`` outputs."""
        if not 1 <= dim <= self.out_dim:
            raise ValueError(f"`dim` must be in [1, {self.out_dim}], got {dim}.")
        return self.ending(self.layers[-1].weight[:dim])

    def after(self, weight: np.ndarray) -> FoldedMap:
        """The map that applies a linear one ``(in_dim, D)`` before this one."""
        first, *rest = self.layers
        joined = (first.weight.astype(np.float64) @ weight.astype(np.float64)).astype(np.float32)
        return FoldedMap((Layer(joined, first.activation), *rest))

    def ending(self, weight: np.ndarray) -> FoldedMap:
        """The same map with another last layer."""
        return FoldedMap((*self.layers[:-1], Layer(np.ascontiguousarray(weight, dtype=np.float32))))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """``(n, in_dim)`` to ``(n, out_dim)``, float32, not normalised."""
        for layer in self.layers:
            x = x @ layer.weight.T
            if layer.activation is not None:
                x = ACTIVATIONS[layer.activation](x)
        return x

    def compress(self, table: np.ndarray, start: int = 0) -> np.ndarray:
        """Rows of any length to rows of length 1. ``(n, in_dim) -> (n, out_dim)`` float32.

        Args:
            table: Any float type.
            start: Number of the first row, for messages.

        Raises:
            DataError: If a row is zero, NaN or infinite.
        """
        if len(self.layers) == 1:  # lengths pass through a linear map, so they need not be evened out before it
            with np.errstate(over="ignore", invalid="ignore"):
                out = np.asarray(self(table.astype(np.float32, copy=False)))
                square = np.einsum("nd,nd->n", out, out)
            if bool(((square > 1e-24) & (square < 1e24)).all()):
                out *= (1 / np.sqrt(square))[:, None]
                return out
        rows = unit_rows(table)
        length = np.linalg.norm(rows, axis=1)
        wrong = np.flatnonzero(~(np.abs(length - 1) < 1e-3))
        if len(wrong):
            raise DataError(f"Row {start + wrong[0]} is zero, NaN or infinite: it has no direction.")
        return unit_rows(self(rows))

    def compress_chunks(self, table: np.ndarray, chunk: int) -> Iterator[tuple[int, np.ndarray]]:
        """:meth:`compress`, ``chunk`` rows at a time: number of the first row, and the rows."""
        for start in range(0, len(table), chunk):
            yield start, self.compress(table[start : start + chunk], start)
