"""The first module of a model without a backbone: its inputs are vectors instead of texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from sentence_transformers.base.modules import InputModule
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable

    from smec_st.data.vectors import ArrayLike


class EmbeddingInput(InputModule):
    """Pass cached backbone vectors to the modules that follow.

    Args:
        dim: Width ``D`` of the vectors.

    Raises:
        ValueError: If ``dim`` is below 1.
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
        """``["audio"]``, because sentence-transformers takes one-dimensional arrays for audio."""
        return ["audio"]

    @property
    def max_seq_length(self) -> None:
        """None: vectors have no length in tokens."""
        return None

    def preprocess(self, inputs: ArrayLike, prompt: str | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """Convert a list of ``(D,)`` rows or an ``(n, D)`` array to an ``(n, D)`` float32 tensor.

        Raises:
            ValueError: If the vectors are not ``dim`` wide.
        """
        if not isinstance(inputs, Tensor):
            inputs = torch.stack(
                [torch.as_tensor(row, dtype=torch.float32) for row in cast("Iterable[ArrayLike]", inputs)]
            )
        rows = inputs.float()
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise ValueError(f"Vectors must be {self.dim} wide, got an input of shape {tuple(rows.shape)}.")
        return {"sentence_embedding": rows}

    def forward(self, features: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        """Return a copy of the dict, so that later modules do not change the input of a second forward pass."""
        return dict(features)

    def get_embedding_dimension(self) -> int:
        """Return the width ``D``."""
        return self.dim

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the config; there are no weights."""
        self.save_config(output_path)
