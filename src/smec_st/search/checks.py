"""Check everything that enters an index before anything is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from smec_st.data import DataError
from smec_st.search.backend import Columns, Ids, Settings
from smec_st.search.filters import FIELD_TYPES, check_value
from smec_st.search.heads import check_kind, codes_of
from smec_st.search.schedule import Schedule, default_schedule
from smec_st.system.errors import some

if TYPE_CHECKING:
    from smec_st.compressor import Compressor

KEEP_ORIGINALS = ("float32", "float16")
ADD_ROWS = 65536  # rows that are written and committed together


def new_settings(
    compressor: Compressor,
    sizes: Sequence[int] | None,
    originals: str | None,
    schedule: Schedule | None,
    **others: Any,
) -> Settings:
    """Make and check the settings of a new index; ``others`` are further fields of :class:`Settings`."""
    if originals is not None and originals not in KEEP_ORIGINALS:
        raise DataError(f"originals are kept as {' or '.join(KEEP_ORIGINALS)} or not at all, not {originals!r}.")
    kind, precision = check_kind(others.get("head", "hnsw-int8"))
    codes = 0
    if precision.startswith("codes:"):
        others["head"] = f"{kind}-{precision}"
        codes = compressor.head(bytes=codes_of(others["head"])).bytes
    stored: tuple[int, ...] = ()
    if not codes or sizes or not originals:
        stored = check_sizes(compressor, sizes, originals is not None)
    if codes and min((*stored, compressor.width)) <= codes:
        raise DataError(f"codes of {codes} bytes are rescored by larger vectors, got {some(stored, 9)} numbers.")
    full = compressor.width if originals else stored[-1]
    schedule = schedule or default_schedule([size for size in stored if size < full], full, codes=codes)
    settings = Settings(compressor.fingerprint, compressor.width, stored, schedule, originals, **others)
    if settings.id_type not in ("int", "str"):
        raise DataError(f"ids are int or str, not {settings.id_type!r}.")
    check_fields(settings.fields)
    return settings


def check_sizes(compressor: Compressor, sizes: Sequence[int] | None, originals: bool) -> tuple[int, ...]:
    """Return the sizes to store, ascending; by default all sizes of the compressor below its width.

    Raises:
        DataError: If the compressor has no such sizes.
    """
    nested = compressor.nested_dims
    width = compressor.width
    possible = sorted(size for size in nested if size < width or not originals)
    if sizes is None:
        if not possible:
            raise DataError(f"this compressor has no size below its width {width}: there is nothing to search by.")
        return tuple(possible)
    chosen = tuple(sorted(set(sizes)))
    wrong = [size for size in chosen if not 1 <= size <= nested[0] or (len(nested) < 2 and size not in nested)]
    if not chosen or wrong or (originals and chosen[-1] >= width):
        raise DataError(f"sizes must be among {some(possible, 9)}, or prefixes of them, got {some(sizes, 9)}.")
    return chosen


def check_fields(fields: Mapping[str, str]) -> None:
    """Check the names and types of scalar fields."""
    for name, kind in fields.items():
        if not name.isidentifier() or name.startswith("_") or name in ("id", "full") or name.startswith("head_"):
            raise DataError(
                f"{name!r} cannot be the name of a field: use letters, digits and inner underscores; "
                "`id`, `full` and `head_...` are reserved."
            )
        if kind not in FIELD_TYPES:
            raise DataError(f"field {name!r} has the unknown type {kind!r}; known are {', '.join(FIELD_TYPES)}.")


@dataclass(frozen=True)
class Documents:
    """Checked rows to add that are not compressed yet.

    Args:
        vectors: ``(n, width)``.
        ids: ``n`` ids, int or str.
        fields: Name to ``n`` values of each scalar field, None where a value is missing.
    """

    vectors: np.ndarray
    ids: list[Any]
    fields: dict[str, list[Any]]

    @classmethod
    def check(
        cls, vectors: np.ndarray, ids: Ids, fields: Columns, id_type: str, field_types: Mapping[str, str]
    ) -> Documents:
        """Check the ids and fields of rows whose vectors were checked before.

        Raises:
            DataError: If ids or values are of another type or number, an id is repeated, or a field is unknown.
        """
        return cls(vectors, new_ids(ids, id_type, len(vectors)), new_fields(fields, field_types, len(vectors)))

    def __len__(self) -> int:
        return len(self.ids)

    def parts(self, rows: int) -> Iterator[Documents]:
        """Yield all documents in order, ``rows`` at a time."""
        for start in range(0, len(self), rows):
            part = slice(start, start + rows)
            fields = {name: column[part] for name, column in self.fields.items()}
            yield Documents(self.vectors[part], self.ids[part], fields)


def as_ids(ids: Ids, id_type: str) -> list[Any]:
    """Convert ids to a list of ``int`` or ``str``, and check their type."""
    plain: list[Any] = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
    if id_type == "int":
        wrong = [each for each in plain if type(each) is not int or not 0 <= each < 1 << 63]
    else:
        wrong = [each for each in plain if type(each) is not str or not each]
    if wrong:
        rule = "whole numbers from 0" if id_type == "int" else "non-empty strings"
        raise DataError(f"ids of this index are {rule}, got {wrong[0]!r}.")
    return plain


def new_ids(ids: Ids, id_type: str, count: int) -> list[Any]:
    """Check the ids of ``count`` rows to add: as many as rows, and none repeated."""
    plain = as_ids(ids, id_type)
    if len(plain) != count:
        raise DataError(f"{count} vectors came with {len(plain)} ids.")
    if len(set(plain)) != count:
        repeated = [each for each, times in Counter(plain).items() if times > 1]
        raise DataError(f"ids come more than once: {some(repeated)}.")
    return plain


def new_fields(fields: Columns, kinds: Mapping[str, str], count: int) -> dict[str, list[Any]]:
    """Check the values of every field for ``count`` rows to add; a field that is left out has missing values."""
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
