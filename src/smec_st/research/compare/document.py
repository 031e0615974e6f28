"""The Markdown report of a comparison."""

from __future__ import annotations

from collections.abc import Sequence

from smec_st.evaluation.report import Row, markdown_rows, markdown_table
from smec_st.evaluation.statistics import Lossless
from smec_st.research.compare.runner import Outcome


def markdown_report(rows: Sequence[Row], kept: Sequence[Lossless], failed: Sequence[Outcome], reference: str) -> str:
    """Format the report: a table of quality per collection, a table of lossless sizes, and the failed cells."""
    parts = ["# Comparison\n"]
    for collection in dict.fromkeys(row.collection for row in rows):
        of_collection = [row for row in rows if row.collection == collection]
        parts.append(f"## {collection}\n\n{markdown_rows(of_collection, mark=_mark)}\n")
    parts.append(
        f"Means over seeds; the best value of a size is in bold. ~ marks a value whose difference to {reference} at "
        "equal bytes has a 95 % interval, over queries, that includes 0.\n"
    )
    if kept:
        parts.append(f"## Lossless\n\n{_lossless_table(kept)}\n")
        parts.append(
            "How many times smaller than the original, in bytes, the vectors can be before nDCG@10 falls below the "
            "original's; in brackets with 95 % confidence.\n"
        )
    if failed:
        lines = [[o.cell.collection, o.cell.name, str(o.cell.seed), str(o.error).replace("|", "/")] for o in failed]
        parts.append(f"## Failed\n\n{markdown_table(['collection', 'method', 'seed', 'error'], lines)}\n")
    return "\n".join(parts)


def _mark(row: Row) -> str:
    return " ~" if "low" in row.extra and row.extra["low"] <= 0 <= row.extra["high"] else ""


def _lossless_table(kept: Sequence[Lossless]) -> str:
    collections = list(dict.fromkeys(entry.collection for entry in kept))
    found = {(entry.collection, entry.method): entry for entry in kept}
    lines = [
        [method, *(_lossless_text(found.get((collection, method))) for collection in collections)]
        for method in dict.fromkeys(entry.method for entry in kept)
    ]
    return markdown_table(["method", *collections], lines)


def _lossless_text(entry: Lossless | None) -> str:
    if entry is None:
        return ""
    point, sure = ("none" if ratio is None else f"{ratio:.3g}x" for ratio in (entry.byte_ratio, entry.sure_byte_ratio))
    return f"{point} ({sure})"
