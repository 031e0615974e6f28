"""``smec-st index``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from smec_st.cli.options import FOLDER, thinking, whole_numbers


@click.command()
@click.argument("compressor", type=FOLDER)
@click.option("--vectors", type=FOLDER, required=True, help="Documents: .npy, or .safetensors (tensor `corpus`).")
@click.option("--out", "uri", default="index.db", show_default=True, metavar="URI", help="NAME.db (Milvus Lite), "
              "http://HOST:19530 (Milvus), or a folder (FAISS in process).")  # fmt: skip
@click.option("--rows", type=FOLDER, help="Ids and fields, a line per vector: .jsonl, .csv or .parquet; ids are the "
              "column `_id` or `id`, fields those named by --field.")  # fmt: skip
@click.option("--field", "names", multiple=True, help="Column of --rows to filter by; may be repeated.")
@click.option("--queries", type=FOLDER, help="Queries like those to come, to choose the schedule on.")
@click.option("--recall", default=0.99, show_default=True, help="Of exact full-width search, to reach.")
@click.option("--k", default=10, show_default=True, help="Results per query that the schedule is chosen for.")
@click.option("--sizes", help="Sizes to store, for instance 48,96; by default chosen from the data.")
@click.option("--head", default="hnsw-int8", show_default=True, help="flat, hnsw or ivf; each also with -int8.")
@click.option("--originals", default="float32", show_default=True, type=click.Choice(["float32", "float16", "none"]))
@click.option("--add", is_flag=True, help="Add to the index that is there, with its own settings.")
@click.option("--replace", is_flag=True, help="With --add: take the place of rows with the same ids.")
@click.option("--json", "json_file", type=FOLDER, help="Write schedule and bytes here as well.")
def index(
    compressor: Path,
    vectors: Path,
    uri: str,
    rows: Path | None,
    names: tuple[str, ...],
    queries: Path | None,
    recall: float,
    k: int,
    sizes: str | None,
    head: str,
    originals: str,
    add: bool,
    replace: bool,
    json_file: Path | None,
) -> None:
    """Index vectors for search with a COMPRESSOR; an interrupted build is continued by the same command."""
    with thinking("reading"):
        from smec_st.compressor import Compressor
        from smec_st.search import FunnelIndex

        loaded = Compressor.load(compressor)
        table = table_of(vectors, "corpus")
        ids, fields = read_rows(rows, names, len(table))
        asked = None if queries is None else table_of(queries, "queries")
    with _bars() as tell:
        if add:
            found = FunnelIndex.open(uri, loaded)
            with found:
                found.add(table, ids, fields, replace=replace, progress=_adding(tell, len(table)))
                found.flush()
        else:
            found = FunnelIndex.build(
                uri,
                loaded,
                table,
                ids=ids,
                fields=fields,
                queries=asked,
                target=recall,
                k=k,
                sizes=None if sizes is None else whole_numbers(sizes, "--sizes"),
                head=head,
                originals=None if originals == "none" else originals,
                progress=tell,
            )
    with FunnelIndex.open(uri, loaded) if add else found as opened:
        report = {"schedule": opened.schedule.to_dict(), **opened.bytes()}
        _print(opened.uri, str(opened.schedule), report)
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def table_of(path: Path, name: str) -> Any:
    """The vectors of a file: its only table, or the one of that name."""
    from smec_st.data import DataError, load_vectors

    try:
        return load_vectors(path)
    except DataError as error:
        if "say which one" not in str(error):
            raise
        return load_vectors(path, name)


def read_rows(path: Path | None, names: tuple[str, ...], count: int) -> tuple[list[Any] | None, dict[str, list[Any]]]:
    """Ids, if the file has them, and the named fields."""
    from smec_st.data import DataError
    from smec_st.data.errors import one_line, some

    if path is None:
        if names:
            raise DataError("--field names columns of --rows, which is missing.")
        return None, {}
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet

    readers = {
        ".csv": pa.csv.read_csv, ".jsonl": pa.json.read_json, ".json": pa.json.read_json,
        ".parquet": pa.parquet.read_table,
    }  # fmt: skip
    if path.suffix not in readers:
        raise DataError(f"{path}: rows are read from {', '.join(readers)} files.")
    try:
        table = readers[path.suffix](path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} cannot be read: {one_line(error)}") from error
    if len(table) != count:
        raise DataError(f"{path} has {len(table)} rows for {count} vectors.")
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise DataError(f"{path} has no column {some(missing)}; it has {some(table.column_names, 9)}.")
    key = next((name for name in ("_id", "id") if name in table.column_names), None)
    return None if key is None else table[key].to_pylist(), {name: table[name].to_pylist() for name in names}


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar per stage on a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        tasks: dict[str, Any] = {}

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done)

        yield tell


def _adding(tell: Callable[[str, int, int], None], total: int) -> Callable[[int], None]:
    done = 0

    def count(rows: int) -> None:
        nonlocal done
        done += rows
        tell("adding", done, total)

    return count


def _print(uri: str, schedule: str, report: dict[str, Any]) -> None:
    chosen = report["schedule"]
    click.echo(f"{uri}: {report['rows']} rows, schedule {schedule}")
    if chosen["recall"] is not None:
        click.echo(
            f"recall@{chosen['k']} {chosen['recall']:.4f} of exact full-width search "
            f"(at least {chosen['recall_low']:.4f}, {chosen['queries']} queries)"
        )
    for kind in ("ram", "disk"):
        sizes = report[kind]
        if sizes is None:
            click.echo(f"{kind}: the engine's own affair")
            continue
        parts = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in sizes.items() if name != "total")
        click.echo(f"{kind}: {sizes['total'] / 1e6:.1f} MB ({parts})")
    click.echo(f"plain float32 vectors in memory: {report['full_width_ram'] / 1e6:.1f} MB")
