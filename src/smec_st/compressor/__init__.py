"""The compressor: maps for every size, its files, its export as a small ONNX model, and bridges into its space."""

from __future__ import annotations

from smec_st.compressor.bridge import Bridge
from smec_st.compressor.compressor import Compressor

__all__ = ["Bridge", "Compressor"]
