"""DIVE (Zhao, 2026, https://arxiv.org/abs/2605.20689), reconstructed from its abstract and its author's other code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smec_st.functional import NEVER, unit
from smec_st.research.baselines.adaptor import Adaptor, similarities
from smec_st.research.baselines.interface import FloatEncoder, TrainingData, prefix_encoder
from smec_st.research.baselines.training import Pools, prefix_score, train


@dataclass(frozen=True)
class DIVE:
    """A reconstruction of DIVE; neither its code nor its hyper-parameters are public.

    From the abstract: a frozen backbone with a residual adapter, a hinge triplet loss that is 0 once its margin is
    met, and NT-Xent between several learned projections of the same vector. From the author's EGA and HOLE: the form
    of the adapter, the margin, ``tau``, ``lam``, AdamW with weight decay and a cosine schedule. Inferred: sizes are
    prefixes, each with its own triplet loss; the hardest negative of the step's documents; four views of 128
    dimensions. On SciFact's dev queries a weight of 0.1 was far better than HOLE's 0.5, so it is the default.

    Args:
        margin: Margin of the triplet loss, in cosine distance (EGA: 0.2, HOLE: 0.3).
        lam: Weight of NT-Xent (HOLE: 0.5).
        tau: Temperature of NT-Xent.
        views: Number of projections.
        view_dim: Width of each projection.
        hidden: Width of the adapter's hidden layer.
        batch_size: Pairs per step.
        pool: Further documents per step, as candidates for negatives.
        learning_rate: Learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
        steps: Maximum number of steps.
        patience: Steps without better held-out nDCG@10 before early stopping.
    """

    margin: float = 0.3
    lam: float = 0.1
    tau: float = 0.07
    views: int = 4
    view_dim: int = 128
    hidden: int = 2048
    batch_size: int = 128
    pool: int = 128
    learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    steps: int = 600
    patience: int = 300

    is_random: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = True
    uses_labels: ClassVar[bool] = True

    def fit(self, data: TrainingData, dims: Sequence[int], seed: int = 0) -> FloatEncoder:
        """See :class:`~smec_st.research.baselines.Method`."""
        table, width = data.table, data.table.width
        adaptor = Adaptor(width, self.hidden, normed=True, seed=seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            heads = nn.ModuleList(nn.Linear(width, self.view_dim) for _ in range(self.views))
        pools = Pools(data, self.batch_size, self.pool, seed, "DIVE")

        def step() -> Tensor:
            pool = pools.next()
            queries, documents = adaptor(table[pool.query_rows]), adaptor(table[pool.document_rows])
            excluded = (pool.grades > 0) | pool.excluded
            triplets = [
                hinge_triplet_loss(similarity, pool.positive, excluded, self.margin)
                for similarity in similarities(queries, documents, dims)
            ]
            both = torch.cat([queries, documents[: pool.positives]])
            agreement = view_agreement([head(both) for head in heads], self.tau)
            return torch.stack(triplets).mean() + self.lam * agreement

        train(
            [*adaptor.parameters(), *heads.parameters()],
            step,
            prefix_score(data, dims, adaptor.map),
            steps=self.steps,
            learning_rate=self.learning_rate,
            patience=self.patience,
            weight_decay=self.weight_decay,
            cosine=True,
        )
        return prefix_encoder(adaptor.map, dims)


def hinge_triplet_loss(similarity: Tensor, positive: Tensor, excluded: Tensor, margin: float) -> Tensor:
    """``mean_i max(0, d(a_i, p_i) - d(a_i, n_i) + margin)`` with cosine distance and the hardest negative (EGA).

    Args:
        similarity: Cosine of anchors and candidates, ``(B, C)``.
        positive: Column of each anchor's positive, ``(B,)``.
        excluded: True where a candidate is not a negative, ``(B, C)``.
        margin: An anchor whose negative is farther away than its positive by this much has no loss and no gradient.
    """
    of_positive = similarity.gather(1, positive.unsqueeze(1)).squeeze(1)
    of_negative = similarity.masked_fill(excluded, NEVER).max(dim=1).values
    return (of_negative - of_positive + margin).clamp_min(0).mean()


def view_agreement(views: Sequence[Tensor], tau: float) -> Tensor:
    """Average :func:`nt_xent` over all pairs of views (HOLE).

    Args:
        views: Projections of the same rows, ``[(B, h)]``.
        tau: Temperature.
    """
    return torch.stack([nt_xent(one, other, tau) for one, other in combinations(views, 2)]).mean()


def nt_xent(one: Tensor, other: Tensor, tau: float) -> Tensor:
    """Compute NT-Xent (SimCLR, Chen et al., ICML 2020, Eq. 1) of two views ``(B, h)``.

    The two views of a row are a positive pair; the views of all other rows are negatives.
    """
    rows = unit(torch.cat([one, other]))
    logits = (rows @ rows.T / tau).fill_diagonal_(NEVER)
    partner = torch.arange(len(rows)).roll(len(one))
    return F.cross_entropy(logits, partner)
