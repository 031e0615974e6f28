"""Published compression methods behind one interface; :mod:`smec_st.research.compare` runs and compares them."""

from __future__ import annotations

from smec_st.research.baselines.interface import Encoder, FloatEncoder, Method, Size, TrainingData

__all__ = ["Encoder", "FloatEncoder", "Method", "Size", "TrainingData"]
