"""Read a request for embeddings, and refuse what cannot be answered with the status and message that say why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from smec_st.quantization.codecs import PRECISIONS
from smec_st.serve.model import SIDES

MOST_TEXTS = 2048  # per request, as in OpenAI's API
FIELDS = ("input", "model", "dimensions", "encoding_format", "user", "input_type", "precision", "bytes")


class RequestError(Exception):
    """A request that is refused.

    Args:
        message: What is wrong with it, for the client.
        param: The field that is wrong.
        status: HTTP status.
    """

    def __init__(self, message: str, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.message, self.param, self.status = message, param, status


@dataclass(frozen=True)
class EmbeddingRequest:
    """What a client asks for.

    Attributes:
        texts: At least one text, none of them empty.
        dim: ``dimensions``: numbers per vector.
        is_base64: Whether float vectors come as base64 of little-endian float32.
        side: ``input_type``: "query" or "document".
        precision: How vectors are stored, float32 by default.
        bytes: Bytes per vector.
    """

    texts: list[str]
    dim: int | None
    is_base64: bool
    side: str | None
    precision: str | None
    bytes: int | None


def read_request(body: bytes, model: str) -> EmbeddingRequest:
    """Read the body of a request to a server of one model.

    Raises:
        RequestError: If it is not JSON, or a field is missing, unknown, or of a wrong type or value.
    """
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the request is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise RequestError("the request must be a JSON object.")
    for name in given:
        if name not in FIELDS:
            raise RequestError(f"unknown field {name[:50]!r}; known are {', '.join(FIELDS)}.", name)
    if given.get("model") not in (None, model):
        raise RequestError(f"this server has the model {model!r}, not {str(given['model'])[:100]!r}.", "model", 404)
    return EmbeddingRequest(
        texts=_texts(given.get("input")),
        dim=_number(given, "dimensions"),
        is_base64=_choice(given, "encoding_format", ("float", "base64")) == "base64",
        side=_choice(given, "input_type", SIDES),
        precision=_choice(given, "precision", PRECISIONS),
        bytes=_number(given, "bytes"),
    )


def _texts(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if isinstance(texts, list) and any(isinstance(text, (int, list)) for text in texts):
        message = "`input` must be texts; token ids of another tokenizer mean nothing to this model"
        raise RequestError(f"{message} (LangChain: check_embedding_ctx_length=False).", "input")
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise RequestError("`input` must be a text or a list of texts.", "input")
    if len(texts) > MOST_TEXTS:
        raise RequestError(f"`input` may hold {MOST_TEXTS:,} texts, got {len(texts):,}.", "input")
    if not all(texts):
        raise RequestError("`input` holds an empty text, which has no embedding.", "input")
    return texts


def _number(given: dict[str, Any], name: str) -> int | None:
    value = given.get(name)
    if value is not None and (type(value) is not int or value < 1):
        raise RequestError(f"`{name}` must be a whole number of at least 1, got {str(value)[:50]}.", name)
    return value


def _choice(given: dict[str, Any], name: str, known: tuple[str, ...]) -> str | None:
    value = given.get(name)
    if value is not None and value not in known:
        raise RequestError(f"`{name}` must be {' or '.join(known)}, got {str(value)[:50]!r}.", name)
    return value
