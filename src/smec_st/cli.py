"""The command line, ``smec-st``. Each command reads its input, calls the library, and says what came of it.

Input that cannot be used gives one line on standard error and exit code 2; an interrupted run gives 130 and can be
continued by the same command. Output folders appear only when they are complete.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smec_st import __version__

# Before torch is loaded: threads that spin while they wait bring a busy machine to a halt.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from smec_st.baselines import Transform
    from smec_st.compare import Outcome, Recommendation
    from smec_st.compressor import Compressor
    from smec_st.data import Collection
    from smec_st.evaluation import Row

FAILED, USAGE, INTERRUPTED = 1, 2, 130
FOLDER = click.Path(path_type=Path)


class _Interrupted(Exception):
    """Ctrl-C, in a form that click passes on without a line of its own."""


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _Interrupted from error


@click.group(cls=_Commands)
@click.version_option(__version__)
def app() -> None:
    """Make the vectors of any embedding model many times smaller."""


def collection_options(command: Callable[..., None]) -> Callable[..., None]:
    """``--data`` and where its vectors come from."""
    for option in (
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


@app.command()
@collection_options
@click.option("--dims", help="Sizes, for instance 192,96,48,24. By default the width and four halvings.")
@click.option("--out", type=FOLDER, required=True, help="New folder for the compressor and its report.")
@click.option("--method", default="smec", show_default=True, help="smec, smec-published, pca or truncate.")
@click.option("--no-labels", is_flag=True, help="Do not use the training judgements.")
@click.option("--seed", type=int, help="Of everything random.")
@click.option("--config", type=FOLDER, help="JSON or YAML file of settings.")
def fit(
    data: Path,
    vectors: Path | None,
    model: str | None,
    dims: str | None,
    out: Path,
    method: str,
    no_labels: bool,
    seed: int | None,
    config: Path | None,
) -> None:
    """Fit a compressor on a collection's vectors, score it, and save it."""
    settings = _settings(config, dims, seed)
    _refuse_existing(out)
    with _thinking("reading"):
        from smec_st.compressor import Compressor
        from smec_st.data import load_collection
        from smec_st.evaluation import print_rows, write_report
        from smec_st.files import new_folder

        collection = load_collection(data, vectors, model)
        train = collection.judged("train")
    with _work_dir(out, _run_key(collection, method, no_labels, settings)) as work:
        compressor = Compressor.fit(
            collection.corpus,
            collection.queries,
            None if no_labels else train,
            model=model,
            dev_qrels=None if no_labels else collection.qrels.get("dev"),
            unlabelled_queries=train.query_rows,
            own_document=collection.own_document,
            method=method,
            work_dir=work,
            progress=sys.stderr.isatty(),
            **settings,
        )
        split = next((name for name in ("test", "dev") if name in collection.qrels), "train")
        title = f"{collection.name} ({split})"
        rows = _score(compressor, collection, split)
        with new_folder(out) as draft:
            compressor.write_into(draft)
            write_report(rows, draft, title)
    print_rows(rows, title)
    click.echo(f"{compressor}\nsaved to {out}")


@app.command()
@click.argument("compressor", type=FOLDER)
@collection_options
@click.option("--split", default="test", show_default=True, help="Judgements to score against.")
@click.option("--json", "json_file", type=FOLDER, help="Write the rows here as well.")
def evaluate(
    compressor: Path, data: Path, vectors: Path | None, model: str | None, split: str, json_file: Path | None
) -> None:
    """Score a COMPRESSOR at each of its sizes, beside the original, truncation and PCA."""
    with _thinking("reading"):
        from smec_st.compressor import Compressor
        from smec_st.data import load_collection
        from smec_st.evaluation import print_rows
        from smec_st.evaluation.report import write_json

        loaded = Compressor.load(compressor)
        collection = load_collection(data, vectors, model)
    rows = _score(loaded, collection, split)
    if json_file is not None:
        write_json(rows, json_file)
    print_rows(rows, f"{collection.name} ({split})")


