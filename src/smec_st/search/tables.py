"""Memory-mapped tables of vectors on disk, with a checksum per block.

A table is a plain ``.npy`` file with a ``.crc`` file next to it. A block is checked when it is first read: checking
the whole table would make opening an index slow, and not checking would let a flipped bit change search results.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np

from smec_st.data import DataError
from smec_st.system.errors import one_line

BLOCK_BYTES = 1 << 16


def rows_per_block(width: int, itemsize: int) -> int:
    """Return the number of rows that one checksum covers."""
    return max(1, BLOCK_BYTES // (width * itemsize))


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk so that they survive a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_crc(path: Path) -> int:
    """Compute the CRC-32 of a file."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def check_file(path: Path, crc: int) -> None:
    """Raise a :class:`DataError` if a file is missing or does not have this checksum."""
    if not path.is_file():
        raise damaged(path, "it is missing")
    if file_crc(path) != crc:
        raise damaged(path, "its checksum differs")


class TableWriter:
    """Write a ``.npy`` table of ``rows`` rows in pieces.

    It uses plain writes instead of a memory map, so that a full disk raises an error instead of sending a signal.
    """

    def __init__(self, path: Path, rows: int, width: int, dtype: str) -> None:
        self.path, self.rows, self.width = path, rows, width
        self.dtype = np.dtype(dtype)
        self._block = rows_per_block(width, self.dtype.itemsize)
        self._crcs: list[int] = []
        self._rest = np.empty((0, width), dtype=self.dtype)  # rows after the last complete block
        self._written = 0
        self._file = path.open("wb")
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (rows, width)}
        np.lib.format.write_array_header_1_0(self._file, header)  # type: ignore[arg-type]

    def append(self, rows: np.ndarray) -> None:
        """Append rows, ``(n, width)``."""
        part = np.ascontiguousarray(rows, dtype=self.dtype)
        self._file.write(part.data)
        self._written += len(part)
        part = np.concatenate([self._rest, part]) if len(self._rest) else part
        whole = len(part) - len(part) % self._block
        for start in range(0, whole, self._block):
            self._crcs.append(zlib.crc32(np.ascontiguousarray(part[start : start + self._block]).data))
        self._rest = part[whole:].copy()

    def close(self) -> None:
        """Write the checksums and flush both files to disk."""
        if len(self._rest):
            self._crcs.append(zlib.crc32(np.ascontiguousarray(self._rest).data))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if self._written != self.rows:
            raise RuntimeError(f"{self._written} of {self.rows} rows were written.")
        checksums = self.path.with_suffix(".crc")
        checksums.write_bytes(np.array(self._crcs, dtype="<u4").tobytes())
        sync(checksums)

    def abort(self) -> None:
        """Close the file without completing the table."""
        self._file.close()


class Table:
    """A memory-mapped table whose blocks are checked when they are first read.

    Raises:
        DataError: If a file is missing or truncated, or the table has another shape or data type.
    """

    def __init__(self, path: Path, rows: int, width: int, dtype: str) -> None:
        self.path = path
        try:
            self.data: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
            self._crcs = np.fromfile(path.with_suffix(".crc"), dtype="<u4")
        except (OSError, ValueError, EOFError) as error:
            raise damaged(path, one_line(error)) from error
        if self.data.shape != (rows, width) or self.data.dtype != np.dtype(dtype):
            raise damaged(path, f"shape {self.data.shape} and {self.data.dtype}, not {(rows, width)} and {dtype}")
        self._block = rows_per_block(width, self.data.dtype.itemsize)
        if len(self._crcs) != -(-rows // self._block):
            raise damaged(path.with_suffix(".crc"), "it has the wrong length")
        self._checked = np.zeros(len(self._crcs), dtype=bool)

    def __len__(self) -> int:
        return len(self.data)

    @property
    def bytes(self) -> int:
        """Size of both files on disk."""
        return self.path.stat().st_size + self.path.with_suffix(".crc").stat().st_size

    @property
    def ram_bytes(self) -> int:
        """Memory that the checksums take; the rows stay on disk."""
        return int(self._crcs.nbytes + self._checked.nbytes)

    def check(self, rows: np.ndarray) -> None:
        """Check the blocks that hold these rows, unless they were checked before.

        Raises:
            DataError: If a block does not have its checksum.
        """
        blocks = rows // self._block
        unchecked = blocks[~self._checked[blocks]]
        for block in np.unique(unchecked).tolist():
            part = np.ascontiguousarray(self.data[block * self._block : (block + 1) * self._block])
            if zlib.crc32(part.data) != int(self._crcs[block]):
                first = block * self._block
                raise damaged(self.path, f"rows {first} to {first + len(part) - 1} do not match their checksum")
            self._checked[block] = True

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Read rows as float32, and codes as they are, ``(n,) -> (n, width)``."""
        self.check(rows)
        found: np.ndarray = self.data[rows]
        return found if found.dtype == np.uint8 else found.astype(np.float32, copy=False)

    def check_all(self) -> None:
        """Check every block; see :meth:`check`."""
        self.check(np.arange(0, len(self), self._block))


def damaged(path: Path, why: str) -> DataError:
    """Return the error for a damaged file."""
    return DataError(f"{path} is damaged: {why}. Restore it from a backup, or build the index again.")
