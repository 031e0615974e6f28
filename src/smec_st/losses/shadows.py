"""Shadows of queries: what a training query would be if it asked for another document."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from smec_st.data import VectorTable
from smec_st.functional import linear_link, unit
from smec_st.losses.relevance import Relevance

MOST_LINKED = 1 << 14  # training pairs that say how queries follow from documents


class Shadows:
    """``unit(q + A (d' - d))``: a query ``q`` as if its own document ``d`` were another one, ``d'``.

    ``A`` is what of a document its queries carry along (:func:`~smec_st.functional.linear_link` over the training
    pairs); without labels it is the identity, and ``d`` is the query's nearest document. A narrow map can serve the
    training queries and their documents alone, and no others; shadows ask where no training query does.

    Args:
        table: Frozen vectors; None casts none.
        relevance: Training judgements; None without labels.
        seed: Seeds which document stands in.
    """

    def __init__(self, table: VectorTable | None, relevance: Relevance | None, seed: int) -> None:
        self.table, self.relevance, self.seed = table, relevance, seed

    @cached_property
    def are_cast(self) -> bool:
        """Whether queries (with labels: those of training) are no documents, which have places of their own."""
        if self.table is None:
            return False
        asking = torch.arange(self.table.corpus_size, len(self.table))
        if self.relevance is not None:
            asking = self.relevance.pairs[:, 0].cpu()
        return len(asking) > 0 and bool((self.table.own(asking) < 0).all())

    @cached_property
    def link(self) -> Tensor:
        """``A``, ``(D, D)``, by the training pairs."""
        assert self.relevance is not None
        assert self.table is not None
        pairs = self.relevance.pairs.cpu()
        if len(pairs) > MOST_LINKED:
            drawn = np.random.default_rng(self.seed).choice(len(pairs), MOST_LINKED, replace=False)
            pairs = pairs[torch.from_numpy(np.sort(drawn))]
        return linear_link(self.table[pairs[:, 1]], self.table[pairs[:, 0]])

    @torch.no_grad()
    def __call__(
        self, queries: Tensor, ids: Tensor, pool: Tensor, near: Tensor | None, step: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """One shadow of each query. Which document stands in depends on (seed, stage, step, query) alone.

        Args:
            queries: ``(b, D)``.
            ids: Their row ids, ``(b,)``.
            pool: ``(C, D)``.
            near: Place in the pool of the document that each query stands by, ``(b,)``; None for the nearest.
            step: Stage and step.

        Returns:
            Shadows ``(b, D)``, unit norm, and the place of the document that each stands by, ``(b,)``.
        """
        start = int(np.random.default_rng([self.seed, *step, 2]).integers(2**62))
        drawn = ((ids * 6364136223846793005 + start) >> 33) % len(pool)  # one step of Knuth's MMIX generator
        if near is None:
            return unit(pool[drawn] + queries - pool[(queries @ pool.T).argmax(dim=1)]), drawn
        return unit(queries + (pool[drawn] - pool[near]) @ self.link.to(queries).T), drawn
