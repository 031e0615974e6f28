"""The errors of :mod:`smec_st.system.errors`, where readers of data look for them."""

from __future__ import annotations

from smec_st.system.errors import DataError, one_line, some, tell

__all__ = ["DataError", "one_line", "some", "tell"]
