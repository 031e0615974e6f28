"""What enters an index is checked here, before anything is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from smec_st.data import DataError
from smec_st.data.errors import some
from smec_st.search.filters import FIELD_TYPES, check_value

if TYPE_CHECKING:
    from smec_st.compressor import Compressor


def check_sizes(compressor: Compressor, sizes: Sequence[int] | None, originals: bool) -> tuple[int, ...]:
    """Sizes to store, rising; :class:`DataError` where the compressor is not nested there."""
    nested = compressor.nested_dims
    top = compressor.width
    possible = sorted(size for size in nested if size < top or not originals)
    if sizes is None:
        if not possible:
            raise DataError(f"this compressor has no size below its width {top}: there is nothing to search by.")
        return tuple(possible)
    chosen = tuple(sorted(set(sizes)))
    wrong = [size for size in chosen if not 1 <= size <= nested[0] or (len(nested) < 2 and size not in nested)]
    if not chosen or wrong or (originals and chosen[-1] >= top):
        raise DataError(f"sizes must be among {some(possible, 9)}, or prefixes of them, got {some(sizes, 9)}.")
    return chosen


def check_fields(fields: Mapping[str, str]) -> dict[str, str]:
    """Field declarations, checked."""
    for name, kind in fields.items():
        if not name.isidentifier() or name.startswith("_") or name in ("id", "full") or name.startswith("head_"):
            raise DataError(f"{name!r} cannot be the name of a field: letters, digits and inner _ only, and not id.")
        if kind not in FIELD_TYPES:
            raise DataError(f"field {name!r} has the unknown type {kind!r}; known are {', '.join(FIELD_TYPES)}.")
    return dict(fields)


def as_ids(ids: Sequence[Any] | np.ndarray, id_type: str) -> list[Any]:
    """Ids as plain ``int`` or ``str``, checked."""
    plain: list[Any] = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
    if id_type == "int":
        wrong = [each for each in plain if type(each) is not int or not 0 <= each < 1 << 63]
    else:
        wrong = [each for each in plain if type(each) is not str or not each]
    if wrong:
        rule = "whole numbers from 0" if id_type == "int" else "non-empty strings"
        raise DataError(f"ids of this index are {rule}, got {wrong[0]!r}.")
    return plain


def new_ids(ids: Sequence[Any] | np.ndarray, id_type: str, count: int) -> list[Any]:
    """Ids of ``count`` rows to add, none of them twice."""
    plain = as_ids(ids, id_type)
    if len(plain) != count:
        raise DataError(f"{count} vectors came with {len(plain)} ids.")
    if len(set(plain)) != count:
        twice = [each for each, times in Counter(plain).items() if times > 1]
        raise DataError(f"{len(twice)} ids come more than once: {some(twice)}.")
    return plain


def new_fields(fields: Mapping[str, Sequence[Any]], kinds: Mapping[str, str], count: int) -> dict[str, list[Any]]:
    """Values of every field of ``count`` rows to add; fields that are left out are missing values."""
    unknown = sorted(set(fields) - set(kinds))
    if unknown:
        raise DataError(f"the index has no field {some(unknown)}; it has {some(sorted(kinds), 8) or 'none'}.")
    values = {}
    for name, kind in kinds.items():
        given = fields.get(name, [None] * count)
        column = given.tolist() if isinstance(given, np.ndarray) else list(given)
        if len(column) != count:
            raise DataError(f"{count} vectors came with {len(column)} values of {name!r}.")
        values[name] = [None if value is None else check_value(value, name, kind) for value in column]
    return values
