"""The routes: ``/v1/embeddings`` and ``/v1/models`` in OpenAI's form, ``/health``, and ``/metrics`` for Prometheus."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from smec_st.data import DataError
from smec_st.serve.batching import Batcher
from smec_st.serve.model import Form, ServedModel
from smec_st.serve.request import EmbeddingRequest, RequestError, read_request

MOST_BYTES = 8 << 20  # of one request
MOST_HELD = 256 << 20  # of all requests that are read or answered at a time
SECONDS = 30.0  # in which a request must have arrived
CLOSED = 499  # for the metrics: the client closed the connection


class EmbeddingServer:
    """Answers requests for the embeddings of one model, which embeds ``batch`` texts at a time."""

    def __init__(self, model: ServedModel, batch: int) -> None:
        self.model = model
        self.started = int(time.time())
        self.registry = CollectorRegistry()
        kinds: dict[str, Any] = {"registry": self.registry}
        self._requests = Counter("smec_st_requests", "Requests for embeddings by status.", ["status"], **kinds)
        self._seconds = Histogram("smec_st_request_seconds", "Seconds to answer a request.", **kinds)
        self._texts = Counter("smec_st_texts", "Texts that were embedded.", **kinds)
        self._tokens = Counter("smec_st_tokens", "Tokens of these texts.", **kinds)
        sizes = [2**power for power in range(12)]
        batches = Histogram("smec_st_batch_texts", "Texts that the model embedded at a time.", buckets=sizes, **kinds)
        self.batcher = Batcher(model.embed, batch, batches.observe)
        Gauge("smec_st_waiting_texts", "Texts that wait for the model.", **kinds).set_function(
            lambda: self.batcher.waiting
        )
        self._held = 0

    async def embeddings(self, request: Request) -> Response:
        """Answer ``POST /v1/embeddings``."""
        start, status = time.perf_counter(), 500
        try:
            response = await self._embeddings(request)
            status = response.status_code
        except (RequestError, HTTPException) as error:
            status = error.status if isinstance(error, RequestError) else error.status_code
            raise
        except ClientDisconnect:
            status = CLOSED
            return Response(status_code=CLOSED)
        finally:
            self._requests.labels(str(status)).inc()
            self._seconds.observe(time.perf_counter() - start)
        return response

    async def _embeddings(self, request: Request) -> Response:
        held = bytearray()
        try:
            try:
                await asyncio.wait_for(self._read(request, held), SECONDS)
            except asyncio.TimeoutError as error:
                raise RequestError(f"the request did not arrive within {SECONDS:.0f} s.", status=408) from error
            asked = read_request(bytes(held), self.model.name)
            try:
                form = self.model.form(asked.dim, asked.precision, asked.bytes, asked.side)
            except DataError as error:
                raise RequestError(str(error)) from error
            vectors, tokens = await self._embed(request, asked)
        finally:
            self._held -= len(held)
        body = await asyncio.to_thread(self._body, form, vectors, tokens, asked.is_base64)
        self._texts.inc(len(asked.texts))
        self._tokens.inc(tokens)
        return Response(body, media_type="application/json")

    async def _read(self, request: Request, held: bytearray) -> None:
        """Read a request's body into ``held``, within the limits for one request and for all together."""
        async for chunk in request.stream():
            if len(held) + len(chunk) > MOST_BYTES:
                raise RequestError(
                    f"a request may have {MOST_BYTES >> 20} MB; send fewer texts at a time.", status=413
                )
            if self._held + len(chunk) > MOST_HELD:
                raise RequestError("the server is busy; try again in a second.", status=503)
            held += chunk
            self._held += len(chunk)

    async def _embed(self, request: Request, asked: EmbeddingRequest) -> tuple[np.ndarray, int]:
        """Embed a request's texts, a batch at a time, so that short requests need not wait for a long one."""
        parts, tokens = [], 0
        for start in range(0, len(asked.texts), self.batcher.size):
            if start and await request.is_disconnected():
                raise ClientDisconnect
            batch = asked.texts[start : start + self.batcher.size]
            vectors, counts = await self.batcher.embed(batch, asked.side)
            parts.append(vectors)
            tokens += int(counts.sum())
        return np.concatenate(parts), tokens

    def _body(self, form: Form, vectors: np.ndarray, tokens: int, is_base64: bool) -> bytes:
        rows = _for_json(form.make(vectors), form.precision, is_base64)
        content: dict[str, Any] = {
            "object": "list",
            "model": self.model.name,
            "data": [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
        if self.model.fingerprint is not None:
            how = {"fingerprint": self.model.fingerprint, "precision": form.precision, "dimensions": form.dim}
            content["smec_st"] = how
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)

    async def models(self, request: Request) -> Response:
        """Answer ``GET /v1/models``: the model, its sizes and its codes."""
        of_model = {"id": self.model.name, "object": "model", "created": self.started, "owned_by": "smec-st"}
        known = {"dimensions": self.model.sizes, "codes": self.model.codes, "fingerprint": self.model.fingerprint}
        return _json({"object": "list", "data": [{**of_model, "smec_st": known}]})

    async def health(self, request: Request) -> Response:
        """Answer ``GET /health``: 200 while requests are answered."""
        return _json({"status": "ok"}) if self.batcher.is_working else _json({"status": "stopped"}, 503)

    async def metrics(self, request: Request) -> Response:
        """Answer ``GET /metrics`` in Prometheus' text format."""
        return Response(generate_latest(self.registry), media_type="text/plain; version=0.0.4; charset=utf-8")

    def app(self) -> Starlette:
        """Return the ASGI application."""

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            self.batcher.start()
            try:
                yield
            finally:
                self.batcher.stop()

        routes = [
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
        ]
        handlers: dict[Any, Any] = {RequestError: _refused, HTTPException: _unknown, Exception: _failed}
        return Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)


def _for_json(rows: np.ndarray, precision: str, is_base64: bool) -> list[Any]:
    """Return vectors for JSON: float32 as numbers or base64, codes as numbers.

    Codes are never base64: OpenAI's client asks for base64 by itself, and reads it as float32.
    """
    if precision != "float32":
        return list(rows.astype(np.float32) if precision == "float16" else rows)
    return [base64.b64encode(row.tobytes()).decode() for row in rows.astype("<f4")] if is_base64 else list(rows)


def _json(content: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, headers, media_type="application/json")


def _error(message: str, status: int, param: str | None = None) -> Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    code = "model_not_found" if param == "model" else None
    content = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return _json(content, status, {"Retry-After": "1"} if status == 503 else None)


async def _refused(request: Request, error: RequestError) -> Response:
    return _error(error.message, error.status, error.param)


async def _unknown(request: Request, error: HTTPException) -> Response:
    return _error(f"{request.method} {request.url.path}: {error.detail}", error.status_code)


async def _failed(request: Request, error: Exception) -> Response:
    return _error("the server failed to answer; its log says why.", 500)
