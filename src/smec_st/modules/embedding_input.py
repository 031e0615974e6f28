"""The first module of a model that has no backbone: it takes vectors where others take text."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers.base.modules import InputModule
from torch import Tensor


class EmbeddingInput(InputModule):
    """Feed cached backbone vectors to the modules behind it.

    Args:
        dim: Width ``D`` of the vectors.
    """

    config_keys = ["dim"]
    save_in_root = False

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"`dim` must be at least 1, got {dim}.")
        self.dim = dim

    @property
    def modalities(self) -> list[str]:
        """One-dimensional arrays are typed "audio" by sentence-transformers."""
        return ["audio"]

    @property
    def max_seq_length(self) -> None:
        """Vectors have no length in tokens."""
        return None

    def preprocess(self, inputs: Any, prompt: str | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """Stack vectors: a list of ``(D,)`` rows or an ``(n, D)`` array becomes ``(n, D)`` float32."""
        if not isinstance(inputs, Tensor):
            inputs = torch.stack([torch.as_tensor(row, dtype=torch.float32) for row in inputs])
        rows = inputs.float()
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise ValueError(f"Vectors must be {self.dim} wide, got an input of shape {tuple(rows.shape)}.")
        return {"sentence_embedding": rows}

    def forward(self, features: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        """Pass the vectors on in a new dict, so that a second forward on the same features starts afresh."""
        return dict(features)

    def get_embedding_dimension(self) -> int:
        """Width ``D``."""
        return self.dim

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the config; there are no weights."""
        self.save_config(output_path)
