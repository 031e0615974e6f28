"""Matryoshka representation learning (Kusupati et al., NeurIPS 2022) with a linear head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from smec_st.data import DataError, Qrels, unit_rows
from smec_st.evaluation.untrained import principal_axes
from smec_st.modules import EmbeddingInput
from smec_st.research.baselines.interface import FloatEncoder, TrainingData, prefix_encoder
from smec_st.research.baselines.training import Batches, prefix_score, train


@dataclass(frozen=True)
class MRL:
    """A linear map on cached vectors, trained at all sizes at once: ``MatryoshkaLoss`` over InfoNCE or CoSENT.

    The losses are those of sentence-transformers with their default settings: ``MultipleNegativesRankingLoss`` (scale
    20, negatives from the batch), and ``CoSENTLoss`` (scale 20) for graded pairs. The paper trains the backbone, so
    the map, its initial weights and the optimizer are our choices.

    Args:
        loss: ``infonce``, or ``cosent`` for graded pairs (judged pairs with their grades, and as many random pairs
            with grade 0).
        start: Initial weights: ``identity`` (truncation) or ``principal`` (uncentred PCA).
        batch_size: Pairs per step.
        learning_rate: Learning rate of Adam, with a cosine schedule.
        steps: Maximum number of steps.
        patience: Steps without better held-out nDCG@10 before early stopping.
    """

    loss: str = "infonce"
    start: str = "principal"
    batch_size: int = 128
    learning_rate: float = 1e-3
    steps: int = 2000
    patience: int = 500

    is_random: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = True
    uses_labels: ClassVar[bool] = True

    def fit(self, data: TrainingData, dims: Sequence[int], seed: int = 0) -> FloatEncoder:
        """See :class:`~smec_st.research.baselines.Method`."""
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer import losses
        from sentence_transformers.sentence_transformer.modules import Dense

        if data.train is None or len(data.train.pairs) == 0:
            raise DataError("MRL needs training judgements.")
        table, width = data.table, data.table.width
        head = Dense(width, width, bias=False, activation_function=nn.Identity())
        with torch.no_grad():
            head.linear.weight.copy_(
                torch.eye(width) if self.start == "identity" else torch.from_numpy(principal_axes(data.corpus))
            )
        model = SentenceTransformer(modules=[EmbeddingInput(width), head], device="cpu")
        inner = losses.CoSENTLoss(model) if self.loss == "cosent" else losses.MultipleNegativesRankingLoss(model)
        matryoshka = losses.MatryoshkaLoss(model, inner, matryoshka_dims=sorted(dims, reverse=True))
        pairs, grades = self._pairs(data.train, table.corpus_size, seed)
        batches = Batches(len(pairs), self.batch_size, seed)

        def step() -> Tensor:
            rows = batches.next()
            if self.loss == "infonce":  # a document that is relevant to two queries would be its own negative
                rows = rows[np.unique(pairs[rows, 1], return_index=True)[1]]
            sides = (table.query_ids(pairs[rows, 0]), pairs[rows, 1])
            features = [{"sentence_embedding": table[torch.from_numpy(side)]} for side in sides]
            value: Tensor = matryoshka(features, torch.from_numpy(grades[rows]))
            return value

        @torch.no_grad()
        def mapping(vectors: np.ndarray) -> np.ndarray:
            mapped: np.ndarray = unit_rows(vectors) @ head.linear.weight.detach().numpy().T
            return mapped

        train(
            model.parameters(),
            step,
            prefix_score(data, dims, mapping),
            steps=self.steps,
            learning_rate=self.learning_rate,
            patience=self.patience,
            cosine=True,
        )
        return prefix_encoder(mapping, dims)

    def _pairs(self, train: Qrels, corpus_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return pairs (query row, document row), ``(P, 2)``, and their grades, ``(P,)``."""
        if self.loss == "infonce":
            return train.pairs, np.ones(len(train.pairs), dtype=np.float32)
        random_documents = np.random.default_rng(seed).integers(0, corpus_size, len(train))
        pairs = np.stack([np.tile(train.queries, 2), np.r_[train.documents, random_documents]], axis=1)
        return pairs, np.r_[train.grades, np.zeros(len(train), dtype=np.float32)]
