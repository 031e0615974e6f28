"""The maps that a compressor applies (numpy alone), and how trained modules are folded into them (torch)."""

from __future__ import annotations

from smec_st.maps.folded import ACTIVATIONS, FoldedMap, Layer

__all__ = ["ACTIVATIONS", "FoldedMap", "Layer"]
