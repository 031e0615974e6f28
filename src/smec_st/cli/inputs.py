"""What ``smec-st fit`` is asked for, and what it reads: settings, a goal, and judgements for each purpose."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smec_st.cli.options import whole_numbers
from smec_st.data import Collection, Qrels
from smec_st.data.qrels import MIN_HELD_OUT
from smec_st.data.vectors import length_range
from smec_st.evaluation.limits import Limit
from smec_st.evaluation.target import Target, hold_out_for_test
from smec_st.system.errors import DataError, count, tell

if TYPE_CHECKING:
    from smec_st.data.synthetic import Cut

SAME_LENGTH = 1.01  # longest by shortest document up to which cosine and inner product rank alike


@dataclass(frozen=True)
class Goal:
    """How small stored vectors shall be.

    Attributes:
        budgets: Bytes per document that are asked for.
        limit: What an index takes, or what fits into a memory; None when nothing was said.
        target: The quality that the fewest bytes shall keep, if any; see :class:`~smec_st.evaluation.target.Target`.
    """

    budgets: tuple[int, ...]
    limit: Limit | None
    target: str | None

    @classmethod
    def of(
        cls,
        bytes_: str | None = None,
        fits: str | None = None,
        ram: str | None = None,
        documents: str | None = None,
        target: str | None = None,
    ) -> Goal:
        """Read the options of the same names.

        Raises:
            DataError: If one cannot be read, or two of them exclude each other.
        """
        if bytes_ is not None and ram is not None:
            raise DataError("give either --bytes or --ram with --documents.")
        if target is not None:
            Target.parse(target)
        limit = Limit.of(fits, ram, documents)
        budgets = () if bytes_ is None else whole_numbers(bytes_, "--bytes")
        if any(budget < 1 for budget in budgets):
            raise DataError(f"--bytes must be 1 or more, got {bytes_}.")
        return cls(tuple(dict.fromkeys(budgets)), None if limit == Limit() else limit, target)


@dataclass(frozen=True)
class Inputs:
    """A collection with its judgements divided by purpose.

    Attributes:
        collection: All that was read.
        training: The collection with only the judgements that train, those of synthetic queries included.
        dev: Judgements that choose what is trained.
        kept: Judgements that neither train nor choose; they measure the result.
        unlabelled: Queries that may be read without their judgements, ``(q,)``.
    """

    collection: Collection
    training: Collection
    dev: Qrels | None
    kept: Qrels | None
    unlabelled: np.ndarray

    @classmethod
    def of(
        cls, collection: Collection, goal: Goal, labels: bool, synthetic: Cut | None = None, model: str | None = None
    ) -> Inputs:
        """Share out the judgements of a collection.

        Args:
            collection: The collection.
            goal: A target, or a limit without a test split, keeps queries for telling the outcome.
            labels: Whether judgements may train and choose.
            synthetic: Part of a document that is made a query, if any.
            model: The model that embeds such queries.
        """
        limited = goal.limit is not None and "test" not in collection.qrels
        train, dev, kept = _judgements(collection, labels, goal.target is not None, limited)
        unlabelled = _may_be_read(collection, train)
        judged = {"train": train} if labels and train is not None else {}
        training = dataclasses.replace(collection, qrels=judged)
        if synthetic is not None:
            from smec_st.data import add_synthetic_queries

            assert model is not None
            training = add_synthetic_queries(training, model, synthetic)
        return cls(collection, training, dev if labels else None, kept, unlabelled)

    @property
    def scored(self) -> str | None:
        """The split that the report scores: test, else dev, else train."""
        return next((name for name in ("test", "dev", "train") if name in self.collection.qrels), None)

    @property
    def unread(self) -> Qrels | None:
        """Judgements that neither trained nor chose."""
        return self.collection.qrels.get("test", self.kept)


def read_options(config: Path | None, dims: str | None, seed: int | None, method: str) -> dict[str, Any]:
    """Read the settings of a fit that differ from the defaults, and check them as far as that goes without vectors."""
    from smec_st.fitting.config import FitConfig, read_settings, settings_of

    settings = read_settings(config) if config is not None else {}
    if dims is not None:
        settings["dims"] = whole_numbers(dims, "--dims")
    elif isinstance(settings.get("dims"), list):
        settings["dims"] = tuple(settings["dims"])
    if seed is not None:
        settings["seed"] = seed
    FitConfig.from_dict({**settings_of(method), **settings})  # refuses what is wrong by itself, whatever the vectors
    return settings


def refuse_lengths(collection: Collection) -> None:
    """Refuse to fit to inner products where lengths count."""
    shortest, longest = length_range(collection.corpus)
    if longest > shortest * SAME_LENGTH:
        raise DataError(
            f"--similarity dot: documents have lengths from {shortest:.3g} to {longest:.3g}, but a fit compares by "
            "cosine. Leave the option out, and multiply each compressed document by its original length: rankings "
            "are then nearly those of the model. `evaluate --similarity dot` scores the original by inner product."
        )


def _judgements(
    collection: Collection, labels: bool, by_target: bool, by_limit: bool
) -> tuple[Qrels | None, Qrels | None, Qrels | None]:
    """Return the judgements for training, for choosing, and for measuring.

    Without labels none are required, and any that exist only measure. A target, or a limit without a test split, keeps
    the dev queries (else a fifth of the training queries) for measuring.
    """
    train, dev = collection.qrels.get("train"), collection.qrels.get("dev")
    if labels:
        if train is None:
            raise DataError(f"{collection.name} has no train split to learn from. Use --no-labels to fit without one.")
        _tell_what_is_shared(collection, train)
        train = collection.judged("train")
    if by_target:
        train, kept = hold_out_for_test(train, dev)
        return train, None, kept
    if not by_limit:
        return train, dev, None if labels else train if dev is None else dev
    if dev is None and train is not None and len(train.query_rows) >= 2 * MIN_HELD_OUT:
        train, dev = hold_out_for_test(train, dev)
    return train, None, dev


def _tell_what_is_shared(collection: Collection, train: Qrels) -> None:
    """Say how many judgements of another split are trained on: the scores of that split are no test then."""

    def numbers(qrels: Qrels) -> np.ndarray:
        found: np.ndarray = qrels.pairs[:, 0] * len(collection.corpus) + qrels.pairs[:, 1]
        return found

    for split, qrels in collection.qrels.items():
        shared = 0 if split == "train" else len(np.intersect1d(numbers(train), numbers(qrels)))
        if shared:
            what, verb = count(shared, "judgement"), "is" if shared == 1 else "are"
            tell(f"{what} of the {split} split of {collection.name} {verb} in its train split as well.")


def _may_be_read(collection: Collection, train: Qrels | None) -> np.ndarray:
    """Return the queries that may be read without judgements: those of training, and unjudged ones, ``(q,)``."""
    judged = [np.empty(0, dtype=np.int64), *(qrels.query_rows for qrels in collection.qrels.values())]
    free = np.setdiff1d(np.arange(len(collection.queries)), np.concatenate(judged))
    return free if train is None else np.union1d(free, train.query_rows)
