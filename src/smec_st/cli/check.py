"""``smec-st check``."""

from __future__ import annotations

from pathlib import Path

import click

from smec_st.cli.options import COLUMN, FOLDER, listing_bad_rows, thinking

DRIFTED = 1


@click.command()
@click.argument("compressor", type=FOLDER)
@click.argument("vectors")
@click.option("--threshold", default=0.05, show_default=True, help="Largest share of neighbours that may be lost.")
@COLUMN
@click.option("--json", "json_file", type=FOLDER, help="Also write the figures to this JSON file.")
def check(compressor: Path, vectors: str, threshold: float, column: str | None, json_file: Path | None) -> None:
    """Check VECTORS for drift: are fewer neighbours kept than at the fit? Exit code 1 if so."""
    with thinking("reading"):
        import json

        from smec_st.compressor import Compressor
        from smec_st.data import open_vectors
        from smec_st.stores import measure_drift
        from smec_st.system.files import write_text

        with listing_bad_rows():
            drift = measure_drift(Compressor.load(compressor), open_vectors(vectors, column))
    if json_file is not None:
        write_text(json_file, json.dumps({**drift.to_dict(), "threshold": threshold}, indent=1) + "\n")
    click.echo(f"share of the ten nearest neighbours at full width that are kept, {drift.pool} vectors of {vectors}")
    for dim, kept in drift.kept.items():
        click.echo(f"{dim:>6} dims: {kept:.3f}, at the fit {drift.at_fit[dim]:.3f}")
    if drift.is_beyond(threshold):
        click.echo(f"drift: more than {threshold} lost; fit again on vectors like these.", err=True)
        click.get_current_context().exit(DRIFTED)
