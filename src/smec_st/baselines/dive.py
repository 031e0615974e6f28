"""DIVE (Zhao, 2026, https://arxiv.org/abs/2605.20689), rebuilt from its abstract and its author's other code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smec_st.baselines.adaptor import Adaptor
from smec_st.baselines.interface import FloatEncoder, TrainingData
from smec_st.baselines.training import Pools, dev_score, train
from smec_st.functional import NEVER, unit


@dataclass(frozen=True)
class DIVE:
    """A reconstruction, not the authors' code: neither that nor any hyper-parameter is public.

    From the abstract: a frozen backbone with a residual adapter, a hinge triplet loss that is silent once its margin
    is met, and NT-Xent between several learned projections of the same vector. From the author's EGA and HOLE: the
    adapter's form, the margin, ``tau``, ``lam``, AdamW with weight decay and cosine. Inferred: sizes are prefixes and
    each has its triplet loss; hardest negative of the step's pool; four views of 128 numbers. On SciFact's dev queries
    a weight of 0.1 was far better than HOLE's 0.5, so the rival has it.

    Args:
        margin: Of the triplet loss, in cosine distance (EGA: 0.2, HOLE: 0.3).
        lam: Weight of NT-Xent (HOLE: 0.5).
        tau: Its temperature.
        views: Projections.
        view_dim: Width of each.
        hidden: Width of the adapter's hidden layer.
        batch_size: Pairs per step.
        pool: Further documents per step that negatives come from.
        learning_rate: Of AdamW.
        weight_decay: Of AdamW.
        steps: Steps at most.
        patience: Of early stopping, on held-out nDCG@10.
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
        """See :class:`~smec_st.baselines.Method`."""
        table, width = data.table, data.table.width
        adaptor = Adaptor(width, self.hidden, normed=True, seed=seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            heads = nn.ModuleList(nn.Linear(width, self.view_dim) for _ in range(self.views))
        pools = Pools(data, self.batch_size, self.pool, seed, "DIVE")

        def step(_: int) -> Tensor:
            pool = pools.next()
            queries, documents = adaptor(table[pool.query_rows]), adaptor(table[pool.document_rows])
            banned = (pool.grades > 0) | pool.same
            triplets = [
                hinge_triplet_loss(unit(queries[:, :dim]) @ unit(documents[:, :dim]).T, pool.pair, banned, self.margin)
                for dim in dims
            ]
            both = torch.cat([queries, documents[: pool.positives]])
            agreement = view_agreement([head(both) for head in heads], self.tau)
            return torch.stack(triplets).mean() + self.lam * agreement

        held_out = dev_score(data, dims)
        train(
            [*adaptor.parameters(), *heads.parameters()],
            step,
            None if held_out is None else lambda: held_out.of_prefixes(adaptor.map),
            steps=self.steps,
            learning_rate=self.learning_rate,
            patience=self.patience,
            weight_decay=self.weight_decay,
            cosine=True,
        )
        return adaptor.encoder(dims)


def hinge_triplet_loss(similarity: Tensor, own: Tensor, banned: Tensor, margin: float) -> Tensor:
    """``mean_i max(0, d(a_i, p_i) - d(a_i, n_i) + margin)`` with cosine distance and the hardest negative (EGA).

    Args:
        similarity: Cosine of anchors and candidates, ``(B, C)``.
        own: Column of each anchor's positive, ``(B,)``.
        banned: True where a candidate is no negative, ``(B, C)``.
        margin: The loss, and its gradient, are 0 once the distance is met.
    """
    positive = similarity.gather(1, own.unsqueeze(1)).squeeze(1)
    negative = similarity.masked_fill(banned, NEVER).max(dim=1).values
    return (negative - positive + margin).clamp_min(0).mean()


def view_agreement(views: Sequence[Tensor], tau: float) -> Tensor:
    """Mean over pairs of views of NT-Xent: a row's two views are a pair, all other rows' views are negatives (HOLE).

    Args:
        views: Projections of the same rows, ``[(B, h)]``.
        tau: Temperature.
    """
    return torch.stack([nt_xent(one, other, tau) for one, other in combinations(views, 2)]).mean()


def nt_xent(one: Tensor, other: Tensor, tau: float) -> Tensor:
    """NT-Xent (SimCLR, Chen et al., ICML 2020, Eq. 1) of two views ``(B, h)``."""
    rows = unit(torch.cat([one, other]))
    logits = (rows @ rows.T / tau).fill_diagonal_(NEVER)
    partner = torch.arange(len(rows)).roll(len(one))
    return F.cross_entropy(logits, partner)
