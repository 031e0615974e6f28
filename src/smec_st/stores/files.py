"""Join the shards of a transform into one file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
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
    """Join shards of ``rows`` rows into one file, whose name ends in a key of :data:`FILE_FORMATS`, shard by shard."""
    record = {RECORD: json.dumps(space, sort_keys=True)}
    with writing(path):
        if path.suffix == ".parquet":
            _join_parquet(files, path)
            return
        first = np.load(files[0], mmap_mode="r")
        shape = rows, int(first.shape[1])
        parts = (np.load(file, mmap_mode="r") for file in files)
        if path.suffix == ".safetensors":
            write_safetensors_in_parts(path, TENSOR, first.dtype, shape, parts, record)
            return
        joined = np.lib.format.open_memmap(path, "w+", first.dtype, shape)
        start = 0
        for part in parts:
            joined[start : start + len(part)] = part
            start += len(part)
        joined.flush()


def _join_parquet(files: Sequence[Path], path: Path) -> None:
    import pyarrow.parquet as pq

    schema = pq.read_schema(files[0])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for file in files:
            for batch in pq.ParquetFile(file).iter_batches():
                writer.write_batch(batch)
    with path.open("rb+") as written:
        os.fsync(written.fileno())
