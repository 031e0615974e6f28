"""Refuse to mix vectors of different embedding spaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smec_st.system.errors import DataError

KEYS = ("model", "revision", "prompt")
PROBE = 0.02  # difference of a probe's numbers, see `backbone_record`; rounding in half precision stays well below


def check_backbone(
    mine: Mapping[str, Any], theirs: Mapping[str, Any], name: str, reader: str = "this compressor was fitted on"
) -> None:
    """Refuse vectors of another model, revision or prompt. A fact that one side does not record is not compared.

    Args:
        mine: What a compressor records about its backbone.
        theirs: What vectors or a model record about themselves.
        name: What the error message calls these vectors or this model.
        reader: How the error message introduces the value in ``mine``.

    Raises:
        DataError: If both sides record a fact and the values differ.
    """
    for key in KEYS:
        one, other = mine.get(key), theirs.get(key)
        if one and other and not _is_same(str(one), str(other)):
            raise DataError(f"{name}: another embedding space: the {key} is {other!r}, but {reader} {one!r}.")
    one, other = mine.get("probe"), theirs.get("probe")
    if mine.get("width") != theirs.get("width"):
        return  # the caller says it in numbers
    if isinstance(one, list) and isinstance(other, list) and not _is_near(one, other):
        raise DataError(
            f"{name}: another embedding space: a fixed text has another vector than with the model that {reader} "
            f"{mine.get('model') or 'once'!r}. The model may have been trained further, or its prompts may differ."
        )


def _is_near(one: Sequence[float], other: Sequence[float]) -> bool:
    """Compare two probes."""
    return len(one) == len(other) and all(abs(a - b) < PROBE for a, b in zip(one, other, strict=True))


def _is_same(one: str, other: str) -> bool:
    """Compare names; the organisation may be missing on one side, and a folder's name does not identify a model."""
    if any(Path(name).is_absolute() or Path(name).exists() for name in (one, other)):
        return True
    if "/" in one and "/" in other:
        return one == other
    return one.rpartition("/")[2] == other.rpartition("/")[2]
