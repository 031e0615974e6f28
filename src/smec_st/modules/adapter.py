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
    starts from PCA. ``f`` is one linear map ``A x``; or one hidden layer of width ``h``, ``U a(V x) / sqrt(h)``; or
    both, where only the first outputs get the hidden layer. All are without bias, so that a chain folds into stock
    ``Dense`` modules (see :mod:`smec_st.maps.folding`). ``V`` begins at standard normal numbers, so that the hidden
    layer begins as random features of unit scale (Rahimi & Recht, NeurIPS 2007) and a step changes it little, however
    wide it is. ``s`` interpolates between start and result.

    Args:
        in_dim: Width ``D`` of the input.
        out_dim: Number of outputs.
        hidden_dim: Width of the hidden layer; None for a linear ``f``.
        hidden_outputs: How many outputs, the first ones, get the hidden layer in addition to ``A``; None for a hidden
            layer in place of ``A``.
        activation: Of the hidden layer: relu, gelu or silu, the ones that fold exactly.
        reads: Feature key of the input. "source_embedding" is the first module's output, kept along the way.
        writes: Feature key of the output.
        start: ``B``, ``(out_dim, in_dim)``; the identity when absent.
    """

    config_keys = ["in_dim", "out_dim", "hidden_dim", "hidden_outputs", "activation", "reads", "writes"]
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
        hidden_outputs: int | None = None,
    ) -> None:
        super().__init__()
        if min(in_dim, out_dim) < 1:
            raise ValueError(f"`in_dim` and `out_dim` must be at least 1, got {in_dim} and {out_dim}.")
        if hidden_dim is not None and hidden_dim < 1:
            raise ValueError(f"`hidden_dim` must be at least 1, or None for a linear map; got {hidden_dim}.")
        if hidden_outputs is not None and not (hidden_dim and 1 <= hidden_outputs <= out_dim):
            raise ValueError(f"`hidden_outputs` must be in [1, {out_dim}] of a hidden layer, got {hidden_outputs}.")
        if activation not in ACTIVATIONS:
            raise ValueError(f"`activation` must be one of {', '.join(ACTIVATIONS)}, got {activation!r}.")
        if start is not None and start.shape != (out_dim, in_dim):
            raise ValueError(f"`start` must be ({out_dim}, {in_dim}), got {tuple(start.shape)}.")
        self.in_dim, self.out_dim, self.hidden_dim, self.hidden_outputs = in_dim, out_dim, hidden_dim, hidden_outputs
        self.activation, self.reads, self.writes = activation, reads, writes
        start = torch.eye(out_dim, in_dim) if start is None else start.float()
        # Row by row in memory, as it is after loading: another layout rounds differently, and a resume is bit-exact.
        self.register_buffer("start", start.clone(memory_format=torch.contiguous_format))
        self.register_buffer("strength", torch.ones(()))
        self.hidden = None if hidden_dim is None else nn.Linear(in_dim, hidden_dim, bias=False)
        self.act = None if hidden_dim is None else ACTIVATIONS[activation]()
        self.residual = nn.Linear(in_dim if self.has_linear_part else hidden_dim or 1, out_dim, bias=False)
        self.narrow = None
        if hidden_outputs is not None:
            self.narrow = nn.Linear(hidden_dim or 1, hidden_outputs, bias=False)
            nn.init.zeros_(self.narrow.weight)
        nn.init.zeros_(self.residual.weight)
        if self.hidden is not None:
            nn.init.normal_(self.hidden.weight)

    def forward(self, features: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        """Read ``features[reads]`` ``(B, in_dim)``, write ``features[writes]`` ``(B, out_dim)``."""
        features.setdefault("source_embedding", features["sentence_embedding"])
        if self.is_known(features):
            return features
        x = features[self.reads].to(self.start.dtype)
        output = x @ (self.linear_part() if self.has_linear_part else self.start).T
        if self.hidden is not None and self.act is not None and not self.is_at_start:
            inside = self.act(self.hidden(x)) * (self.scale * self.strength)
            if self.narrow is None:
                output = output + self.residual(inside)
            else:
                output = output + nn.functional.pad(self.narrow(inside), (0, self.out_dim - self.narrow.out_features))
        features[self.writes] = output
        return features

    @property
    def has_linear_part(self) -> bool:
        """Whether ``f`` holds a linear map ``A``, with or without a hidden layer."""
        return self.hidden_dim is None or self.hidden_outputs is not None

    @property
    def is_at_start(self) -> bool:
        """Whether the hidden layer is zero and frozen."""
        weight = self.residual.weight if self.narrow is None else self.narrow.weight
        return not weight.requires_grad and not (bool(self.strength) and bool(weight.any()))

    @property
    def scale(self) -> float:
        """``1 / sqrt(h)``, and 1 without a hidden layer."""
        return 1.0 if self.hidden_dim is None else 1 / math.sqrt(self.hidden_dim)

    def linear_part(self) -> Tensor:
        """``B + s A``, ``(out_dim, in_dim)``; ``B`` alone where the hidden layer is in place of ``A``."""
        return self.start + self.strength * self.residual.weight if self.has_linear_part else self.start

    def linear_map(self) -> Tensor:
        """``B + s A``, ``(out_dim, in_dim)``, of a linear adapter."""
        if self.hidden is not None:
            raise ValueError("An adapter with a hidden layer is no linear map.")
        return self.linear_part()

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

    @torch.no_grad()
    def orthonormalize(self) -> None:
        """Replace the rows of a linear map by the orthonormal ones of Gram and Schmidt.

        The first ``m`` rows span what they spanned before, for every ``m``. Products with a row of the residual that
        has no gradient would otherwise drift; and a map onto the full width gives back all similarities exactly.
        """
        rows = self.linear_map()
        lower, failed = torch.linalg.cholesky_ex(rows @ rows.T)
        if bool(failed):
            raise FloatingPointError("a map diverged (its rows are no longer independent); lower `learning_rate`.")
        rows = torch.linalg.solve_triangular(lower, rows, upper=False)
        self.residual.weight.copy_(rows - self.start)

    def get_embedding_dimension(self) -> int:
        """Number of outputs."""
        return self.out_dim
