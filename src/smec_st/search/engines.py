"""Choose the engine by the URI. A leading ``~`` is the user's home."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from smec_st.data import DataError
from smec_st.search.backend import Backend, Settings
from smec_st.search.connection import is_local, is_server

if TYPE_CHECKING:
    from smec_st.compressor import Compressor


def create_backend(uri: str, settings: Settings, compressor: Compressor) -> Backend:
    """Create a new, empty store at a URI."""
    uri = os.path.expanduser(uri)
    if is_server(uri) or is_local(uri):
        from smec_st.search.milvus import MilvusBackend

        return MilvusBackend.create(uri, settings, compressor)
    from smec_st.search.faiss import FaissBackend

    try:
        return FaissBackend.create(Path(uri), settings, compressor)
    except FileExistsError as error:
        raise DataError(str(error)) from error


def open_backend(uri: str, fingerprint: str | None) -> Backend:
    """Open the store at a URI."""
    uri = os.path.expanduser(uri)
    if is_server(uri) or is_local(uri):
        from smec_st.search.milvus import MilvusBackend

        return MilvusBackend.open(uri, fingerprint)
    from smec_st.search.faiss import FaissBackend

    return FaissBackend.open(Path(uri))