@app.command()
@click.option("--data", "folders", multiple=True, required=True, help="Collection; repeat for several.")
@click.option("--vectors", "files", type=FOLDER, multiple=True, help="Its vectors; one for each --data, in order.")
@click.option("--model", help="Sentence-transformers model that embeds the texts.")
@click.option("--dims", "sizes", multiple=True, help="Sizes, once for all collections or once for each --data.")
@click.option("--methods", default="all", show_default=True, help="Names with commas between, or all.")
@click.option("--out", type=FOLDER, required=True, help="Folder for the report; an earlier comparison goes on.")
@click.option("--seeds", default="0", show_default=True, help="Fits of each random method, for instance 0,1,2.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Processes.")
@click.option("--reference", help="Method to compare the others with; smec by default.")
@click.option("--no-labels", is_flag=True, help="Do not use the training judgements; recommend a size.")
def compare(
    folders: tuple[str, ...],
    files: tuple[Path, ...],
    model: str | None,
    sizes: tuple[str, ...],
    methods: str,
    out: Path,
    seeds: str,
    jobs: int,
    reference: str | None,
    no_labels: bool,
) -> None:
    """Fit and score methods side by side, on one or more collections."""
    from smec_st.data import DataError

    if files and len(files) != len(folders):
        raise DataError(f"give one --vectors for each --data; got {len(files)} and {len(folders)}.")
    dims = [_whole_numbers(text, "--dims") for text in sizes]
    rounds = _whole_numbers(seeds, "--seeds")
    with _thinking("reading"):
        from smec_st import compare as comparing
        from smec_st.evaluation import print_rows

        chosen, notices = comparing.choose(methods, labels=not no_labels)
        sources = [
            comparing.Source(folder, file, model)
            for folder, file in zip(folders, files or [None] * len(folders), strict=True)
        ]
        planned = comparing.plan(
            sources, chosen, dims or None, out, seeds=rounds, labels=not no_labels, reference=reference
        )
    for notice in notices:
        click.echo(notice, err=True)
    with _cell_progress(planned.missing) as on_outcome:
        comparison = comparing.compare(planned, jobs, on_outcome)
    for collection in dict.fromkeys(row.collection for row in comparison.rows):
        print_rows([row for row in comparison.rows if row.collection == collection], collection)
    if no_labels:
        _recommend(comparison.recommended, planned.reference)
    click.echo(f"saved to {out}")
    for outcome in comparison.failed:
        click.echo(f"smec-st: {outcome}", err=True)
    if comparison.failed:
        raise click.exceptions.Exit(FAILED)


@app.command()
@click.argument("what", type=click.Choice(["importance", "gradients", "convergence", "ablation"]))
@collection_options
@click.option("--dims", help="Sizes, where the analysis has a choice of them.")
@click.option("--out", type=FOLDER, required=True, help="Folder for the analysis's JSON file and plot.")
@click.option("--seeds", default="0,1,2", show_default=True, help="Repetitions.")
def analyze(
    what: str, data: Path, vectors: Path | None, model: str | None, dims: str | None, out: Path, seeds: str
) -> None:
    """Repeat one of the SMEC paper's own analyses on a collection.

    importance: the share of important dimensions that ADS, truncation and PCA keep; gradients: their size and
    variance by block of dimensions under MRL and SMRL; convergence: quality by epoch; ablation: SMRL, ADS and S-XBM
    off in turn.
    """
    from smec_st.data import DataError

    settings: dict[str, Any] = {"seeds": _whole_numbers(seeds, "--seeds")}
    if dims is not None:
        if what == "gradients":
            raise DataError("gradients are measured at a half and a quarter of the width; leave --dims out.")
        settings["dims"] = _whole_numbers(dims, "--dims")
    with _thinking("reading"):
        import importlib

        from smec_st.data import load_collection

        analysis = importlib.import_module(f"smec_st.analysis.{what}")
        collection = load_collection(data, vectors, model)
    out.mkdir(parents=True, exist_ok=True)
    with _thinking(what):
        analysis.run(collection, out, **settings)
    click.echo(f"saved to {out}")


@app.command()
@click.argument("compressor", type=FOLDER)
@click.option("--model", required=True, help="The backbone whose vectors it was fitted on.")
@click.option("--out", type=FOLDER, required=True, help="New folder for the model.")
@click.option("--dim", type=int, help="Serve this one size; all nested sizes by default.")
def export(compressor: Path, model: str, out: Path, dim: int | None) -> None:
    """Save backbone and COMPRESSOR as one ordinary model that loads without this package."""
    _refuse_existing(out)
    with _thinking("reading"):
        from smec_st.compressor import Compressor
        from smec_st.data.embedding import load_model

        loaded = Compressor.load(compressor)
        backbone = load_model(model)
    loaded.export(backbone, out, dim)
    sizes = dim or "/".join(map(str, loaded.nested_dims))
    click.echo(f'saved to {out}: SentenceTransformer("{out}") gives {sizes} dimensions')


# ---------------------------------------------------------------------------------------------------------------------


