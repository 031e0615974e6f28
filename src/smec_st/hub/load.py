"""Read a compressor from the Hub, or from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from smec_st.data import DataError
from smec_st.hub.errors import hub_errors

if TYPE_CHECKING:
    from smec_st.compressor import Compressor

#: Folder of an exported model that holds the compressor it was made with. Not the root: servers read every
#: ``*.safetensors`` file there as the backbone's.
INSIDE = "compressor"
_FILES = ("compressor.json", "compressor.safetensors")


def from_pretrained(
    kind: type[Compressor],
    repo_id: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Compressor:
    """See :meth:`smec_st.compressor.Compressor.from_pretrained`."""
    folder = Path(repo_id)
    if not folder.is_dir():
        folder = _download(str(repo_id), revision, token, cache_dir, local_files_only)
    for place in (folder, folder / INSIDE):
        if (place / _FILES[0]).is_file():
            return kind.load(place)
    raise DataError(f"{repo_id} holds no compressor (no {_FILES[0]}).")


def _download(
    repo_id: str, revision: str | None, token: str | bool | None, cache_dir: str | Path | None, local_files_only: bool
) -> Path:
    from huggingface_hub import snapshot_download

    if repo_id.startswith((".", "/", "~")):
        raise DataError(f"no such folder: {repo_id}")
    with hub_errors(repo_id, revision):
        return Path(
            snapshot_download(
                repo_id,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                allow_patterns=[f"{place}{name}" for place in ("", f"{INSIDE}/") for name in _FILES],
            )
        )
