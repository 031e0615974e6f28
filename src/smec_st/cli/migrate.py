"""``smec-st migrate``."""

from __future__ import annotations

from pathlib import Path

import click

from smec_st.cli.options import (
    BYTES,
    CODES,
    COLUMN,
    FOLDER,
    PRECISION,
    SKIP_BAD,
    listing_bad_rows,
    print_estimate,
    row_progress,
    thinking,
)


@click.command()
@click.argument("compressor", type=FOLDER)
@click.argument("store")
@click.option("--out", help="Where to write: a folder, a FAISS file, or a collection in the same Milvus database.")
@click.option("--in-place", is_flag=True, help="Replace the store, and delete the old one when that is done.")
@SKIP_BAD
@click.option("--dry-run", is_flag=True, help="Look at all rows, estimate cost and loss, and write nothing.")
@click.option("--dim", type=int, help="Size; the widest by default.")
@PRECISION
@BYTES
@COLUMN
@CODES
def migrate(
    compressor: Path,
    store: str,
    out: str | None,
    in_place: bool,
    skip_bad: bool,
    dry_run: bool,
    dim: int | None,
    precision: str | None,
    bytes_: int | None,
    column: str | None,
    codes: str | None,
) -> None:
    """Rewrite an existing STORE of vectors (files, FAISS, Milvus) with a COMPRESSOR."""
    with thinking("reading"):
        from smec_st.data import DataError
        from smec_st.stores import Job, Plan, estimate
        from smec_st.stores import migrate as rewrite
        from smec_st.stores.migrate import check_in_place
    if (in_place and out is not None) or not (in_place or out is not None or dry_run):
        raise DataError("say where to write: --out or --in-place; or estimate first with --dry-run.")
    plan = Plan(Job(str(compressor), store, column, dim, precision, bytes_, codes=codes, skip_bad=skip_bad), out)
    if dry_run:
        if in_place:
            check_in_place(plan.job)
        print_estimate(store, estimate(plan))
        return
    with row_progress() as report, listing_bad_rows():
        where = rewrite(plan, report)
    click.echo(f"migrated to {where}")
