"""Search with a funnel: the smallest size over everything, larger ones over a shrinking shortlist."""

from __future__ import annotations

from smec_st.search.funnel import FunnelIndex
from smec_st.search.schedule import Schedule, Step
from smec_st.search.steps import Hits

__all__ = ["FunnelIndex", "Hits", "Schedule", "Step"]
