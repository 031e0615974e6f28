"""Sentence-transformers modules. The import path of each class is written into saved models: never move one."""

from __future__ import annotations

from smec_st.modules.adapter import ResidualAdapter
from smec_st.modules.embedding_input import EmbeddingInput
from smec_st.modules.live_backbone import LiveBackbone
from smec_st.modules.selection import AdaptiveDimensionSelection

__all__ = ["AdaptiveDimensionSelection", "EmbeddingInput", "LiveBackbone", "ResidualAdapter"]
