"""Load FAISS, which is an optional dependency."""

from __future__ import annotations

from typing import Any

from smec_st.system.errors import DataError


def load_faiss(purpose: str) -> Any:
    """Import FAISS.

    Args:
        purpose: What needs it, as the subject of the error message ("PQ and OPQ").

    Raises:
        DataError: If FAISS is not installed. The message names the extra that installs it.
    """
    try:
        import faiss
    except ImportError as error:
        raise DataError(f'{purpose} needs faiss. Install it with `pip install "smec-st[search]"`.') from error
    return faiss
