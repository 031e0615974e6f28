"""Losses for training a compressor on cached vectors."""

from __future__ import annotations

from smec_st.losses.relevance import Relevance
from smec_st.losses.smec import SMECLoss

__all__ = ["Relevance", "SMECLoss"]
