"""Describe the space of compressed vectors, and refuse vectors that a compressor was not fitted for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from smec_st.compressor.compressor import Compressor
from smec_st.data.space import check_backbone
from smec_st.quantization.head import Head
from smec_st.system.errors import DataError, some


def space_record(compressor: Compressor, head: Head) -> dict[str, Any]:
    """Describe compressed vectors: their backbone, their compressor, and how they are stored."""
    return {
        "fingerprint": compressor.fingerprint,
        "head": head.digest,
        "backbone": dict(compressor.info.get("backbone") or {}),
        "method": compressor.info.get("method"),
        "width": compressor.width,
        "dim": head.dim,
        "precision": head.precision,
        "bytes": head.bytes,
        "normalised": True,
    }


def check_space(
    compressor: Compressor, width: int, record: Mapping[str, Any], name: str, sizes: Collection[int] = ()
) -> None:
    """Check that vectors are of the space for which a compressor was fitted. Every entrance calls this.

    Args:
        compressor: The compressor, which records its backbone.
        width: Width of the vectors.
        record: What their source records about the model that made them.
        name: Name of the source, for the message.
        sizes: Sizes at which vectors may come compressed already, by this very compressor.

    Raises:
        DataError: If the width, the model, its revision or its prompt differs, or the vectors are compressed already.
    """
    by = record.get("fingerprint")
    if by and not (by == compressor.fingerprint and width in sizes):
        raise DataError(
            f"{name} holds vectors that are compressed already (by {by}); "
            + (
                f"expected are {compressor.fingerprint} at {some(sorted(sizes), 9)}."
                if sizes
                else "give the originals."
            )
        )
    if width != compressor.width and width not in sizes:
        raise DataError(f"{name}: the vectors are {width} wide; this compressor reads {compressor.width}.")
    if not by:
        check_backbone(compressor.info.get("backbone") or {}, record, name)
