"""Fewer bits per number: quantisers of the original vectors.

Search is asymmetric, as vector databases do it: documents are stored as codes, queries stay float, and the score is
the inner product of the query with the decoded document. Decoded documents are not scaled to length 1 again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from smec_st.baselines.interface import Size, TrainingData
from smec_st.data import DataError, unit_rows

Rows = Callable[[np.ndarray], np.ndarray]


ROTATION_ROUNDS, ROTATION_ROWS = 12, 10_000


@dataclass(frozen=True)
class Codec:
    """One fitted quantiser.

    Args:
        decoded: Documents, encoded and decoded. ``(n, D) -> (n, D)``.
        queries: Queries in the space of the decoded documents. ``(n, D) -> (n, D)``.
    """

    decoded: Rows
    queries: Rows


@dataclass(frozen=True)
class CodeEncoder:
    """An :class:`~smec_st.baselines.Encoder` with one codec per size.

    Args:
        codecs: By size. Codecs read rows of length 1.
    """

    codecs: dict[Size, Codec]

    @property
    def sizes(self) -> tuple[Size, ...]:
        """By falling bytes."""
        return tuple(sorted(self.codecs, key=lambda size: size.bytes, reverse=True))

    def documents(self, vectors: np.ndarray, size: Size) -> np.ndarray:
        """Decoded from their codes. ``(n, D) -> (n, D)`` float32."""
        return self.codecs[size].decoded(unit_rows(vectors)).astype(np.float32, copy=False)

    def queries(self, vectors: np.ndarray, size: Size) -> np.ndarray:
        """Float, length 1. ``(n, D) -> (n, D)`` float32."""
        return self.codecs[size].queries(unit_rows(vectors)).astype(np.float32, copy=False)


@dataclass(frozen=True)
class Int8:
    """One byte per number: 256 equal steps between the least and the greatest value of the dimension on the corpus.

    Codes are those of ``quantize_embeddings(precision="int8")`` of sentence-transformers; a code stands for the middle
    of its step.
    """

    is_random: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    uses_labels: ClassVar[bool] = False

    def fit(self, data: TrainingData, dims: Sequence[int], seed: int = 0) -> CodeEncoder:
        """See :class:`~smec_st.baselines.Method`."""
        from sentence_transformers.util import quantize_embeddings

        corpus = data.corpus
        ranges = np.stack([corpus.min(axis=0), corpus.max(axis=0)])  # (2, D)
        step = (ranges[1] - ranges[0]) / 255

        def decoded(rows: np.ndarray) -> np.ndarray:
            codes = quantize_embeddings(rows, precision="int8", ranges=ranges)
            result: np.ndarray = ranges[0] + (codes.astype(np.float32) + 128.5) * step
            return result

        width = data.table.width
        return CodeEncoder({Size(width, width): Codec(decoded, queries=_as_they_are)})


@dataclass(frozen=True)
class Binary:
    """One bit per number: its sign, so that a document is decoded to +1 and -1.

    Args:
        rotation: Rotate at random first, which spreads the variance evenly over the dimensions.
    """

    rotation: bool = False

    needs_labels: ClassVar[bool] = False
    uses_labels: ClassVar[bool] = False

    @property
    def is_random(self) -> bool:
        """Only the rotation is."""
        return self.rotation

    def fit(self, data: TrainingData, dims: Sequence[int], seed: int = 0) -> CodeEncoder:
        """See :class:`~smec_st.baselines.Method`."""
        width = data.table.width
        rotated: Rows = _as_they_are
        if self.rotation:
            square = np.random.default_rng(seed).standard_normal((width, width))
            axes = np.linalg.qr(square)[0].astype(np.float32)
            rotated = lambda rows: rows @ axes  # noqa: E731
        size = Size(width, -(-width // 8))
        return CodeEncoder({size: Codec(lambda rows: np.where(rotated(rows) > 0, 1.0, -1.0), queries=rotated)})


@dataclass(frozen=True)
class PQ:
    """Product quantisation: each group of neighbouring dimensions becomes the number of its nearest centroid.

    A code has 8 bits, fewer for a corpus of less than 256 rows. Groups and centroids are those of FAISS with its own
    settings, which train on at most 65,536 rows; the rotation takes :data:`ROTATION_ROUNDS` rounds on at most
    :data:`ROTATION_ROWS` rows, where FAISS would take 50 rounds and minutes to hours.

    Args:
        group: Dimensions per code, one size each; those that do not divide the width are left out.
        rotation: Learn a rotation along with the centroids (OPQ, without reducing the width).

    Reference:
        Jegou et al., TPAMI 2011; OPQ: Ge et al., CVPR 2013. FAISS: https://arxiv.org/abs/2401.08281.
    """

    group: tuple[int, ...] = (4, 8, 16, 32, 64)
    rotation: bool = False

    is_random: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    uses_labels: ClassVar[bool] = False

    def fit(self, data: TrainingData, dims: Sequence[int], seed: int = 0) -> CodeEncoder:
        """See :class:`~smec_st.baselines.Method`."""
        width = data.table.width
        fitting = sorted((group for group in self.group if width % group == 0), reverse=True)
        if not fitting:
            raise DataError(f"PQ needs a width that one of {self.group} divides, got {width}.")
        corpus = data.corpus
        # From few codes to many: where two sizes take the same bytes (a tiny corpus), more codes win.
        return CodeEncoder(dict(_product_codec(corpus, width // group, self.rotation, seed) for group in fitting))


def _product_codec(corpus: np.ndarray, codes: int, rotation: bool, seed: int) -> tuple[Size, Codec]:
    """A product quantiser with this many codes per document, and its size."""
    faiss = _faiss()
    rows, width = corpus.shape
    quantizer = faiss.ProductQuantizer(width, codes, min(8, rows.bit_length() - 1))
    quantizer.cp.seed = seed
    quantizer.cp.min_points_per_centroid = 1  # no warning on a small corpus
    rotated: Rows = _as_they_are
    if rotation:
        matrix = faiss.OPQMatrix(width, codes)
        matrix.pq = quantizer
        matrix.niter, matrix.max_train_points = ROTATION_ROUNDS, ROTATION_ROWS
        matrix.train(corpus)
        rotated = matrix.apply
    quantizer.train(rotated(corpus))
    codec = Codec(lambda rows: quantizer.decode(quantizer.compute_codes(rotated(rows))), queries=rotated)
    return Size(width, quantizer.code_size), codec


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise DataError('PQ and OPQ need faiss. Install it with `pip install "smec-st[search]"`.') from error
    return faiss


def _as_they_are(rows: np.ndarray) -> np.ndarray:
    return rows
