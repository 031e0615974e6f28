"""``smec-st index``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smec_st.cli.options import CODES, COLUMN, FOLDER, load_table, thinking, whole_numbers

if TYPE_CHECKING:
    from smec_st.compressor import Compressor
    from smec_st.search import FunnelIndex

RowIds = Sequence[int] | Sequence[str]


@click.command()
@click.argument("compressor", type=FOLDER)
@click.option("--vectors", type=FOLDER, required=True, help="Documents, in any format; their ids are kept.")
@COLUMN
@CODES
@click.option("--out", "uri", default="index", show_default=True, metavar="URI", help="A folder (searched by FAISS "
              "in this process), NAME.db (Milvus Lite), or http://HOST:19530 (Milvus).")  # fmt: skip
@click.option("--rows", type=FOLDER, help="Ids and fields, one row per vector: .jsonl, .csv or .parquet. Joined by "
              "id if the vectors have ids too, else by position. Fields are those named by --field.")  # fmt: skip
@click.option("--field", "names", multiple=True, help="Column of --rows to filter by; may be repeated.")
@click.option("--queries", type=FOLDER, help="Typical queries, to choose the schedule on.")
@click.option("--recall", default=0.99, show_default=True, help="Share of exact full-width search to reach.")
@click.option("--k", default=10, show_default=True, help="Results per query to choose the schedule for.")
@click.option("--dims", help="Sizes to store, for instance 48,96; by default chosen from the data.")
@click.option(
    "--head",
    help="flat, hnsw or ivf, each also with -float16, -int8, -int4, -pq or "
    "-codes:BYTES; codes:BYTES alone is ivf-codes:BYTES.  [default: hnsw-int8]",
)
@click.option(
    "--bytes", "bytes_", type=int, help="Search codes of this many bytes first; the compressor must have them."
)
@click.option("--originals", default="float32", show_default=True, type=click.Choice(["float32", "float16", "none"]))
@click.option("--add", is_flag=True, help="Add to an existing index, with its settings.")
@click.option("--replace", is_flag=True, help="With --add: replace rows with the same ids.")
@click.option("--move-from", "old", metavar="URI", help="Index of a model that is replaced: delete these documents "
              "there once they are here. With --add, the same command finishes an interrupted move.")  # fmt: skip
@click.option("--json", "json_file", type=FOLDER, help="Also write schedule and bytes to this JSON file.")
def index(
    compressor: Path,
    vectors: Path,
    codes: str | None,
    uri: str,
    rows: Path | None,
    names: tuple[str, ...],
    queries: Path | None,
    recall: float,
    k: int,
    column: str | None,
    dims: str | None,
    head: str | None,
    bytes_: int | None,
    originals: str,
    add: bool,
    replace: bool,
    old: str | None,
    json_file: Path | None,
) -> None:
    """Index vectors for search with a COMPRESSOR; the same command continues an interrupted build."""
    with thinking("reading"):
        from smec_st.compressor import Compressor
        from smec_st.compressor.space import check_space
        from smec_st.data import DataError
        from smec_st.data.rows import read_rows
        from smec_st.search import FunnelIndex
        from smec_st.system.files import write_json

        if head is not None and bytes_ is not None:
            raise DataError("give --head or --bytes, not both.")
        head = head or ("hnsw-int8" if bytes_ is None else f"codes:{bytes_}")
        loaded = Compressor.load(compressor)
        source = load_table(vectors, "corpus", codes, column)
        table = source.array
        if not add:
            check_space(loaded, source.width, source.record, source.name)
        ids, fields = read_rows(rows, names, len(table), source.ids)
        if old is not None:
            _check_move(old, ids, uri, loaded)
        query_source = None if queries is None else load_table(queries, "queries", codes, column)
        if query_source is not None:
            check_space(loaded, query_source.width, query_source.record, query_source.name)
    with _progress_bars() as report_progress:
        if add:
            with FunnelIndex.open(uri, loaded) as opened:
                opened.check(source, () if opened.settings.originals else opened.settings.sizes[-1:])
                kept = None if ids is None else _ids_of(opened, ids)
                progress = _add_up(report_progress, len(table))
                opened.add(table, kept, fields, replace=replace or old is not None, progress=progress)
                opened.flush()
        else:
            built = FunnelIndex.build(
                uri,
                loaded,
                table,
                ids=ids,
                fields=fields,
                queries=None if query_source is None else query_source.array,
                recall=recall,
                k=k,
                dims=None if dims is None else whole_numbers(dims, "--dims"),
                head=head,
                originals=None if originals == "none" else originals,
                progress=report_progress,
            )
    with FunnelIndex.open(uri, loaded) if add else built as opened:
        report = {"schedule": opened.schedule.to_dict(), **opened.bytes()}
        truth = "full-width search" if opened.settings.originals else f"search at {opened.settings.full} numbers"
        _print_report(opened.uri, str(opened.schedule), report, truth)
    if old is not None and ids is not None:
        _delete_moved(old, ids)
    if json_file is not None:
        write_json(json_file, report, indent=1)


def _check_move(old: str, ids: RowIds | None, new: str, compressor: Compressor) -> None:
    """Refuse a move from an index that cannot be opened or is the new one, or of ids that it cannot have."""
    from smec_st.data import DataError
    from smec_st.search import FunnelIndex
    from smec_st.search.bridged import is_same_place

    if ids is None:
        raise DataError("--move-from needs the documents' ids: give vectors with ids, or --rows.")
    with FunnelIndex.open(old) as index:
        if index.settings.fingerprint == compressor.fingerprint and is_same_place(old, new):
            raise DataError(f"--move-from {old} is the new index itself, whose documents would be deleted.")
        if index.settings.id_type == "int" and any(isinstance(each, str) for each in ids):
            raise DataError(f"{old} has whole numbers as ids, and these documents have texts, such as {ids[0]!r}.")


def _delete_moved(old: str, ids: RowIds) -> None:
    """Delete the documents that the new index holds from the old one."""
    from smec_st.search import FunnelIndex
    from smec_st.system.errors import count, tell

    with FunnelIndex.open(old) as left:
        moved = left.delete(_ids_of(left, ids))
        if not moved:
            tell(f"none of these documents' ids is in {left.uri}, such as {ids[0]!r}: nothing was moved out of it.")
        click.echo(f"{left.uri}: {count(moved, 'document')} moved, {len(left)} left")


def _ids_of(index: FunnelIndex, ids: RowIds) -> RowIds:
    """Convert ids to the type of the index: whole numbers become texts if its ids are texts."""
    return list(map(str, ids)) if index.settings.id_type == "str" else ids


@contextmanager
def _progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Show a progress bar per stage on a terminal; yield a function that takes stage, rows done and rows in total."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done)

        yield report


def _add_up(report: Callable[[str, int, int], None], total: int) -> Callable[[int], None]:
    """Return a function that takes the rows of each batch and reports their sum."""
    done = 0

    def add(rows: int) -> None:
        nonlocal done
        done += rows
        report("adding", done, total)

    return add


def _print_report(uri: str, schedule: str, report: dict[str, Any], truth: str) -> None:
    from smec_st.system.errors import count

    choice = report["schedule"]
    click.echo(f"{uri}: {count(report['rows'], 'row')}, schedule {schedule}")
    if choice["recall"] is not None:
        click.echo(
            f"recall@{choice['k']} {choice['recall']:.4f} of exact {truth} "
            f"(at least {choice['recall_low']:.4f}, {count(choice['queries'], 'query', 'queries')})"
        )
    for kind in ("ram", "disk"):
        sizes = report[kind]
        if sizes is None:
            click.echo(f"{kind}: managed by the engine")
            continue
        parts = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in sizes.items() if name != "total")
        click.echo(f"{kind}: {sizes['total'] / 1e6:.1f} MB ({parts})")
    click.echo(f"plain float32 vectors in memory: {report['full_width_ram'] / 1e6:.1f} MB")