def _settings(config: Path | None, dims: str | None, seed: int | None) -> dict[str, Any]:
    from smec_st.config import read_settings

    settings = read_settings(config) if config is not None else {}
    if dims is not None:
        settings["dims"] = _whole_numbers(dims, "--dims")
    elif isinstance(settings.get("dims"), list):
        settings["dims"] = tuple(settings["dims"])
    if seed is not None:
        settings["seed"] = seed
    return settings


def _whole_numbers(text: str, option: str) -> tuple[int, ...]:
    from smec_st.data import DataError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise DataError(f"{option} takes whole numbers and commas, got {text!r}.") from error


@contextmanager
def _cell_progress(total: int) -> Iterator[Callable[[Outcome], None]]:
    """A bar on a terminal, otherwise a line for each cell that ends."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, unit="fit") as bar:

            def advance(outcome: Outcome) -> None:
                bar.set_postfix_str(str(outcome), refresh=False)
                bar.update()

            yield advance
    else:
        ended = itertools.count(1)
        yield lambda outcome: click.echo(f"{next(ended)}/{total} {outcome}", err=True)


def _recommend(found: Sequence[Recommendation], reference: str) -> None:
    """Sizes of the reference method, or of all where it has none."""
    for entry in [entry for entry in found if entry.method == reference] or found:
        size = "no size" if entry.dim is None else f"{entry.dim} dims"
        click.echo(f"{entry.collection}, {entry.method}: {size} should keep 95 % of the original's nDCG@10")


def _score(compressor: Compressor, collection: Collection, split: str) -> list[Row]:
    from smec_st import baselines
    from smec_st.data import DataError
    from smec_st.evaluation import sweep

    if collection.corpus.shape[1] != compressor.width:
        raise DataError(
            f"the vectors are {collection.corpus.shape[1]} wide; this compressor reads {compressor.width}."
        )
    methods: dict[str, Transform] = {
        "original": baselines.original,
        "truncate": baselines.truncate,
        "pca": baselines.pca(collection.corpus),
    }
    methods.setdefault(str(compressor.info.get("method", "compressor")), compressor.transform)
    return sweep(
        collection.corpus,
        collection.queries,
        collection.judged(split),
        methods,
        compressor.dims,
        own_document=collection.own_document,
    )


def _refuse_existing(folder: Path) -> None:
    from smec_st.data import DataError

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} exists already; choose another --out or remove it.")


def _run_key(collection: Collection, method: str, no_labels: bool, settings: dict[str, Any]) -> str:
    """A hash of all that a fit depends on: an unfinished run is only continued with the very same input."""
    digest = hashlib.sha256(json.dumps([method, no_labels, settings], sort_keys=True).encode())
    for qrels in collection.qrels.values():
        for array in (qrels.queries, qrels.documents, qrels.grades):
            digest.update(array.tobytes())
    for table in (collection.corpus, collection.queries):
        digest.update(str((table.shape, table.dtype)).encode())
        for start in range(0, len(table), 65536):
            digest.update(table[start : start + 65536].tobytes())
    return digest.hexdigest()[:12]


@contextmanager
def _work_dir(out: Path, key: str) -> Iterator[Path]:
    """A folder for checkpoints beside ``out``; stays when the run is cut off, goes when it is done."""
    work = out.with_name(f".{out.name}.{key}.unfinished")
    if work.exists() and any(work.glob("stage-*")):
        click.echo(f"continuing the unfinished run in {work}", err=True)
    try:
        yield work
    except BaseException:
        if not any(work.glob("stage-*/final")) and not any(work.glob("stage-*/checkpoint-*")):
            shutil.rmtree(work, ignore_errors=True)
        raise
    for stale in out.parent.glob(f".{out.name}.*.unfinished"):
        shutil.rmtree(stale, ignore_errors=True)


@contextmanager
def _thinking(what: str) -> Iterator[None]:
    """A word and a spinner while imports and files take their time."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


def main(arguments: list[str] | None = None) -> None:
    """Run a command; what went wrong and a user can mend becomes one line and an exit code."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """The exit code of :func:`main`."""
    try:
        return int(app.main(arguments, prog_name="smec-st", standalone_mode=False) or 0)
    except click.ClickException as error:
        return _complain(error.format_message(), USAGE)
    except (KeyboardInterrupt, _Interrupted, click.Abort):
        return _complain("interrupted; the same command continues where it stopped.", INTERRUPTED)
    except Exception as error:
        from smec_st.data import DataError

        if not isinstance(error, (DataError, OSError, FloatingPointError)):
            raise
        return _complain(str(error), USAGE)


def _complain(message: str, code: int) -> int:
    click.echo(f"smec-st: {' '.join(message.split())}", err=True)
    return code
