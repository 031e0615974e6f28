"""Read vectors from every supported file, dataset, index or database, in place and in batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from smec_st.data.codes import check_codes
from smec_st.data.jsonl import plain_suffix
from smec_st.data.sources.batch import Batch, VectorSource
from smec_st.data.sources.columns import of_dataset, open_dataset, open_parquet, parquet_parts
from smec_st.data.sources.indexes import open_faiss, open_milvus
from smec_st.data.sources.lines import open_csv, open_json, open_jsonl
from smec_st.data.sources.tables import (
    ArrayVectors,
    map_npy,
    open_hdf5,
    open_npy,
    open_npz,
    open_safetensors,
    open_vecs,
)
from smec_st.system.errors import DataError, some

__all__ = [
    "Batch",
    "VectorSource",
    "find_table",
    "load_tables",
    "load_vectors",
    "of_dataset",
    "open_vectors",
    "read_all",
]

READERS: dict[str, Callable[[Path, str | None, str | None], VectorSource]] = {
    ".npy": open_npy,
    ".npz": open_npz,
    ".safetensors": open_safetensors,
    ".parquet": open_parquet,
    ".jsonl": open_jsonl,
    ".json": open_json,
    ".csv": open_csv,
    ".tsv": open_csv,
    ".h5": open_hdf5,
    ".hdf5": open_hdf5,
    ".fvecs": open_vecs,
    ".bvecs": open_vecs,
}
INDEXES = (".faiss", ".index")  # of FAISS
TEXTS = (".jsonl", ".json", ".csv", ".tsv")  # also read when gzipped
TABLES = (".safetensors", ".npz", ".h5", ".hdf5")  # that hold several tables by name


def open_vectors(path: str | Path, column: str | None = None, codes: str | None = None) -> VectorSource:
    """Open a source of vectors without reading all of it.

    Args:
        path: A file: ``.npy``, ``.npz``, ``.safetensors``, ``.parquet``, ``.h5``, ``.fvecs``, ``.bvecs``, a FAISS
            index (``.faiss``, ``.index``), or, also gzipped, ``.jsonl``, ``.json`` (both also with the answers of
            APIs and databases as they came), ``.csv``, ``.tsv``. Or a folder of parquet files, or of ``datasets``.
            Or ``URI#COLLECTION`` for Milvus or a Milvus Lite file.
        column: Name of the tensor, column or field that holds the vectors; required if there are several.
        codes: What whole numbers or base64 are: float32, int8, uint8, binary or ubinary, see
            :mod:`smec_st.data.codes`. Without it, vectors must be floats.

    Raises:
        DataError: If the source is missing, broken, of an unknown kind, has several vector columns and none is named,
            or it is not clear what it holds.
    """
    check_codes(codes)
    path = os.path.expanduser(path)
    is_address = "#" in str(path) and not Path(path).exists()
    suffix = plain_suffix(Path(path))
    if codes is not None and (is_address or suffix in INDEXES):
        raise DataError(f"{path}: an index gives floats; leave out `codes` (--codes).")
    if is_address:
        return open_milvus(str(path), column)
    path = Path(path)
    if path.is_dir():
        if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
            return open_dataset(path, column, codes)
        if parquet_parts(path):
            return open_parquet(path, column, codes)
        if suffix not in READERS:
            raise DataError(f"{path} holds neither parquet files nor a saved dataset.")
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    if suffix in INDEXES:
        return open_faiss(path)
    if suffix not in READERS or (path.suffix == ".gz" and suffix not in TEXTS):
        known = ", ".join([*READERS, *INDEXES])
        raise DataError(f"{path}: vectors are read from files ending in {known}, got {path.suffix or 'no ending'}.")
    return READERS[suffix](path, column, codes)


def read_all(source: VectorSource) -> tuple[np.ndarray, list[str] | None]:
    """Return all rows of a source and their ids. An array of floats is returned as it is: a memory map is not read."""
    if isinstance(source, ArrayVectors) and source.array.dtype.kind == "f" and source.codes in (None, "float32"):
        return source.array, source.ids
    parts = list(source.batches())
    if not parts:
        raise DataError(f"{source.name} has no rows.")
    faults = [f"row {part.start + at} {why}" for part in parts for at, why in part.faults.items()]
    if faults:
        raise DataError(f"{source.name}: {len(faults)} row{'s' * (len(faults) > 1)} cannot be read: {some(faults)}.")
    ids = None if parts[0].ids is None else [key for part in parts for key in part.ids or ()]
    return np.concatenate([part.rows for part in parts]), ids


def load_vectors(path: str | Path, name: str | None = None, codes: str | None = None) -> np.ndarray:
    """Read all vectors of a source.

    Args:
        path: See :func:`open_vectors`. A ``.npy`` file is memory-mapped; pickled arrays are refused.
        name: Name of the tensor, column or field; required if there are several.
        codes: See :func:`open_vectors`.

    Returns:
        ``(N, D)``, in the type of the file; codes as float32.

    Raises:
        DataError: If the file is missing, broken, or lacks the tensor.
    """
    path = os.path.expanduser(path)
    path = Path(path) if "#" not in path else path
    if isinstance(path, Path) and path.is_file() and path.suffix == ".npy" and codes is None:
        return map_npy(path)  # of any shape and type; the caller checks them
    rows, _ = read_all(open_vectors(path, name, codes))
    return np.array(rows) if isinstance(path, Path) and path.suffix == ".safetensors" else rows


def find_table(folder: Path, name: str) -> Path | None:
    """Find the vector file ``name`` in a folder, or the subfolder ``name`` with parquet files or a dataset.

    Raises:
        DataError: If there are several.
    """
    endings = [*READERS, *INDEXES, *(f"{suffix}.gz" for suffix in TEXTS)]
    found = [folder / f"{name}{ending}" for ending in endings if (folder / f"{name}{ending}").is_file()]
    subfolder = folder / name
    if subfolder.is_dir() and (parquet_parts(subfolder) or (subfolder / "dataset_info.json").is_file()):
        found.append(subfolder)
    arrays = [path for path in found if plain_suffix(path) not in TEXTS]  # texts may lie beside their vectors
    found = arrays or found
    if len(found) > 1:
        raise DataError(f"{folder} has several tables {name}: {some([path.name for path in found])}; keep one.")
    return found[0] if found else None


def load_tables(
    path: Path, names: Sequence[str], codes: str | None = None
) -> list[tuple[np.ndarray, list[str] | None]]:
    """Read the named tables of a collection and the ids of their rows, if they have any.

    They are in one file with several tables by name (``.safetensors``, ``.npz``, ``.h5``), or in a file each.
    """
    if path.is_dir():
        return [read_all(open_vectors(find_table(path, name) or path / f"{name}.npy", None, codes)) for name in names]
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    if path.suffix not in TABLES:
        raise DataError(
            f"{path}: a collection's vectors are one file ending in {', '.join(TABLES)}, or a folder with a file of "
            f"vectors for each of {', '.join(names)}."
        )
    return [read_all(open_vectors(path, name, codes)) for name in names]
