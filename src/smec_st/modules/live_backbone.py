"""A backbone that trains together with the first stage."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule
from torch import Tensor


class LiveBackbone(InputModule):
    """A whole model as the first module: inputs go through it, and finished vectors are passed on.

    It stands where :class:`~smec_st.modules.EmbeddingInput` stands, for as long as the backbone trains, so that the
    same modules and the same loss serve both. It is never saved as a module: the trainer keeps what it learns.

    Args:
        backbone: Any model with ``sentence_embedding`` as output; with LoRA, the adapters alone are trainable.
    """

    config_keys: list[str] = []
    save_in_root = False

    def __init__(self, backbone: SentenceTransformer) -> None:
        super().__init__()
        self.backbone = backbone

    @property
    def modalities(self) -> list[str]:
        """What the backbone takes."""
        return list(self.backbone.modalities)

    def preprocess(self, inputs: list[object], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Preprocess inputs as the backbone does."""
        return self.backbone.preprocess(inputs, prompt=prompt, **kwargs)  # type: ignore[no-any-return]

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """``sentence_embedding`` ``(B, D)`` float32: of the inputs, unit norm, or the vectors that were given."""
        if "sentence_embedding" in features:
            return dict(features)
        embedding = self.backbone(dict(features), **kwargs)["sentence_embedding"]
        return {"sentence_embedding": F.normalize(embedding.float(), dim=-1)}

    def get_embedding_dimension(self) -> int:
        """Width ``D``."""
        return int(self.backbone.get_embedding_dimension() or 0)

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the config; the weights are in the trainer's own state."""
        self.save_config(output_path)
