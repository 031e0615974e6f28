"""Join the shards of a transform into one file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smec_st.data.safetensors import write_safetensors_in_parts
from smec_st.data.sources.batch import RECORD
from smec_st.system.files import writing

#: Formats of a single file, and that of the shards that it is made from.
FILE_FORMATS = {".npy": "npy", ".parquet": "parquet", ".safetensors": "npy"}
TENSOR = "vectors"


def join_shards(files: Sequence[Path], rows: int, space: Mapping[str, Any], path: Path) -> None:
    """Join shards into one file. Memory is bounded by a shard.

    Args:
        files: The shards, in order.
        rows: Number of rows of all.
        space: Description of the vectors.
        path: The file; its name ends in a key of :data:`FILE_FORMATS`.
    """
    record = {RECORD: json.dumps(space, sort_keys=True)}
    with writing(path):
        if path.suffix == ".parquet":
            _join_parquet(files, path)
        elif path.suffix == ".safetensors":
            dtype, width = _kind(files)
            write_safetensors_in_parts(path, TENSOR, dtype, (rows, width), _arrays(files), record)
        else:
            dtype, width = _kind(files)
            joined = np.lib.format.open_memmap(path, "w+", dtype, (rows, width))
            start = 0
            for part in _arrays(files):
                joined[start : start + len(part)] = part
                start += len(part)
            joined.flush()


def _kind(files: Sequence[Path]) -> tuple[np.dtype, int]:
    first = np.load(files[0], mmap_mode="r")
    return first.dtype, int(first.shape[1])


def _arrays(files: Sequence[Path]) -> Iterator[np.ndarray]:
    for file in files:
        yield np.load(file, mmap_mode="r")


def _join_parquet(files: Sequence[Path], path: Path) -> None:
    import pyarrow.parquet as pq

    schema = pq.read_schema(files[0])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for file in files:
            for batch in pq.ParquetFile(file).iter_batches():
                writer.write_batch(batch)
    with path.open("rb+") as written:
        os.fsync(written.fileno())
