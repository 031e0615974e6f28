"""A report on a compressor as one HTML file: quality by size and bytes, decisions, the queries that changed most."""

from __future__ import annotations

from smec_st.report.measure import Measured, Variant, measure_variants
from smec_st.report.page import write_page

__all__ = ["Measured", "Variant", "measure_variants", "write_page"]
