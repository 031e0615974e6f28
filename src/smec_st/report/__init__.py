"""A report on a compressor as one HTML file: quality by size and bytes, decisions, the queries that changed most."""

from __future__ import annotations

from smec_st.report.figures import quality_by_bytes, quality_by_dim
from smec_st.report.measure import Measured, Variant, measure_variants
from smec_st.report.page import write_page

__all__ = ["Measured", "Variant", "measure_variants", "quality_by_bytes", "quality_by_dim", "write_page"]
