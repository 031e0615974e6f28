"""What costs no training, behind the same call as a compressor: ``transform(vectors, dim) -> (n, dim)``, unit norm."""

from __future__ import annotations

import numpy as np

from smec_st.baselines.interface import Transform
from smec_st.data import unit_rows


def original(vectors: np.ndarray, dim: int) -> np.ndarray:
    """The vectors as they are, scaled to length 1."""
    return unit_rows(vectors)


def truncate(vectors: np.ndarray, dim: int) -> np.ndarray:
    """The first ``dim`` coordinates."""
    return unit_rows(vectors[:, :dim])


def pca(corpus: np.ndarray) -> Transform:
    """Uncentred principal axes of the corpus (the singular vectors of its unit-norm rows).

    Without centring the inner products of full width are kept exactly, and cosine with them; centring, which most PCA
    tools do, moves the origin and costs retrieval quality.

    Args:
        corpus: ``(N, D)``.
    """
    import torch

    from smec_st.functional import leftover_axes, second_moment

    moment = second_moment(torch.from_numpy(unit_rows(corpus)))
    axes = leftover_axes(moment, torch.zeros(0, len(moment)), len(moment)).numpy()
    return lambda vectors, dim: unit_rows(unit_rows(vectors) @ axes[:dim].T)
