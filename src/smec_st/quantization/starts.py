"""Fit codecs to a corpus without training: int8 ranges, rotations for binary codes, product quantisation."""

from __future__ import annotations

import numpy as np

from smec_st.data import DataError
from smec_st.quantization.codecs import Binary, Int8, Product
from smec_st.quantization.head import Head
from smec_st.quantization.interface import CompressorLike
from smec_st.system.optional import load_optional

SAMPLE = 65536


def sample_rows(count: int, seed: int, most: int = SAMPLE) -> np.ndarray:
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


def itq_rotation(rows: np.ndarray, seed: int, rounds: int = 20) -> np.ndarray:
    """Fit the rotation that minimises the error of sign codes: iterative quantisation. ``(n, d) -> (d, d)``.

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
    """Fit the centroids of product codes with FAISS, and optionally a rotation together with them (OPQ).

    Args:
        rows: Vectors, ``(n, d)`` float32.
        codes: Bytes per vector; must divide ``d``.
        seed: Random seed of the clustering.
        rotate: Learn a rotation.
        rounds: Rounds of OPQ.

    Returns:
        The rotation ``(d, d)``, to be applied as ``rows @ rotation``, or None; and the codec.

    Raises:
        DataError: If FAISS is missing, ``codes`` does not divide the width, there are fewer than two rows, or a
            rotation is to be learned from fewer rows than numbers: FAISS 1.15 then writes past its memory.
    """
    faiss = load_optional("faiss", "a product codec")
    count, width = rows.shape
    if width % codes:
        raise DataError(f"product codes of {codes} bytes need a size that is a multiple of {codes}, got {width}.")
    if count < (width if rotate else 2):
        what = "a rotation of" if rotate else "product codes of"
        raise DataError(f"{what} {width} numbers cannot be learned from {count} rows.")
    quantizer = faiss.ProductQuantizer(width, codes, min(8, max(1, count.bit_length() - 1)))
    quantizer.cp.seed = seed
    quantizer.cp.min_points_per_centroid = 1  # prevents a warning on a small corpus
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


def untrained_heads(compressor: CompressorLike, corpus: np.ndarray, seed: int = 0) -> list[Head]:
    """Make an int8 and a binary head for every size of a compressor that lacks one.

    Args:
        compressor: The compressor, whose maps the heads use.
        corpus: Vectors, ``(N, D)``; at most :data:`SAMPLE` of them are read.
        seed: Random seed of the sample and of the rotations.
    """
    existing = {(head.precision, head.dim) for head in compressor.heads}
    rows = corpus[sample_rows(len(corpus), seed)]
    heads = []
    for dim in compressor.dims:
        folded = compressor.map_for(dim)
        if ("int8", dim) not in existing:
            heads.append(Head(folded, calibrate_int8(folded.compress(rows))))
        if ("binary", dim) not in existing:
            heads.append(Head(folded, Binary(random_rotation(dim, seed))))
    return heads
