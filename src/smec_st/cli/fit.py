"""``smec-st fit``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    whole_numbers,
)
from smec_st.evaluation.limits import INDEXES

if TYPE_CHECKING:
    import numpy as np

    from smec_st.compressor import Compressor
    from smec_st.data import Collection, Qrels
    from smec_st.data.synthetic import Cut
    from smec_st.evaluation.limits import Limit
    from smec_st.evaluation.target import Target

FAILED = 1
KEY_LENGTH = 12
JUDGED = ("queries", "documents", "grades")
SAME_LENGTH = 1.01  # longest by shortest document up to which cosine and inner product rank alike


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

    With --target, the dev queries (a fifth of the training queries where there are none) are kept for choosing the
    size, and the fit sees nothing of them. With --fits or --ram they measure what the choice costs, unless there is a
    test split.
    """
    from smec_st.system.errors import DataError

    keep_freed_memory()
    refuse_existing(out)
    if synthetic is not None and model is None:
        raise DataError("--synthetic makes queries from texts: give the --model that embeds them.")
    with thinking("reading"):
        # Errors in the input appear before torch is loaded, which takes seconds.
        settings = _settings(config, dims, seed, method)
        aim = _target(target)
        limit, budgets = _limit(fits, ram, documents), _budgets(bytes_, ram)
        from smec_st.data import add_synthetic_queries, load_collection

        collection = load_collection(data, vectors, model, task, similarity=similarity, codes=codes, strict=strict)
        if similarity == "dot":
            _refuse_lengths(collection)
        split = next((name for name in ("test", "dev", "train") if name in collection.qrels), None)
        if report:
            _check_report(collection)
        budgets = _bytes_to_try(budgets, limit, aim is not None, settings, collection.corpus.shape[1])
        train, dev, kept = _judgements(collection, no_labels, aim is not None, limit is not None)
        unlabelled = _may_be_read(collection, train)
        labels = None if no_labels else train
        fitted_on = dataclasses.replace(collection, qrels={} if labels is None else {"train": labels})
        if synthetic is not None:
            assert model is not None
            fitted_on = add_synthetic_queries(fitted_on, model, synthetic)
            labels = fitted_on.qrels["train"]
    with thinking("loading"):
        from smec_st.compressor import Compressor
        from smec_st.compressor.scoring import score_compressor
        from smec_st.evaluation.report import print_rows, write_report
        from smec_st.evaluation.target import choose_size
        from smec_st.system.files import new_folder
        from smec_st.system.locks import write_lock
    given = {**settings, "method": method, "bytes": budgets, "limit": limit, "labels": not no_labels}
    key = _run_key(fitted_on, unlabelled, dev, given)
    with _quiet_labels(), write_lock(out), _work_dir(out, key) as work:
        refuse_existing(out)  # another process may have finished it meanwhile
        compressor = Compressor.fit(
            fitted_on.corpus,
            fitted_on.queries,
            labels,
            model=model,
            dev_qrels=None if no_labels else dev,
            unlabelled_queries=unlabelled,
            own_document=fitted_on.own_document,
            backbone=fitted_on.backbone,
            bytes=budgets or None,
            limit=limit,
            method=method,
            work_dir=work,
            progress=sys.stderr.isatty(),
            **settings,
        )
        title = f"{collection.name} ({split})"
        rows = [] if split is None else score_compressor(compressor, collection, split)
        if aim is not None:
            assert kept is not None
            choice = choose_size(aim, compressor, collection, kept, limit=limit)
            compressor.info["target"] = choice.to_dict()
        _measure_costs(compressor, collection, collection.qrels.get("test", kept), no_labels)
        with new_folder(out) as draft:
            compressor.write_into(draft)
            if rows:
                write_report(rows, draft, title)
    if rows:
        print_rows(rows, title)
        print_similarity(collection)
    else:
        click.echo(f"{collection.name} has no judgements: nothing was scored")
    _print_decisions(compressor, None if budgets else limit)
    if aim is not None:
        click.echo("\n".join(map(str, (*choice.tests, choice))))
    click.echo(f"{compressor}\nsaved to {out}")
    if report:
        from smec_st.report import write_page

        write_page(compressor, collection, out / "report.html", split or "", data, progress=sys.stderr.isatty())
    if aim is not None and choice.smallest is None:
        raise click.exceptions.Exit(FAILED)


def _refuse_lengths(collection: Collection) -> None:
    """Refuse to fit to inner products where lengths count."""
    from smec_st.data.vectors import length_range
    from smec_st.system.errors import DataError

    shortest, longest = length_range(collection.corpus)
    if longest > shortest * SAME_LENGTH:
        raise DataError(
            f"--similarity dot: a fit compares by cosine, and the documents are {shortest:.3g} to {longest:.3g} long. "
            "Leave the option out to fit all the same, and multiply each compressed document by its length: it ranks "
            "nearly as its model; `evaluate --similarity dot` scores the original as its model."
        )


