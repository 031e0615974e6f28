"""Compress any number of vectors in bounded memory, and continue after an interruption."""

from __future__ import annotations

from smec_st.streaming.job import Job, Manifest, transform_files
from smec_st.streaming.space import check_space, space_record

__all__ = ["Job", "Manifest", "check_space", "space_record", "transform_files"]
