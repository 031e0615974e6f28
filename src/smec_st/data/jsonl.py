"""Read files of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smec_st.data.errors import DataError, one_line


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file, skipping blank lines.

    Raises:
        DataError: If the file is missing, or a line is not a JSON object. The message names the line.
    """
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)  # from bytes, so that invalid UTF-8 is a ValueError too
            except ValueError as error:
                raise DataError(f"{path}, line {number}: not JSON ({one_line(error)}).") from error
            if not isinstance(record, dict):
                raise DataError(f"{path}, line {number}: not a JSON object.")
            yield record
