"""The compressor: maps for every size, the files it is saved in, and its export as a small ONNX model."""

from __future__ import annotations

from smec_st.compressor.compressor import Compressor

__all__ = ["Compressor"]
