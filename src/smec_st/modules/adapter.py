"""The trained part of a stage: a fixed start plus a learned residual."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from smec_st.modules.weights import WeightedModule

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


class ResidualAdapter(WeightedModule):
    """``y = B x + s f(x)``: a fixed start ``B``, a learned ``f`` that begins at zero, and a strength ``s``.

    With ``B`` the identity this is the residual adapter of Search-Adaptor and MA; with ``B`` principal axes training
    starts from PCA. ``f`` is one linear map, or ``U a(V x) / sqrt(h)`` with one hidden layer of width ``h``; both
    without bias, so that a chain folds into stock ``Dense`` modules (see :mod:`smec_st.folding`). ``V`` begins at
    standard normal numbers, so that the hidden layer begins as random features of unit scale (Rahimi & Recht, NeurIPS
    2007) and a step changes it little, however wide it is. ``s`` walks the line between start and result.

    Args:
        in_dim: Width ``D`` of the input.
        out_dim: Number of outputs.
        hidden_dim: Width of the hidden layer; None for a linear ``f``.
        activation: Of the hidden layer: relu, gelu or silu, the ones that fold exactly.
        reads: Feature key of the input. "source_embedding" is the first module's output, kept along the way.
        writes: Feature key of the output.
        start: ``B``, ``(out_dim, in_dim)``; the identity when absent, which needs ``out_dim == in_dim``.
    """

    config_keys = ["in_dim", "out_dim", "hidden_dim", "activation", "reads", "writes"]
    start: Tensor
    strength: Tensor

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        hidden_dim: int | None = None,
        activation: str = "relu",
        reads: str = "sentence_embedding",
        writes: str = "sentence_embedding",
        start: Tensor | None = None,
    ) -> None:
        super().__init__()
        if min(in_dim, out_dim) < 1:
            raise ValueError(f"`in_dim` and `out_dim` must be at least 1, got {in_dim} and {out_dim}.")
        if hidden_dim is not None and hidden_dim < 1:
            raise ValueError(f"`hidden_dim` must be at least 1, or None for a linear map; got {hidden_dim}.")
        if activation not in ACTIVATIONS:
            raise ValueError(f"`activation` must be one of {', '.join(ACTIVATIONS)}, got {activation!r}.")
        if start is not None and start.shape != (out_dim, in_dim):
            raise ValueError(f"`start` must be ({out_dim}, {in_dim}), got {tuple(start.shape)}.")
        self.in_dim, self.out_dim, self.hidden_dim = in_dim, out_dim, hidden_dim
        self.activation, self.reads, self.writes = activation, reads, writes
        self.exposes_start = False  # a loss that holds the result to its start asks for "start_embedding"
        start = torch.eye(out_dim, in_dim) if start is None else start.float()
        # Row by row in memory, as it is after loading: another layout rounds differently, and a resume is bit-exact.
        self.register_buffer("start", start.clone(memory_format=torch.contiguous_format))
        self.register_buffer("strength", torch.ones(()))
        self.hidden = None if hidden_dim is None else nn.Linear(in_dim, hidden_dim, bias=False)
        self.act = None if hidden_dim is None else ACTIVATIONS[activation]()
        self.residual = nn.Linear(hidden_dim or in_dim, out_dim, bias=False)
        nn.init.zeros_(self.residual.weight)
        if self.hidden is not None:
            nn.init.normal_(self.hidden.weight)

    def forward(self, features: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        """Read ``features[reads]`` ``(B, in_dim)``, write ``features[writes]`` ``(B, out_dim)``."""
        features.setdefault("source_embedding", features["sentence_embedding"])
        if self.is_known(features):
            return features
        x = features[self.reads].to(self.start.dtype)
        if self.hidden is None or self.act is None:
            features[self.writes] = x @ self.linear_map().T
        elif self.is_at_start:
            features[self.writes] = x @ self.start.T
        else:
            features[self.writes] = x @ self.start.T + self.strength * self.residual(
                self.act(self.hidden(x)) * self.scale
            )
        if self.exposes_start:
            features["start_embedding"] = x @ self.start.T
        return features

    @property
    def is_at_start(self) -> bool:
        """Whether ``f`` adds nothing, and is not about to learn."""
        weight = self.residual.weight
        return not weight.requires_grad and not (bool(self.strength) and bool(weight.any()))

    @property
    def scale(self) -> float:
        """``1 / sqrt(h)``, and 1 without a hidden layer."""
        return 1.0 if self.hidden_dim is None else 1 / math.sqrt(self.hidden_dim)

    def linear_map(self) -> Tensor:
        """``B + s A``, ``(out_dim, in_dim)``, of a linear adapter."""
        if self.hidden is not None:
            raise ValueError("An adapter with a hidden layer is no linear map.")
        return self.start + self.strength * self.residual.weight

    @torch.no_grad()
    def draw_hidden(self, seed: int) -> None:
        """Begin the hidden layer, if there is one, at numbers that depend on ``seed`` alone."""
        if self.hidden is not None:
            nn.init.normal_(self.hidden.weight, generator=torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def keep_outputs(self, indices: Tensor) -> None:
        """Drop all outputs but these, in this order. Parameters are replaced: build the optimizer afterwards."""
        self.start = self.start[indices].clone()
        frozen = not self.residual.weight.requires_grad
        self.residual.weight = nn.Parameter(self.residual.weight[indices].clone(), requires_grad=not frozen)
        self.out_dim = self.residual.out_features = len(indices)

    def get_embedding_dimension(self) -> int:
        """Number of outputs."""
        return self.out_dim
