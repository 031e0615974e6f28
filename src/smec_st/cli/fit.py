"""``smec-st fit``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from smec_st.cli.allocator import keep_freed_memory
from smec_st.cli.options import (
    FOLDER,
    SEED,
    SIMILARITY,
    collection_options,
    print_similarity,
    refuse_existing,
    thinking,
)
from smec_st.cli.unfinished import run_key, work_dir
from smec_st.evaluation.limits import INDEXES

if TYPE_CHECKING:
    from smec_st.cli.inputs import Inputs
    from smec_st.compressor import Compressor
    from smec_st.data import Collection
    from smec_st.data.synthetic import Cut
    from smec_st.evaluation.limits import Limit

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
@SEED
@SIMILARITY
@click.option(
    "--bytes",
    "bytes_",
    help="Also choose the best size and precision for vectors of this many bytes, or of several: 48,24,12.",
)
@click.option(
    "--fits",
    type=click.Choice(list(INDEXES)),
    help="Also choose the best size and precision that this index takes.",
)
@click.option("--ram", help="The same for what fits into this memory, for instance 2GB.")
@click.option("--documents", help="Documents that --ram must hold, for instance 50M.")
@click.option(
    "--target",
    help="Find the smallest size and the fewest bytes that hold: lossless, or 'ndcg@10 >= 0.99 original'. With --fits "
    "or --ram, among those that fit.",
)
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
    similarity: str | None,
    bytes_: str | None,
    fits: str | None,
    ram: str | None,
    documents: str | None,
    target: str | None,
    config: Path | None,
    report: bool,
) -> None:
    """Fit a compressor on a collection's vectors, score it, and save it.

    With --target, the dev queries are kept for choosing the size, and the fit sees nothing of them; where there are
    none, a fifth of the training queries, at least 20, takes their place. With --fits or --ram they measure what the
    choice costs, unless there is a test split.
    """
    from smec_st.system.errors import DataError

    keep_freed_memory()
    refuse_existing(out)
    if synthetic is not None and model is None:
        raise DataError("--synthetic makes queries from texts: give the --model that embeds them.")
    with thinking("reading"):
        # Errors in the input appear before torch is loaded, which takes seconds.
        from smec_st.cli.inputs import Goal, Inputs, read_options, refuse_lengths
        from smec_st.data import load_collection

        settings = read_options(config, dims, seed, method)
        goal = Goal.of(bytes_, fits, ram, documents, target)
        collection = load_collection(data, vectors, model, task, similarity=similarity, codes=codes, strict=strict)
        if similarity == "dot":
            refuse_lengths(collection)
        if report:
            _check_report(collection)
        inputs = Inputs.of(collection, goal, not no_labels, synthetic, model)
    with thinking("loading"):
        from smec_st.compressor import Compressor
        from smec_st.compressor.scoring import score_compressor
        from smec_st.evaluation.report import print_rows, write_report
        from smec_st.evaluation.target import SizeTest
        from smec_st.system.files import new_folder
        from smec_st.system.locks import write_lock
    training, split = inputs.training, inputs.scored
    given = {**settings, "method": method, "goal": goal, "labels": not no_labels}
    key = run_key(training, inputs.unlabelled, inputs.dev, given)
    with _quiet_labels(), write_lock(out), work_dir(out, key) as work:
        refuse_existing(out)  # another process may have finished it meanwhile
        compressor = Compressor.fit(
            training.corpus,
            training.queries,
            training.qrels.get("train"),
            model=model,
            dev_qrels=inputs.dev if goal.target is None else inputs.kept,
            unlabelled_queries=inputs.unlabelled,
            own_document=training.own_document,
            backbone=training.backbone,
            bytes=goal.budgets or None,
            limit=goal.limit,
            target=goal.target,
            method=method,
            work_dir=work,
            progress=sys.stderr.isatty(),
            **settings,
        )
        title = f"{collection.name} ({split})"
        rows = [] if split is None else score_compressor(compressor, collection, split)
        _measure_costs(compressor, inputs, no_labels)
        with new_folder(out) as draft:
            compressor.write_into(draft)
            if rows:
                write_report(rows, draft, title)
    if rows:
        print_rows(rows, title)
        print_similarity(collection)
    else:
        click.echo(f"{collection.name} has no judgements: nothing was scored")
    _print_decisions(compressor, None if goal.budgets else goal.limit)
    found = compressor.info.get("target", {"tests": ()})
    tests = [SizeTest(**test) for test in found["tests"]]
    if tests:
        click.echo("\n".join((*map(str, tests), found["sentence"])))
    click.echo(f"{compressor}\nsaved to {out}")
    if report:
        from smec_st.report import write_page

        write_page(compressor, collection, out / "report.html", split or "", data, progress=sys.stderr.isatty())
    if tests and not any(test.holds for test in tests):
        raise click.exceptions.Exit(FAILED)


def _measure_costs(compressor: Compressor, inputs: Inputs, no_labels: bool) -> None:
    """Record what each chosen way to store documents costs, by queries that have neither trained nor chosen it."""
    from smec_st.evaluation.target import measure_cost

    if inputs.unread is None and not no_labels:
        return  # labels change neighbourhoods on purpose, so kept ones do not measure quality
    chosen = [head for head in compressor.heads if "for_bytes" in head.info]
    if chosen:
        compressor.info["costs"] = [measure_cost(head, inputs.collection, inputs.unread).to_dict() for head in chosen]


def _print_decisions(compressor: Compressor, limit: Limit | None) -> None:
    """What held-out queries chose, and what the chosen ways to store documents cost."""
    from smec_st.evaluation.choice import Decision
    from smec_st.evaluation.limits import Pair
    from smec_st.evaluation.target import Cost
    from smec_st.system.errors import count

    for decision in compressor.info.get("decisions", []):
        click.echo(str(Decision(**decision)))
    chosen = [Pair(head.dim, head.precision, head.bytes) for head in compressor.heads if "for_bytes" in head.info]
    costs = {cost.pair: cost for cost in (Cost(**fields) for fields in compressor.info.get("costs", []))}
    for pair in chosen:
        wanted = f"in {count(pair.bytes, 'byte')}" + ("" if limit is None else f", to fit {limit}")
        unmeasured = f"{pair}; no judged queries were left to measure what it costs"
        click.echo(f"best {wanted}: {costs.get(pair, unmeasured)}")


def _check_report(collection: Collection) -> None:
    """Refuse --report before the fit if it could not be written afterwards."""
    from smec_st.data import DataError
    from smec_st.report.figures import plotly_script

    plotly_script()
    if not collection.qrels:
        raise DataError(f"--report scores queries, and {collection.name} has no judgements.")


@contextmanager
def _quiet_labels() -> Iterator[None]:
    """Hide the warning about unused labels: the decision is printed below the table instead."""
    import warnings

    from smec_st.fitting.fit import LabelsWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LabelsWarning)
        yield
