"""Which space vectors live in, and the refusal to mix two."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smec_st.data.errors import DataError

KEYS = ("model", "revision", "prompt")


def check_backbone(
    mine: Mapping[str, Any], theirs: Mapping[str, Any], name: str, reader: str = "this compressor was fitted on"
) -> None:
    """Refuse vectors of another model, revision or prompt; what one side does not say cannot be compared.

    Args:
        mine: What a compressor knows of its backbone.
        theirs: What vectors, or a model, say of themselves.
        name: Of these, for the message.
        reader: What ``mine`` is known of, for the message.

    Raises:
        DataError: If both say something, and not the same.
    """
    for key in KEYS:
        one, other = mine.get(key), theirs.get(key)
        if one and other and not _is_same(str(one), str(other)):
            raise DataError(f"{name}: of another space: the {key} is {other!r}, and {reader} {one!r}.")


def _is_same(one: str, other: str) -> bool:
    """Names without the organisation, which one side may leave out; a folder's name says nothing of what is in it."""
    if any(Path(name).is_absolute() or Path(name).exists() for name in (one, other)):
        return True
    if "/" in one and "/" in other:
        return one == other
    return one.rpartition("/")[2] == other.rpartition("/")[2]
