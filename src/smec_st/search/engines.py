"""Which engine a URI means."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from smec_st.data import DataError
from smec_st.search.backend import Backend, Settings

if TYPE_CHECKING:
    from smec_st.compressor import Compressor


def is_server(uri: str) -> bool:
    """Whether a URI names a Milvus server."""
    return "://" in uri or uri.startswith("unix:")


def create_backend(uri: str, settings: Settings, compressor: Compressor) -> Backend:
    """A new store at a URI."""
    if is_server(uri) or uri.endswith(".db"):
        from smec_st.search.milvus import MilvusBackend

        return MilvusBackend.create(uri, settings, compressor)
    from smec_st.search.faiss import FaissBackend

    try:
        return FaissBackend.create(Path(uri), settings, compressor)
    except FileExistsError as error:
        raise DataError(str(error)) from error


def open_backend(uri: str, fingerprint: str | None) -> Backend:
    """The store at a URI."""
    if is_server(uri) or uri.endswith(".db"):
        from smec_st.search.milvus import MilvusBackend

        return MilvusBackend.open(uri, fingerprint)
    from smec_st.search.faiss import FaissBackend

    return FaissBackend.open(Path(uri))
