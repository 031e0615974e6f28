"""Clustered vectors to search, a compressor for them, and a naive exact search."""

from __future__ import annotations

import functools

import numpy as np

from smec_st.compressor import Compressor

WIDTH = 32


def clustered(count, seed=0, width=WIDTH):
    """Draw ``(count, width)`` float32 from 40 clusters, with dimensions of descending variance, rotated."""
    fixed = np.random.default_rng(99)
    centres = fixed.normal(size=(40, width))
    rotation = np.linalg.qr(fixed.normal(size=(width, width)))[0]
    rng = np.random.default_rng(seed)
    rows = centres[rng.integers(0, 40, count)] + 0.8 * rng.normal(size=(count, width))
    return (rows * np.linspace(2.0, 0.2, width) @ rotation).astype(np.float32)


@functools.cache
def compressor(width=WIDTH, seed=0):
    """Fit an uncentred PCA, nested at 16, 8 and 4."""
    return Compressor.fit(clustered(500, seed, width), method="pca", dims=(16, 8, 4))


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def naive(corpus, queries, k, allowed=None):
    """Return the rows of highest cosine, by a loop over queries."""
    rows = np.arange(len(corpus)) if allowed is None else np.flatnonzero(allowed)
    found = []
    for query in unit(queries.astype(np.float64)):
        scores = unit(corpus[rows].astype(np.float64)) @ query
        found.append(rows[np.argsort(-scores, kind="stable")[:k]])
    return np.array(found)


def recall(found, truth):
    return np.mean([len({*a} & {*b}) / len(b) for a, b in zip(found.tolist(), truth.tolist(), strict=True)])
