"""``smec-st serve`` in a thread of the tests."""

from __future__ import annotations

import contextlib
import socket
import threading

from smec_st.serve.model import ServedModel
from smec_st.serve.server import listen, serve


@contextlib.contextmanager
def serving(folder, batch=8, send_buffer=None):
    """A server in a thread: its address."""
    listener, servers = listen("127.0.0.1", 0), []
    if send_buffer:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    served = ServedModel(folder)
    thread = threading.Thread(target=serve, args=(served, listener, batch, servers.append), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        servers[0].should_exit = True
        thread.join(10)
        assert not thread.is_alive()
