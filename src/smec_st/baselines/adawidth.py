"""AdaWidth (Yang and Zhao, 2026, https://arxiv.org/abs/2608.23862): its orthogonal prefix adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from smec_st.baselines.interface import FloatEncoder, TrainingData
from smec_st.baselines.training import Batches, Pool, Pools, dev_score, train
from smec_st.data import unit_rows
from smec_st.functional import NEVER, alignment_kl, alignment_l1, contrastive_loss, leftover_axes, second_moment, unit


def householder(x: Tensor, vectors: Tensor) -> Tensor:
    """Reflect rows at hyperplanes, one after the other: ``x (I - 2 v_1 v_1^T) ... (I - 2 v_F v_F^T)``.

    The product is orthogonal whatever the vectors are, so inner products of full width never change.

    Args:
        x: ``(n, D)``.
        vectors: Normals of the hyperplanes, of any length but 0, ``(F, D)``.

    Returns:
        ``(n, D)``.
    """
    for normal in unit(vectors):
        x = x - 2 * (x @ normal).unsqueeze(1) * normal
    return x


@dataclass(frozen=True)
class AdaWidth:
    """A rotation made of a few reflections, trained so that its prefixes rank well and keep the geometry.

    Read at second hand: a frozen backbone, eight Householder reflections, and a loss of three parts summed over the
    widths: contrastive, score preservation, geometry preservation. Inferred: the form of the two preservations (KL of
    the softmax over candidates, absolute change of similarity between documents), the equal weights, the start and
    all numbers but the eight; start, temperature and learning rate were chosen on dev queries of SciFact and XQuAD-R.
    The router that picks a width per query is left out: here every query has the same.

    Without labels the contrastive part is 0 and the training queries, or documents where there are none, ask.

    Args:
        reflections: ``F``, even, so that pairs of equal reflections begin as the identity.
        start: What the reflections come on top of: ``identity`` (the prefixes begin as truncation) or ``principal``
            (uncentred PCA).
        score: Weight of score preservation.
        geometry: Weight of geometry preservation.
        tau: Temperature of the contrastive part and of score preservation.
        batch_size: Queries per step.
        pool: Further documents per step.
        learning_rate: Of Adam.
        steps: Steps at most.
        patience: Of early stopping, on held-out nDCG@10.
    """

    reflections: int = 8
    start: Literal["identity", "principal"] = "principal"
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
        """See :class:`~smec_st.baselines.Method`."""
        table, width = data.table, data.table.width
        axes = torch.eye(width)
        if self.start == "principal":
            axes = leftover_axes(second_moment(torch.from_numpy(data.corpus)), torch.zeros(0, width), width)
        half = np.random.default_rng(seed).standard_normal((self.reflections // 2, width)).astype(np.float32)
        vectors = nn.Parameter(unit(torch.from_numpy(half)).repeat_interleave(2, dim=0))
        pools = (
            Unlabelled(data, self.batch_size, self.pool, seed)
            if data.train is None
            else Pools(data, self.batch_size, self.pool, seed, "AdaWidth")
        )

        def step(_: int) -> Tensor:
            pool = pools.next()
            queries, documents = (
                householder(table[rows] @ axes.T, vectors) for rows in (pool.query_rows, pool.document_rows)
            )
            losses = [self._loss(queries, documents, pool.grades, pool.same, dim) for dim in dims]
            return torch.stack(losses).sum()

        @torch.no_grad()
        def mapping(rows: np.ndarray) -> np.ndarray:
            return householder(torch.from_numpy(unit_rows(rows)) @ axes.T, vectors).numpy()

        held_out = dev_score(data, dims)
        train(
            [vectors],
            step,
            None if held_out is None else lambda: held_out.of_prefixes(mapping),
            steps=self.steps,
            learning_rate=self.learning_rate,
            patience=self.patience,
        )
        return FloatEncoder(lambda rows, dim: unit_rows(mapping(rows)[:, :dim]), tuple(dims))

    def _loss(self, queries: Tensor, documents: Tensor, grades: Tensor, same: Tensor, dim: int) -> Tensor:
        """The three parts at one width.

        Args:
            queries: Rotated, full width, unit norm, ``(B, D)``.
            documents: Likewise, ``(C, D)``.
            grades: ``(B, C)``.
            same: True where a document is the query itself, and takes no part, ``(B, C)``.
            dim: The width.
        """
        narrow = unit(documents[:, :dim])
        similarity = unit(queries[:, :dim]) @ narrow.T
        others = ~torch.eye(len(narrow), dtype=torch.bool)
        contrastive = contrastive_loss(similarity.masked_fill(same, NEVER), grades, self.tau)
        score = alignment_kl(similarity, queries @ documents.T, self.tau, ~same)
        geometry = alignment_l1(narrow @ narrow.T, documents @ documents.T, others)
        return contrastive + self.score * score + self.geometry * geometry


class Unlabelled:
    """Training queries, or documents where there are none, beside documents; nothing is known to be relevant.

    Args:
        data: Judgements are not read.
        batch_size: Queries per step.
        others: Documents per step.
        seed: Of both orders.
    """

    def __init__(self, data: TrainingData, batch_size: int, others: int, seed: int) -> None:
        self._table = data.table
        self._asking = data.table.query_ids(data.queries) if len(data.queries) else np.arange(data.table.corpus_size)
        self._batches = Batches(len(self._asking), batch_size, seed)
        self._others = Batches(data.table.corpus_size, others, seed + 1)

    def next(self) -> Pool:
        """The next batch and its documents."""
        query_rows = torch.from_numpy(self._asking[self._batches.next()])
        document_rows = torch.from_numpy(self._others.next())
        return Pool(
            query_rows,
            document_rows,
            positives=0,
            pair=torch.zeros(0, dtype=torch.int64),
            grades=torch.zeros(len(query_rows), len(document_rows)),
            same=document_rows == self._table.own(query_rows).unsqueeze(1),
        )
