"""Options and helpers that several commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from smec_st.data import Collection
    from smec_st.data.sources.tables import ArrayVectors
    from smec_st.stores import Estimate

FOLDER = click.Path(path_type=Path)

COLUMN = click.option("--column", help="Tensor, column or field of the vectors, if there are several.")
CODE_NAMES = ["float32", "int8", "uint8", "binary", "ubinary"]
CODES = click.option("--codes", type=click.Choice(CODE_NAMES), help="What whole numbers or base64 in the vectors are; "
                     "float32: plain numbers.")  # fmt: skip
STRICT = click.option("--strict", is_flag=True, help="Refuse judgements of unknown ids, and grades below 0 or between "
                      "whole numbers; by default they are left out or rounded, and counted.")  # fmt: skip
PRECISIONS = ["float32", "float16", "int8", "binary", "pq"]
PRECISION = click.option("--precision", type=click.Choice(PRECISIONS), help="float32 by default.")
SKIP_BAD = click.option("--skip-bad", is_flag=True, help="Leave out rows that cannot be read, or hold NaN, infinity "
                        "or only zeros, and list them beside OUT.")  # fmt: skip
BYTES = click.option("--bytes", "bytes_", type=int, help="Bytes per vector, instead of --dim and --precision.")
SEED = click.option("--seed", type=click.IntRange(0, (1 << 32) - 1), help="Random seed.")
SIMILARITY = click.option(
    "--similarity",
    type=click.Choice(["cosine", "dot"]),
    help="How the model scores; by default as the model or the file of vectors says, else cosine.",
)
TASK = click.option("--task", help="Fashion-200K only: text-to-image (default) or image-to-text.")


def collection_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that name a collection and say how strictly to read it."""
    for option in (
        STRICT,
        TASK,
        CODES,
        click.option("--model", help="Sentence-transformers model that embeds the texts."),
        click.option(
            "--vectors",
            type=FOLDER,
            help="File with the tables `corpus` and `queries` (.safetensors, "
            ".npz, .h5), or a folder with a file for each.",
        ),
        click.option(
            "--data",
            type=FOLDER,
            required=True,
            help="Folder in BEIR layout (corpus.jsonl, queries.jsonl, qrels/), class-labelled images, or a Hub id.",
        ),
    ):
        command = option(command)
    return command


def whole_numbers(text: str, option: str) -> tuple[int, ...]:
    """Parse numbers such as ``"192,96"``; other text raises a DataError that names the option."""
    from smec_st.data import DataError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise DataError(f"{option} takes whole numbers and commas, got {text!r}.") from error


def whole_seeds(text: str) -> tuple[int, ...]:
    """Parse the seeds of ``--seeds``."""
    from smec_st.system.errors import check_seed

    return tuple(map(check_seed, whole_numbers(text, "--seeds")))


def refuse_existing(folder: Path) -> None:
    """Raise a DataError if an output folder exists and is not empty."""
    from smec_st.system.errors import DataError

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} exists already; choose another --out or remove it.")


def print_similarity(collection: Collection) -> None:
    """Print a line if the original vectors are compared in another way than the compressed ones."""
    if collection.similarity == "dot":
        click.echo("original: by inner product, as its model scores; all other rows: by cosine, without lengths")
    elif collection.similarity != "cosine":
        click.echo(f"original: by cosine, although its model scores by {collection.similarity} distance")


def load_table(path: Path, name: str, codes: str | None = None, column: str | None = None) -> ArrayVectors:
    """Read the vectors of a file with ids; ``name`` is the table of a file with several, unless a column is named."""
    from smec_st.data import DataError, open_vectors
    from smec_st.data.sources import TABLES, read_all
    from smec_st.data.sources.tables import ArrayVectors

    try:
        source = open_vectors(path, column or (name if path.suffix in TABLES else None), codes)
    except DataError:
        if column is not None:
            raise
        source = open_vectors(path, None, codes)
    rows, ids = read_all(source)
    return ArrayVectors(source.name, rows, source.record, source.state, ids)


@contextmanager
def listing_bad_rows() -> Iterator[None]:
    """List all rows that cannot be used, one a line, before the error that counts them."""
    from smec_st.stores.bad_rows import BadRows

    try:
        yield
    except BadRows as error:
        for row in error.rows:
            click.echo(str(row), err=True)
        raise


def print_estimate(store: str, estimated: Estimate) -> None:
    """Print the result of a dry run.

    Raises:
        DataError: If there are rows that cannot be used; all are listed.
    """
    from smec_st.stores.bad_rows import BadRows
    from smec_st.system.errors import count

    click.echo(f"{count(estimated.rows, 'vector')} in {store}")
    if estimated.rows:
        ratio = estimated.bytes_before / estimated.bytes_after
        click.echo(f"{estimated.bytes_before:,} bytes become {estimated.bytes_after:,} ({ratio:.0f}x smaller)")
    if estimated.seconds is not None:
        click.echo(f"about {estimated.seconds:.1f} s of computing, plus the time to read and write")
    if estimated.kept_neighbors is not None:
        click.echo(f"{estimated.kept_neighbors:.3f} of the ten nearest neighbours stay (on a sample, before rounding)")
    if estimated.bad:
        with listing_bad_rows():
            raise BadRows(estimated.bad, "mend or remove them, or leave them out with --skip-bad.")


@contextmanager
def row_progress() -> Iterator[Callable[[int, int | None], None]]:
    """Show a progress bar on a terminal; yield a function that takes the rows done and, if known, the total."""
    from tqdm.auto import tqdm

    with tqdm(unit=" rows", unit_scale=True, disable=not sys.stderr.isatty()) as bar:

        def report(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield report


@contextmanager
def thinking(what: str) -> Iterator[None]:
    """Show a word and a spinner on a terminal while imports and files are loaded."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield
