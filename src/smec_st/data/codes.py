"""Turn numbers, codes, bytes and texts into vectors; every reader uses this module, so all formats agree.

Whole numbers are read only if `codes` says what they are, because scaled and packed codes look the same:

- ``float32``: plain numbers, whatever they look like;
- ``int8``: scaled to -128..127; the direction is that of the numbers;
- ``uint8``: the same plus 128;
- ``ubinary``: eight signs per byte, the first in the highest bit, as ``numpy.packbits`` packs them;
- ``binary``: the same minus 128.

These are the codes of Cohere, Voyage, Jina, Mistral and sentence-transformers. A text is base64 of such numbers, or
numbers in brackets, as pgvector and pandas write a vector into a cell.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import numpy as np

from smec_st.system.errors import DataError, one_line

#: Codes and the type of their bytes.
CODES: Mapping[str, str] = {"float32": "<f4", "int8": "i1", "uint8": "u1", "binary": "i1", "ubinary": "u1"}
LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "binary": (-128, 127), "ubinary": (0, 255)}

FLOAT_MARKS = frozenset(".einaft")  # a text without any of these letters is a whole number


def check_codes(codes: str | None) -> None:
    """Raise :class:`DataError` unless these codes are known."""
    if codes is not None and codes not in CODES:
        raise DataError(f"codes are {', '.join(CODES)}, got {codes!r}.")


def decoded_width(width: int, codes: str | None) -> int:
    """Return how many numbers ``width`` stored numbers decode to."""
    return 8 * width if codes in ("binary", "ubinary") else width


def decode(values: np.ndarray, codes: str | None, where: str) -> np.ndarray:
    """Return stored numbers as vectors.

    Args:
        values: Stored numbers, ``(..., w)``, of any type.
        codes: What they are, see the module; None if they are floats.
        where: What error messages call them.

    Returns:
        ``(..., D)``: floats as they are, everything else as float32.

    Raises:
        DataError: If whole numbers come without codes, or a number is not such a code.
    """
    check_codes(codes)
    if values.dtype.kind not in "fiu":
        raise DataError(f"{where}: vectors must be numbers, got {values.dtype}.")
    if codes is None and values.dtype.kind in "iu":
        raise DataError(refusal(f"{where}: vectors must be floats, got whole numbers ({values.dtype})"))
    if codes is None or codes == "float32":
        return values if values.dtype.kind == "f" else values.astype(np.float32)
    low, high = LIMITS[codes]
    wrong = (values < low) | (values > high) | (values != np.round(values))
    if wrong.any() or not np.isfinite(values).all():
        raise DataError(f"{where}: {codes} codes are whole numbers from {low} to {high}, got {values[wrong][:1]}.")
    if codes == "int8":
        return values.astype(np.float32)
    if codes == "uint8":
        return values.astype(np.float32) - 128
    shifted = values.astype(np.int16) - low  # 0..255
    return np.unpackbits(shifted.astype(np.uint8), axis=-1).astype(np.float32) * 2 - 1


def refusal(seen: str) -> str:
    """Return the message for numbers that could be several things."""
    return f"{seen}. Say with `codes` (--codes) what they are: {', '.join(CODES)} (plain numbers are float32)."


def parse_vector(value: object, codes: str | None, where: str) -> np.ndarray:
    """Return one vector that a text file, a cell or an answer holds, ``(D,)`` float32.

    Args:
        value: A list of numbers, base64, numbers in brackets, or bytes.
        codes: What the numbers are, see the module; None if they are floats.
        where: What error messages call it.

    Raises:
        DataError: If it is not a vector, or it is not clear which.
    """
    if isinstance(value, bytes):
        return _from_bytes(value, codes, where)
    if isinstance(value, str):
        return _from_text(value.strip(), codes, where)
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: not a vector of floats, but {_kind(value)}.")
    kinds = set(map(type, value))
    if not kinds <= {int, float}:
        other = next(item for item in value if type(item) not in (int, float))
        raise DataError(f"{where}: not a vector of floats, one of its numbers is {_kind(other)}.")
    return _from_numbers(value, kinds == {int}, codes, where)


def parse_cells(cells: list[str], codes: str | None, where: str) -> np.ndarray:
    """Return the vector whose numbers are texts, one per cell, ``(D,)`` float32."""
    letters = "".join(cells).lower()
    if "_" in letters:  # Python reads 1_0 as 10
        raise DataError(f"{where}: not a vector of floats ({one_line(ValueError(letters))[:40]!r}).")
    return _from_numbers(cells, FLOAT_MARKS.isdisjoint(letters), codes, where)


def _from_numbers(value: list[Any], are_whole: bool, codes: str | None, where: str) -> np.ndarray:
    try:
        row = np.array(value, dtype=np.float64)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{where}: not a vector of floats ({one_line(error)}).") from error
    if codes is None and are_whole:
        raise DataError(refusal(f"{where}: vectors must be floats, got whole numbers only"))
    return _single(decode(row, codes, where), where)


def _single(row: np.ndarray, where: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        single: np.ndarray = row.astype(np.float32)
    if np.isinf(single).any() and np.isfinite(row).all():
        raise DataError(f"{where}: a number is too large for float32.")
    return single


def _from_text(text: str, codes: str | None, where: str) -> np.ndarray:
    if (text[:1], text[-1:]) in (("[", "]"), ("{", "}")):
        inner = text[1:-1]
        return parse_cells(inner.split(",") if "," in inner else inner.split() or [""], codes, where)
    if len(text) >= 8 and not text.strip("01"):
        raise DataError(f"{where}: a text of bits is not read; pack them and say `codes` ubinary.")
    try:
        data = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise DataError(f"{where}: not a vector of floats, but the text {text[:20]!r}.") from error
    return _from_bytes(data, codes, where)


def _from_bytes(data: bytes, codes: str | None, where: str) -> np.ndarray:
    kind = CODES[codes or "float32"]
    if not data or len(data) % np.dtype(kind).itemsize:
        raise DataError(refusal(f"{where}: {len(data)} bytes are no vector of {codes or 'float32'}"))
    row = np.frombuffer(data, dtype=kind)
    if codes is None and not _are_floats(row):
        raise DataError(refusal(f"{where}: {len(data)} bytes that are no plausible float32 numbers"))
    return _single(decode(row, codes, where), where)


def _are_floats(row: np.ndarray) -> bool:
    """Return whether bytes read as float32 are floats: codes read so get exponents all over the range."""
    if not np.isfinite(row).all() or not row.any():
        return False
    lower = row.view("<u4")[::2] & 0x1FFFFFFF  # all 0 in float64 numbers that were float32 before
    if len(row) >= 8 and len(row) % 2 == 0 and not lower.any():
        return False
    size = np.abs(row[row != 0].astype(np.float64))
    return bool(1e-4 < size.max() < 1e4 and size.min() > 1e-10 * size.max())


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    kind = names.get(type(value), "a number")
    return "an empty list" if value == [] else kind
