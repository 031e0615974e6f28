"""A compressor in service: has the data drifted away from it, and how an existing store becomes a smaller one."""

from __future__ import annotations

from smec_st.upkeep.check import Drift, measure_drift
from smec_st.upkeep.migrate import Estimate, Plan, estimate, migrate

__all__ = ["Drift", "Estimate", "Plan", "estimate", "measure_drift", "migrate"]
