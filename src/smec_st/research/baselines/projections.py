"""Methods without training: coordinates or fixed directions of the original vectors, scaled to length 1.

The classes implement :class:`~smec_st.research.baselines.Method`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from smec_st.data import unit_rows
from smec_st.evaluation.untrained import Kind, original, pca, truncate
from smec_st.research.baselines.interface import FloatEncoder, TrainingData


@dataclass(frozen=True)
class Original:
    """The original vectors at their full width, whatever sizes are asked for."""

    is_random: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    uses_labels: ClassVar[bool] = False

    def fit(self, data: TrainingData, dims: Sequence[int], seed: int = 0) -> FloatEncoder:
        """See :class:`~smec_st.research.baselines.Method`."""
        return FloatEncoder(original, (data.table.width,))


@dataclass(frozen=True)
class Truncation:
    """The first coordinates of each vector."""

    is_random: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    uses_labels: ClassVar[bool] = False

    def fit(self, data: TrainingData, dims: Sequence[int], seed: int = 0) -> FloatEncoder:
        """See :class:`~smec_st.research.baselines.Method`."""
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
        """See :class:`~smec_st.research.baselines.Method`."""
        order = np.random.default_rng(seed).permutation(data.table.width)
        return FloatEncoder(lambda vectors, dim: unit_rows(vectors[:, order[:dim]]), tuple(dims))


@dataclass(frozen=True)
class VarianceSorted:
    """Coordinates in descending order of variance on the corpus; ties are broken by position."""

    is_random: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    uses_labels: ClassVar[bool] = False

    def fit(self, data: TrainingData, dims: Sequence[int], seed: int = 0) -> FloatEncoder:
        """See :class:`~smec_st.research.baselines.Method`."""
        order = np.argsort(-data.corpus.var(axis=0, dtype=np.float64), kind="stable")
        return FloatEncoder(lambda vectors, dim: unit_rows(vectors[:, order[:dim]]), tuple(dims))


@dataclass(frozen=True)
class RandomProjection:
    """Gaussian directions (Johnson and Lindenstrauss, 1984): one matrix per seed; a size uses its first rows."""

    is_random: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    uses_labels: ClassVar[bool] = False

    def fit(self, data: TrainingData, dims: Sequence[int], seed: int = 0) -> FloatEncoder:
        """See :class:`~smec_st.research.baselines.Method`."""
        directions = np.random.default_rng(seed).standard_normal((max(dims), data.table.width))
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
        """See :class:`~smec_st.research.baselines.Method`."""
        return FloatEncoder(pca(data.corpus, self.kind), tuple(dims))
