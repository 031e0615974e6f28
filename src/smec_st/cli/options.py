"""Options and helpers that several commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from smec_st.data.sources.tables import ArrayVectors

FOLDER = click.Path(path_type=Path)

COLUMN = click.option("--column", help="Tensor, column or field of the vectors, if there are several.")
CODE_NAMES = ["float32", "int8", "uint8", "binary", "ubinary"]
CODES = click.option("--codes", type=click.Choice(CODE_NAMES), help="What whole numbers or base64 in the vectors are; "
                     "float32: plain numbers.")  # fmt: skip
STRICT = click.option("--strict", is_flag=True, help="Refuse judgements of unknown ids, and grades below 0 or between "
                      "whole numbers; by default they are left out or rounded, and counted.")  # fmt: skip
PRECISIONS = ["float32", "float16", "int8", "binary", "pq"]
PRECISION = click.option("--precision", type=click.Choice(PRECISIONS), help="float32 by default.")
BYTES = click.option("--bytes", "bytes_", type=int, help="Bytes per vector, instead of --dim and --precision.")
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


def refuse_existing(folder: Path) -> None:
    """Raise a DataError if an output folder exists and is not empty."""
    from smec_st.data import DataError

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} exists already; choose another --out or remove it.")


def load_table(path: Path, name: str, codes: str | None = None) -> ArrayVectors:
    """Read the vectors of a file with ids; ``name`` is the table to read from a file that holds several."""
    from smec_st.data import DataError, open_vectors
    from smec_st.data.sources import TABLES, read_all
    from smec_st.data.sources.tables import ArrayVectors

    try:
        source = open_vectors(path, name if path.suffix in TABLES else None, codes)
    except DataError:
        source = open_vectors(path, None, codes)
    rows, ids = read_all(source)
    return ArrayVectors(source.name, rows, source.record, source.state, ids)


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
