"""Read vectors from arrays on disk: ``.npy``, ``.npz``, ``.safetensors``, HDF5, ``.fvecs`` and ``.bvecs``."""

from __future__ import annotations

import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from smec_st.data.codes import decode, decoded_width
from smec_st.data.ids import find_id, id_text, plain_name
from smec_st.data.safetensors import Safetensors
from smec_st.data.sources.batch import Batch, choose_column, file_state, metadata_record, sidecar_record
from smec_st.system.errors import DataError, count, one_line, some, tell
from smec_st.system.optional import load_optional


@dataclass(frozen=True)
class ArrayVectors:
    """The vectors of an array in memory or memory-mapped, a :class:`~smec_st.data.VectorSource`.

    Attributes:
        array: ``(N, w)`` as stored.
        ids: Ids of the rows, or None.
        codes: What the stored numbers are; see :mod:`smec_st.data.codes`.
    """

    name: str
    array: np.ndarray
    record: Mapping[str, Any] = field(default_factory=dict)
    state: str = ""
    ids: list[str] | None = None
    codes: str | None = None

    def __post_init__(self) -> None:
        if self.array.ndim != 2:
            raise DataError(
                f"{self.name} must hold a table (rows, width) of floats, "
                f"got shape {tuple(self.array.shape)} of {self.array.dtype}."
            )
        decode(self.array[:0], self.codes, self.name)

    @property
    def width(self) -> int:
        """Numbers per vector, ``D``."""
        return decoded_width(int(self.array.shape[1]), self.codes)

    @property
    def rows(self) -> int:
        """Number of vectors, ``N``."""
        return len(self.array)

    def batches(self, size: int = 8192, start: int = 0) -> Iterator[Batch]:
        """See :class:`~smec_st.data.VectorSource`."""
        for first in range(start, len(self.array), size):
            last = first + size
            rows = decode(self.array[first:last], self.codes, f"{self.name}, rows from {first}")
            yield Batch(first, rows, None if self.ids is None else self.ids[first:last])


