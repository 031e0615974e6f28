"""The residual adaptor that Search-Adaptor, Matryoshka-Adaptor and DIVE train, and what they share around it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from smec_st.baselines.interface import FloatEncoder
from smec_st.data import unit_rows
from smec_st.functional import NEVER, rank_loss, unit


class Adaptor(nn.Module):
    """``x + W2 a(W1 x)``, one for queries and documents; begins as the identity (``W2 = 0``).

    Depth, width and activation are printed in none of the papers; one hidden layer with ReLU is what public
    re-implementations of Search-Adaptor and Matryoshka-Adaptor use, LayerNorm and GELU those of DIVE's author.

    Args:
        width: ``D``.
        hidden: Width of the hidden layer.
        normed: LayerNorm and GELU in place of ReLU.
        seed: Of the hidden layer's start.
    """

    def __init__(self, width: int, hidden: int, normed: bool = False, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            between: list[nn.Module] = [nn.LayerNorm(hidden), nn.GELU()] if normed else [nn.ReLU()]
            self.residual = nn.Sequential(nn.Linear(width, hidden), *between, nn.Linear(hidden, width))
        for parameter in self.residual[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, D) -> (n, D)``, not normalised."""
        return x + self.residual(x)  # type: ignore[no-any-return]

    @torch.no_grad()
    def map(self, vectors: np.ndarray, chunk: int = 8192) -> np.ndarray:
        """The same on numpy arrays, scaled to length 1 first; ``(n, D) -> (n, D)``."""
        parts = [
            self(torch.from_numpy(unit_rows(vectors[start : start + chunk])))
            for start in range(0, len(vectors), chunk)
        ]
        return torch.cat(parts).numpy() if parts else np.empty((0, vectors.shape[1]), dtype=np.float32)

    def encoder(self, dims: Sequence[int]) -> FloatEncoder:
        """Sizes are prefixes of the output."""
        return FloatEncoder(lambda vectors, dim: unit_rows(self.map(vectors)[:, :dim]), tuple(dims))


def similarities(rows: Tensor, columns: Tensor, dims: Sequence[int]) -> list[Tensor]:
    """Cosines of the first ``m`` numbers, for each size. ``(n, D), (c, D) -> [(n, c)]``."""
    return [unit(rows[:, :dim]) @ unit(columns[:, :dim]).T for dim in dims]


def prefix_rank_loss(rows: Tensor, columns: Tensor, grades: Tensor, own: Tensor, dims: Sequence[int]) -> Tensor:
    """Matryoshka-Adaptor Eq. (5): :func:`~smec_st.functional.rank_loss` summed over the sizes.

    Args:
        rows: Adapted queries, ``(B, D)``.
        columns: Adapted documents, ``(C, D)``.
        grades: ``(B, C)``.
        own: True where a document is the query itself, and takes no part, ``(B, C)``.
        dims: Sizes.
    """
    return torch.stack([rank_loss(s.masked_fill(own, NEVER), grades) for s in similarities(rows, columns, dims)]).sum()
