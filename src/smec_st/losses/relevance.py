"""Look up the grades of any queries and candidates without a loop."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smec_st.data import Qrels, Table


class Relevance(nn.Module):
    """Judgements by row id of a :class:`~smec_st.data.Table`, as compressed sparse rows.

    Args:
        qrels: Judgements; only grades above 0 are kept.
        table: Gives queries their row ids.
    """

    offsets: Tensor
    documents: Tensor
    grades: Tensor

    def __init__(self, qrels: Qrels, table: Table) -> None:
        super().__init__()
        relevant = qrels.grades > 0
        rows = torch.from_numpy(table.query_ids(qrels.queries[relevant]))
        counts = (
            torch.bincount(rows, minlength=len(table)) if len(rows) else torch.zeros(len(table), dtype=torch.int64)
        )
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        self.register_buffer("offsets", offsets, persistent=False)
        self.register_buffer("documents", torch.from_numpy(qrels.documents[relevant]), persistent=False)
        self.register_buffer("grades", torch.from_numpy(qrels.grades[relevant]), persistent=False)

    @property
    def pairs(self) -> Tensor:
        """Row ids of each query and its relevant documents, ``(P, 2)``."""
        queries = torch.arange(len(self.offsets) - 1, device=self.offsets.device)
        return torch.stack([torch.repeat_interleave(queries, self.offsets.diff()), self.documents], dim=1)

    def forward(self, queries: Tensor, candidates: Tensor) -> Tensor:
        """Return the grades of each query's candidates.

        Args:
            queries: Row ids, ``(B,)``.
            candidates: Row ids, each at most once, ``(C,)``.

        Returns:
            Float32 grades, 0 where nothing is known, ``(B, C)``.
        """
        result = torch.zeros(len(queries), len(candidates), device=candidates.device)
        first, last = self.offsets[queries], self.offsets[queries + 1]
        counts = last - first
        batch = torch.repeat_interleave(torch.arange(len(queries), device=queries.device), counts)
        if len(batch) == 0 or len(candidates) == 0:
            return result
        within = torch.arange(len(batch), device=queries.device) - (counts.cumsum(0) - counts)[batch]
        entries = first[batch] + within
        documents = self.documents[entries]
        ordered, position = candidates.sort()
        place = torch.searchsorted(ordered, documents).clamp_max(len(candidates) - 1)
        hit = ordered[place] == documents
        result[batch[hit], position[place[hit]]] = self.grades[entries[hit]]
        return result
