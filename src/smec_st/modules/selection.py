"""ADS: learn which dimensions to keep (SMEC, section on adaptive dimension selection)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from smec_st.functional import gumbel_noise, straight_through_top_k, top_k_indices
from smec_st.modules.weights import FINISHED, WeightedModule


class AdaptiveDimensionSelection(WeightedModule):
    """Keep ``keep`` of ``in_dim`` dimensions; which ones is learned, then fixed.

    While it learns, :meth:`draw` sets Gumbel noise once per optimizer step, so that every column of a batch (and every
    rank) sees the same choice, and the gradient passes straight through a softmax. :meth:`freeze` stores the indices;
    from then on they are plain indexing, whatever happens to the logits. All scores are float32, also under autocast.

    Args:
        in_dim: Dimensions to choose from.
        keep: Dimensions that stay.
        offset: Width of what ``features["sentence_embedding"]`` already holds; the kept dimensions follow it (the
            order "grow"). 0 to replace it.
        reads: Feature key of the input.
        frozen: Whether the indices are fixed.
    """

    config_keys = ["in_dim", "keep", "offset", "reads", "frozen"]
    indices: Tensor
    noise: Tensor

    def __init__(
        self,
        in_dim: int,
        keep: int,
        offset: int = 0,
        reads: str = "sentence_embedding",
        frozen: bool = False,
    ) -> None:
        super().__init__()
        if not 1 <= keep <= in_dim:
            raise ValueError(f"`keep` must be in [1, {in_dim}], got {keep}.")
        self.in_dim, self.keep, self.offset, self.reads, self.frozen = in_dim, keep, offset, reads, frozen
        self.logits = nn.Parameter(torch.zeros(in_dim), requires_grad=not frozen)
        self.register_buffer("indices", torch.arange(keep))
        self.register_buffer("noise", torch.zeros(in_dim), persistent=False)
        self.tau = 1.0

    @property
    def is_trivial(self) -> bool:
        """Whether every dimension is kept, so that there is nothing to choose."""
        return self.keep == self.in_dim

    def draw(self, *seed: int, tau: float, noise_scale: float = 1.0) -> None:
        """Set the noise and temperature of this optimizer step; the noise depends on ``seed`` alone."""
        self.noise.copy_(gumbel_noise(self.in_dim, *seed).to(self.noise) * noise_scale)
        self.tau = tau

    def set_importance(self, importance: Tensor) -> None:
        """Start the logits from known importances, ``(in_dim,)``."""
        with torch.no_grad():
            self.logits.copy_(importance)

    @torch.no_grad()
    def freeze(self) -> Tensor:
        """Fix the indices at the largest logits and return them, ascending, ``(keep,)``."""
        if not self.frozen:
            self.indices.copy_(top_k_indices(self.logits.float(), self.keep))
            self.frozen = True
        self.logits.requires_grad_(False)
        self.noise.zero_()
        return self.indices

    def renumber(self) -> None:
        """After the module in front dropped all other outputs: every dimension that is left stays."""
        self.in_dim = self.keep
        self.logits = nn.Parameter(self.logits.detach()[self.indices].clone(), requires_grad=False)
        self.noise = torch.zeros_like(self.logits.detach())
        self.indices = torch.arange(self.keep, device=self.indices.device)

    def forward(self, features: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        """Read ``features[reads]`` ``(B, in_dim)``; ``sentence_embedding`` becomes, or grows by, ``(B, keep)``."""
        if self.is_known(features):
            features["sentence_embedding"] = features[FINISHED]
            return features
        x = features[self.reads]
        kept = x if self.is_trivial else self._select(x)
        if self.offset:
            kept = torch.cat([features["sentence_embedding"], kept], dim=-1)
        features["sentence_embedding"] = kept
        return features

    def _select(self, x: Tensor) -> Tensor:
        if self.frozen:
            return x[:, self.indices]
        if not (self.training and self.logits.requires_grad):
            return x[:, top_k_indices(self.logits.float(), self.keep)]
        with torch.autocast(device_type=x.device.type, enabled=False):
            indices, gate = straight_through_top_k(self.logits, self.noise, self.keep, self.tau)
        return x[:, indices] * gate.to(x.dtype)

    def get_embedding_dimension(self) -> int:
        """Width after this module."""
        return self.offset + self.keep
