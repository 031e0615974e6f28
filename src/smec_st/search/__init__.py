"""Search with a funnel: all rows at the smallest size, then a shrinking shortlist at each larger size."""

from __future__ import annotations

from smec_st.search.bridged import BridgedIndex, bridged_queries
from smec_st.search.funnel import FunnelIndex
from smec_st.search.schedule import Schedule, Step
from smec_st.search.steps import Hits

__all__ = ["BridgedIndex", "FunnelIndex", "Hits", "Schedule", "Step", "bridged_queries"]
