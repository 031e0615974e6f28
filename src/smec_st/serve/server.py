"""Run the application on uvicorn, and close connections of clients that neither send nor read."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from smec_st.serve.app import SECONDS, EmbeddingServer
from smec_st.serve.model import ServedModel

CONNECTIONS = 1000  # beyond these, the answer is status 503
SHUTDOWN_SECONDS = 30  # in which requests are finished after a signal to stop


class _Connection(H11Protocol):
    """Closes a connection on which, for ``SECONDS``, no request's headers arrived or an answer was not read.

    uvicorn itself limits only the time between requests. The time for a request's body is limited by the application,
    which reads it.
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._restart()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._restart()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _restart(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(SECONDS, self._check)

    def _check(self) -> None:
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if is_answering and not self.flow.write_paused:
            self._restart()
        else:
            self.transport.abort()


def listen(host: str, port: int) -> socket.socket:
    """Open the address to serve on.

    Raises:
        OSError: If it is taken or not of this machine; the message names it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=CONNECTIONS)
    except OSError as error:
        raise OSError(f"cannot listen on {host} port {port}: {error.strerror or error}.") from error


def serve(
    model: ServedModel, listener: socket.socket, batch: int, when_ready: Callable[[uvicorn.Server], object]
) -> None:
    """Serve a model until a signal to stop; requests in progress are finished.

    Args:
        model: The model.
        listener: What :func:`listen` opened.
        batch: Texts that the model embeds at a time.
        when_ready: Called with the server before it starts; its ``should_exit`` stops it.
    """
    config = uvicorn.Config(
        EmbeddingServer(model, batch).app(),
        http=_Connection,
        ws="none",
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        access_log=False,
        log_level=logging.WARNING,
        server_header=False,
    )
    server = uvicorn.Server(config)
    when_ready(server)
    server.run(sockets=[listener])
