"""``python -m smec_st``."""

from __future__ import annotations

from smec_st.cli import main

main()
