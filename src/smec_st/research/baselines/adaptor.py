"""The residual adaptor that Search-Adaptor, Matryoshka-Adaptor and DIVE train, and the losses they share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from smec_st.data import unit_rows
from smec_st.functional import NEVER, rank_loss, unit


class Adaptor(nn.Module):
    """``x + W2 a(W1 x)``, shared by queries and documents; it starts as the identity (``W2 = 0``).

    None of the papers prints the depth, width or activation. One hidden layer with ReLU is what public
    re-implementations of Search-Adaptor and Matryoshka-Adaptor use; DIVE's author uses LayerNorm and GELU.

    Args:
        width: Width ``D`` of the vectors.
        hidden: Width of the hidden layer.
        normed: Use LayerNorm and GELU instead of ReLU.
        seed: Random seed for the initial weights of the hidden layer.
    """

    def __init__(self, width: int, hidden: int, normed: bool = False, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            activation: list[nn.Module] = [nn.LayerNorm(hidden), nn.GELU()] if normed else [nn.ReLU()]
            self.residual = nn.Sequential(nn.Linear(width, hidden), *activation, nn.Linear(hidden, width))
        for parameter in self.residual[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Adapt vectors, without normalising the result. ``(n, D) -> (n, D)``."""
        return x + self.residual(x)  # type: ignore[no-any-return]

    @torch.no_grad()
    def map(self, vectors: np.ndarray, chunk: int = 8192) -> np.ndarray:
        """Scale numpy vectors to length 1, then adapt them. ``(n, D) -> (n, D)``."""
        parts = [
            self(torch.from_numpy(unit_rows(vectors[start : start + chunk])))
            for start in range(0, len(vectors), chunk)
        ]
        return torch.cat(parts).numpy() if parts else np.empty((0, vectors.shape[1]), dtype=np.float32)


def similarities(rows: Tensor, columns: Tensor, dims: Sequence[int]) -> list[Tensor]:
    """Compute the cosines of the first ``m`` numbers for each size ``m``. ``(n, D), (c, D) -> [(n, c)]``."""
    return [unit(rows[:, :dim]) @ unit(columns[:, :dim]).T for dim in dims]


def prefix_rank_loss(rows: Tensor, columns: Tensor, grades: Tensor, excluded: Tensor, dims: Sequence[int]) -> Tensor:
    """Sum :func:`~smec_st.functional.rank_loss` over the sizes (Matryoshka-Adaptor, Eq. 5).

    Args:
        rows: Adapted queries, ``(B, D)``.
        columns: Adapted documents, ``(C, D)``.
        grades: Relevance grades, ``(B, C)``.
        excluded: True where a document is the query itself and must be ignored, ``(B, C)``.
        dims: Sizes.
    """
    losses = [rank_loss(s.masked_fill(excluded, NEVER), grades) for s in similarities(rows, columns, dims)]
    return torch.stack(losses).sum()
