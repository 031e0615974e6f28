"""``smec-st transform``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from smec_st.cli.options import FOLDER, thinking


@click.command()
@click.argument("compressor", type=FOLDER)
@click.argument("vectors")
@click.argument("out", type=FOLDER)
@click.option("--dim", type=int, help="Size; by default the widest, or the one that fits --precision and --bytes.")
@click.option(
    "--precision", type=click.Choice(["float32", "float16", "int8", "binary", "pq"]), help="float32 by default."
)
@click.option("--bytes", "bytes_", type=int, help="Bytes per vector, in place of the two above; see `fit --bytes`.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option("--format", "kind", type=click.Choice(["npy", "parquet"]), help="By default that of the input.")
@click.option("--column", help="Tensor, column or field that holds the vectors, where there are several.")
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
    shard_rows: int,
) -> None:
    """Compress VECTORS into the folder OUT, in bounded memory; the same command goes on after a stop."""
    with thinking("reading"):
        from tqdm import tqdm

        from smec_st.streaming import Job, transform_files
    job = Job(str(compressor), vectors, column, dim, precision, bytes_, kind, shard_rows)
    with tqdm(unit=" rows", unit_scale=True, disable=not sys.stderr.isatty()) as bar:

        def told(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        manifest = transform_files(job, out, engine, told)
    space = manifest.job["space"]
    click.echo(
        f"{manifest.rows:,} vectors of {space['dim']} numbers ({space['precision']}, {space['bytes']} bytes) "
        f"in {len(manifest.shards)} files of {out}"
    )
