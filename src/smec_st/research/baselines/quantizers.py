"""Quantisers of the original vectors, which store fewer bits per dimension.

Search is asymmetric, as in vector databases: documents are stored as codes, queries stay float, and the score is the
inner product of the query with the decoded document. Decoded documents are not scaled to length 1 again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from smec_st.data import DataError, unit_rows
from smec_st.research.baselines.interface import Size, TrainingData
from smec_st.system.optional import load_optional

Rows = Callable[[np.ndarray], np.ndarray]

ROTATION_ROUNDS, ROTATION_ROWS = 12, 10_000


@dataclass(frozen=True)
class Codec:
    """A fitted quantiser.

    Args:
        decoded: Encodes documents and decodes them again. ``(n, D) -> (n, D)``.
        queries: Maps queries into the space of the decoded documents. ``(n, D) -> (n, D)``.
    """

    decoded: Rows
    queries: Rows


@dataclass(frozen=True)
class CodeEncoder:
    """An :class:`~smec_st.research.baselines.Encoder` with one codec per size.

    Args:
        codecs: The codec of each size. Codecs are given rows of length 1.
    """

    codecs: dict[Size, Codec]

    @property
    def sizes(self) -> tuple[Size, ...]:
        """The sizes in descending order of bytes."""
        return tuple(sorted(self.codecs, key=lambda size: size.bytes, reverse=True))

    def documents(self, vectors: np.ndarray, size: Size) -> np.ndarray:
        """Encode and decode documents. ``(n, D) -> (n, D)`` float32."""
        return self.codecs[size].decoded(unit_rows(vectors)).astype(np.float32, copy=False)

    def queries(self, vectors: np.ndarray, size: Size) -> np.ndarray:
        """Scale queries to length 1, and rotate them where documents are rotated. ``(n, D) -> (n, D)`` float32."""
        return self.codecs[size].queries(unit_rows(vectors)).astype(np.float32, copy=False)


@dataclass(frozen=True)
class Int8:
    """One byte per dimension: 256 equal steps between its minimum and its maximum on the corpus.

    Codes are those of sentence-transformers' ``quantize_embeddings(precision="int8")``; a code is decoded to the
    middle of its step.
    """

    is_random: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    uses_labels: ClassVar[bool] = False

    def fit(self, data: TrainingData, dims: Sequence[int], seed: int = 0) -> CodeEncoder:
        """See :class:`~smec_st.research.baselines.Method`."""
        from sentence_transformers.util import quantize_embeddings

        corpus = data.corpus
        ranges = np.stack([corpus.min(axis=0), corpus.max(axis=0)])  # (2, D)
        step = (ranges[1] - ranges[0]) / 255

        def decoded(rows: np.ndarray) -> np.ndarray:
            codes = quantize_embeddings(rows, precision="int8", ranges=ranges)
            result: np.ndarray = ranges[0] + (codes.astype(np.float32) + 128.5) * step
            return result

        width = data.table.width
        return CodeEncoder({Size(width, width): Codec(decoded, queries=_identity)})


@dataclass(frozen=True)
class Binary:
    """One bit per dimension, its sign; documents are decoded to +1 and -1."""

    is_random: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    uses_labels: ClassVar[bool] = False

    def fit(self, data: TrainingData, dims: Sequence[int], seed: int = 0) -> CodeEncoder:
        """See :class:`~smec_st.research.baselines.Method`."""
        width = data.table.width
        size = Size(width, -(-width // 8))
        return CodeEncoder({size: Codec(lambda rows: np.where(rows > 0, 1.0, -1.0), queries=_identity)})


@dataclass(frozen=True)
class PQ:
    """Product quantisation: each group of adjacent dimensions is stored as the number of its nearest centroid.

    A code has 8 bits, or fewer for a corpus of less than 256 rows. FAISS fits the centroids with its default settings,
    on at most 65,536 rows. The rotation takes :data:`ROTATION_ROUNDS` rounds on at most :data:`ROTATION_ROWS` rows;
    the 50 rounds that FAISS runs by default would take minutes to hours.

    Args:
        group: Dimensions per code; each gives one size. Values that do not divide the width are skipped.
        rotation: Learn a rotation together with the centroids (OPQ, without reducing the width).

    Reference:
        Jegou et al., TPAMI 2011; OPQ: Ge et al., CVPR 2013. FAISS: https://arxiv.org/abs/2401.08281.
    """

    group: tuple[int, ...] = (4, 8, 16, 32, 64)
    rotation: bool = False

    is_random: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    uses_labels: ClassVar[bool] = False

    def fit(self, data: TrainingData, dims: Sequence[int], seed: int = 0) -> CodeEncoder:
        """See :class:`~smec_st.research.baselines.Method`."""
        width = data.table.width
        groups = sorted((group for group in self.group if width % group == 0), reverse=True)
        if not groups:
            raise DataError(f"PQ needs a width that one of {self.group} divides, got {width}.")
        corpus = data.corpus
        # Ascending number of codes: when two take the same bytes (on a tiny corpus), the one with more codes is kept.
        return CodeEncoder(dict(product_codec(corpus, width // group, self.rotation, seed) for group in groups))


def product_codec(corpus: np.ndarray, codes: int, rotation: bool, seed: int) -> tuple[Size, Codec]:
    """Fit FAISS's product quantiser with this many codes per document, with a learned rotation (OPQ) or without."""
    faiss = load_optional("faiss", "PQ or OPQ")
    rows, width = corpus.shape
    quantizer = faiss.ProductQuantizer(width, codes, min(8, rows.bit_length() - 1))
    quantizer.cp.seed = seed
    quantizer.cp.min_points_per_centroid = 1  # prevents a warning on a small corpus
    rotate: Rows = _identity
    if rotation and rows >= width:  # from fewer rows FAISS 1.15 writes past its memory
        matrix = faiss.OPQMatrix(width, codes)
        matrix.pq = quantizer
        matrix.niter, matrix.max_train_points = ROTATION_ROUNDS, ROTATION_ROWS
        matrix.train(corpus)
        rotate = matrix.apply
    quantizer.train(rotate(corpus))
    codec = Codec(lambda rows: quantizer.decode(quantizer.compute_codes(rotate(rows))), queries=rotate)
    return Size(width, quantizer.code_size), codec


def _identity(rows: np.ndarray) -> np.ndarray:
    return rows
