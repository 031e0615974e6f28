"""How a compressor shows itself in a notebook. Depends on the standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smec_st.compressor.compressor import Compressor

BITS = {"float32": 32, "float16": 16, "int8": 8, "binary": 1}  # per dimension


def as_html(compressor: Compressor) -> str:
    """Return a table of sizes: bytes per document by precision, and the share of neighbours that each size keeps.

    Args:
        compressor: The compressor to show.
    """
    info = compressor.info
    recorded = info.get("kept_neighbors") or {}
    pool = max(recorded, key=int, default="")
    kept = recorded.get(pool) or {}
    head = ["dimensions", "times smaller", *(f"bytes, {precision}" for precision in BITS), "neighbours kept"]
    rows = [
        [
            f"{dim:,}",
            f"{compressor.width / dim:.3g}",
            *(f"{-(-dim * bits // 8):,}" for bits in BITS.values()),
            f"{100 * kept[str(dim)]:.1f} %" if str(dim) in kept else "not measured",
        ]
        for dim in compressor.dims
    ]
    codes = [head for head in compressor.heads if "for_bytes" in head.info]
    best = [f"Best in {code.bytes:,} bytes: {code.precision} of {code.dim:,} dimensions." for code in codes]
    backbone = (info.get("backbone") or {}).get("model") or "an unnamed model"
    notes = [
        f"Vectors of {backbone}, {compressor.width:,} dimensions; method {info.get('method') or 'not recorded'}; "
        f"fingerprint {compressor.fingerprint}.",
        *best,
        *([f"Neighbours kept: the ten nearest at full width, among {pool} documents of the fit."] if kept else []),
    ]
    return f"<b>Compressor</b>{_table(head, rows)}" + "".join(f"<div>{escape(note)}</div>" for note in notes)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table>{''.join(lines)}</table>"
