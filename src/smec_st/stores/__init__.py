"""Compress files of any size in bounded memory, check new data for drift, and migrate existing stores."""

from __future__ import annotations

from smec_st.compressor.space import check_space, space_record
from smec_st.stores.bad_rows import BadRow, BadRows
from smec_st.stores.check import Drift, check_drift
from smec_st.stores.job import Job, Manifest, transform_files
from smec_st.stores.migrate import Estimate, Plan, estimate, migrate

__all__ = [
    "BadRow",
    "BadRows",
    "Drift",
    "Estimate",
    "Job",
    "Manifest",
    "Plan",
    "check_drift",
    "check_space",
    "estimate",
    "migrate",
    "space_record",
    "transform_files",
]
