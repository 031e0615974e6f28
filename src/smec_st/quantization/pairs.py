"""The pairs of size and precision that a compressor can store documents in, and which of them are worth trying."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from smec_st.evaluation.limits import Limit, Pair
from smec_st.system.errors import DataError, count, whole_number


def pairs_in(bytes: int, dims: Sequence[int], nested: Sequence[int]) -> Iterator[Pair]:
    """All pairs that take this many bytes, each with a size that the compressor serves.

    Args:
        bytes: Bytes per document.
        dims: Sizes of the compressor.
        nested: Those that are prefixes of the widest of them, in descending order.
    """

    def serves(dim: int) -> bool:
        return dim in dims or (len(nested) > 1 and nested[-1] // 4 <= dim <= nested[0])

    for precision, bits in (("float32", 32), ("float16", 16), ("int8", 8), ("binary", 1)):
        if 8 * bytes % bits == 0 and serves(8 * bytes // bits):
            yield Pair(8 * bytes // bits, precision, bytes)
    whole = {dim - dim % bytes for dim in dims}  # a prefix, where the bytes do not divide a size
    for dim in sorted(whole):
        if dim > bytes and serves(dim):
            yield Pair(dim, "pq", bytes)


def pairs_to_try(
    dims: Sequence[int], nested: Sequence[int], limit: Limit | None = None, bytes: int | None = None
) -> list[Pair]:
    """The pairs among which held-out queries choose.

    Of a number of bytes these are all that take exactly that many. Otherwise each precision comes with as many bytes
    as the limit allows, and a pair is left out when another one stores at least as many numbers with at least as many
    bits for each.

    Args:
        dims: Sizes of the compressor.
        nested: Those that are prefixes of the widest of them, in descending order.
        limit: What every pair must keep to.
        bytes: Bytes per document; None for what the limit allows.

    Raises:
        DataError: If there is no such pair. The message names the smallest that an index takes.
    """
    limit = limit or Limit()
    if bytes is not None:
        bytes = whole_number(bytes, "bytes")
        exact = [pair for pair in pairs_in(bytes, dims, nested) if limit.allows(pair)]
        if not exact:
            raise DataError(_not_in_bytes(dims, nested, limit, bytes))
        return exact
    most: dict[str, list[Pair]] = {}
    for number in range(int(min(limit.bytes, 4 * max(dims))), 0, -1):
        allowed = [pair for pair in pairs_in(number, dims, nested) if limit.allows(pair)]
        for precision in {pair.precision for pair in allowed} - set(most):
            most[precision] = [pair for pair in allowed if pair.precision == precision]
    found = [pair for pairs in most.values() for pair in pairs]
    if not found:
        raise DataError(_nothing_fits(dims, nested, limit))
    best = [pair for pair in found if not any(_is_finer(other, pair) for other in found)]
    return sorted(best, key=lambda pair: (pair.bytes, pair.dim))


def bytes_to_test(dims: Sequence[int], limit: Limit | None = None) -> tuple[int, ...]:
    """Numbers of bytes that are tested for a target: one per four numbers of each size, and what a limit leaves.

    Args:
        dims: Sizes that are trained. Which sizes between them are served as well is not known before the fit.
        limit: What every pair must keep to.

    Returns:
        In descending order; none if no pair of a trained size keeps to the limit.
    """
    limit = limit or Limit()
    numbers = {dim // 4 for dim in dims if dim >= 8}
    if 1 <= limit.bytes <= 4 * max(dims):
        numbers.add(int(limit.bytes))
    return tuple(sorted((each for each in numbers if any(map(limit.allows, pairs_in(each, dims, ())))), reverse=True))


def _is_finer(one: Pair, other: Pair) -> bool:
    """Whether one stores at least as many numbers with at least as many bits each, and is not the same."""
    bits = one.bytes * other.dim - other.bytes * one.dim  # the sign of the difference in bits per number
    return one.dim >= other.dim and bits >= 0 and (one.dim, one.bytes) != (other.dim, other.bytes)


def _not_in_bytes(dims: Sequence[int], nested: Sequence[int], limit: Limit, bytes: int) -> str:
    """Say which number of bytes, the nearest one, would do."""
    possible = (pair for number in range(1, 4 * max(dims) + 1) for pair in pairs_in(number, dims, nested))
    nearest = min(filter(limit.allows, possible), key=lambda pair: abs(pair.bytes - bytes), default=None)
    if nearest is None:
        return _nothing_fits(dims, nested, limit)
    where = "" if limit == Limit() else f" within {limit}"
    sizes = ", ".join(map(str, dims))
    return (
        f"no size of this compressor ({sizes}) can be stored in {count(bytes, 'byte')}{where}; "
        f"the nearest that can is {count(nearest.bytes, 'byte')} ({nearest})."
    )


def _nothing_fits(dims: Sequence[int], nested: Sequence[int], limit: Limit) -> str:
    """Say what the smallest pair takes that the index would take."""
    index = Limit(limit.index)
    numbers = range(1, 4 * max(dims) + 1)
    smallest = next((pair for each in numbers for pair in pairs_in(each, dims, nested) if index.allows(pair)), None)
    sizes = ", ".join(map(str, dims))
    if smallest is None:
        return f"none of the sizes {sizes} fits {limit}."
    need = f"{count(smallest.bytes, 'byte')} a document"
    if limit.documents is not None:
        need += f", {_readable(smallest.bytes * limit.documents)} for {limit.documents:,} documents"
    return f"none of the sizes {sizes} fits {limit}: the smallest way to store one, {smallest}, takes {need}."


def _readable(size: float) -> str:
    """A number of bytes in a unit that people read."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"
