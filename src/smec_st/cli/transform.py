"""``smec-st transform``."""

from __future__ import annotations

from pathlib import Path

import click

from smec_st.cli.options import BYTES, CODES, COLUMN, FOLDER, PRECISION, row_progress, thinking


@click.command()
@click.argument("compressor", type=FOLDER)
@click.argument("vectors")
@click.argument("out", type=FOLDER)
@click.option("--dim", type=int, help="Size; by default the widest that matches --precision and --bytes.")
@PRECISION
@BYTES
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option("--format", "kind", type=click.Choice(["npy", "parquet"]), help="Format of OUT; by default the input's.")
@COLUMN
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
    codes: str | None,
    shard_rows: int,
) -> None:
    """Compress VECTORS into the folder OUT in bounded memory; the same command continues after an interruption."""
    with thinking("reading"):
        from smec_st.stores import Job, transform_files
    job = Job(str(compressor), vectors, column, dim, precision, bytes_, kind, shard_rows, codes)
    with row_progress() as report:
        manifest = transform_files(job, out, engine, report)
    space = manifest.job["space"]
    click.echo(
        f"{manifest.rows:,} vectors of {space['dim']} numbers ({space['precision']}, {space['bytes']} bytes) "
        f"in {len(manifest.shards)} files of {out}"
    )
