"""Fit codecs to a corpus without training: int8 ranges, rotations for binary codes, product quantisation."""

from __future__ import annotations

import numpy as np

from smec_st.data import DataError
from smec_st.quantization.codecs import Binary, Int8, Product
from smec_st.quantization.head import Head
from smec_st.quantization.interface import CompressorLike
from smec_st.system.optional import load_optional

#: Rows of the corpus that int8 ranges are fitted to, at most.
CALIBRATION_ROWS = 65536
#: Rounds of k-means; 25 keep no more neighbours, and take longer.
ROUNDS = 10
ROTATION_ROUNDS = 20  # of iterative quantisation
#: Share of the largest variance below which axes count as alike.
NO_VARIANCE = 1e-9


def sample_rows(count: int, seed: int, most: int = CALIBRATION_ROWS) -> np.ndarray:
    """Sample at most ``most`` of ``count`` rows, in ascending order."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).permutation(count)[:most])


def calibrate_int8(rows: np.ndarray, outside: float = 0.0005) -> Int8:
    """Fit the ranges of an int8 codec. Extreme values are clipped, so that one outlier does not waste codes.

    Args:
        rows: Vectors, ``(n, d)`` float32, unit norm.
        outside: Share of the values that is clipped at each end of a range.
    """
    low, high = np.quantile(rows, [outside, 1 - outside], axis=0)
    margin = np.maximum(high - low, 1e-6) / 254  # one step; half of it goes to each end
    low, high = low - margin / 2, high + margin / 2
    return Int8(low.astype(np.float32), np.maximum((high - low) / 255, 1e-9).astype(np.float32))


def random_rotation(dim: int, seed: int) -> np.ndarray:
    """Draw a rotation uniformly; it spreads the variance of the data over all axes. Returns ``(dim, dim)`` float32."""
    square = np.random.default_rng([seed, dim]).standard_normal((dim, dim))
    rotation, upper = np.linalg.qr(square)
    return np.asarray(rotation * np.sign(np.diag(upper)), dtype=np.float32)  # without the signs it is not uniform


def itq_rotation(rows: np.ndarray, seed: int) -> np.ndarray:
    """Fit the rotation that minimises the error of sign codes: iterative quantisation. ``(n, d) -> (d, d)``.

    Reference:
        Gong and Lazebnik, CVPR 2011.
    """
    rotation = random_rotation(rows.shape[1], seed)
    for _ in range(ROTATION_ROUNDS):
        signs = np.where(rows @ rotation > 0, np.float32(1), np.float32(-1))
        left, _, right = np.linalg.svd(rows.T @ signs)
        rotation = left @ right
    return rotation


def balanced_rotation(rows: np.ndarray, groups: int) -> np.ndarray:
    """Turn rows to their principal axes, and share these out so that each group of adjacent ones varies as much.

    Each code of product quantisation has as many centroids as any other, so a group that varies more is stored more
    coarsely. From the axis of the largest variance on, each one goes to the group that still has room and whose
    product of variances is the smallest. Where vectors are Gaussian no rotation is better.

    Args:
        rows: Vectors, ``(n, d)``.
        groups: Number of groups; must divide ``d``.

    Returns:
        ``(d, d)`` float32, to be applied as ``rows @ rotation``.

    Reference:
        Ge et al., Optimized Product Quantization, CVPR 2013, section 3.2 (eigenvalue allocation).
    """
    width = rows.shape[1]
    variances, axes = np.linalg.eigh(np.cov(rows, rowvar=False, bias=True).reshape(width, width))
    logs = np.log(np.maximum(variances, NO_VARIANCE * variances[-1] + np.finfo(float).tiny))
    varies = np.zeros(groups)
    members: list[list[int]] = [[] for _ in range(groups)]
    for axis in range(width - 1, -1, -1):  # in descending order of variance
        group = min((g for g in range(groups) if len(members[g]) < width // groups), key=varies.__getitem__)
        members[group].append(axis)
        varies[group] += logs[axis] - logs[0]
    return np.ascontiguousarray(axes[:, np.concatenate(members)], dtype=np.float32)


def product_codes(rows: np.ndarray, codes: int, seed: int) -> Product:
    """Fit the centroids of product codes by k-means, with FAISS.

    Args:
        rows: Vectors, ``(n, d)`` float32, whose groups of adjacent dimensions should vary alike
            (:func:`balanced_rotation`).
        codes: Bytes per vector; must divide ``d``.
        seed: Random seed of the clustering.

    Raises:
        DataError: If FAISS is missing, ``codes`` does not divide the width, or there are fewer than two rows.
    """
    faiss = load_optional("faiss", "a product codec")
    count, width = rows.shape
    if width % codes:
        raise DataError(f"product codes of {codes} bytes need a size that is a multiple of {codes}, got {width}.")
    if count < 2:
        raise DataError(f"product codes of {width} numbers cannot be learned from {count} rows.")
    quantizer = faiss.ProductQuantizer(width, codes, min(8, max(1, count.bit_length() - 1)))
    quantizer.cp.seed, quantizer.cp.niter = seed, ROUNDS
    quantizer.cp.min_points_per_centroid = 1  # prevents a warning on a small corpus
    quantizer.train(np.ascontiguousarray(rows, dtype=np.float32))
    centroids = faiss.vector_to_array(quantizer.centroids).reshape(codes, quantizer.ksub, quantizer.dsub)
    return Product(np.ascontiguousarray(centroids, dtype=np.float32))


def untrained_heads(compressor: CompressorLike, corpus: np.ndarray) -> list[Head]:
    """Make an int8 and a binary head for every size of a compressor that lacks one.

    Args:
        compressor: The compressor, whose maps the heads use.
        corpus: Vectors, ``(N, D)``; at most :data:`CALIBRATION_ROWS` of them are read.
    """
    existing = {(head.precision, head.dim) for head in compressor.heads}
    rows = corpus[sample_rows(len(corpus), seed=0)]
    heads = []
    for dim in compressor.dims:
        folded = compressor.map_for(dim)
        if ("int8", dim) not in existing:
            heads.append(Head(folded, calibrate_int8(folded.compress(rows))))
        if ("binary", dim) not in existing:
            heads.append(Head(folded, Binary(random_rotation(dim, seed=0))))
    return heads
