"""Filters on scalar fields, in one form for every engine.

``{"lang": "en", "year": {"$gte": 2020, "$lt": 2024}, "shop": ["a", "b"]}``: all conditions must hold, and a list means
any of its values. A missing value meets no condition.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from smec_st.data import DataError
from smec_st.system.errors import some

if TYPE_CHECKING:
    import pyarrow as pa

Where = Mapping[str, Any]

FIELD_TYPES: dict[str, type] = {"int": int, "float": float, "str": str, "bool": bool}
OPERATORS = {
    "$eq": ("equal", "=="),
    "$ne": ("not_equal", "!="),
    "$gt": ("greater", ">"),
    "$gte": ("greater_equal", ">="),
    "$lt": ("less", "<"),
    "$lte": ("less_equal", "<="),
    "$in": ("is_in", "in"),
}


def conditions(where: Where, fields: Mapping[str, str]) -> list[tuple[str, str, Any]]:
    """Split a filter into conditions ``(field, operator, value)``, and check them against the fields of an index.

    Raises:
        DataError: If a field or operator is unknown, or a value has another type than its field.
    """
    found: list[tuple[str, str, Any]] = []
    for field, wanted in where.items():
        if field not in fields:
            raise DataError(f"the index has no field {field!r}; it has {some(sorted(fields), 8) or 'none'}.")
        if isinstance(wanted, (list, tuple, set)):
            wanted = {"$in": list(wanted)}
        for operator, value in (wanted if isinstance(wanted, Mapping) else {"$eq": wanted}).items():
            if operator not in OPERATORS:
                raise DataError(f"unknown operator {operator!r} in a filter; known are {', '.join(OPERATORS)}.")
            if operator == "$in" and (isinstance(value, str) or not isinstance(value, (list, tuple, set))):
                raise DataError(f"$in takes a list, got {value!r}.")
            values = list(value) if operator == "$in" else [value]
            checked = [check_value(each, field, fields[field]) for each in values]
            found.append((field, operator, checked if operator == "$in" else checked[0]))
    return found


def check_value(value: object, field: str, kind: str) -> Any:
    """Convert a value to the type of a field, or raise a :class:`DataError`."""
    if isinstance(value, np.generic):
        value = value.item()
    wanted = FIELD_TYPES[kind]
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise DataError(f"field {field!r} holds {kind}, got {value!r}.")
    return value


def arrow_mask(table: pa.Table, where: Where, fields: Mapping[str, str]) -> np.ndarray:
    """Return which rows of a table match a filter, ``(N,)`` bool."""
    import pyarrow as pa
    import pyarrow.compute as pc

    mask = np.ones(len(table), dtype=bool)
    for field, operator, value in conditions(where, fields):
        column = table[field]
        if operator == "$in":
            kept = pc.and_(pc.is_in(column, value_set=pa.array(value, type=column.type)), column.is_valid())
        else:
            kept = getattr(pc, OPERATORS[operator][0])(column, pa.scalar(value, type=column.type))
        mask &= kept.fill_null(False).to_numpy()
    return mask


def milvus_expression(where: Where, fields: Mapping[str, str]) -> str:
    """Translate a filter into an expression of Milvus."""
    parts = []
    for field, operator, value in conditions(where, fields):
        if operator == "$in" and not value:
            parts.append(f"({field} is null and {field} is not null)")  # matches nothing
            continue
        parts.append(f"{field} {OPERATORS[operator][1]} {json.dumps(value, ensure_ascii=False)}")
    return " and ".join(parts)
