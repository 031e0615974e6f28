"""The error for unusable input, notices about usable input, and helpers for one-line messages."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Any


class DataError(ValueError):
    """Input that cannot be used. The message says in one line what is wrong, where, and what to do."""


def some(items: Sequence[object], limit: int = 3) -> str:
    """List the first ``limit`` items for a message, and how many more there are."""
    shown = ", ".join(str(item) for item in items[:limit])
    return shown + (f" and {len(items) - limit} more" if len(items) > limit else "")


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Return ``1 file`` or ``2,000 files``; ``plural`` is the noun with an s by default."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def one_line(error: BaseException) -> str:
    """Return an error's message on one line, at most 200 characters."""
    return " ".join(str(error).split())[:200]


def parse_json(content: str | bytes, name: str) -> Any:
    """Parse JSON.

    Args:
        content: The text; bytes are UTF-8, with or without a byte order mark.
        name: What the error message calls it, for instance a file.

    Raises:
        DataError: If it is not JSON, or nested more deeply than Python can follow.
    """
    try:
        return json.loads((content.decode("utf-8-sig") if isinstance(content, bytes) else content).strip())
    except ValueError as error:  # invalid UTF-8 as well
        raise DataError(f"{name} is not JSON: {one_line(error)}") from error
    except RecursionError as error:
        raise DataError(f"{name} is nested too deeply.") from error


def storable(text: str, where: str) -> str:
    """Return a text that files and engines can hold.

    Raises:
        DataError: If it holds half of a surrogate pair, as a text that was cut within an emoji does.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where} holds half of a surrogate pair, which cannot be stored: {text!a:.80}.") from error
    return text


def whole_number(value: object, name: str, least: int = 1) -> int:
    """Return a whole number as ``int``; numpy's integers count, floats and booleans do not.

    Args:
        value: What a caller gave.
        name: Name of the argument, for the message.
        least: The smallest value allowed.

    Raises:
        DataError: If it is not a whole number, or is below ``least``.
    """
    if not hasattr(value, "__index__") or type(value).__name__ in ("bool", "bool_"):
        raise DataError(f"`{name}` must be a whole number, got {value!r}.")
    number = int(value.__index__()) if getattr(value, "ndim", 0) == 0 else least - 1
    if number < least:
        raise DataError(f"`{name}` must be {least} or more, got {value}.")
    return number


def check_seed(seed: object) -> int:
    """Return a random seed that numpy and torch both take, 0 to 2**32 - 1; raise a :class:`DataError` for others."""
    number = whole_number(seed, "seed", 0)
    if number >= 1 << 32:
        raise DataError(f"`seed` must be below 2**32, got {number}.")
    return number


@lru_cache(maxsize=4096)
def tell(message: str) -> None:
    """Log what a reader decided or left out, once per message; without other handlers it goes to standard error."""
    logging.getLogger("smec_st").warning("%s", message)
