"""Write shards: files of compressed rows, each of which appears only when it is complete."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smec_st.data import Batch, DataError, VectorSource
from smec_st.data.sources.batch import RECORD
from smec_st.quantization.codecs import Codec
from smec_st.quantization.head import Head
from smec_st.stores.bad_rows import HINT, BadRow, BadRows, Places, bad_rows_of, without_bad, write_left_out
from smec_st.system.files import writing
from smec_st.system.optional import load_optional

FORMATS = ("npy", "parquet")
BATCH_ROWS = 1024


@dataclass(frozen=True)
class Shard:
    """A finished shard.

    Attributes:
        file: Name of the file.
        start: Number of its first row in the source.
        rows: Number of rows in the file.
        sha256: SHA-256 of the file.
        read: Number of rows of the source that it covers; more than ``rows`` if some were left out.
        input: Hash of these rows and their ids. An interrupted job whose source was mended keeps the shards whose
            rows are the same.
    """

    file: str
    start: int
    rows: int
    sha256: str
    read: int
    input: str

    def is_intact(self, folder: Path) -> bool:
        """Return whether the file exists and has its checksum."""
        path = folder / self.file
        return path.parent == folder and path.is_file() and file_hash(path) == self.sha256


@dataclass(frozen=True)
class Output:
    """Where and how the shards of one transform are written.

    Attributes:
        folder: Folder of the shards.
        kind: Format, npy or parquet. Ids are written only to parquet.
        shard_rows: Rows per shard; the last may have fewer.
        record: Description of the vectors, which parquet shards store.
        places: Tells the file of a row, for messages.
        skip_bad: Whether rows that cannot be used are left out. The others are then written with ids, by default the
            numbers of their rows, and what was left out is listed in a file next to the shard.
    """

    folder: Path
    kind: str
    shard_rows: int
    record: Mapping[str, Any]
    places: Places = Places()
    skip_bad: bool = False

    @property
    def batch_rows(self) -> int:
        """Rows that are compressed together."""
        return min(BATCH_ROWS, self.shard_rows)

    def path(self, number: int) -> Path:
        """Return the file of a shard; file names sort in the order of the rows."""
        return self.folder / f"shard-{number:06d}.{self.kind}"

    def left_out(self, number: int) -> Path:
        """Return the file that lists the rows that a shard leaves out."""
        return self.folder / f"_left-out-{number:06d}.jsonl"


def write_shard(
    batches: Iterator[Batch], head: Head, output: Output, number: int, rows: int | None = None
) -> Shard | None:
    """Compress batches of consecutive rows into one shard; None if there are no rows.

    To know the number of ``rows`` saves reading the file again for its hash.
    """
    path, start = output.path(number), number * output.shard_rows
    first = next(batches, None)
    if first is None:
        return None
    draft = path.with_name(path.name + ".partial")
    ids: list[str] = []
    left_out: list[BadRow] = []
    seen, read = InputHash(), 0

    def compressed() -> Iterator[np.ndarray]:
        nonlocal read
        for batch in itertools.chain([first], batches):
            seen.add(batch)
            read += len(batch.rows)
            part = without_bad(batch, output.places, left_out) if output.skip_bad else batch
            ids.extend(part.ids or ())
            try:
                yield head.folded.compress(part.rows, part.start)
            except DataError as error:
                bad = list(bad_rows_of(part, output.places).values())
                raise (BadRows(bad, HINT) if bad else error) from error

    with writing(path):
        if path.suffix == ".npy":
            count, digest = _write_npy(draft, compressed(), head.codec, rows)
        else:
            parts = [head.codec.encode(part) for part in compressed()]
            count, digest = sum(map(len, parts)), _write_parquet(draft, parts, ids, output.record)
        if left_out:
            write_left_out(output.left_out(number), left_out)
        os.replace(draft, path)
    return Shard(path.name, start, count, digest, read, seen.hexdigest())


class InputHash:
    """A running hash of rows and ids, which does not depend on how they are cut into batches."""

    def __init__(self) -> None:
        self._rows, self._ids = hashlib.sha256(), hashlib.sha256()

    def add(self, batch: Batch) -> None:
        """Add the rows of a batch."""
        rows = np.ascontiguousarray(batch.rows)
        if rows.dtype.byteorder == ">":
            rows = rows.astype(rows.dtype.newbyteorder("<"))
        self._rows.update(rows.view(np.uint8).data if rows.size else b"")
        self._ids.update("".join(f"{len(key)} {key}" for key in batch.ids or ()).encode())

    def hexdigest(self) -> str:
        """Return the hash of all that was added."""
        return hashlib.sha256(self._rows.digest() + self._ids.digest()).hexdigest()[:32]


def _write_npy(path: Path, parts: Iterator[np.ndarray], codec: Codec, expected: int | None) -> tuple[int, str]:
    """Return the number of rows and the hash. A second thread encodes, hashes and writes in parallel."""
    first = next(parts)
    example = codec.encode(first[:1])
    digest, count = hashlib.sha256(), 0

    def write(part: np.ndarray) -> None:
        data = np.ascontiguousarray(codec.encode(part)).view(np.uint8).reshape(-1).data
        digest.update(data)
        file.write(data)

    with path.open("wb") as file, ThreadPoolExecutor(1) as writer:
        before = _npy_header(example, expected or 0)
        digest.update(before)
        file.write(before)
        pending: deque[Future[None]] = deque()
        for part in itertools.chain([first], parts):
            pending.append(writer.submit(write, part))
            count += len(part)
            if len(pending) > 2:  # bounds memory
                pending.popleft().result()
        for future in pending:
            future.result()
        after = _npy_header(example, count)
        if after != before:
            file.seek(0)
            file.write(after)  # numpy pads the header, so its length does not depend on the count
        file.flush()
        os.fsync(file.fileno())
    return count, digest.hexdigest() if after == before else file_hash(path)


def _npy_header(rows: np.ndarray, count: int) -> bytes:
    file = io.BytesIO()
    shape = (count, rows.shape[1])
    np.lib.format.write_array_header_1_0(file, {"descr": rows.dtype.str, "fortran_order": False, "shape": shape})
    return file.getvalue()


def _write_parquet(path: Path, parts: list[np.ndarray], ids: list[str], record: Mapping[str, Any]) -> str:
    pa, pq = (load_optional(name, "writing parquet") for name in ("pyarrow", "pyarrow.parquet"))

    codes = np.concatenate(parts)
    columns = {"vector": pa.FixedSizeListArray.from_arrays(pa.array(codes.reshape(-1)), codes.shape[1])}
    if ids or not len(codes):
        columns = {"id": pa.array(ids, pa.string()), **columns}
    table = pa.table(columns).replace_schema_metadata({RECORD: json.dumps(record, sort_keys=True)})
    pq.write_table(table, path, compression="none", use_dictionary=False, row_group_size=65536)
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return file_hash(path)


def file_hash(path: Path) -> str:
    """Compute the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class Cutter:
    """Read batches of ``size`` rows from a source, from row ``start`` on, and cut them where shards end."""

    def __init__(self, source: VectorSource, start: int, size: int) -> None:
        self._batches = source.batches(size, start)
        self._rest: Batch | None = None

    def take(self, count: int) -> Iterator[Batch]:
        """Yield the next ``count`` rows, or those that are left."""
        while count > 0:
            batch = self._rest if self._rest is not None else next(self._batches, None)
            if batch is None:
                return
            head, self._rest = _split(batch, count)
            count -= len(head.rows)
            yield head


def _split(batch: Batch, count: int) -> tuple[Batch, Batch | None]:
    if len(batch.rows) <= count:
        return batch, None
    ids = (None, None) if batch.ids is None else (batch.ids[:count], batch.ids[count:])
    before = {at: why for at, why in batch.faults.items() if at < count}
    after = {at - count: why for at, why in batch.faults.items() if at >= count}
    return (
        Batch(batch.start, batch.rows[:count], ids[0], before),
        Batch(batch.start + count, batch.rows[count:], ids[1], after),
    )
