"""CSR (Wen et al., ICML 2025, https://arxiv.org/abs/2503.01776): sparse codes of a wide autoencoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from smec_st.baselines.interface import Size, TrainingData
from smec_st.baselines.training import Batches, dev_score, train
from smec_st.data import unit_rows
from smec_st.functional import contrastive_loss, unit
from smec_st.losses import Relevance

if TYPE_CHECKING:
    from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder


@dataclass(frozen=True)
class CSR:
    """A tied autoencoder that keeps the ``k`` largest of many more numbers than it reads.

    Autoencoder and loss, ``L_k + L_4k / 8 + beta L_aux + gamma L_contrastive``, are sentence-transformers' own. One
    autoencoder, trained at one ``k``, serves all sizes; a size keeps as many entries as fit into the bytes of that many
    floats, at 16 bits a value and as many for its position as the width needs.

    Published (paper and the authors' code for text retrieval): four times the width, ``k = 32``, auxiliary ``k`` a
    sixteenth of the wide layer, weights 1/32 and 0.1, temperature 0.2, batch 128; learning rate 4e-5 for ten epochs
    of far larger data. Inferred: vectors are scaled to unit variance per number, without which the reconstruction
    weighs nothing beside the other terms, and the learning rate; both were chosen on dev queries. Documents drawn at
    random join the batch as negatives; a document relevant to another query of the batch is no negative.

    Without labels each vector, query or document, is its own partner in the contrastive term, as in the authors' code.

    Args:
        expansion: Width of the wide layer, as a multiple.
        k: Entries kept in training.
        beta: Weight of ``L_aux``.
        gamma: Weight of the contrastive term.
        tau: Its temperature.
        batch_size: Pairs per step, and further documents.
        learning_rate: Of Adam.
        steps: Steps at most.
        patience: Of early stopping, on held-out nDCG@10.
    """

    expansion: int = 4
    k: int = 32
    beta: float = 1 / 32
    gamma: float = 0.1
    tau: float = 0.2
    batch_size: int = 128
    learning_rate: float = 2e-3
    steps: int = 1000
    patience: int = 300

    is_random: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False

    def fit(self, data: TrainingData, dims: Sequence[int], seed: int = 0) -> SparseEncoder:
        """See :class:`~smec_st.baselines.Method`."""
        from sentence_transformers.sparse_encoder.losses import CSRLoss
        from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder

        width = data.table.width
        hidden = self.expansion * width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            autoencoder = SparseAutoEncoder(width, hidden, k=min(self.k, hidden // 4), k_aux=max(1, hidden // 16))
        loss = CSRLoss(autoencoder, _Contrastive(self.tau), beta=self.beta, gamma=self.gamma)
        encoder = SparseEncoder(autoencoder, tuple(entries(dim, hidden) for dim in dims))
        draw = _Labelled(data, self.batch_size, seed) if data.train is not None else _Alone(data, self.batch_size, seed)

        def step(_: int) -> Tensor:
            query_rows, document_rows, grades = draw()
            sides = (data.table[rows] * math.sqrt(width) for rows in (query_rows, document_rows))
            terms: dict[str, Tensor] = loss([{"sentence_embedding": side} for side in sides], grades)
            return torch.stack(list(terms.values())).sum()

        held_out = dev_score(data, encoder.active)
        train(
            autoencoder.parameters(),
            step,
            None if held_out is None else lambda: held_out(encoder.codes),
            steps=self.steps,
            learning_rate=self.learning_rate,
            patience=self.patience,
        )
        return encoder
