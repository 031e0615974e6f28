"""``smec-st report``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from smec_st.cli.options import FOLDER, collection_options, thinking


@click.command()
@click.argument("compressor", type=FOLDER)
@collection_options
@click.option("--split", default="test", show_default=True, help="Judgements to score against.")
@click.option("--out", type=FOLDER, default="report.html", show_default=True, help="HTML file to write.")
def report(
    compressor: Path,
    data: Path,
    vectors: Path | None,
    model: str | None,
    task: str | None,
    codes: str | None,
    strict: bool,
    split: str,
    out: Path,
) -> None:
    """Write one HTML file about a COMPRESSOR: plots, what the fit decided, and the queries that changed most.

    The file needs no network. It shows texts and images of the collection where they are in --data.
    """
    with thinking("reading"):
        from smec_st.compressor import Compressor
        from smec_st.data import load_collection
        from smec_st.report import write_page

        out.parent.mkdir(parents=True, exist_ok=True)
        loaded = Compressor.load(compressor)
        collection = load_collection(data, vectors, model, task, codes=codes, strict=strict)
    write_page(loaded, collection, out, split, data, progress=sys.stderr.isatty())
    click.echo(f"wrote {out}")
