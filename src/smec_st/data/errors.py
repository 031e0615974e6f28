"""What a user can mend, in one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class DataError(ValueError):
    """Input that cannot be used; the message is one line: what is wrong, where, and what to do."""


def some(items: Sequence[Any], limit: int = 3) -> str:
    """The first few of many, for a message."""
    shown = ", ".join(str(item) for item in items[:limit])
    return shown + (f" and {len(items) - limit} more" if len(items) > limit else "")


def one_line(error: BaseException) -> str:
    """An error's own words, shortened."""
    return " ".join(str(error).split())[:200]
