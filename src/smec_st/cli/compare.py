"""``smec-st compare``."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from smec_st.cli.allocator import keep_freed_memory
from smec_st.cli.options import CODES, FOLDER, STRICT, TASK, thinking, whole_numbers, whole_seeds

if TYPE_CHECKING:
    from smec_st.research.compare import Outcome, Recommendation

FAILED = 1


@click.command()
@click.option("--data", "folders", multiple=True, required=True, help="Collection; repeat for several.")
@click.option("--vectors", "files", type=FOLDER, multiple=True, help="Vectors; one for each --data, in order.")
@click.option("--model", help="Sentence-transformers model that embeds the texts.")
@TASK
@CODES
@STRICT
@click.option("--dims", "sizes", multiple=True, help="Sizes, once for all collections or once for each --data.")
@click.option("--methods", default="all", show_default=True, help="Names separated by commas, or all.")
@click.option("--out", type=FOLDER, required=True, help="Folder for the report; an earlier comparison is continued.")
@click.option("--seeds", default="0", show_default=True, help="Seeds of random methods, for instance 0,1,2.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Number of processes.")
@click.option("--reference", help="Method to compare the others with; smec by default.")
@click.option("--no-labels", is_flag=True, help="Do not use the training judgements; recommend a size.")
def compare(
    folders: tuple[str, ...],
    files: tuple[Path, ...],
    model: str | None,
    task: str | None,
    codes: str | None,
    strict: bool,
    sizes: tuple[str, ...],
    methods: str,
    out: Path,
    seeds: str,
    jobs: int,
    reference: str | None,
    no_labels: bool,
) -> None:
    """Fit and score methods side by side, on one or more collections."""
    keep_freed_memory()
    from smec_st.data import DataError

    if files and len(files) != len(folders):
        raise DataError(f"give one --vectors for each --data; got {len(files)} and {len(folders)}.")
    dims = [whole_numbers(text, "--dims") for text in sizes]
    with thinking("reading"):
        from smec_st.evaluation.report import print_rows
        from smec_st.research import compare as comparing

        chosen, notices = comparing.choose(methods, labels=not no_labels)
        sources = [
            comparing.Source(folder, file, model, task, codes, strict)
            for folder, file in zip(folders, files or [None] * len(folders), strict=True)
        ]
        planned = comparing.plan(
            sources,
            chosen,
            dims or None,
            out,
            seeds=whole_seeds(seeds),
            labels=not no_labels,
            reference=reference,
        )
    for notice in notices:
        click.echo(notice, err=True)
    with _cell_progress(planned.missing) as on_outcome:
        comparison = comparing.compare(planned, jobs, on_outcome)
    for collection in dict.fromkeys(row.collection for row in comparison.rows):
        print_rows([row for row in comparison.rows if row.collection == collection], collection)
    if no_labels:
        _print_recommendations(comparison.recommended, planned.reference)
    click.echo(f"saved to {out}")
    for outcome in comparison.failed:
        click.echo(f"smec-st: {outcome}", err=True)
    if comparison.failed:
        raise click.exceptions.Exit(FAILED)


@contextmanager
def _cell_progress(total: int) -> Iterator[Callable[[Outcome], None]]:
    """Show a progress bar on a terminal, and otherwise print a line for each cell that ends."""
    if sys.stderr.isatty():
        from tqdm.auto import tqdm

        with tqdm(total=total, unit="fit") as bar:

            def advance(outcome: Outcome) -> None:
                bar.set_postfix_str(str(outcome), refresh=False)
                bar.update()

            yield advance
    else:
        numbers = itertools.count(1)
        yield lambda outcome: click.echo(f"{next(numbers)}/{total} {outcome}", err=True)


def _print_recommendations(entries: Sequence[Recommendation], reference: str) -> None:
    """Print the sizes recommended for the reference method, or for all methods if it has none."""
    for entry in [entry for entry in entries if entry.method == reference] or entries:
        size = "no size" if entry.dim is None else f"{entry.dim} dims"
        click.echo(f"{entry.collection}, {entry.method}: {size} should keep 95 % of the original's nDCG@10")
