"""Published compression methods behind one interface; :mod:`smec_st.compare` runs and compares them."""

from __future__ import annotations

from smec_st.baselines.interface import Encoder, FloatEncoder, Method, Size, TrainingData, Transform
from smec_st.baselines.projections import original, pca, truncate

__all__ = ["Encoder", "FloatEncoder", "Method", "Size", "TrainingData", "Transform", "original", "pca", "truncate"]
