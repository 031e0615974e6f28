"""Counterfactual queries: what a training query would be if it asked for another document."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from smec_st.data import Table
from smec_st.functional import linear_link, unit
from smec_st.losses.relevance import Relevance

MOST_LINKED = 1 << 14  # training pairs that say how queries follow from documents


class Shadows:
    """``unit(q + A (d' - d))``: a query ``q`` as if its own document ``d`` were another one, ``d'``.

    ``A`` predicts queries from their documents (:func:`~smec_st.functional.linear_link` over the training pairs);
    without labels it is the identity, and ``d`` is the query's nearest document. A narrow map can serve the training
    queries and their documents alone, and no others; counterfactual queries ask for documents that no training query
    asks for.

    Args:
        table: Frozen vectors; None to make no counterfactual queries.
        relevance: Training judgements; None without labels.
        seed: Seed of the random choice of the other document.
    """

    def __init__(self, table: Table | None, relevance: Relevance | None, seed: int) -> None:
        self.table, self.relevance, self.seed = table, relevance, seed

    @cached_property
    def are_cast(self) -> bool:
        """Whether any are made: only if no query (with labels, no training query) is itself a document."""
        if self.table is None:
            return False
        query_rows = torch.arange(self.table.corpus_size, len(self.table))
        if self.relevance is not None:
            query_rows = self.relevance.pairs[:, 0].cpu()
        return len(query_rows) > 0 and bool((self.table.own(query_rows) < 0).all())

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
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Make a counterfactual query for each query.

        Args:
            queries: ``(b, D)``.
            ids: Their row ids, ``(b,)``.
            pool: ``(C, D)``.
            near: Place in the pool of each query's document, ``(b,)``; None for the nearest.
            step: Stage and step.

        Returns:
            Counterfactual queries ``(b, D)``, unit norm; the place of the document that each asks for, ``(b,)``; and a
            number in [0, 1) by which some of them are chosen, ``(b,)``. The last two depend on (seed, stage, step,
            query) alone, whichever rank the query is on.
        """
        start = int(np.random.default_rng([self.seed, *step, 2]).integers(2**62))
        bits = (ids * 6364136223846793005 + start) >> 21  # one step of Knuth's MMIX generator
        drawn, chance = (bits >> 12) % len(pool), (bits & 4095) / 4096
        if near is None:
            return unit(pool[drawn] + queries - pool[(queries @ pool.T).argmax(dim=1)]), drawn, chance
        return unit(queries + (pool[drawn] - pool[near]) @ self.link.to(queries).T), drawn, chance
