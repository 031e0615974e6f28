"""Export to models that load anywhere."""

from __future__ import annotations

from smec_st.hub.export import attach, export

__all__ = ["attach", "export"]
