"""Matryoshka-Adaptor (Yoon et al., EMNLP 2024, https://arxiv.org/abs/2407.20243)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from smec_st.data import VectorTable
from smec_st.functional import alignment_l1, reconstruction_l1
from smec_st.research.baselines.adaptor import Adaptor, prefix_rank_loss, similarities
from smec_st.research.baselines.interface import FloatEncoder, TrainingData, prefix_encoder
from smec_st.research.baselines.training import Batches, Pools, prefix_score, train


@dataclass(frozen=True)
class MatryoshkaAdaptor:
    """A residual adaptor whose prefixes keep the similarities of the full width and, with labels, rank documents.

    Unsupervised training minimises Eq. (4): ``L_topk + alpha L_pair + beta L_rec``. Supervised training starts from
    its result and minimises Eq. (6), which adds ``gamma L_rank``. Losses are summed over the sizes; within a size they
    are means, because with the printed sums ``L_pair`` dwarfs the other terms.

    Published (Table 5): batch 128, Adam with learning rate 1e-3, at most 5,000 iterations, patience 500, all weights
    1. Not printed, and taken from public re-implementations: one hidden layer as wide as the vectors, ``k = 10``. The
    criterion of early stopping is not printed either: here it is held-out nDCG@10 in the supervised stage, and Eq. (4)
    on a tenth of the corpus in the unsupervised one. The neighbours of Eq. (2) are searched among the documents of the
    step, as the paper searches its corpus batch. Collections of a few thousand documents need fewer steps: on
    SciFact's dev queries 1,000 unsupervised steps were better than 2,500 at every size.

    Args:
        supervised: Add the second stage.
        alpha: Weight of ``L_pair``.
        beta: Weight of ``L_rec``.
        gamma: Weight of ``L_rank``.
        k: Number of neighbours in ``L_topk``.
        batch_size: Queries, and documents, per step.
        pool: Further documents per step, as candidates of ``L_rank`` and as neighbours.
        learning_rate: Learning rate of Adam.
        steps: Maximum number of steps per stage (published: 5,000).
        patience: Steps without improvement before early stopping, per stage.
    """

    supervised: bool = True
    alpha: float = 1.0
    beta: float = 1.0
    gamma: float = 1.0
    k: int = 10
    batch_size: int = 128
    pool: int = 512
    learning_rate: float = 1e-3
    steps: int = 1000
    patience: int = 500

    is_random: ClassVar[bool] = True

    @property
    def needs_labels(self) -> bool:
        """Whether the second stage, which needs judgements and learns from them, is run."""
        return self.supervised

    uses_labels = needs_labels

    def fit(self, data: TrainingData, dims: Sequence[int], seed: int = 0) -> FloatEncoder:
        """See :class:`~smec_st.research.baselines.Method`."""
        adaptor = Adaptor(data.table.width, data.table.width, seed=seed)
        self._fit_unsupervised(adaptor, data.table, dims, seed)
        if self.supervised:
            self._fit_supervised(adaptor, data, dims, seed)
        return prefix_encoder(adaptor.map, dims)

    def _fit_unsupervised(self, adaptor: Adaptor, table: VectorTable, dims: Sequence[int], seed: int) -> None:
        order = np.random.default_rng(seed).permutation(table.corpus_size)
        held_out = table[torch.from_numpy(order[: min(max(len(order) // 10, self.k + 1), 2000)])]
        rows = order[len(order) // 10 :]
        batches = Batches(len(rows), self.batch_size + self.pool, seed)

        def step() -> Tensor:
            documents = table[torch.from_numpy(rows[batches.next()])]
            return self._unsupervised(adaptor, documents, self.batch_size, dims)

        @torch.no_grad()
        def score() -> float:
            return -float(self._unsupervised(adaptor, held_out, len(held_out), dims))

        train(
            adaptor.parameters(),
            step,
            score,
            steps=self.steps,
            learning_rate=self.learning_rate,
            patience=self.patience,
        )

    def _fit_supervised(self, adaptor: Adaptor, data: TrainingData, dims: Sequence[int], seed: int) -> None:
        table = data.table
        pools = Pools(data, self.batch_size, self.pool, seed, "the supervised Matryoshka-Adaptor")

        def step() -> Tensor:
            pool = pools.next()
            queries, documents = table[pool.query_rows], table[pool.document_rows]
            mapped_queries, mapped_documents = adaptor(queries), adaptor(documents)
            ranking = prefix_rank_loss(mapped_queries, mapped_documents, pool.grades, pool.excluded, dims)
            columns = (documents, mapped_documents)
            of_documents = self._distances(documents, mapped_documents, *columns, pool.positives, dims)
            of_queries = self._distances(queries, mapped_queries, *columns, len(queries), dims)
            return self.gamma * ranking + of_documents + of_queries

        train(
            adaptor.parameters(),
            step,
            prefix_score(data, dims, adaptor.map),
            steps=self.steps,
            learning_rate=self.learning_rate,
            patience=self.patience,
        )

    def _unsupervised(self, adaptor: Adaptor, documents: Tensor, count: int, dims: Sequence[int]) -> Tensor:
        """Compute Eq. (4) for the first ``count`` documents against all of them."""
        adapted = adaptor(documents)
        return self._distances(documents, adapted, documents, adapted, count, dims)

    def _distances(
        self, rows: Tensor, mapped: Tensor, columns: Tensor, mapped_columns: Tensor, count: int, dims: Sequence[int]
    ) -> Tensor:
        """Compute ``L_topk + alpha L_pair + beta L_rec`` for the first ``count`` rows against the columns."""
        teacher = rows[:count] @ columns.T
        others = torch.ones_like(teacher, dtype=torch.bool)
        if rows is columns:
            others.fill_diagonal_(False)
        nearest = torch.zeros_like(others)
        k = min(self.k, teacher.shape[1] - 1)
        nearest.scatter_(1, teacher.masked_fill(~others, float("-inf")).topk(k, dim=1).indices, True)
        terms = [
            alignment_l1(student, teacher, nearest) + self.alpha * alignment_l1(student, teacher, others)
            for student in similarities(mapped[:count], mapped_columns, dims)
        ]
        return torch.stack(terms).sum() + self.beta * reconstruction_l1(rows[:count], mapped[:count])
