"""Write and read ``compressor.json`` and ``compressor.safetensors``; reading them needs only numpy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from smec_st import __version__
from smec_st.data.errors import DataError, one_line, some
from smec_st.data.safetensors import read_safetensors
from smec_st.maps import FoldedMap, Layer
from smec_st.quantization.head import Head
from smec_st.quantization.interface import CompressorLike
from smec_st.quantization.storage import head_entries, head_tensors, read_heads

CONFIG_FILE, WEIGHTS_FILE = "compressor.json", "compressor.safetensors"
FORMAT = 1
NOT_INFO = ("format", "smec_st_version", "fingerprint", "width", "dims", "nested_dims", "maps", "heads")

Maps = list[tuple[FoldedMap, tuple[int, ...]]]


def write_files(compressor: CompressorLike, folder: Path) -> None:
    """Write both files of a compressor into an existing folder."""
    from safetensors.numpy import save_file

    config = {
        "format": FORMAT,
        "smec_st_version": __version__,
        "fingerprint": compressor.fingerprint,
        "width": compressor.width,
        "dims": list(compressor.dims),
        "nested_dims": list(compressor.nested_dims),
        "maps": [
            {"dims": list(sizes), "layers": [{"activation": layer.activation} for layer in folded.layers]}
            for folded, sizes in compressor.maps
        ],
        "heads": head_entries(compressor.heads),
        **compressor.info,
    }
    tensors = {**compressor.tensors(), **head_tensors(compressor.heads)}
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def read_files(
    folder: Path,
) -> tuple[Maps, dict[str, Any], str | None, Callable[[Callable[[int], FoldedMap]], tuple[Head, ...]]]:
    """Read both files of a compressor.

    Returns:
        The maps with the sizes that each serves; the compressor's ``info``; the fingerprint; and a function that
        returns the heads, given a function that returns the map of a size.

    Raises:
        DataError: If the folder holds no compressor, a newer format, or weights that do not match.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise DataError(f"{folder} holds no compressor (no {CONFIG_FILE}).")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if config["format"] > FORMAT:
            raise DataError(
                f"{path} was written by a newer smec-st ({config['smec_st_version']}); upgrade to read it."
            )
        tensors = read_safetensors(folder / WEIGHTS_FILE, None)
        maps = []
        for number, entry in enumerate(config["maps"]):
            names = [f"{number}.{depth}.weight" for depth in range(len(entry["layers"]))]
            missing = [name for name in names if name not in tensors]
            if missing:
                raise DataError(f"{folder / WEIGHTS_FILE} lacks the tensor {some(missing)}.")
            layers = [Layer(tensors[name], of["activation"]) for name, of in zip(names, entry["layers"], strict=True)]
            maps.append((FoldedMap(tuple(layers)), tuple(entry["dims"])))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is damaged: {one_line(error)}") from error
    info = {name: value for name, value in config.items() if name not in NOT_INFO}

    def heads_for(map_for: Callable[[int], FoldedMap]) -> tuple[Head, ...]:
        return read_heads(config.get("heads", []), tensors, map_for, path)

    return maps, info, config.get("fingerprint"), heads_for
