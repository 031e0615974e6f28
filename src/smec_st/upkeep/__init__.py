"""Maintain a compressor in use: check new data for drift, and migrate an existing store to compressed vectors."""

from __future__ import annotations

from smec_st.upkeep.check import Drift, measure_drift
from smec_st.upkeep.migrate import Estimate, Plan, estimate, migrate

__all__ = ["Drift", "Estimate", "Plan", "estimate", "measure_drift", "migrate"]
