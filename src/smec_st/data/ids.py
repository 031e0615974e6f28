"""Names of id columns, ids as text, and the one join by id, which all readers share."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from smec_st.system.errors import DataError, count, some, storable, tell

#: Names of a column or field of ids, without case, `-`, `_` and spaces. An earlier name wins over a later one.
ID_NAMES = (
    "id", "ids", "customid", "recordid", "rowid", "chunkid", "passageid", "pid", "docid", "documentid", "docno",
    "corpusid", "queryid", "qid", "uuid", "pk", "index", "unnamed:0", "indexlevel0",
)  # fmt: skip

WHOLE_FLOAT = re.compile(r"-?\d+\.0+")
LARGEST_EXACT = 1 << 53  # above it, a float64 stands for several whole numbers


def plain_name(name: str) -> str:
    """Return a column's name without case, `-`, `_` and spaces, to compare it with known names."""
    return re.sub(r"[-_\s]", "", name).lower()


def find_id(names: Iterable[str]) -> str | None:
    """Return the column or field of ids among ``names``, or None.

    Raises:
        DataError: If one id name is there in two spellings, such as ``id`` and ``_id``.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        plain = plain_name(name)
        is_plural = plain.endswith("s") and plain not in ID_NAMES  # arrays are often called `doc_ids`
        found.setdefault(plain[:-1] if is_plural else plain, []).append(name)
    best = next((found[known] for known in ID_NAMES if known in found), [])
    if len(best) > 1:
        raise DataError(f"both {' and '.join(best)} may hold the ids; rename all but one.")
    return best[0] if best else None


def id_text(value: object, where: str) -> str:
    """Return an id as text. A whole number is the same id as an integer and as a float.

    Raises:
        DataError: If there is no id (None, NaN or an empty text), it is neither a text nor a number, or it is a float
            above 2^53, whose last digits are lost.
    """
    if isinstance(value, bytes):
        try:
            text = value.decode("utf-8")
        except UnicodeDecodeError:
            text = ""
        if value and not (text and text.isprintable()):
            raise DataError(f"{where}: {len(value)} bytes that are no text are no id.")
        value = text
    if isinstance(value, float | np.floating) and float(value).is_integer():
        if abs(value) > LARGEST_EXACT:
            raise DataError(f"{where}: the id {value!r} is a float, whose last digits are lost; keep ids as text.")
        value = int(value)
    is_missing = value is None or value == "" or (isinstance(value, float | np.floating) and math.isnan(value))
    if is_missing or isinstance(value, bool | list | dict):
        raise DataError(f"{where}: {'lacks an id' if is_missing else f'{value!r} is no id'}.")
    return storable(str(value), where)


def join_by_id(wanted: Sequence[str], given: Sequence[str], what: str) -> np.ndarray:
    """Return the row in ``given`` of each wanted id, ``(len(wanted),)`` int64.

    The ids are usually in the same order already. Otherwise a message says that rows were joined by id, and how many
    rows were left out because no wanted id belongs to them. Messages call the rows ``what``.

    Raises:
        DataError: If given ids repeat, or a wanted id is not among them.
    """
    if list(wanted) == list(given):
        return np.arange(len(wanted))
    if all(map(WHOLE_FLOAT.fullmatch, given)) and set(wanted).isdisjoint(given):  # a float column has made 42.0 of 42
        given = [key.partition(".")[0] for key in given]
    row = {key: number for number, key in enumerate(given)}
    if len(row) != len(given):
        repeated = [key for key, times in Counter(given).items() if times > 1]
        raise DataError(f"{what} repeat the id {some(repeated)}.")
    rows, missing = find_rows(wanted, row)
    if missing:
        raise DataError(
            f"{what} lack {len(missing)} of {count(len(wanted), 'id')}: {some(missing)}; theirs are {some(given)}. "
            "Give vectors with the same ids, or without ids to go by position."
        )
    extra = len(given) - len(wanted)
    tell(
        f"{what} are joined by id"
        + (f"; {extra} of {len(given)} have ids that are not wanted and are left out." if extra else ".")
    )
    return rows


def find_rows(ids: Sequence[str], row: dict[str, int]) -> tuple[np.ndarray, list[str]]:
    """Return the row of each id, -1 where it is unknown, and the unknown ids, each once.

    An id such as ``42.0``, which a float column makes of 42, is found as 42 if it is not known itself.
    """
    found = [row.get(key, -1) for key in ids]
    for place, key in enumerate(ids):
        if found[place] < 0 and WHOLE_FLOAT.fullmatch(key):
            found[place] = row.get(key.partition(".")[0], -1)
    unknown = dict.fromkeys(key for key, place in zip(ids, found, strict=True) if place < 0)
    return np.array(found, dtype=np.int64), list(unknown)
