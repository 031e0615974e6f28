"""``smec-st check``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from smec_st.cli.options import CODES, COLUMN, FOLDER, listing_bad_rows, thinking

DRIFTED = 1


@click.command()
@click.argument("compressor", type=FOLDER)
@click.argument("documents", required=False)
@click.option("--queries", help="New queries: a file or a store, such as a log of the vectors that were asked.")
@click.option("--threshold", default=0.05, show_default=True, help="Largest share of neighbours documents may lose.")
@click.option("--query-threshold", default=0.05, show_default=True, help="Largest share that queries may lose.")
@click.option("--last", type=click.IntRange(min=1), help="Look at the last rows only, the newest of a log.")
@COLUMN
@CODES
@click.option("--json", "json_file", type=FOLDER, help="Also write the figures to this JSON file.")
def check(
    compressor: Path,
    documents: str | None,
    queries: str | None,
    threshold: float,
    query_threshold: float,
    last: int | None,
    column: str | None,
    codes: str | None,
    json_file: Path | None,
) -> None:
    """Check new DOCUMENTS and --queries for drift: are fewer neighbours kept than at the fit?

    Exit code 0: no. Exit code 1: yes, of one or both. Exit code 2: the check was not possible, and a message says why.
    """
    with thinking("reading"):
        from smec_st.compressor import Compressor
        from smec_st.data import open_vectors
        from smec_st.stores import check_drift
        from smec_st.system.files import write_json

        loaded = Compressor.load(compressor)
        with listing_bad_rows():
            found = check_drift(
                loaded,
                None if documents is None else open_vectors(documents, column, codes),
                None if queries is None else open_vectors(queries, column, codes),
                threshold=threshold,
                query_threshold=query_threshold,
                last=last,
            )
    drifted = [drift for drift in found if drift.is_beyond]
    if json_file is not None:
        content: dict[str, Any] = {"fingerprint": loaded.fingerprint, "drifted": bool(drifted)}
        content.update({drift.side: drift.to_dict() for drift in found})
        write_json(json_file, content, indent=1)
    for drift in found:
        click.echo(f"share of the ten nearest neighbours at full width that are kept, {drift.pool} {drift.side}")
        for dim, kept in drift.kept.items():
            click.echo(f"{dim:>6} dims: {kept:.3f}, at the fit {drift.at_fit[dim]:.3f}")
    for drift in drifted:
        click.echo(
            f"drift of {drift.side}: more than {drift.threshold} lost; fit again on {drift.side} like these.", err=True
        )
    if drifted:
        click.get_current_context().exit(DRIFTED)
