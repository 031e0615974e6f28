"""The errors of :mod:`smec_st.system.errors`, where readers of data look for them."""

from __future__ import annotations

from smec_st.system.errors import DataError, check_seed, one_line, parse_json, some, tell, whole_number

__all__ = ["DataError", "check_seed", "one_line", "parse_json", "some", "tell", "whole_number"]
