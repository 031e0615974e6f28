"""Read vectors from every supported file, dataset, index or database, in place and in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from smec_st.data.errors import DataError
from smec_st.data.safetensors import read_safetensors
from smec_st.data.sources.batch import Batch, VectorSource
from smec_st.data.sources.columns import of_dataset, open_dataset, open_parquet
from smec_st.data.sources.indexes import open_faiss, open_milvus
from smec_st.data.sources.lines import open_csv, open_json, open_jsonl
from smec_st.data.sources.tables import ArrayVectors, map_npy, open_npy, open_safetensors

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

READERS: dict[str, Callable[[Path, str | None], VectorSource]] = {
    ".npy": open_npy,
    ".safetensors": open_safetensors,
    ".parquet": open_parquet,
    ".jsonl": open_jsonl,
    ".json": open_json,
    ".csv": open_csv,
    ".tsv": open_csv,
    ".faiss": open_faiss,
    ".index": open_faiss,
}


def open_vectors(path: str | Path, column: str | None = None) -> VectorSource:
    """Open a source of vectors without reading all of it.

    Args:
        path: A file: ``.npy``, ``.safetensors``, ``.parquet``, ``.jsonl``, ``.json`` (also the unchanged answers of an
            embedding API), ``.csv``, ``.tsv``, or a FAISS index (``.faiss``, ``.index``). Or a folder: of parquet
            files, or saved by ``datasets``. Or ``URI#COLLECTION`` for Milvus or a Milvus Lite file.
        column: Name of the tensor, column or field that holds the vectors; required if there are several.

    Raises:
        DataError: If the source is missing, broken, of an unknown kind, or has several vector columns and none is
            named.
    """
    if "#" in str(path) and not Path(path).exists():
        return open_milvus(str(path), column)
    path = Path(path)
    if path.is_dir():
        if any(path.glob("*.parquet")):
            return open_parquet(path, column)
        if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
            return open_dataset(path, column)
        if path.suffix not in READERS:
            raise DataError(f"{path} holds neither parquet files nor a saved dataset.")
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    if path.suffix not in READERS:
        known = ", ".join(READERS)
        raise DataError(f"{path}: vectors are read from files ending in {known}, got {path.suffix or 'no ending'}.")
    return READERS[path.suffix](path, column)


def read_all(source: VectorSource) -> tuple[np.ndarray, list[str] | None]:
    """Return all rows of a source and their ids. An array is returned as it is: a memory map is not read."""
    if isinstance(source, ArrayVectors):
        return source.array, source.ids
    parts = list(source.batches())
    if not parts:
        raise DataError(f"{source.name} has no rows.")
    ids = None if parts[0].ids is None else [key for part in parts for key in part.ids or ()]
    return np.concatenate([part.rows for part in parts]), ids


def load_vectors(path: str | Path, name: str | None = None) -> np.ndarray:
    """Read all vectors of a source.

    Args:
        path: See :func:`open_vectors`. A ``.npy`` file is memory-mapped; pickled arrays are refused.
        name: Name of the tensor, column or field; required if there are several.

    Returns:
        ``(N, D)``, in the type of the file.

    Raises:
        DataError: If the file is missing, broken, or lacks the tensor.
    """
    path = Path(path) if "#" not in str(path) else path
    if isinstance(path, Path) and path.is_file() and path.suffix == ".npy":
        return map_npy(path)  # of any shape and type; the caller checks them
    rows, _ = read_all(open_vectors(path, name))
    return np.array(rows) if isinstance(path, Path) and path.suffix == ".safetensors" else rows


def find_table(folder: Path, name: str) -> Path | None:
    """Find the vector file ``name`` in a folder, or the subfolder ``name`` with parquet files or a dataset."""
    found = [folder / f"{name}{suffix}" for suffix in READERS if (folder / f"{name}{suffix}").is_file()]
    subfolder = folder / name
    if any(subfolder.glob("*.parquet")) or (subfolder / "dataset_info.json").is_file():
        found.append(subfolder)
    return found[0] if found else None


def load_tables(path: Path, names: Sequence[str]) -> list[np.ndarray]:
    """Read the named tables of a collection: tensors of one safetensors file, or one file each in a folder."""
    if path.is_dir():
        return [load_vectors(find_table(path, name) or path / f"{name}.npy") for name in names]
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    if path.suffix != ".safetensors":
        raise DataError(f"{path}: a collection's vectors are one .safetensors file or a folder of .npy files.")
    tensors = read_safetensors(path, names)
    return [tensors[name] for name in names]
