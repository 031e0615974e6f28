"""Read safetensors files with numpy alone: tensors are memory maps, and the header is checked, not trusted.

A file is an 8-byte header length, a JSON header, then the data: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smec_st.system.errors import DataError, one_line, some

HEADER_LIMIT = 100_000_000
DTYPES = {
    "BOOL": "?", "U8": "<u1", "I8": "<i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8",
    "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2",
}  # fmt: skip


@dataclass(frozen=True)
class Safetensors:
    """The header of a safetensors file.

    Attributes:
        path: The file.
        metadata: The free-text metadata by name.
        entries: The header's entry of each tensor.
        start: Position of the first data byte.
    """

    path: Path
    metadata: dict[str, str]
    entries: dict[str, dict[str, Any]]
    start: int

    @classmethod
    def open(cls, path: Path) -> Safetensors:
        """Read and check the header.

        Raises:
            DataError: If the file is missing, truncated, or inconsistent.
        """
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if size < 8 or length > min(size - 8, HEADER_LIMIT):
                    raise ValueError(f"{size} bytes do not hold the header")
                header = json.loads(file.read(length))
                if not isinstance(header, dict):
                    raise ValueError("the header is no object")
            metadata = dict(header.pop("__metadata__", {}))
            end = 0
            for begin, last in sorted(_check(entry) for entry in header.values()):
                if begin != end:
                    raise ValueError(f"tensors overlap or leave a gap at byte {begin} of the data")
                end = last
            if 8 + length + end != size:
                raise ValueError(f"{size - 8 - length} bytes of tensors instead of {end}")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"{path} is not a readable safetensors file (truncated?): {one_line(error)}") from error
        return cls(path, metadata, header, 8 + length)

    def tensor(self, name: str) -> np.ndarray:
        """Return a tensor as a read-only memory map; bfloat16, which numpy lacks, is converted to float32."""
        entry = self.entries[name]
        shape = tuple(entry["shape"])
        if math.prod(shape) == 0:
            return np.empty(shape, dtype="<f4" if entry["dtype"] == "BF16" else DTYPES[entry["dtype"]])
        begin = self.start + entry["data_offsets"][0]
        mapped = np.memmap(self.path, DTYPES[entry["dtype"]], "r", begin, shape)
        if entry["dtype"] == "BF16":
            return np.asarray((mapped.astype("<u4") << 16).view("<f4"))
        return mapped


def _check(entry: dict[str, Any]) -> tuple[int, int]:
    """Return where a tensor begins and ends; raise ValueError if type, shape and offsets do not agree."""
    shape, (begin, end) = entry["shape"], entry["data_offsets"]
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"tensors of type {entry['dtype']} are not read")
    if not all(type(n) is int and 0 <= n < 1 << 60 for n in (*shape, begin, end)):
        raise ValueError("a shape or an offset is not a whole number")
    if math.prod(max(n, 1) for n in shape) >= 1 << 60:
        raise ValueError(f"a tensor has the shape {shape}")
    if end - begin != math.prod(shape) * np.dtype(DTYPES[entry["dtype"]]).itemsize:
        raise ValueError(f"{end - begin} bytes for a tensor of shape {shape}")
    return int(begin), int(end)


def read_safetensors(path: Path, names: Iterable[str] | None) -> dict[str, np.ndarray]:
    """Read the named tensors of a file, or all of them, into memory.

    Raises:
        DataError: If the file is broken or lacks one of the tensors.
    """
    file = Safetensors.open(path)
    wanted = sorted(file.entries if names is None else set(names))
    missing = [name for name in wanted if name not in file.entries]
    if missing:
        raise DataError(f"{path} lacks the tensor {some(missing)}; it holds {some(sorted(file.entries), 6)}.")
    return {name: np.array(file.tensor(name)) for name in wanted}


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a file of tensors; it appears only when it is complete.

    Raises:
        DataError: If it cannot be written, for instance because the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, draft)
        os.replace(draft, path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot write {path}: {one_line(error)}") from error
    finally:
        draft.unlink(missing_ok=True)


def write_safetensors_in_parts(
    path: Path,
    name: str,
    dtype: np.dtype,
    shape: tuple[int, int],
    parts: Iterator[np.ndarray],
    metadata: Mapping[str, str],
) -> None:
    """Write a file of one tensor ``(N, w)``, which comes in consecutive parts, without holding all of it in memory."""
    kind = next(key for key, value in DTYPES.items() if np.dtype(value) == dtype)
    entry = {"dtype": kind, "shape": list(shape), "data_offsets": [0, math.prod(shape) * dtype.itemsize]}
    header = json.dumps({"__metadata__": dict(metadata), name: entry}).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype=DTYPES[kind]).data)
        file.flush()
        os.fsync(file.fileno())