def _judgements(
    collection: Collection, no_labels: bool, by_target: bool, by_limit: bool
) -> tuple[Qrels | None, Qrels | None, Qrels | None]:
    """Judgements that train, that choose (dev), and that neither train nor choose, so that they can tell the outcome.

    Without labels none need be there, and those that are there tell. A target, or a limit without a test split, keeps
    the dev queries for telling, or else a fifth of the training queries.
    """
    from smec_st.data.qrels import MIN_HELD_OUT
    from smec_st.system.errors import DataError, count

    train, dev = collection.qrels.get("train"), collection.qrels.get("dev")
    if not no_labels:
        if train is None:
            raise DataError(f"{collection.name} has no train split to learn from. Use --no-labels to fit without one.")
        _tell_what_is_shared(collection, train)
        train = collection.judged("train")
    if not by_target and not (by_limit and "test" not in collection.qrels):
        return train, dev, (train if dev is None else dev) if no_labels else None
    kept = dev
    if dev is None and train is not None:
        rest, kept = train.hold_out(0.2, seed=0)
        train = train if kept is None else rest
    if kept is None and by_target:
        judged = 0 if train is None else len(train.query_rows)
        has = count(judged, "judged training query", "judged training queries")
        raise DataError(
            f"--target chooses by the judged queries of a dev split, or by a fifth of at least {2 * MIN_HELD_OUT} "
            f"judged training queries; {collection.name} has no dev split and {has}."
        )
    return train, None, kept


def _tell_what_is_shared(collection: Collection, train: Qrels) -> None:
    """Say how many judgements of another split are trained on: the scores of that split are no test then."""
    import numpy as np

    from smec_st.system.errors import count, tell

    def numbers(qrels: Qrels) -> np.ndarray:
        found: np.ndarray = qrels.pairs[:, 0] * len(collection.corpus) + qrels.pairs[:, 1]
        return found

    for split, qrels in collection.qrels.items():
        shared = 0 if split == "train" else len(np.intersect1d(numbers(train), numbers(qrels)))
        if shared:
            what, verb = count(shared, "judgement"), "is" if shared == 1 else "are"
            tell(f"{what} of the {split} split of {collection.name} {verb} in its train split as well.")


def _measure_costs(compressor: Compressor, collection: Collection, unread: Qrels | None, no_labels: bool) -> None:
    """Record what each chosen way to store documents costs, by queries that have neither trained nor chosen it."""
    from smec_st.evaluation.target import measure_cost

    if unread is None and not no_labels:
        return  # neighbours cannot tell: labels move them on purpose
    chosen = [head for head in compressor.heads if "for_bytes" in head.info]
    if chosen:
        compressor.info["costs"] = [measure_cost(head, collection, unread).to_dict() for head in chosen]


def _print_decisions(compressor: Compressor, limit: Limit | None) -> None:
    """What held-out queries chose, and what the chosen ways to store documents cost."""
    from smec_st.evaluation.choice import Decision
    from smec_st.evaluation.limits import Pair
    from smec_st.evaluation.target import Cost
    from smec_st.system.errors import count

    for decision in compressor.info.get("decisions", []):
        click.echo(str(Decision(**decision)))
    chosen = [Pair(head.dim, head.precision, head.bytes) for head in compressor.heads if "for_bytes" in head.info]
    costs = {cost.pair: cost for cost in map(Cost.from_dict, compressor.info.get("costs", []))}
    for pair in chosen:
        wanted = f"in {count(pair.bytes, 'byte')}" if limit is None else f"that fits {limit}"
        unmeasured = f"{pair}; no judged queries were left to measure what it costs"
        click.echo(f"best {wanted}: {costs.get(pair, unmeasured)}")


def _check_report(collection: Collection) -> None:
    """Refuse --report before the fit if it could not be written afterwards."""
    from smec_st.data import DataError
    from smec_st.report.figures import plotly_script

    plotly_script()
    if not collection.qrels:
        raise DataError(f"--report scores queries, and {collection.name} has no judgements.")


def _may_be_read(collection: Collection, train: Qrels | None) -> np.ndarray:
    """Return the queries that may be read without judgements: those of training, and unjudged ones, ``(q,)``."""
    import numpy as np

    judged = [np.empty(0, dtype=np.int64), *(qrels.query_rows for qrels in collection.qrels.values())]
    free = np.setdiff1d(np.arange(len(collection.queries)), np.concatenate(judged))
    return free if train is None else np.union1d(free, train.query_rows)


def _target(text: str | None) -> Target | None:
    if text is None:
        return None
    from smec_st.evaluation.target import Target

    return Target.parse(text)


def _limit(fits: str | None, ram: str | None, documents: str | None) -> Limit | None:
    """What documents must fit; None when nothing was said."""
    from smec_st.evaluation.limits import Limit

    limit = Limit.of(fits, ram, documents)
    return None if limit == Limit() else limit


