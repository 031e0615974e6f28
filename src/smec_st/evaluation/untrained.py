"""Transforms without training, which every compressor is measured against: the original vectors, prefixes and PCA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from smec_st.data import unit_rows

Transform = Callable[[np.ndarray, int], np.ndarray]
Kind = Literal["uncentred", "centred", "whitened"]


def original(vectors: np.ndarray, dim: int) -> np.ndarray:
    """Scale the vectors to length 1 at their full width, whatever ``dim`` is."""
    return unit_rows(vectors)


def with_lengths(vectors: np.ndarray, dim: int) -> np.ndarray:
    """Return the vectors as float32 at their full width and lengths, for models that score by inner product."""
    return vectors.astype(np.float32)


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
