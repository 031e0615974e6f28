"""Which space vectors live in, and the refusal to mix two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smec_st.compressor import Compressor
from smec_st.data import DataError
from smec_st.quantization.head import Head


def space_record(compressor: Compressor, head: Head) -> dict[str, Any]:
    """What compressed vectors say of themselves: backbone, compressor, and how they are stored."""
    return {
        "fingerprint": compressor.fingerprint,
        "head": head.digest,
        "backbone": dict(compressor.info.get("backbone") or {}),
        "method": compressor.info.get("method"),
        "dim": head.dim,
        "precision": head.precision,
        "bytes": head.bytes,
        "normalised": True,
    }


def check_space(compressor: Compressor, width: int, record: Mapping[str, Any], name: str) -> None:
    """Refuse vectors of another space than the one a compressor reads.

    Args:
        compressor: It knows its backbone.
        width: Of the vectors.
        record: What their source says of them.
        name: Of the source, for the message.

    Raises:
        DataError: If the width, the model, its revision or its prompt is another, or they are compressed already.
    """
    if record.get("fingerprint"):
        raise DataError(f"{name} holds vectors that are compressed already (by {record['fingerprint']}).")
    if width != compressor.width:
        raise DataError(f"{name}: the vectors are {width} wide; this compressor reads {compressor.width}.")
    backbone = compressor.info.get("backbone") or {}
    for key in ("model", "revision", "prompt"):
        mine, theirs = backbone.get(key), record.get(key)
        if mine and theirs and _short(mine) != _short(theirs):
            raise DataError(
                f"{name}: the vectors are of another space: their {key} is {theirs!r}, "
                f"this compressor was fitted on {mine!r}."
            )


def _short(value: Any) -> str:
    """A model's name without organisation or folder, which differ from place to place."""
    return str(value).rstrip("/").rpartition("/")[2]