def _budgets(text: str | None, ram: str | None) -> tuple[int, ...]:
    """Bytes per document that are asked for."""
    from smec_st.system.errors import DataError

    if text is not None and ram is not None:
        raise DataError("give either --bytes or --ram with --documents.")
    budgets = () if text is None else whole_numbers(text, "--bytes")
    if any(budget < 1 for budget in budgets):
        raise DataError(f"--bytes must be 1 or more, got {text}.")
    return tuple(dict.fromkeys(budgets))


def _bytes_to_try(
    budgets: tuple[int, ...], limit: Limit | None, by_target: bool, settings: Mapping[str, Any], width: int
) -> tuple[int, ...]:
    """What was asked for, or, to reach a target, a byte per four numbers of each size and what the memory leaves.

    What fits nothing is refused here, before a fit that takes minutes.
    """
    from smec_st.evaluation.limits import Limit
    from smec_st.quantization.pairs import pairs_in, pairs_to_try
    from smec_st.stages import default_dims

    sizes, given = settings.get("dims") or default_dims(width), limit or Limit()
    if limit is not None:
        for budget in budgets or (None,):
            pairs_to_try(sizes, sizes, limit, budget)
    if budgets or not by_target:
        return budgets
    counts = {size // 4 for size in sizes if size >= 8}
    if given.bytes <= 4 * max(sizes):
        counts.add(int(given.bytes))
    # Only sizes that are trained: which sizes between them are served as well is not known before the fit.
    allowed = [count for count in counts if any(map(given.allows, pairs_in(count, sizes, ())))]
    return tuple(sorted(allowed, reverse=True))


def _settings(config: Path | None, dims: str | None, seed: int | None, method: str) -> dict[str, Any]:
    from smec_st.fitting.config import METHODS, FitConfig, read_settings
    from smec_st.system.errors import DataError

    settings = read_settings(config) if config is not None else {}
    if dims is not None:
        settings["dims"] = whole_numbers(dims, "--dims")
    elif isinstance(settings.get("dims"), list):
        settings["dims"] = tuple(settings["dims"])
    if seed is not None:
        settings["seed"] = seed
    if method not in METHODS:
        raise DataError(f"unknown method {method!r}; known are {', '.join(METHODS)}.")
    FitConfig.from_dict({**METHODS[method], **settings})  # refuses what is wrong by itself, whatever the vectors
    return settings


def _run_key(collection: Collection, unlabelled: np.ndarray, dev: Qrels | None, settings: dict[str, Any]) -> str:
    """Hash all that a fit depends on: an unfinished run is only continued with the very same input."""
    from smec_st import __version__
    from smec_st.data.vectors import hash_rows

    known = [__version__, sorted(collection.qrels), dev is not None, dict(collection.backbone), settings]
    digest = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode())
    judged = [collection.qrels[name] for name in sorted(collection.qrels)]
    arrays = [getattr(qrels, name) for qrels in (*judged, *([] if dev is None else [dev])) for name in JUDGED]
    for array in (*arrays, collection.corpus, collection.queries, collection.own_document, unlabelled):
        hash_rows(digest, array)
    return digest.hexdigest()[:KEY_LENGTH]


@contextmanager
def _quiet_labels() -> Iterator[None]:
    """Hide the warning about unused labels: the decision is printed below the table instead."""
    import warnings

    from smec_st.fitting.fit import LabelsWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LabelsWarning)
        yield


@contextmanager
def _work_dir(out: Path, key: str) -> Iterator[Path]:
    """Yield a folder for checkpoints next to ``out``; it is removed unless the run is interrupted."""
    work = out.with_name(f".{out.name}.{key}.unfinished")
    if _has_progress(work):
        click.echo(f"continuing the unfinished run in {work}", err=True)
    try:
        yield work
    except BaseException as error:
        if not _has_progress(work):
            shutil.rmtree(work, ignore_errors=True)
        if type(error).__name__ == "SafetensorError":  # a checkpoint, on a full disk
            from smec_st.system.errors import DataError, one_line

            raise DataError(f"cannot write {work}: {one_line(error)}") from error
        raise
    # Runs of other outputs may have names that begin with this one.
    own = re.compile(re.escape(f".{out.name}.") + f"[0-9a-f]{{{KEY_LENGTH}}}" + re.escape(".unfinished"))
    stale = [path for path in out.absolute().parent.iterdir() if own.fullmatch(path.name)]
    for path in (work, *stale):
        shutil.rmtree(path, ignore_errors=True)


def _has_progress(work: Path) -> bool:
    """Return whether a run can be continued: a candidate was chosen, or a stage has a checkpoint."""
    return any(any(work.rglob(name)) for name in ("decision.json", "stage-*/final", "stage-*/checkpoint-*"))
