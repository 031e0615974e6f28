"""``smec-st migrate``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from smec_st.cli.options import FOLDER, thinking


@click.command()
@click.argument("compressor", type=FOLDER)
@click.argument("store")
@click.option("--out", help="Beside the store: a folder, a FAISS file, or the name of a Milvus collection.")
@click.option(
    "--in-place", is_flag=True, help="Take the store's place; the old one goes when the new one is complete."
)
@click.option("--dry-run", is_flag=True, help="Say what it would cost and lose, and write nothing.")
@click.option("--dim", type=int, help="Size; the widest by default.")
@click.option("--precision", type=click.Choice(["float32", "float16", "int8", "binary", "pq"]))
@click.option("--bytes", "bytes_", type=int, help="Bytes per vector, in place of the two above.")
@click.option("--column", help="Tensor, column or field that holds the vectors, where there are several.")
def migrate(
    compressor: Path,
    store: str,
    out: str | None,
    in_place: bool,
    dry_run: bool,
    dim: int | None,
    precision: str | None,
    bytes_: int | None,
    column: str | None,
) -> None:
    """Rewrite an existing STORE of vectors (files, FAISS, Milvus) with a COMPRESSOR."""
    with thinking("reading"):
        from tqdm import tqdm

        from smec_st.data import DataError
        from smec_st.streaming import Job
        from smec_st.upkeep import Plan, estimate
        from smec_st.upkeep import migrate as rewrite
    if not dry_run and in_place == (out is not None):
        raise DataError("say where to: --out beside the store, or --in-place; or look first with --dry-run.")
    plan = Plan(Job(str(compressor), store, column, dim, precision, bytes_), out)
    if dry_run:
        found = estimate(plan)
        rows = "an unknown number of" if found.rows is None else f"{found.rows:,}"
        click.echo(f"{rows} vectors in {store}")
        if found.bytes_before is not None and found.bytes_after is not None:
            ratio = found.bytes_before / found.bytes_after
            click.echo(f"{found.bytes_before:,} bytes become {found.bytes_after:,} ({ratio:.0f}x smaller)")
        if found.seconds is not None:
            click.echo(f"about {found.seconds:.1f} s of computing, and the time to read and write")
        if found.kept_neighbors is not None:
            click.echo(f"{found.kept_neighbors:.3f} of the ten nearest neighbours stay (on a sample, before rounding)")
        return
    with tqdm(unit=" rows", unit_scale=True, disable=not sys.stderr.isatty()) as bar:

        def told(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        where = rewrite(plan, told)
    click.echo(f"migrated to {where}")
