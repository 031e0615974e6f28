"""The error for unusable input, notices about usable input, and helpers for one-line messages."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Any


class DataError(ValueError):
    """Input that cannot be used. The message says in one line what is wrong, where, and what to do."""


def some(items: Sequence[Any], limit: int = 3) -> str:
    """List the first ``limit`` items for a message, and how many more there are."""
    shown = ", ".join(str(item) for item in items[:limit])
    return shown + (f" and {len(items) - limit} more" if len(items) > limit else "")


def one_line(error: BaseException) -> str:
    """Return an error's message on one line, at most 200 characters."""
    return " ".join(str(error).split())[:200]


@lru_cache(maxsize=4096)
def tell(message: str) -> None:
    """Log what a reader decided or left out, once per message; without other handlers it goes to standard error."""
    logging.getLogger("smec_st").warning("%s", message)
