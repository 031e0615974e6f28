"""Search-Adaptor (Yoon et al., ACL 2024, https://arxiv.org/abs/2310.08750), truncated as in the literature."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from smec_st.functional import reconstruction_l1
from smec_st.research.baselines.adaptor import Adaptor, prefix_rank_loss
from smec_st.research.baselines.interface import FloatEncoder, TrainingData, prefix_encoder
from smec_st.research.baselines.training import DevScore, Pools, dev_score, train


@dataclass(frozen=True)
class SearchAdaptor:
    """A residual adaptor trained to rank at full width; smaller sizes are plain prefixes of its output.

    The loss is ``L_rank + alpha L_rec + beta L_pred`` (section 4.2): the ranking loss, the size of the change, and the
    error of a predictor, used in training only, that predicts the query from its relevant document.

    Published, from secondary sources: Adam with learning rate 1e-3, batch 128, at most 2,000 iterations, patience 125,
    ten negatives per relevant document, ``alpha`` and ``beta`` chosen on validation queries. Depth, width and
    activation are not printed; here a hidden layer is as wide as the vectors. The validation score is the mean nDCG@10
    of held-out queries over the sizes, as for every method here; without held-out queries the first value of each list
    is used.

    Args:
        alphas: Weights of ``L_rec`` to choose from.
        betas: Weights of ``L_pred`` to choose from.
        batch_size: Pairs per step.
        negatives: Further documents per step, as a multiple of the batch.
        learning_rate: Learning rate of Adam.
        steps: Maximum number of steps.
        patience: Steps without improvement before early stopping.
    """

    alphas: tuple[float, ...] = (0.0, 0.1, 1.0)
    betas: tuple[float, ...] = (0.01, 0.0, 0.1)
    batch_size: int = 128
    negatives: int = 10
    learning_rate: float = 1e-3
    steps: int = 2000
    patience: int = 125

    is_random: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = True
    uses_labels: ClassVar[bool] = True

    def fit(self, data: TrainingData, dims: Sequence[int], seed: int = 0) -> FloatEncoder:
        """See :class:`~smec_st.research.baselines.Method`."""
        held_out = dev_score(data, dims)
        if held_out is None:
            return prefix_encoder(self._fit(data, self.alphas[0], self.betas[0], None, seed).map, dims)
        grid = itertools.product(self.alphas, self.betas)
        adaptors = [self._fit(data, alpha, beta, held_out, seed) for alpha, beta in grid]
        best = max(adaptors, key=lambda adaptor: held_out.of_prefixes(adaptor.map))
        return prefix_encoder(best.map, dims)

    def _fit(self, data: TrainingData, alpha: float, beta: float, held_out: DevScore | None, seed: int) -> Adaptor:
        table, width = data.table, data.table.width
        adaptor = Adaptor(width, width, seed=seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            predictor = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        pools = Pools(data, self.batch_size, self.negatives * self.batch_size, seed, "Search-Adaptor")

        def step() -> Tensor:
            pool = pools.next()
            queries, documents = table[pool.query_rows], table[pool.document_rows]
            mapped_queries, mapped_documents = adaptor(queries), adaptor(documents)
            ranking = prefix_rank_loss(mapped_queries, mapped_documents, pool.grades, pool.excluded, (width,))
            change = reconstruction_l1(queries, mapped_queries) + reconstruction_l1(documents, mapped_documents)
            prediction = reconstruction_l1(predictor(mapped_documents[pool.positive]), mapped_queries)
            return ranking + width * (alpha * change + beta * prediction)  # the paper's norms are sums, ours are means

        train(
            [*adaptor.parameters(), *predictor.parameters()],
            step,
            None if held_out is None else lambda: held_out.of_prefixes(adaptor.map),
            steps=self.steps,
            learning_rate=self.learning_rate,
            patience=self.patience,
        )
        return adaptor
