"""Store heads in a compressor's two files: their description in the JSON file, their tensors in safetensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smec_st.maps import FoldedMap, Layer
from smec_st.quantization.codecs import make_codec
from smec_st.quantization.head import Head
from smec_st.system.errors import DataError


def head_entries(heads: Sequence[Head]) -> list[dict[str, Any]]:
    """Describe each head for ``compressor.json``."""
    return [
        {
            "precision": head.precision,
            "dim": head.dim,
            "bytes": head.bytes,
            "digest": head.digest,
            "layers": [{"activation": layer.activation} for layer in head.folded.layers] if head.has_own_map else None,
            "tensors": sorted(head.codec.tensors()),
            "info": dict(head.info),
        }
        for head in heads
    ]


def head_tensors(heads: Sequence[Head]) -> dict[str, np.ndarray]:
    """Collect the tensors of all heads, named ``heads.NUMBER.NAME``."""
    tensors = {}
    for number, head in enumerate(heads):
        for name, tensor in head.codec.tensors().items():
            tensors[f"heads.{number}.{name}"] = tensor
        for depth, layer in enumerate(head.folded.layers if head.has_own_map else ()):
            tensors[f"heads.{number}.{depth}.weight"] = layer.weight
    return tensors


def read_heads(
    entries: Sequence[Mapping[str, Any]],
    tensors: Mapping[str, np.ndarray],
    map_for: Callable[[int], FoldedMap],
    path: Path,
) -> tuple[Head, ...]:
    """Rebuild heads from what :func:`head_entries` and :func:`head_tensors` returned.

    Args:
        entries: Descriptions of the heads.
        tensors: Tensors of the compressor's file.
        map_for: Returns the compressor's map to a size, for heads without a map of their own.
        path: The file, for error messages.

    Raises:
        DataError: If descriptions and tensors do not belong together.
    """
    heads = []
    try:
        for number, entry in enumerate(entries):
            codec = make_codec(
                entry["precision"],
                entry["dim"],
                {name: tensors[f"heads.{number}.{name}"] for name in entry["tensors"]},
            )
            if entry["layers"] is None:
                folded = map_for(entry["dim"])
            else:
                folded = FoldedMap(
                    tuple(
                        Layer(tensors[f"heads.{number}.{depth}.weight"], layer["activation"])
                        for depth, layer in enumerate(entry["layers"])
                    )
                )
            heads.append(Head(folded, codec, entry["layers"] is not None, entry["info"]))
            if heads[-1].digest != entry["digest"]:
                raise DataError(f"{path}: codes of {entry['dim']} numbers do not belong here (digests differ).")
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is damaged: its codes lack {error}.") from error
    return tuple(heads)
