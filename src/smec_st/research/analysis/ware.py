"""WARE, the importance of a dimension, and how much of what is important a compressed vector keeps."""

from __future__ import annotations

import math

import numpy as np

from smec_st.evaluation.metrics import search_others
from smec_st.research.baselines import TrainingData


def ware(vectors: np.ndarray, pairs: np.ndarray, chunk: int = 2048) -> np.ndarray:
    """Importance of each dimension: how much similarities change without it.

    ``WARE_i = sum_(a,b) w_ab |s_ab - s_ab^(-i)| / sum_(a,b) w_ab`` (inferred). ``s_ab`` is the cosine, ``s_ab^(-i)``
    the cosine without coordinate ``i`` (0 where nothing is left of a vector), and ``w_ab = max(s_ab, 0)``: similar
    pairs decide a ranking, so they count more.

    Args:
        vectors: ``(n, D)``; lengths do not matter.
        pairs: Rows of ``vectors``, ``(P, 2)``.
        chunk: Pairs looked at together.

    Returns:
        ``(D,)`` float64, each at least 0; all 0 when no pair is similar.
    """
    rows = vectors.astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    change, total = np.zeros(rows.shape[1]), 0.0
    for start in range(0, len(pairs), chunk):
        one, other = (rows[side] for side in pairs[start : start + chunk].T)  # (p, D) each
        similarity = (one * other).sum(axis=1, keepdims=True)
        left = np.sqrt(np.clip(1 - one**2, 0, None) * np.clip(1 - other**2, 0, None))
        numerator = similarity - one * other
        without = np.divide(numerator, left, out=np.zeros_like(left), where=left > 1e-9)
        weight = np.clip(similarity, 0, None)
        change += (weight * np.abs(similarity - without)).sum(axis=0)
        total += float(weight.sum())
    return change / total if total > 0 else change


def most_important(importance: np.ndarray, count: int) -> np.ndarray:
    """Return the ``count`` most important dimensions in ascending order; of equals the lower. ``(D,) -> (count,)``."""
    return np.sort(np.argsort(-importance, kind="stable")[:count])


def leverage(directions: np.ndarray) -> np.ndarray:
    """How much of each coordinate axis lies in the space that is kept.

    ``||P e_i||^2`` with ``P`` the orthogonal projection on the rows' span. For a choice of coordinates this is 1 for
    the chosen and 0 for the others; for any map it sums to the number of (independent) rows. So selections and
    mixtures such as PCA are measured alike.

    Args:
        directions: Rows that a compressed vector is made of, independent, ``(m, D)``.

    Returns:
        ``(D,)``, each in [0, 1].
    """
    basis = np.linalg.qr(directions.astype(np.float64).T)[0]  # (D, m)
    kept: np.ndarray = (basis**2).sum(axis=1)
    return kept


def chance_deviation(width: int, dim: int) -> float:
    """Standard deviation of the share of ``dim`` important dimensions that ``dim`` blind picks of ``width`` hit."""
    share = dim / width
    return math.sqrt(share * (1 - share) * (width - dim) / max(width - 1, 1) / dim)


def similar_and_random_pairs(data: TrainingData, documents: int, neighbors: int, seed: int) -> np.ndarray:
    """Pairs that WARE averages over: training queries and some documents, each with near and with random documents.

    Args:
        data: Vectors; judgements are not used.
        documents: Number of random documents that are added to the queries.
        neighbors: Nearest documents of each, and as many random ones.
        seed: Of the draws.

    Returns:
        Row ids of ``data.table``, ``(P, 2)``; no row is paired with itself.
    """
    import torch

    rng = np.random.default_rng(seed)
    table, size = data.table, data.table.corpus_size
    anchors = np.concatenate([table.query_ids(data.queries), rng.permutation(size)[:documents]])
    own = table.own(torch.from_numpy(anchors)).numpy()
    neighbors = min(neighbors, size - 1)
    near = search_others(data.corpus, table[torch.from_numpy(anchors)].numpy(), neighbors, own)
    drawn = rng.integers(0, size - 1, near.shape)
    drawn += (drawn >= own[:, None]) & (own >= 0)[:, None]
    partners = np.concatenate([near, drawn], axis=1)
    return np.stack([np.repeat(anchors, partners.shape[1]), partners.ravel()], axis=1)
