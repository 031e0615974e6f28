"""What several commands share: options, and how they are read."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

FOLDER = click.Path(path_type=Path)


TASK = click.option("--task", help="Of Fashion-200K: text-to-image, the default, or image-to-text.")


def collection_options(command: Callable[..., None]) -> Callable[..., None]:
    """``--data``, which task of it, and where its vectors come from."""
    for option in (
        TASK,
        click.option("--model", help="Sentence-transformers model that embeds the texts."),
        click.option("--vectors", type=FOLDER, help="Safetensors file with the tensors `corpus` and `queries`."),
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
    """``"192,96"`` as numbers; anything else is an error that names the option."""
    from smec_st.data import DataError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise DataError(f"{option} takes whole numbers and commas, got {text!r}.") from error


def refuse_existing(folder: Path) -> None:
    """An output folder must be new or empty."""
    from smec_st.data import DataError

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} exists already; choose another --out or remove it.")


@contextmanager
def thinking(what: str) -> Iterator[None]:
    """A word and a spinner while imports and files take their time."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield
