"""How a compressor shows itself in a notebook. Depends on the standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smec_st.quantization.head import Head

BITS = {"float32": 32, "float16": 16, "int8": 8, "binary": 1}  # per dimension


def as_html(width: int, dims: Sequence[int], info: Mapping[str, Any], heads: Sequence[Head], fingerprint: str) -> str:
    """Return a table of sizes: bytes per document by precision, and the share of neighbours that each size keeps.

    Args:
        width: Numbers of an original vector.
        dims: The compressor's sizes.
        info: What it records of its fit.
        heads: Its ways to store documents.
        fingerprint: What it is known by.
    """
    recorded = info.get("kept_neighbors") or {}
    pool = max(recorded, key=int, default="")
    kept = recorded.get(pool) or {}
    head = ["dimensions", "times smaller", *(f"bytes, {precision}" for precision in BITS), "neighbours kept"]
    rows = [
        [
            f"{dim:,}",
            f"{width / dim:.3g}",
            *(f"{-(-dim * bits // 8):,}" for bits in BITS.values()),
            f"{100 * kept[str(dim)]:.1f} %" if str(dim) in kept else "not measured",
        ]
        for dim in dims
    ]
    codes = [head for head in heads if "for_bytes" in head.info]
    best = [f"Best in {code.bytes:,} bytes: {code.precision} of {code.dim:,} dimensions." for code in codes]
    backbone = (info.get("backbone") or {}).get("model") or "an unnamed model"
    notes = [
        f"Vectors of {backbone}, {width:,} dimensions; method {info.get('method') or 'not recorded'}; "
        f"fingerprint {fingerprint}.",
        *best,
        *([f"Neighbours kept: the ten nearest at full width, among {pool} documents of the fit."] if kept else []),
    ]
    return f"<b>Compressor</b>{_table(head, rows)}" + "".join(f"<div>{escape(note)}</div>" for note in notes)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table>{''.join(lines)}</table>"
