"""Find a compressor on the Hugging Face Hub, or in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smec_st.data import DataError
from smec_st.hub.errors import hub_errors

#: Folder of an exported model that holds its compressor. It is not the root folder, because servers read every
#: ``*.safetensors`` file there as weights of the backbone.
INSIDE = "compressor"
_FILES = ("compressor.json", "compressor.safetensors")


def compressor_folder(repo_id: str | Path, **options: Any) -> Path:
    """Return the local folder that holds the compressor; see :meth:`smec_st.Compressor.from_pretrained`."""
    patterns = [f"{place}{name}" for place in ("", f"{INSIDE}/") for name in _FILES]
    folder = local_folder(repo_id, allow_patterns=patterns, **options)
    for place in (folder, folder / INSIDE):
        if (place / _FILES[0]).is_file():
            return place
    raise DataError(f"{repo_id} holds no compressor (no {_FILES[0]}).")


def local_folder(model: str | Path, **options: Any) -> Path:
    """Return a folder as it is, or download a model from the Hub, with options of ``snapshot_download``.

    Raises:
        DataError: If there is no such folder, or the download fails.
    """
    from huggingface_hub import snapshot_download

    if Path(model).is_dir():
        return Path(model)
    if str(model).startswith((".", "/", "~")):
        raise DataError(f"no such folder: {model}")
    with hub_errors(str(model), options.get("revision")):
        return Path(snapshot_download(str(model), **options))
