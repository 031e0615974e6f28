"""AdaWidth (Yang and Zhao, 2026, https://arxiv.org/abs/2608.23862): its orthogonal prefix adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from smec_st.data import unit_rows
from smec_st.evaluation.untrained import principal_axes
from smec_st.functional import NEVER, alignment_kl, alignment_l1, contrastive_loss, unit
from smec_st.research.baselines.interface import FloatEncoder, TrainingData, prefix_encoder
from smec_st.research.baselines.training import Batches, Pool, Pools, prefix_score, train


def householder(x: Tensor, vectors: Tensor) -> Tensor:
    """Reflect rows across hyperplanes, one after the other: ``x (I - 2 v_1 v_1^T) ... (I - 2 v_F v_F^T)``.

    The product of reflections is orthogonal for any vectors, so it keeps all inner products at full width.

    Args:
        x: Rows to reflect, ``(n, D)``.
        vectors: Normals of the hyperplanes, of any length above 0, ``(F, D)``.

    Returns:
        The reflected rows, ``(n, D)``.
    """
    for normal in unit(vectors):
        x = x - 2 * (x @ normal).unsqueeze(1) * normal
    return x


@dataclass(frozen=True)
class AdaWidth:
    """A product of a few reflections, trained so that its prefixes rank well and keep the geometry.

    From secondary sources: a frozen backbone, eight Householder reflections, and a loss of three terms summed over the
    widths: contrastive, score preservation, geometry preservation. Inferred: the form of the two preservation terms
    (KL divergence of the softmax over candidates, absolute change of similarity between documents), the equal weights,
    the initial axes, and all settings but the eight. Initial axes, temperature and learning rate were chosen on dev
    queries of SciFact and XQuAD-R. The router that picks a width per query is left out: all queries have one width.

    Without labels the contrastive term is 0, and the method trains on the training queries, or on documents when there
    are none.

    Args:
        reflections: Number of reflections ``F``; even, because they start as pairs that cancel out.
        score: Weight of score preservation.
        geometry: Weight of geometry preservation.
        tau: Temperature of the contrastive term and of score preservation.
        batch_size: Queries per step.
        pool: Further documents per step.
        learning_rate: Learning rate of Adam.
        steps: Maximum number of steps.
        patience: Steps without better held-out nDCG@10 before early stopping.
    """

    reflections: int = 8
    score: float = 1.0
    geometry: float = 1.0
    tau: float = 0.1
    batch_size: int = 128
    pool: int = 256
    learning_rate: float = 1e-2
    steps: int = 2000
    patience: int = 300

    is_random: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    uses_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.reflections < 2 or self.reflections % 2:
            raise ValueError(f"`reflections` must be even and at least 2, got {self.reflections}.")

    def fit(self, data: TrainingData, dims: Sequence[int], seed: int = 0) -> FloatEncoder:
        """See :class:`~smec_st.research.baselines.Method`."""
        table, width = data.table, data.table.width
        axes = torch.from_numpy(principal_axes(data.corpus))  # prefixes start as uncentred PCA
        half = np.random.default_rng(seed).standard_normal((self.reflections // 2, width)).astype(np.float32)
        vectors = nn.Parameter(unit(torch.from_numpy(half)).repeat_interleave(2, dim=0))
        pools = (
            UnlabelledPools(data, self.batch_size, self.pool, seed)
            if data.train is None
            else Pools(data, self.batch_size, self.pool, seed, "AdaWidth")
        )

        def step() -> Tensor:
            pool = pools.next()
            queries, documents = (
                householder(table[rows] @ axes.T, vectors) for rows in (pool.query_rows, pool.document_rows)
            )
            losses = [self._loss(queries, documents, pool.grades, pool.excluded, dim) for dim in dims]
            return torch.stack(losses).sum()

        @torch.no_grad()
        def mapping(rows: np.ndarray) -> np.ndarray:
            return householder(torch.from_numpy(unit_rows(rows)) @ axes.T, vectors).numpy()

        train(
            [vectors],
            step,
            prefix_score(data, dims, mapping),
            steps=self.steps,
            learning_rate=self.learning_rate,
            patience=self.patience,
        )
        return prefix_encoder(mapping, dims)

    def _loss(self, queries: Tensor, documents: Tensor, grades: Tensor, excluded: Tensor, dim: int) -> Tensor:
        """Add up the three terms at one width, of rotated rows at full width, ``(B, D)`` and ``(C, D)``."""
        narrow = unit(documents[:, :dim])
        similarity = unit(queries[:, :dim]) @ narrow.T
        others = ~torch.eye(len(narrow), dtype=torch.bool)
        contrastive = contrastive_loss(similarity.masked_fill(excluded, NEVER), grades, self.tau)
        score = alignment_kl(similarity, queries @ documents.T, self.tau, ~excluded)
        geometry = alignment_l1(narrow @ narrow.T, documents @ documents.T, others)
        return contrastive + self.score * score + self.geometry * geometry


class UnlabelledPools:
    """Training queries, or documents when there are none, with random documents; no document is known to be relevant.

    Args:
        data: Training data; its judgements are not read.
        batch_size: Queries per step.
        extra_documents: Documents per step.
        seed: Random seed of both orders.
    """

    def __init__(self, data: TrainingData, batch_size: int, extra_documents: int, seed: int) -> None:
        self._table = data.table
        self._query_ids = (
            data.table.query_ids(data.queries) if len(data.queries) else np.arange(data.table.corpus_size)
        )
        self._batches = Batches(len(self._query_ids), batch_size, seed)
        self._extra = Batches(data.table.corpus_size, extra_documents, seed + 1)

    def next(self) -> Pool:
        """Return the next batch and its documents."""
        query_rows = torch.from_numpy(self._query_ids[self._batches.next()])
        document_rows = torch.from_numpy(self._extra.next())
        return Pool(
            query_rows,
            document_rows,
            positives=0,
            positive=torch.zeros(0, dtype=torch.int64),
            grades=torch.zeros(len(query_rows), len(document_rows)),
            excluded=document_rows == self._table.own(query_rows).unsqueeze(1),
        )
