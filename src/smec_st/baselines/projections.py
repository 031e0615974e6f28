"""What costs no training: coordinates or fixed directions of the original vectors, scaled to length 1.

Each method has the settings as fields; ``original``, ``truncate`` and ``pca`` are the same as plain transforms.
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
    """The vectors as they are, scaled to length 1."""
    return unit_rows(vectors)


def truncate(vectors: np.ndarray, dim: int) -> np.ndarray:
    """The first ``dim`` coordinates."""
    return unit_rows(vectors[:, :dim])


def pca(corpus: np.ndarray, kind: Kind = "uncentred") -> Transform:
    """Principal axes of the corpus, by falling variance.

    ``uncentred``: the singular vectors of the unit-norm rows. The inner products of full width are kept exactly, and
    cosine with them; centring, which most PCA tools do, moves the origin and often costs retrieval quality.
    ``centred``: the textbook PCA; the corpus mean is taken off documents and queries alike.
    ``whitened``: centred, then each axis divided by its standard deviation on the corpus. Axes on which the corpus
    does not vary are 0.

    Args:
        corpus: ``(N, D)``.
        kind: See above.
    """
    import torch

    from smec_st.functional import leftover_axes, second_moment

    rows = unit_rows(corpus)
    if kind != "uncentred":
        mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
        rows -= mean
    moment = second_moment(torch.from_numpy(rows))
    axes = leftover_axes(moment, torch.zeros(0, len(moment)), len(moment)).numpy()
    if kind == "uncentred":
        return lambda vectors, dim: unit_rows(unit_rows(vectors) @ axes[:dim].T)
    if kind == "whitened":
        deviation = np.linalg.norm(rows @ axes.T, axis=0) / np.sqrt(len(rows))
        axes /= np.where(deviation > 1e-6 * deviation[0], deviation, np.inf)[:, None]
    return lambda vectors, dim: unit_rows((unit_rows(vectors) - mean) @ axes[:dim].T)


@dataclass(frozen=True)
class Original:
    """The vectors as they are, at their own width whatever sizes are asked for."""

    is_random: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    uses_labels: ClassVar[bool] = False

    def fit(self, data: TrainingData, dims: Sequence[int], seed: int = 0) -> FloatEncoder:
        """See :class:`~smec_st.baselines.Method`."""
        return FloatEncoder(original, (data.table.width,))


@dataclass(frozen=True)
class Truncation:
    """The first coordinates."""

    is_random: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    uses_labels: ClassVar[bool] = False

    def fit(self, data: TrainingData, dims: Sequence[int], seed: int = 0) -> FloatEncoder:
        """See :class:`~smec_st.baselines.Method`."""
        return FloatEncoder(truncate, tuple(dims))


@dataclass(frozen=True)
class RandomCoordinates:
    """Coordinates in one random order per seed; a size is a prefix of it, so sizes are nested.

    Reference:
        Dropping random dimensions costs little, https://arxiv.org/abs/2508.17744.
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
    """Coordinates by falling variance on the corpus; of equal ones the lower comes first."""

    is_random: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    uses_labels: ClassVar[bool] = False

    def fit(self, data: TrainingData, dims: Sequence[int], seed: int = 0) -> FloatEncoder:
        """See :class:`~smec_st.baselines.Method`."""
        order = np.argsort(-data.corpus.var(axis=0, dtype=np.float64), kind="stable")
        return FloatEncoder(lambda vectors, dim: unit_rows(vectors[:, order[:dim]]), tuple(dims))


@dataclass(frozen=True)
class RandomProjection:
    """Random directions (Johnson and Lindenstrauss, 1984): one matrix per seed, of which a size takes the first rows.

    Args:
        orthonormal: Make the directions orthonormal, so that full width keeps all inner products; independent Gaussian
            entries otherwise, the field's standard.
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
    """:func:`pca` of the corpus.

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
