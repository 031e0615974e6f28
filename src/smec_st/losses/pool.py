"""The candidates of a step: the batch's documents, and rows of the memory (S-XBM)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from smec_st.data import Table
from smec_st.losses.memory import EMPTY, SelectableCrossBatchMemory
from smec_st.losses.ranks import any_rank, gather_rows, world_size
from smec_st.losses.relevance import Relevance
from smec_st.losses.settings import LossSettings


class CandidatePool:
    """Fills the memory from the corpus and chooses which of its rows a batch is compared with.

    In a distributed run all ranks have the same memory and choose the same rows.

    Args:
        table: Frozen vectors by row id; None where the memory holds what batches push.
        relevance: Judgements; None without labels.
        memory: S-XBM; None to use the batch alone.
        settings: How many rows are mined, drawn and streamed, and the random seed.
    """

    def __init__(
        self,
        table: Table | None,
        relevance: Relevance | None,
        memory: SelectableCrossBatchMemory | None,
        settings: LossSettings,
    ) -> None:
        self.table, self.relevance, self.memory, self.settings = table, relevance, memory, settings
        self._step = (0, 0)
        self._is_live, self._is_in_use = False, True
        self._order: tuple[int, Tensor] | None = None

    def begin_stage(self, stage: int, live: bool, in_use: bool) -> None:
        """Fill the memory from the corpus, in an order that depends on the stage.

        Args:
            stage: Index of the stage.
            live: Whether a backbone trains: then the memory holds what batches push.
            in_use: Whether the stage uses the memory.
        """
        self._is_live, self._is_in_use = live, in_use
        if self.memory is not None:
            self.memory.clear()
            if self.table is not None and in_use and not live:
                rows = self._corpus_order(stage)[: self.memory.capacity]
                self.memory.push(self.table[rows], rows)

    def begin_step(self, stage: int, step: int) -> None:
        """Push the next rows of a corpus that is larger than the memory; depends on (seed, stage, step) alone."""
        self._step = (stage, step)
        if self.memory is None or self.table is None or self._is_live or not self._is_in_use:
            return
        if self.memory.capacity >= self.table.corpus_size:
            return
        order = self._corpus_order(stage)
        start = self.memory.capacity + step * self.settings.stream_rows
        rows = order[(start + torch.arange(min(self.settings.stream_rows, self.memory.capacity))) % len(order)]
        self.memory.push(self.table[rows], rows)

    def own(self, row_ids: Tensor) -> Tensor:
        """Return the document that each row is itself, or -1. ``(B,) -> (B,)``."""
        return row_ids if self.table is None else self.table.own(row_ids.cpu()).to(row_ids.device)

    def candidates(
        self, anchors: Tensor, anchor_ids: Tensor, documents: Tensor | None, document_ids: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the candidates that the batch is compared with.

        Args:
            anchors: ``(B, D)``.
            anchor_ids: ``(B,)``.
            documents: The batch's documents, ``(B, D)``; None for none.
            document_ids: ``(B,)``.

        Returns:
            Vectors ``(C, D)``, their distinct row ids ``(C,)``, and where each batch row's document is, ``(B,)``.
        """
        if documents is not None:
            gathered, first = gather_rows(document_ids)
            ids, place = torch.unique(gathered, return_inverse=True)
            own = place[first : first + len(document_ids)]
            vectors = self._document_vectors(ids, place, documents)
        else:
            ids, own, vectors = document_ids[:0], document_ids[:0], anchors[:0]
        if self.memory is not None and self._is_in_use:
            slots = self._chosen_slots(anchors, anchor_ids, ids)
            ids = torch.cat([ids, self.memory.row_ids[slots]])
            vectors = torch.cat([vectors, self.memory.vectors[slots]])
        return vectors, ids, own

    @torch.no_grad()
    def push_batch(self, columns: list[Tensor], labels: Tensor) -> None:
        """Push the batch's documents (its anchors when there are none), gathered over all ranks."""
        if self.memory is not None and (self.table is None or self._is_live):
            vectors, ids = (columns[1], labels[:, 1]) if len(columns) > 1 else (columns[0], labels[:, 0])
            self.memory.push(gather_rows(vectors.detach())[0], gather_rows(ids)[0])

    def _document_vectors(self, ids: Tensor, place: Tensor, documents: Tensor) -> Tensor:
        """Return the vectors of all ranks' documents, each once, ``(C, D)``: looked up if frozen, else gathered."""
        if self.table is not None and not self._is_live and world_size() > 1:
            return self.table[ids.cpu()].to(documents)
        gathered, _ = gather_rows(documents, with_grad=self._is_live and torch.is_grad_enabled())
        first = torch.full_like(ids, len(gathered))
        first.scatter_reduce_(0, place, torch.arange(len(gathered), device=ids.device), reduce="amin")
        return gathered[first]

    @torch.no_grad()
    def _chosen_slots(self, anchors: Tensor, anchor_ids: Tensor, batch_ids: Tensor) -> Tensor:
        """Choose the slots of the memory that join this batch, without rows that it holds already, ``(S,)``."""
        assert self.memory is not None
        row_ids, settings = self.memory.row_ids, self.settings
        free = (row_ids != EMPTY) & ~torch.isin(row_ids, batch_ids)
        if int(free.sum()) <= settings.random_rows:
            return free.nonzero().squeeze(1)
        rng = np.random.default_rng([settings.seed, *self._step, 1])
        chosen = torch.zeros_like(free)
        chosen[torch.from_numpy(rng.permutation(self.memory.capacity)[: settings.random_rows]).to(free.device)] = True
        if settings.top_k > 0:
            similarity = anchors @ self.memory.vectors.T  # (B, M)
            banned = (row_ids == self.own(anchor_ids).unsqueeze(1)) | ~free
            if self.relevance is not None:
                filled = free.nonzero().squeeze(1)
                banned[:, filled] |= self.relevance(anchor_ids, row_ids[filled]) > 0
            chosen |= any_rank(self.memory.mine(similarity, settings.top_k, banned).any(dim=0))
        return (chosen & free).nonzero().squeeze(1)

    def _corpus_order(self, stage: int) -> Tensor:
        assert self.table is not None
        if self._order is None or self._order[0] != stage:
            rng = np.random.default_rng([self.settings.seed, stage, 0])
            self._order = stage, torch.from_numpy(rng.permutation(self.table.corpus_size))
        return self._order[1]
