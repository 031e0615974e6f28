"""Read files of JSON lines."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from smec_st.system.errors import DataError, one_line, parse_json


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file, which may be gzipped, skipping blank lines.

    Raises:
        DataError: If the file is missing, or a line is not a JSON object. The message names the line.
    """
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    with read_errors(path), open_binary(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            record = parse_json(line, f"{path}, line {number}")
            if not isinstance(record, dict):
                raise DataError(f"{path}, line {number}: not a JSON object.")
            yield record


def read_json_file(path: Path) -> Any:
    """Return the content of a JSON file, which may be gzipped; raise :class:`DataError` if it is not JSON."""
    with read_errors(path), open_binary(path) as file:
        return parse_json(file.read(), str(path))


@contextmanager
def read_errors(path: str | Path) -> Iterator[None]:
    """Raise what the system, gzip, a codec or the csv module reports about a file as a :class:`DataError`."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not readable: it is no UTF-8; save it as such.") from error
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise DataError(f"{path} is not readable: {one_line(error)}") from error


@contextmanager
def open_text(path: Path) -> Iterator[IO[str]]:
    """Open a text file for reading, unpacked if its name ends in ``.gz``; see :func:`read_errors`."""
    with read_errors(path), open_binary(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
        yield file


def open_binary(path: Path) -> IO[bytes]:
    """Open a file for reading, unpacked if its name ends in ``.gz``."""
    return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def only_file(folder: Path, names: Sequence[str]) -> Path:
    """Return the file in a folder that has one of these names, or its path under the first name if there is none.

    Raises:
        DataError: If there are several, which may differ.
    """
    found = [name for name in names if (folder / name).is_file()]
    if len(found) > 1:
        raise DataError(f"{folder} has both {' and '.join(found)}; keep one.")
    return folder / (found or names)[0]


def plain_suffix(path: Path) -> str:
    """Return the suffix of a path without ``.gz``, in lower case."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()
