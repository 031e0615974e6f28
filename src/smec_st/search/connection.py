"""Connect to Milvus."""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from smec_st.data import DataError
from smec_st.system.errors import one_line
from smec_st.system.optional import load_optional

if TYPE_CHECKING:
    from pymilvus import MilvusClient

CONNECT_SECONDS = 10.0

_open_files: Counter[str] = Counter()  # connections of this process to each local file
_lock = threading.Lock()


def is_server(uri: str) -> bool:
    """Return whether a URI is the address of a Milvus server."""
    return "://" in uri or uri.startswith("unix:")


def is_local(uri: str) -> bool:
    """Return whether a URI is a file of Milvus Lite."""
    return uri.endswith(".db") and not is_server(uri)


def connect(uri: str, new: bool) -> MilvusClient:
    """Connect to a file, which may be ``new``, or to a server.

    Raises:
        DataError: If there is nothing to connect to, or another process has the file open.
    """
    pymilvus = load_optional("pymilvus", uri)
    if is_local(uri):
        load_optional("milvus_lite", uri)
    if is_local(uri) and not new and not Path(uri).exists():
        raise DataError(f"no such index: {uri}")
    for name in ("pymilvus", "milvus_lite"):  # they also log what they raise, which would add to our one-line errors
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if is_local(uri):
        Path(uri).absolute().parent.mkdir(parents=True, exist_ok=True)
    try:
        client = pymilvus.MilvusClient(uri=uri, timeout=CONNECT_SECONDS)
    except Exception as error:
        why = "it is damaged, or another process has it open" if is_local(uri) else one_line(error)
        raise DataError(f"cannot open {uri}: {why}.") from error
    if is_local(uri):
        with _lock:
            _open_files[os.path.abspath(uri)] += 1
    return client


def disconnect(uri: str, client: MilvusClient) -> None:
    """Close a client. Closing the last client of a local file also stops its engine and releases its lock."""
    client.close()
    if not is_local(uri):
        return
    path = os.path.abspath(uri)
    with _lock:
        _open_files[path] -= 1
        if _open_files[path] > 0:
            return
        del _open_files[path]
    load_optional("milvus_lite.server_manager", path).server_manager_instance.release_server(path)
