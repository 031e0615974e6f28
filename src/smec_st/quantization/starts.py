"""Codecs fitted to a corpus as it is: calibrated ranges, a rotation that spreads the variance, centroids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from smec_st.data import DataError
from smec_st.quantization.codecs import Binary, Int8, Product
from smec_st.quantization.head import Head

if TYPE_CHECKING:
    from smec_st.compressor import Compressor

SAMPLE = 65536


def sample_rows(count: int, seed: int, most: int = SAMPLE) -> np.ndarray:
    """Rows that stand for a corpus of ``count``, rising; all of them when there are few."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).permutation(count)[:most])


def calibrate_int8(rows: np.ndarray, outside: float = 0.0005) -> Int8:
    """Ranges by dimension, a little of each side left out so that one stray value does not waste the codes.

    Args:
        rows: ``(n, d)`` float32, unit norm.
        outside: Share of the values beyond each end, which are clipped.
    """
    low, high = np.quantile(rows, [outside, 1 - outside], axis=0)
    spare = np.maximum(high - low, 1e-6) / 254  # half a step more at both ends
    low, high = low - spare / 2, high + spare / 2
    return Int8(low.astype(np.float32), np.maximum((high - low) / 255, 1e-9).astype(np.float32))


def random_rotation(dim: int, seed: int) -> np.ndarray:
    """A rotation drawn evenly from all, ``(dim, dim)`` float32: the variance of any data is spread over all axes."""
    square = np.random.default_rng([seed, dim]).standard_normal((dim, dim))
    turn, upper = np.linalg.qr(square)
    return np.asarray(turn * np.sign(np.diag(upper)), dtype=np.float32)


def itq_rotation(rows: np.ndarray, seed: int, rounds: int = 20) -> np.ndarray:
    """The rotation under which signs lose least: iterative quantisation, ``(n, d) -> (d, d)``.

    Reference:
        Gong and Lazebnik, CVPR 2011.
    """
    rotation = random_rotation(rows.shape[1], seed)
    for _ in range(rounds):
        signs = np.where(rows @ rotation > 0, np.float32(1), np.float32(-1))
        left, _, right = np.linalg.svd(rows.T @ signs)
        rotation = left @ right
    return rotation


def product_codes(
    rows: np.ndarray, codes: int, seed: int, rotate: bool, rounds: int = 6
) -> tuple[np.ndarray | None, Product]:
    """Centroids by FAISS, and the rotation learned along with them (OPQ).

    Args:
        rows: ``(n, d)`` float32.
        codes: Bytes per vector; divides ``d``.
        seed: Of the clustering.
        rotate: Learn a rotation.
        rounds: Of OPQ.

    Returns:
        Rotation ``(d, d)``, to be applied as ``rows @ rotation``, or None; and the centroids.

    Raises:
        DataError: If FAISS is missing, or the codes do not divide the width.
    """
    faiss = load_faiss()
    count, width = rows.shape
    if width % codes:
        raise DataError(f"product codes need a size that {codes} divides, got {width}.")
    quantizer = faiss.ProductQuantizer(width, codes, min(8, max(1, count.bit_length() - 1)))
    quantizer.cp.seed = seed
    quantizer.cp.min_points_per_centroid = 1  # no warning on a small corpus
    rotation = None
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    if rotate:
        matrix = faiss.OPQMatrix(width, codes)
        matrix.pq, matrix.niter = quantizer, rounds
        matrix.train(rows)
        rotation = faiss.vector_to_array(matrix.A).reshape(width, width).T.copy()
        rows = matrix.apply(rows)
    quantizer.train(rows)
    centroids = faiss.vector_to_array(quantizer.centroids).reshape(codes, quantizer.ksub, quantizer.dsub)
    return rotation, Product(np.ascontiguousarray(centroids, dtype=np.float32))


def load_faiss() -> Any:
    """FAISS, or a :class:`~smec_st.data.DataError` that names the extra."""
    try:
        import faiss
    except ImportError as error:
        raise DataError(
            'fitting product codes needs faiss. Install it with `pip install "smec-st[search]"`.'
        ) from error
    return faiss


def untrained_heads(compressor: Compressor, corpus: np.ndarray, seed: int = 0) -> list[Head]:
    """int8 and binary codes of every size of a compressor that has none yet.

    Args:
        compressor: Gives the sizes and their maps.
        corpus: ``(N, D)`` vectors; at most :data:`SAMPLE` of them are looked at.
        seed: Of the sample and of the rotations.
    """
    have = {(head.precision, head.dim) for head in compressor.heads}
    rows = corpus[sample_rows(len(corpus), seed)]
    made = []
    for dim in compressor.dims:
        folded = compressor.map_for(dim)
        if ("int8", dim) not in have:
            made.append(Head(folded, calibrate_int8(folded.compress(rows))))
        if ("binary", dim) not in have:
            made.append(Head(folded, Binary(random_rotation(dim, seed))))
    return made
