"""S-XBM: a first-in-first-out memory of frozen backbone vectors, searched for each batch's hardest rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EMPTY = -1


class SelectableCrossBatchMemory(nn.Module):
    """Keep the last ``capacity`` distinct rows that were pushed; the oldest is overwritten first.

    The vectors are the frozen full-width ones, so stored rows never drift (SMEC, section on S-XBM). A row
    that is pushed again counts as new and frees its old slot: no row is ever held twice, and what is held are the
    last ``capacity`` distinct rows. All state is in buffers, so ``state_dict`` restores rows and their age alike.

    Args:
        width: Width ``D`` of a vector.
        capacity: Number of rows ``M``, from a few thousand to the whole corpus.
    """

    vectors: Tensor
    row_ids: Tensor
    stamps: Tensor
    pushed: Tensor

    def __init__(self, width: int, capacity: int) -> None:
        super().__init__()
        if capacity < 1:
            raise ValueError(f"`capacity` must be at least 1, got {capacity}.")
        self.capacity = capacity
        self.register_buffer("vectors", torch.zeros(capacity, width))
        self.register_buffer("row_ids", torch.full((capacity,), EMPTY, dtype=torch.int64))
        self.register_buffer("stamps", torch.arange(-capacity, 0))  # when a slot was written; below 0: empty
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        return int((self.row_ids != EMPTY).sum())

    @torch.no_grad()
    def push(self, vectors: Tensor, row_ids: Tensor) -> None:
        """Append rows; of more than ``capacity`` rows, or of a row given twice, the last ones stay.

        Args:
            vectors: Frozen vectors, ``(n, D)``.
            row_ids: Their row ids, at least 0, ``(n,)`` int64.

        Raises:
            ValueError: If the shapes do not fit or an id is negative.
        """
        if vectors.shape != (len(row_ids), self.vectors.shape[1]):
            raise ValueError(
                f"`vectors` must be ({len(row_ids)}, {self.vectors.shape[1]}) for {len(row_ids)} row ids, "
                f"got {tuple(vectors.shape)}."
            )
        if len(row_ids) == 0:
            return
        vectors, row_ids = vectors.to(self.vectors), row_ids.to(self.row_ids)
        if int(row_ids.min()) < 0:
            raise ValueError("`row_ids` must be 0 or more.")
        last = _last_occurrences(row_ids)[-self.capacity :]
        vectors, row_ids = vectors[last], row_ids[last]
        self._empty(torch.isin(self.row_ids, row_ids).nonzero().squeeze(1))
        slots = self.stamps.topk(len(row_ids), largest=False).indices  # the empty ones, then the oldest
        self.vectors[slots] = vectors
        self.row_ids[slots] = row_ids
        self.stamps[slots] = self.pushed + torch.arange(len(row_ids), device=slots.device)
        self.pushed += len(row_ids)

    def clear(self) -> None:
        """Empty the memory."""
        self._empty(torch.arange(self.capacity, device=self.row_ids.device))
        self.pushed.zero_()

    def _empty(self, slots: Tensor) -> None:
        self.row_ids[slots] = EMPTY
        self.stamps[slots] = slots - self.capacity

    @torch.no_grad()
    def mine(self, similarity: Tensor, k: int, banned: Tensor | None = None) -> Tensor:
        """Find the ``k`` stored rows that are most similar to each batch row.

        Args:
            similarity: Full-width similarity of the batch to every slot, ``(B, M)``.
            k: Rows per batch row; fewer are returned where fewer are allowed.
            banned: True where a slot must not be served (the row itself, known relevant documents), ``(B, M)``.

        Returns:
            True where a slot was chosen for a batch row, ``(B, M)``.
        """
        allowed = (self.row_ids != EMPTY).expand_as(similarity)
        if banned is not None:
            allowed = allowed & ~banned
        chosen = torch.zeros_like(allowed)
        k = min(k, self.capacity)
        if k > 0:
            top = similarity.masked_fill(~allowed, float("-inf")).topk(k, dim=1).indices
            chosen.scatter_(1, top, True)
        return chosen & allowed


def _last_occurrences(row_ids: Tensor) -> Tensor:
    """Return the positions that hold the last occurrence of each id, ascending."""
    unique, inverse = torch.unique(row_ids, return_inverse=True)
    last = torch.full((len(unique),), -1, dtype=torch.int64, device=row_ids.device)
    last.scatter_reduce_(0, inverse, torch.arange(len(row_ids), device=row_ids.device), reduce="amax")
    return last.sort().values
