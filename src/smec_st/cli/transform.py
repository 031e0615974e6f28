"""``smec-st transform``."""

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
@click.argument("vectors")
@click.argument("out", type=FOLDER)
@click.option("--dim", type=int, help="Size; by default the widest that matches --precision and --bytes.")
@PRECISION
@BYTES
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option(
    "--format", "kind", type=click.Choice(["npy", "parquet"]), help="Format in a folder OUT; by default the input's."
)
@COLUMN
@SKIP_BAD
@click.option("--dry-run", is_flag=True, help="Look at all rows, estimate cost and loss, and write nothing.")
@CODES
@click.option("--shard-rows", type=int, default=131_072, show_default=True, help="Rows per output file.")
def transform(
    compressor: Path,
    vectors: str,
    out: Path,
    dim: int | None,
    precision: str | None,
    bytes_: int | None,
    engine: str,
    kind: str | None,
    column: str | None,
    skip_bad: bool,
    dry_run: bool,
    codes: str | None,
    shard_rows: int,
) -> None:
    """Compress VECTORS into OUT in bounded memory; the same command continues after an interruption.

    OUT is one file if its name ends in .npy, .parquet or .safetensors, and a folder of such files if it has no ending.
    """
    with thinking("reading"):
        from smec_st.stores import Job, Plan, estimate, transform_files
        from smec_st.stores.job import left_out_lists
        from smec_st.system.errors import count
    job = Job(str(compressor), vectors, column, dim, precision, bytes_, kind, shard_rows, codes, skip_bad)
    if dry_run:
        print_estimate(vectors, estimate(Plan(job, str(out))))
        return
    with row_progress() as report, listing_bad_rows():
        manifest = transform_files(job, out, engine, report)
    space = manifest.job["space"]
    where = f"{count(len(manifest.shards), 'file')} of {out}" if out.is_dir() else str(out)
    stored = f"{space['precision']}, {count(space['bytes'], 'byte')}"
    click.echo(f"{count(manifest.rows, 'vector')} of {count(space['dim'], 'number')} ({stored}) in {where}")
    left_out = sum(shard.read - shard.rows for shard in manifest.shards)
    if left_out:
        click.echo(f"{count(left_out, 'row')} left out, listed in {left_out_lists(out)}")
    if manifest.job["ids"] is False:
        click.echo("the ids of the rows were not written; .parquet keeps them")
