"""Write and read ``compressor.json`` and ``compressor.safetensors``; reading them needs only numpy."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from smec_st import __version__
from smec_st.data.safetensors import read_safetensors, write_safetensors
from smec_st.maps import FoldedMap, Layer
from smec_st.quantization.interface import CompressorLike
from smec_st.quantization.storage import head_entries, head_tensors, read_heads
from smec_st.system.errors import DataError, one_line, parse_json, some
from smec_st.system.files import write_json

CONFIG_FILE, WEIGHTS_FILE = "compressor.json", "compressor.safetensors"
FORMAT = 2  # in format 1 the fingerprint covered neither activations nor sizes
NOT_INFO = ("format", "smec_st_version", "fingerprint", "width", "dims", "nested_dims", "maps", "heads")
_NUMBER, _NOTHING = (int, float), type(None)
_KEPT = (dict, _NOTHING)
#: Kinds of what commands read of a fit's records, in files of others too: a type, items of a list, parts of an object.
_RECORDS: dict[str, Any] = {
    "data": {"documents": (int, _NOTHING), "training_queries": (int, _NOTHING)},
    "stages": [{"seconds": _NUMBER}],
    "decisions": [
        {
            "what": str,
            "chosen": str,
            "instead_of": str,
            "gain": _NUMBER,
            "error": _NUMBER,
            "queries": int,
            "means": dict,
        }
    ],
    "kept_neighbors": _KEPT,
    "kept_query_neighbors": _KEPT,
}

Maps = list[tuple[FoldedMap, tuple[int, ...]]]
Made = TypeVar("Made", bound=CompressorLike)


def _is_kind(value: object, kind: Any) -> bool:
    if isinstance(kind, list):
        return isinstance(value, list) and all(_is_kind(item, kind[0]) for item in value)
    if isinstance(kind, dict):
        return isinstance(value, dict) and all(_is_kind(value.get(name), part) for name, part in kind.items())
    return isinstance(value, kind)


def write_files(compressor: CompressorLike, folder: Path) -> None:
    """Write both files of a compressor into an existing folder."""
    config = {
        "format": FORMAT,
        "smec_st_version": __version__,
        "fingerprint": compressor.fingerprint,
        **derived(compressor),
        "maps": describe_maps(compressor.maps),
        "heads": head_entries(compressor.heads),
        **compressor.info,
    }
    tensors = {**compressor.tensors(), **head_tensors(compressor.heads)}
    write_safetensors(folder / WEIGHTS_FILE, tensors)
    write_json(folder / CONFIG_FILE, config, indent=1)


def describe_maps(maps: Sequence[tuple[FoldedMap, tuple[int, ...]]]) -> list[dict[str, Any]]:
    """Describe each map by all that its weights do not say: the sizes that it serves, and its activations."""
    return [
        {"dims": list(sizes), "layers": [{"activation": layer.activation} for layer in folded.layers]}
        for folded, sizes in maps
    ]


def derived(compressor: CompressorLike) -> dict[str, Any]:
    """Return what ``compressor.json`` says twice, for readers without this package."""
    return {
        "width": compressor.width,
        "dims": list(compressor.dims),
        "nested_dims": list(compressor.nested_dims),
    }


def fingerprint(compressor: CompressorLike, format: int = FORMAT) -> str:
    """Hash the backbone, the weights, and since format 2 the activations and sizes of every map.

    The backbone's probe is left out, because it is rounded otherwise on other machines.
    """
    backbone = {name: value for name, value in (compressor.info.get("backbone") or {}).items() if name != "probe"}
    digest = hashlib.sha256(json.dumps(backbone, sort_keys=True).encode())
    if format > 1:
        digest.update(json.dumps(describe_maps(compressor.maps), sort_keys=True).encode())
    for name, weight in sorted(compressor.tensors().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()[:16]


def read_files(folder: Path, make: Callable[[Maps, dict[str, Any]], Made]) -> Made:
    """Read both files of a compressor.

    Args:
        folder: The folder that holds them.
        make: Makes a compressor of the maps, with the sizes that each serves, and the ``info``.

    Raises:
        DataError: If the folder holds no compressor, a newer format, or files that do not belong together.
    """
    folder = Path(os.path.expanduser(folder))
    path = folder / CONFIG_FILE
    if not path.is_file():
        inside = folder / "compressor"
        hint = f" This is a model; its compressor is {inside}." if (inside / CONFIG_FILE).is_file() else ""
        raise DataError(f"{folder} holds no compressor (no {CONFIG_FILE}).{hint}")
    config = parse_json(path.read_bytes(), f"{path} is damaged: its content")
    tensors = read_safetensors(folder / WEIGHTS_FILE, None)
    try:
        if config["format"] not in (1, FORMAT):
            raise DataError(
                f"{path} was written by a newer smec-st ({config['smec_st_version']}); upgrade to read it."
            )
        maps: Maps = []
        for number, entry in enumerate(config["maps"]):
            names = [f"{number}.{depth}.weight" for depth in range(len(entry["layers"]))]
            missing = [name for name in names if name not in tensors]
            if missing:
                raise DataError(f"{folder / WEIGHTS_FILE} lacks the tensor {some(missing)}.")
            layers = [Layer(tensors[name], of["activation"]) for name, of in zip(names, entry["layers"], strict=True)]
            maps.append((FoldedMap(tuple(layers)), tuple(entry["dims"])))
        odd = [name for name, kind in _RECORDS.items() if name in config and not _is_kind(config[name], kind)]
        if odd:
            raise DataError(f"{path} is damaged: `{odd[0]}` holds {config[odd[0]]!r:.60}, which no fit records.")
        compressor = make(maps, {name: value for name, value in config.items() if name not in NOT_INFO})
        same = fingerprint(compressor, config["format"]) == config["fingerprint"]
        wrong = [name for name, value in derived(compressor).items() if config[name] != value]
        if not same or wrong:
            what = f"`{some(wrong)}` is not that of the maps" if wrong else "fingerprints differ"
            raise DataError(f"{folder}: weights and {CONFIG_FILE} do not belong together ({what}).")
        compressor.heads = read_heads(config.get("heads", []), tensors, compressor.map_for, path)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is damaged: {one_line(error)}") from error
    return compressor
