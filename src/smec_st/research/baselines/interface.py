"""The interface that every method implements: settings, ``fit``, and an encoder for queries and documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from smec_st.data import Qrels, VectorTable, unit_rows
from smec_st.evaluation.untrained import Transform


class Size(NamedTuple):
    """A size at which an encoder is scored.

    Attributes:
        dim: Number of dimensions that a stored vector stands for.
        bytes: Storage per document; ``4 * dim`` for float32.
    """

    dim: int
    bytes: int


@dataclass(frozen=True)
class TrainingData:
    """The training data, the same for every method.

    Attributes:
        table: Corpus and queries.
        train: Training judgements; None to fit without labels.
        dev: Validation judgements, for early stopping and the choice of settings; None when there are none.
        queries: Rows of the training queries, which methods without labels may use too, ``(Q,)``.
        judged: All judgements that ``train`` and ``dev`` were split from, for a method that makes its own split; None
            when ``dev`` is a split of the collection.
    """

    table: VectorTable
    train: Qrels | None
    dev: Qrels | None
    queries: np.ndarray
    judged: Qrels | None = None

    @property
    def corpus(self) -> np.ndarray:
        """Document vectors, ``(N, D)`` float32, unit norm."""
        import torch

        return self.table[torch.arange(self.table.corpus_size)].numpy()


class Encoder(Protocol):
    """A fitted method. Documents are ranked by the inner product of the encoded query and document."""

    @property
    def sizes(self) -> tuple[Size, ...]:
        """The sizes it can be scored at, in descending order of bytes."""

    def documents(self, vectors: np.ndarray, size: Size) -> np.ndarray:
        """Encode documents, and decode them if they are stored quantised. ``(n, D) -> (n, w)`` float32."""

    def queries(self, vectors: np.ndarray, size: Size) -> np.ndarray:
        """Encode queries to the same width as the documents. ``(n, D) -> (n, w)`` float32."""


class Method(Protocol):
    """A frozen dataclass whose fields are the method's settings; the defaults are the published values."""

    @property
    def is_random(self) -> bool:
        """Whether the seed changes the result; if not, one fit stands for all seeds."""

    @property
    def needs_labels(self) -> bool:
        """Whether it cannot be fitted without judgements."""

    @property
    def uses_labels(self) -> bool:
        """Whether it learns from judgements when there are some."""

    def fit(self, data: TrainingData, dims: Sequence[int], seed: int = 0) -> Encoder:
        """Fit an encoder for these sizes (float methods) or for the method's own sizes in bytes (quantisers)."""


@dataclass(frozen=True)
class FloatEncoder:
    """An encoder that treats queries and documents alike and stores float32.

    Args:
        transform: Maps ``(vectors, dim)`` to ``(n, dim)``, unit norm.
        dims: Sizes, in any order.
    """

    transform: Transform
    dims: tuple[int, ...]

    @property
    def sizes(self) -> tuple[Size, ...]:
        """The sizes in descending order, at four bytes per dimension."""
        return tuple(Size(dim, 4 * dim) for dim in sorted(self.dims, reverse=True))

    def documents(self, vectors: np.ndarray, size: Size) -> np.ndarray:
        """Apply ``transform``."""
        return self.transform(vectors, size.dim)

    queries = documents


def prefix_encoder(mapping: Callable[[np.ndarray], np.ndarray], dims: Sequence[int]) -> FloatEncoder:
    """Return an encoder whose vector of size ``m`` is the first ``m`` outputs of ``mapping``, scaled to length 1."""
    return FloatEncoder(lambda vectors, dim: unit_rows(mapping(vectors)[:, :dim]), tuple(dims))
