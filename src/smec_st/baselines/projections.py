"""Methods without training: coordinates or fixed directions of the original vectors, scaled to length 1.

The classes implement :class:`~smec_st.baselines.Method`; ``original``, ``truncate`` and ``pca`` are plain transforms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from smec_st.baselines.interface import FloatEncoder, TrainingData, Transform
from smec_st.data import unit_rows

Kind = Literal["uncentred", "centred", "whitened"]


def original(vectors: np.ndarray, dim: int) -> np.ndarray:
    """Scale the vectors to length 1 at their full width, whatever ``dim`` is."""
    return unit_rows(vectors)


def truncate(vectors: np.ndarray, dim: int) -> np.ndarray:
    """Keep the first ``dim`` coordinates, and scale them to length 1."""
    return unit_rows(vectors[:, :dim])


def principal_axes(rows: np.ndarray) -> np.ndarray:
    """Return the eigenvectors of ``rows.T @ rows`` as rows, by descending eigenvalue. ``(N, D) -> (D, D)``."""
    import torch

    from smec_st.functional import leftover_axes, second_moment

    moment = second_moment(torch.from_numpy(rows))
    return leftover_axes(moment, torch.zeros(0, len(moment)), len(moment)).numpy()


def pca(corpus: np.ndarray, kind: Kind = "uncentred") -> Transform:
    """Project vectors onto the principal axes of the corpus, in descending order of variance.

    ``uncentred``: The axes are the singular vectors of the unit-norm rows. At full width all inner products, and
    therefore cosines, are kept exactly. Centring, which most PCA tools do, moves the origin and often costs retrieval
    quality.
    ``centred``: Textbook PCA; the corpus mean is subtracted from documents and queries.
    ``whitened``: Centred, then each axis is divided by its standard deviation on the corpus. Axes along which the
    corpus does not vary are set to 0.

    Args:
        corpus: Vectors, ``(N, D)``.
        kind: Kind of PCA, see above.
    """
    rows = unit_rows(corpus)
    if kind != "uncentred":
        mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
        rows -= mean
    axes = principal_axes(rows)
    if kind == "uncentred":
        return lambda vectors, dim: unit_rows(unit_rows(vectors) @ axes[:dim].T)
    if kind == "whitened":
        deviation = np.linalg.norm(rows @ axes.T, axis=0) / np.sqrt(len(rows))
        axes /= np.where(deviation > 1e-6 * deviation[0], deviation, np.inf)[:, None]
    return lambda vectors, dim: unit_rows((unit_rows(vectors) - mean) @ axes[:dim].T)


@dataclass(frozen=True)
class Original:
    """The original vectors at their full width, whatever sizes are asked for."""

    is_random: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    uses_labels: ClassVar[bool] = False

    def fit(self, data: TrainingData, dims: Sequence[int], seed: int = 0) -> FloatEncoder:
        """See :class:`~smec_st.baselines.Method`."""
        return FloatEncoder(original, (data.table.width,))


@dataclass(frozen=True)
class Truncation:
    """The first coordinates of each vector."""

    is_random: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    uses_labels: ClassVar[bool] = False

    def fit(self, data: TrainingData, dims: Sequence[int], seed: int = 0) -> FloatEncoder:
        """See :class:`~smec_st.baselines.Method`."""
        return FloatEncoder(truncate, tuple(dims))


@dataclass(frozen=True)
class RandomCoordinates:
    """Coordinates in a random order, one per seed; each size is a prefix of it, so sizes are nested.

    Reference:
        Shows that dropping random dimensions costs little quality: https://arxiv.org/abs/2508.17744.
    """

    is_random: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    uses_labels: ClassVar[bool] = False

    def fit(self, data: TrainingData, dims: Sequence[int], seed: int = 0) -> FloatEncoder:
        """See :class:`~smec_st.baselines.Method`."""
        order = np.random.default_rng(seed).permutation(data.table.width)
        return FloatEncoder(lambda vectors, dim: unit_rows(vectors[:, order[:dim]]), tuple(dims))


@dataclass(frozen=True)
class VarianceSorted:
    """Coordinates in descending order of variance on the corpus; ties are broken by position."""

    is_random: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    uses_labels: ClassVar[bool] = False

    def fit(self, data: TrainingData, dims: Sequence[int], seed: int = 0) -> FloatEncoder:
        """See :class:`~smec_st.baselines.Method`."""
        order = np.argsort(-data.corpus.var(axis=0, dtype=np.float64), kind="stable")
        return FloatEncoder(lambda vectors, dim: unit_rows(vectors[:, order[:dim]]), tuple(dims))


@dataclass(frozen=True)
class RandomProjection:
    """Random directions (Johnson and Lindenstrauss, 1984): one matrix per seed; a size uses its first rows.

    Args:
        orthonormal: Make the directions orthonormal, so that full width keeps all inner products. Otherwise their
            entries are independent Gaussians, as is usual.
    """

    orthonormal: bool = False

    is_random: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    uses_labels: ClassVar[bool] = False

    def fit(self, data: TrainingData, dims: Sequence[int], seed: int = 0) -> FloatEncoder:
        """See :class:`~smec_st.baselines.Method`."""
        directions = np.random.default_rng(seed).standard_normal((max(dims), data.table.width))
        if self.orthonormal:
            directions = np.linalg.qr(directions.T)[0].T
        rows = directions.astype(np.float32)
        return FloatEncoder(lambda vectors, dim: unit_rows(unit_rows(vectors) @ rows[:dim].T), tuple(dims))


@dataclass(frozen=True)
class PCA:
    """Principal component analysis of the corpus, see :func:`pca`.

    Args:
        kind: ``uncentred``, ``centred`` or ``whitened``.
    """

    kind: Kind = "uncentred"

    is_random: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    uses_labels: ClassVar[bool] = False

    def fit(self, data: TrainingData, dims: Sequence[int], seed: int = 0) -> FloatEncoder:
        """See :class:`~smec_st.baselines.Method`."""
        return FloatEncoder(pca(data.corpus, self.kind), tuple(dims))
