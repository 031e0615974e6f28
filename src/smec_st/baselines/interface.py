"""What every method of the field looks like here: settings, ``fit``, and an encoder of both sides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from smec_st.data import Qrels, VectorTable

Transform = Callable[[np.ndarray, int], np.ndarray]


class Size(NamedTuple):
    """A size to score.

    Attributes:
        dim: Numbers that a stored vector stands for.
        bytes: Storage of one document; ``4 * dim`` for float32.
    """

    dim: int
    bytes: int


@dataclass(frozen=True)
class TrainingData:
    """What every method is given, the same for all.

    Attributes:
        table: Corpus and queries.
        train: Training judgements; None to fit without labels.
        dev: Judgements that settings and early stopping may look at; None when there are none.
        queries: Rows of the training queries, which methods without labels may use as well, ``(Q,)``.
        judged: What ``train`` and ``dev`` are shared out from, for a method that shares it out in its own way; None
            where ``dev`` is a split of the collection.
    """

    table: VectorTable
    train: Qrels | None
    dev: Qrels | None
    queries: np.ndarray
    judged: Qrels | None = None

    @property
    def corpus(self) -> np.ndarray:
        """``(N, D)`` float32, unit norm."""
        import torch

        return self.table[torch.arange(self.table.corpus_size)].numpy()


class Encoder(Protocol):
    """A fitted method. Inner products of the two sides are the scores that documents are ranked by."""

    @property
    def sizes(self) -> tuple[Size, ...]:
        """What it can be scored at, by falling bytes."""
        ...

    def documents(self, vectors: np.ndarray, size: Size) -> np.ndarray:
        """Documents as search sees them: quantised ones decoded. ``(n, D) -> (n, w)`` float32."""
        ...

    def queries(self, vectors: np.ndarray, size: Size) -> np.ndarray:
        """Queries, of the same width. ``(n, D) -> (n, w)`` float32."""
        ...


class Method(Protocol):
    """A frozen dataclass whose fields are the method's settings; the defaults are the published ones."""

    @property
    def is_random(self) -> bool:
        """Whether the seed changes the result; if not, one fit stands for all seeds."""
        ...

    @property
    def needs_labels(self) -> bool:
        """Whether it cannot be fitted without judgements."""
        ...

    @property
    def uses_labels(self) -> bool:
        """Whether it learns from judgements when there are some."""
        ...

    def fit(self, data: TrainingData, dims: Sequence[int], seed: int = 0) -> Encoder:
        """Fit for these sizes (float methods) or for the method's own byte budgets (quantisers)."""
        ...


@dataclass(frozen=True)
class FloatEncoder:
    """An encoder that treats both sides alike and stores float32.

    Args:
        transform: ``(vectors, dim) -> (n, dim)``, unit norm.
        dims: Sizes, in any order.
    """

    transform: Transform
    dims: tuple[int, ...]

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Four bytes a number."""
        return tuple(Size(dim, 4 * dim) for dim in sorted(self.dims, reverse=True))

    def documents(self, vectors: np.ndarray, size: Size) -> np.ndarray:
        """``transform``."""
        return self.transform(vectors, size.dim)

    queries = documents