#: What numpy raises for damaged files, besides ValueError.
ARRAY_ERRORS = (
    ValueError, OSError, EOFError, SyntaxError, TypeError, KeyError, OverflowError, MemoryError, NotImplementedError,
    RuntimeError, UserWarning, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@contextmanager
def array_errors(path: Path, kind: str) -> Iterator[None]:
    """Make a :class:`DataError` of one line of whatever numpy says about a damaged file, warnings included."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            yield
    except DataError:
        raise
    except ARRAY_ERRORS as error:
        raise DataError(f"{path} is not a readable {kind}: {one_line(error)}") from error


def open_npy(path: Path, column: str | None = None, codes: str | None = None) -> ArrayVectors:
    """Open a ``.npy`` file, with an optional record in ``NAME.npy.json``; pickled arrays are refused."""
    return ArrayVectors(str(path), map_npy(path), sidecar_record(path), file_state(path), codes=codes)


def map_npy(path: Path) -> np.ndarray:
    """Return the array of a ``.npy`` file as a memory map."""
    with array_errors(path, ".npy file"):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an archive of arrays")
        return array


def open_safetensors(path: Path, column: str | None = None, codes: str | None = None) -> ArrayVectors:
    """Open one tensor of a ``.safetensors`` file; ``column`` names it if there are several."""
    file = Safetensors.open(path)
    shapes = {name: tuple(entry["shape"]) for name, entry in file.entries.items()}
    return _named_array(path, shapes, file.tensor, column, codes, metadata_record(file.metadata), "tensors")


def open_npz(path: Path, column: str | None = None, codes: str | None = None) -> ArrayVectors:
    """Open one array of a ``.npz`` file; ``column`` names it if there are several tables."""
    arrays: dict[str, np.ndarray] = {}
    with (
        array_errors(path, ".npz file without pickles (store texts as `ids.astype(str)`)"),
        path.open("rb") as raw,
        zipfile.ZipFile(raw),
    ):
        raw.seek(0)
        with np.load(raw, allow_pickle=False) as file:
            for name in file.files:
                if not _is_pickled(path, name) or find_id([name]) or name == column:
                    arrays[name] = file[name]
    shapes = {name: array.shape for name, array in arrays.items()}
    return _named_array(path, shapes, arrays.__getitem__, column, codes, sidecar_record(path), "arrays")


def _is_pickled(path: Path, name: str) -> bool:
    """Return whether an array of a ``.npz`` file holds Python objects, such as texts, which are not read."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
        return b"'descr': '|O" in member.read(256)


def open_hdf5(path: Path, column: str | None = None, codes: str | None = None) -> ArrayVectors:
    """Open one dataset of an HDF5 file; ``column`` names it (``GROUP/NAME``) if there are several tables."""
    h5py = load_optional("h5py", "reading HDF5")
    try:
        with h5py.File(path, "r") as file:
            shapes: dict[str, tuple[int, ...]] = {}
            frames: list[str] = []

            def note(name: str, item: Any) -> None:
                if isinstance(item, h5py.Dataset) and item.shape is not None:
                    shapes[name] = item.shape
                elif "pandas_type" in item.attrs:
                    frames.append(name)

            file.visititems(note)
            stored = _pandas_names(path, shapes, {frame: dict(file[frame].attrs) for frame in frames})

            def read(name: str) -> np.ndarray:
                table = file[stored.get(name, name)]
                is_one_piece = not table.chunks and not file.userblock_size and table.dtype.kind in "fiu"
                offset = table.id.get_offset() if is_one_piece else None
                if offset is None:
                    return np.asarray(table[()])
                return np.memmap(path, table.dtype, "r", offset, table.shape)

            return _named_array(path, shapes, read, column, codes, sidecar_record(path), "tables")
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a readable HDF5 file: {one_line(error)}") from error


def _pandas_names(
    path: Path, shapes: dict[str, tuple[int, ...]], frames: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """Give the parts of pandas tables in ``shapes`` names that say what they are, and return their names in the file.

    ``shapes`` is changed in place; ``frames`` has the attributes of the groups of the tables.
    """
    stored: dict[str, str] = {}
    for frame, attributes in frames.items():
        found = {name: shapes.pop(name) for name in list(shapes) if name.startswith(f"{frame}/")}
        values, index, columns = (f"{frame}/{part}" for part in ("block0_values", "axis1", "axis0"))
        is_one_array = attributes.get("pandas_type") == b"frame" and attributes.get("nblocks") == 1
        if is_one_array and found.get(values) == (*found.get(index, ()), *found.get(columns, ())):
            shapes[f"{frame}/values"], shapes[f"{frame}/index"] = found[values], found[index]
            stored |= {f"{frame}/values": values, f"{frame}/index": index}
    if frames and not shapes:
        raise DataError(
            f"{path} holds a pandas table of several kinds of columns or in the format `table`; write it as parquet."
        )
    return stored


#: Names of ids that belong to one side of a collection, and how the names of its tables begin.
SIDES = {
    "corpus": (("corpusid", "docid", "documentid", "docno", "passageid", "pid"), ("corpus", "doc", "passage")),
    "queries": (("queryid", "qid"), ("quer",)),
}


def _side(name: str) -> str | None:
    """Return the side of a collection that a table or an array of ids is named for; None if for none."""
    plain = plain_name(name.rpartition("/")[2])
    for side, (ids, tables) in SIDES.items():
        if plain.removesuffix("s") in ids or (find_id([plain]) is None and plain.startswith(tables)):
            return side
    return None


def _may_belong(ids: str, table: str, tables: Sequence[str]) -> bool:
    """Return whether ids may be those of a table, one of several: they are not named for the other side."""
    named, side = _side(ids), _side(table)
    return named in (None, side) or (side is None and named not in map(_side, tables))


def _named_array(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
    column: str | None,
    codes: str | None,
    record: Mapping[str, Any],
    kinds: str,
) -> ArrayVectors:
    """Open one of several arrays with names; an array with an id name and one entry per row gives the ids.

    Ids that are named for the other side of a collection, such as ``query_ids`` beside the table ``corpus``, do not.
    """
    is_id = {name: find_id([name.rpartition("/")[2]]) is not None for name in shapes}
    shapes = {name: shape[:1] if is_id[name] and shape[1:] == (1,) else shape for name, shape in shapes.items()}
    tables = sorted(name for name, shape in shapes.items() if len(shape) == 2)
    name = choose_column(tables or sorted(shapes), column, str(path), kinds)
    array = read(name)
    group = name.rpartition("/")[0]
    beside = [key for key, shape in shapes.items() if shape == array.shape[:1] and key.rpartition("/")[0] == group]
    beside = [key for key in beside if key != name]
    keys = [key for key in beside if is_id[key] and _may_belong(key, name, tables)]
    left = [key for key in beside if not is_id[key] or _side(key) not in map(_side, tables)]
    counts = {shapes[table][0] for table in tables}
    for key, shape in shapes.items():
        if is_id[key] and key != name and not keys and key.rpartition("/")[0] == group and shape[0] not in counts:
            raise DataError(f"{path}: {key} has {count(shape[0], 'entry', 'entries')}, and {name} {len(array)} rows.")
    if left and not keys and len(array) > 1:
        tell(f"{path}: {some(left)} {'is' if len(left) == 1 else 'are'} left out; ids would be named `ids`.")
    if len(keys) > 1:
        raise DataError(f"{path}: {' and '.join(keys)} may hold the ids; keep one.")
    ids = [id_text(value, f"{path}, {key}") for key in keys for value in read(key).ravel().tolist()] if keys else None
    return ArrayVectors(str(path), array, record, file_state(path), ids, codes)


def open_vecs(path: Path, column: str | None = None, codes: str | None = None) -> ArrayVectors:
    """Open ``.fvecs`` (float32) or ``.bvecs`` (bytes) as TEXMEX writes them: before each row, its width as int32."""
    kind = np.dtype("<f4" if path.suffix == ".fvecs" else "u1")
    raw = np.memmap(path, dtype="u1", mode="r") if path.stat().st_size else np.empty(0, dtype="u1")
    width = int(raw[:4].view("<i4")[0]) if len(raw) >= 4 else 0
    row_bytes = 4 + width * kind.itemsize
    if width < 1 or len(raw) % row_bytes:
        raise DataError(
            f"{path} is not a readable {path.suffix} file: {len(raw)} bytes, the first row is {width} wide."
        )
    rows = raw.reshape(-1, row_bytes)
    widths = rows[:, :4].copy().view("<i4")[:, 0]
    if (widths != width).any():
        row = int(np.flatnonzero(widths != width)[0])
        raise DataError(f"{path}: row {row} is {widths[row]} wide, the first is {width}.")
    table = np.ndarray((len(rows), width), kind, buffer=raw, offset=4, strides=(row_bytes, kind.itemsize))
    if kind.kind == "f" and 0 < np.abs(table[:1000]).max() < np.finfo(kind).tiny:
        raise DataError(f"{path} holds whole numbers, as an .ivecs file of neighbours does, and no vectors.")
    return ArrayVectors(str(path), table, sidecar_record(path), file_state(path), codes=codes)
