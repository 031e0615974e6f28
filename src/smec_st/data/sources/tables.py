"""Arrays on disk: ``.npy`` and ``.safetensors``, memory-mapped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from smec_st.data.errors import DataError, one_line, some
from smec_st.data.safetensors import Safetensors
from smec_st.data.sources.batch import Batch, beside, file_state, spoken


@dataclass(frozen=True)
class Table:
    """An array, in memory or mapped.

    Attributes:
        name: For messages.
        array: ``(N, D)``.
        record: What is known of the model.
        state: See :class:`~smec_st.data.VectorSource`.
        ids: Ids of the rows.
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
        """``D``."""
        return int(self.array.shape[1])

    @property
    def rows(self) -> int:
        """``N``."""
        return len(self.array)

    def batches(self, size: int = 8192, start: int = 0) -> Iterator[Batch]:
        """See :class:`~smec_st.data.VectorSource`."""
        for first in range(start, len(self.array), size):
            last = first + size
            yield Batch(first, self.array[first:last], None if self.ids is None else self.ids[first:last])


def open_npy(path: Path, column: str | None = None) -> Table:
    """A ``.npy`` file; pickled arrays are refused. A record may stand beside it as ``NAME.npy.json``."""
    return Table(str(path), map_npy(path), beside(path), file_state(path))


def map_npy(path: Path) -> np.ndarray:
    """The array of a ``.npy`` file as a memory map."""
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        return array
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} is not a readable .npy file: {one_line(error)}") from error


def open_safetensors(path: Path, column: str | None = None) -> Table:
    """One tensor of a ``.safetensors`` file, named when there are several."""
    file = Safetensors.open(path)
    return Table(str(path), file.tensor(pick_tensor(file, column)), spoken(file.metadata), file_state(path))


def pick_tensor(file: Safetensors, name: str | None) -> str:
    """The tensor meant; a :class:`DataError` when that is unclear."""
    if name is None and len(file.entries) != 1:
        raise DataError(f"{file.path} holds {some(sorted(file.entries), 6)}; say which one is meant.")
    if name is not None and name not in file.entries:
        raise DataError(f"{file.path} lacks the tensor {name}; it holds {some(sorted(file.entries), 6)}.")
    return name or next(iter(file.entries))
