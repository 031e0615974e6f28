"""``smec-st fit``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smec_st.cli.allocator import keep_freed_memory
from smec_st.cli.options import FOLDER, collection_options, refuse_existing, thinking, whole_numbers

if TYPE_CHECKING:
    import numpy as np

    from smec_st.compressor import Compressor
    from smec_st.data import Collection, Qrels
    from smec_st.data.synthetic import Cut

FAILED = 1


@click.command()
@collection_options
@click.option("--dims", help="Sizes, for instance 192,96,48,24. By default the width and four halvings.")
@click.option("--out", type=FOLDER, required=True, help="New folder for the compressor and its report.")
@click.option("--method", default="smec", show_default=True, help="smec, smec-published, pca or truncate.")
@click.option("--no-labels", is_flag=True, help="Do not use the training judgements.")
@click.option(
    "--synthetic",
    type=click.Choice(["auto", "title", "sentence", "halves"]),
    help="Also train on queries made from the documents: their titles, first sentences or halves. Needs --model.",
)
@click.option("--seed", type=int, help="Random seed.")
@click.option(
    "--bytes", "bytes_", type=int, help="Also choose the best size and precision for vectors of this many bytes."
)
@click.option("--target", help="Find the smallest size that holds: lossless, or 'ndcg@10 >= 0.99 original'.")
@click.option("--config", type=FOLDER, help="JSON or YAML file of settings.")
@click.option("--report", is_flag=True, help="Also write report.html: plots, decisions, and the queries that changed.")
def fit(
    data: Path,
    vectors: Path | None,
    model: str | None,
    task: str | None,
    codes: str | None,
    strict: bool,
    dims: str | None,
    out: Path,
    method: str,
    no_labels: bool,
    synthetic: Cut | None,
    seed: int | None,
    bytes_: int | None,
    target: str | None,
    config: Path | None,
    report: bool,
) -> None:
    """Fit a compressor on a collection's vectors, score it, and save it.

    With --target, the dev queries (a fifth of the training queries where there are none) are kept for choosing the
    size, and the fit sees nothing of them.
    """
    keep_freed_memory()
    settings = _settings(config, dims, seed)
    refuse_existing(out)
    with thinking("reading"):
        from smec_st.compressor import Compressor
        from smec_st.compressor.scoring import score_compressor
        from smec_st.data import DataError, add_synthetic_queries, load_collection
        from smec_st.evaluation.report import print_rows, write_report
        from smec_st.evaluation.target import Target, choose_size
        from smec_st.system.files import new_folder

        collection = load_collection(data, vectors, model, task, codes=codes, strict=strict)
        train, dev = _judgements(collection, no_labels)
        split = next((name for name in ("test", "dev", "train") if name in collection.qrels), None)
        if report:
            _check_report(collection)
        aim = None if target is None else Target.parse(target)
        if aim is not None:
            train, kept = _keep_for_target(train, dev)
            dev = None
        asking = _may_be_read(collection, train)
        labels = None if no_labels else train
        fitted_on = dataclasses.replace(collection, qrels={} if labels is None else {"train": labels})
        if synthetic is not None:
            if model is None:
                raise DataError("--synthetic makes queries from texts: give the --model that embeds them.")
            fitted_on = add_synthetic_queries(fitted_on, model, synthetic)
            labels = fitted_on.qrels["train"]
    with _quiet_labels(), _work_dir(out, _run_key(fitted_on, dev, method, {**settings, "target": target})) as work:
        compressor = Compressor.fit(
            fitted_on.corpus,
            fitted_on.queries,
            labels,
            model=model,
            dev_qrels=None if no_labels else dev,
            unlabelled_queries=asking,
            own_document=fitted_on.own_document,
            backbone=fitted_on.backbone,
            bytes=bytes_,
            method=method,
            work_dir=work,
            progress=sys.stderr.isatty(),
            **settings,
        )
        title = f"{collection.name} ({split})"
        rows = [] if split is None else score_compressor(compressor, collection, split)
        if aim is not None:
            choice = choose_size(aim, compressor, collection, kept)
            compressor.info["target"] = choice.to_dict()
        with new_folder(out) as draft:
            compressor.write_into(draft)
            if rows:
                write_report(rows, draft, title)
    if rows:
        print_rows(rows, title)
    else:
        click.echo(f"{collection.name} has no judgements: nothing was scored")
    _print_decisions(compressor, bytes_)
    if aim is not None:
        click.echo("\n".join(map(str, (*choice.tests, choice))))
    click.echo(f"{compressor}\nsaved to {out}")
    if report:
        from smec_st.report import write_page

        write_page(compressor, collection, out / "report.html", split or "", data, progress=sys.stderr.isatty())
    if aim is not None and choice.dim is None:
        raise click.exceptions.Exit(FAILED)


def _judgements(collection: Collection, no_labels: bool) -> tuple[Qrels | None, Qrels | None]:
    """Training and dev judgements; without labels neither need be there."""
    if no_labels:
        return collection.qrels.get("train"), collection.qrels.get("dev")
    return collection.judged("train"), collection.qrels.get("dev")


def _print_decisions(compressor: Compressor, bytes_: int | None) -> None:
    """What held-out queries chose."""
    from smec_st.fitting.choice import Decision

    for decision in compressor.info.get("decisions", []):
        click.echo(str(Decision(**decision)))
    if bytes_ is not None:
        head = compressor.head(bytes=bytes_)
        click.echo(f"best in {bytes_} bytes: {head.precision} of {head.dim} numbers")


def _check_report(collection: Collection) -> None:
    """Refuse --report before the fit where it could not be written after it."""
    from smec_st.data import DataError
    from smec_st.report.figures import plotly_script

    plotly_script()
    if not collection.qrels:
        raise DataError(f"--report scores queries, and {collection.name} has no judgements.")


def _may_be_read(collection: Collection, train: Qrels | None) -> np.ndarray:
    """Queries that training may read without judgements: its own, and those that no split judges, ``(q,)``."""
    import numpy as np

    judged = [np.empty(0, dtype=np.int64), *(qrels.query_rows for qrels in collection.qrels.values())]
    free = np.setdiff1d(np.arange(len(collection.queries)), np.concatenate(judged))
    return free if train is None else np.union1d(free, train.query_rows)


def _keep_for_target(train: Qrels | None, dev: Qrels | None) -> tuple[Qrels | None, Qrels]:
    """Training judgements, and those of the queries that will choose the size."""
    from smec_st.data import DataError

    if dev is not None:
        return train, dev
    rest, kept = (None, None) if train is None else train.hold_out(0.2, seed=0)
    if kept is None:
        judged = 0 if train is None else len(train.query_rows)
        raise DataError(f"--target needs more than {judged} judged queries to choose a size by.")
    return rest, kept


def _settings(config: Path | None, dims: str | None, seed: int | None) -> dict[str, Any]:
    from smec_st.fitting.config import read_settings

    settings = read_settings(config) if config is not None else {}
    if dims is not None:
        settings["dims"] = whole_numbers(dims, "--dims")
    elif isinstance(settings.get("dims"), list):
        settings["dims"] = tuple(settings["dims"])
    if seed is not None:
        settings["seed"] = seed
    return settings


def _run_key(collection: Collection, dev: Qrels | None, method: str, settings: dict[str, Any]) -> str:
    """A hash of all that a fit depends on: an unfinished run is only continued with the very same input."""
    digest = hashlib.sha256(json.dumps([method, sorted(collection.qrels), settings], sort_keys=True).encode())
    for qrels in (*collection.qrels.values(), *([] if dev is None else [dev])):
        for array in (qrels.queries, qrels.documents, qrels.grades):
            digest.update(array.tobytes())
    for table in (collection.corpus, collection.queries):
        digest.update(str((table.shape, table.dtype)).encode())
        for start in range(0, len(table), 65536):
            digest.update(table[start : start + 65536].tobytes())
    return digest.hexdigest()[:12]


@contextmanager
def _quiet_labels() -> Iterator[None]:
    """The decision is printed below the table; as a warning above it nobody would see it."""
    import warnings

    from smec_st.fitting.fit import LabelsWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LabelsWarning)
        yield


@contextmanager
def _work_dir(out: Path, key: str) -> Iterator[Path]:
    """A folder for checkpoints beside ``out``; it stays when the run is cut off and goes when the run is done."""
    work = out.with_name(f".{out.name}.{key}.unfinished")
    if _has_progress(work):
        click.echo(f"continuing the unfinished run in {work}", err=True)
    try:
        yield work
    except BaseException:
        if not _has_progress(work):
            shutil.rmtree(work, ignore_errors=True)
        raise
    for stale in out.parent.glob(f".{out.name}.*.unfinished"):
        shutil.rmtree(stale, ignore_errors=True)


def _has_progress(work: Path) -> bool:
    """Whether a run can be continued: a candidate was chosen, or a stage has a checkpoint."""
    return any(any(work.rglob(name)) for name in ("decision.json", "stage-*/final", "stage-*/checkpoint-*"))
