"""Read vectors from arrays on disk, ``.npy`` and ``.safetensors``, as memory maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from smec_st.data.errors import DataError, one_line
from smec_st.data.safetensors import Safetensors
from smec_st.data.sources.batch import Batch, choose_column, file_state, metadata_record, sidecar_record


@dataclass(frozen=True)
class ArrayVectors:
    """The vectors of an array, in memory or memory-mapped.

    Attributes:
        name: Path, for error messages.
        array: ``(N, D)``.
        record: What is known about the model.
        state: See :class:`~smec_st.data.VectorSource`.
        ids: Ids of the rows, or None.
    """

    name: str
    array: np.ndarray
    record: Mapping[str, Any] = field(default_factory=dict)
    state: str = ""
    ids: list[str] | None = None

    def __post_init__(self) -> None:
        if self.array.ndim != 2 or self.array.dtype.kind != "f":
            raise DataError(
                f"{self.name} must hold a table (rows, width) of floats, "
                f"got shape {tuple(self.array.shape)} of {self.array.dtype}."
            )

    @property
    def width(self) -> int:
        """Numbers per vector, ``D``."""
        return int(self.array.shape[1])

    @property
    def rows(self) -> int:
        """Number of vectors, ``N``."""
        return len(self.array)

    def batches(self, size: int = 8192, start: int = 0) -> Iterator[Batch]:
        """See :class:`~smec_st.data.VectorSource`."""
        for first in range(start, len(self.array), size):
            last = first + size
            yield Batch(first, self.array[first:last], None if self.ids is None else self.ids[first:last])


def open_npy(path: Path, column: str | None = None) -> ArrayVectors:
    """Open a ``.npy`` file, with an optional record in ``NAME.npy.json``; pickled arrays are refused."""
    return ArrayVectors(str(path), map_npy(path), sidecar_record(path), file_state(path))


def map_npy(path: Path) -> np.ndarray:
    """Return the array of a ``.npy`` file as a memory map."""
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        return array
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} is not a readable .npy file: {one_line(error)}") from error


def open_safetensors(path: Path, column: str | None = None) -> ArrayVectors:
    """Open one tensor of a ``.safetensors`` file; ``column`` names it if there are several."""
    file = Safetensors.open(path)
    tensor = file.tensor(choose_column(sorted(file.entries), column, str(path), "tensors"))
    return ArrayVectors(str(path), tensor, metadata_record(file.metadata), file_state(path))
