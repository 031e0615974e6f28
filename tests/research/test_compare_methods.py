"""What a comparison compares: methods by name, what each is shown, and what measures it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from smec_st import Compressor
from smec_st.data import Collection, DataError, VectorTable, unit_rows
from smec_st.evaluation.untrained import truncate
from smec_st.research.baselines import FloatEncoder, Size
from smec_st.research.compare import SMEC, Factory, Source, choose, registry
from smec_st.research.compare.runner import training_data
from smec_st.research.compare.scoring import Yardstick

DIMS = (16, 8, 4)
QUICK = {"steps": 8, "adapt_steps": 4, "batch_size": 16, "candidates": ["adapted and ranked"]}


def source(folder: Path) -> Source:
    return Source(folder, folder / "vectors.safetensors")


@pytest.fixture
def toy(small_collection):
    return small_collection()


@dataclass(frozen=True)
class Rare:
    """A method that is never fitted."""

    is_random: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False


@dataclass(frozen=True)
class Picky(Rare):
    needs_labels: ClassVar[bool] = True


def with_splits(collection: Collection, *names: str) -> Collection:
    return dataclasses.replace(collection, qrels={name: collection.qrels[name] for name in names})


# -- methods ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", registry.METHODS)
def test_every_known_method_is_a_frozen_dataclass_of_the_protocol(name):
    method = registry.METHODS[name]()
    assert dataclasses.is_dataclass(method)
    assert method.__dataclass_params__.frozen
    assert {method.is_random, method.needs_labels, method.uses_labels} <= {True, False}
    assert callable(method.fit)


def test_choose_always_includes_what_costs_nothing_and_keeps_the_order():
    chosen, notices = choose("smec, random-coordinates", labels=True)
    assert list(chosen) == ["original", "truncate", "pca", "random-coordinates", "smec"]
    assert notices == []


def test_choose_all_leaves_out_what_needs_labels_or_a_package(monkeypatch):
    monkeypatch.setitem(registry.METHODS, "picky", Factory(__name__, "Picky"))
    monkeypatch.setitem(registry.METHODS, "rare", Factory(__name__, "Rare", package="no_such_package"))
    line = 'rare needs no_such_package. Install it with `pip install "smec-st"`.'
    for labels in (True, False):
        chosen, notices = choose("all", labels)
        assert ("picky" in chosen) == labels
        assert "rare" not in chosen
        assert notices == [f"left out: {line}"]
    with pytest.raises(DataError, match="picky needs labels"):
        choose("picky", labels=False)
    with pytest.raises(DataError, match="rare needs no_such_package. Install it with"):
        choose("rare", labels=True)
    with pytest.raises(DataError, match="unknown method 'magic'; known are all, original, truncate"):
        choose("pca,magic", labels=True)


def test_our_method_fits_with_labels_and_without(toy):
    collection = source(toy).load()
    table = VectorTable(collection.corpus, collection.queries, collection.own_document)
    encoded = []
    for labels in (True, False):
        encoder = SMEC(settings=QUICK).fit(training_data(collection, table, labels, 0), DIMS, seed=3)
        assert encoder.sizes == (Size(16, 64), Size(8, 32), Size(4, 16))
        encoded.append(encoder.documents(collection.corpus, Size(8, 32)))
        assert np.linalg.norm(encoded[-1], axis=1) == pytest.approx(1, abs=1e-5)
    assert not np.allclose(*encoded)


@pytest.mark.slow
def test_without_a_dev_split_our_method_shares_the_labels_out_as_fit_does(small_collection):
    """With so few it cross-validates, and all train; a rival gets what is left of them."""
    large = source(small_collection(queries=160, documents=180)).load()
    collection = with_splits(large, "train", "test")
    table = VectorTable(collection.corpus, collection.queries, collection.own_document)
    given = training_data(collection, table, True, 0)
    assert len(given.train.query_rows) < len(given.judged.query_rows) == 96
    settings = {**QUICK, "candidates": ["start", "ranked"]}
    encoder = SMEC(settings=settings).fit(given, (8, 4), seed=3)
    fitted = Compressor.fit(
        collection.corpus,
        collection.queries,
        collection.qrels["train"],
        (8, 4),
        unlabelled_queries=given.queries,
        own_document=collection.own_document,
        seed=3,
        **settings,
    )
    assert fitted.info["data"]["training_queries"] == 96
    assert [decision["queries"] for decision in fitted.info["decisions"]] == [96]
    ours, theirs = encoder.documents(collection.corpus, Size(8, 32)), fitted.transform(collection.corpus, 8)
    assert np.allclose(ours, theirs, atol=1e-4)


# -- what a method may see, and how it is measured --------------------------------------------------------------------


def test_training_data_shows_nothing_of_what_is_scored(toy):
    collection = source(toy).load()
    table = VectorTable(collection.corpus, collection.queries)
    given = training_data(collection, table, True, 0)
    assert given.train is collection.qrels["train"]
    assert given.dev is collection.qrels["dev"]
    assert np.array_equal(given.queries, given.train.query_rows)
    unlabelled = training_data(collection, table, False, 0)
    assert (unlabelled.train, unlabelled.dev) == (None, None)
    assert np.array_equal(unlabelled.queries, given.queries)
    alone = training_data(with_splits(collection, "test"), table, False, 0)
    assert not np.isin(alone.queries, collection.qrels["test"].query_rows).any()


def test_training_data_holds_out_training_queries_where_dev_is_scored_or_missing(small_collection):
    large = source(small_collection(queries=400, documents=450)).load()  # 240 training queries, a tenth is enough
    table = VectorTable(large.corpus, large.queries)
    for splits in (("train", "test"), ("train", "dev")):
        given = training_data(with_splits(large, *splits), table, True, 1)
        assert len(given.dev.query_rows) == 24
        assert not np.isin(given.dev.query_rows, given.train.query_rows).any()
        assert np.isin(given.dev.query_rows, large.qrels["train"].query_rows).all()
    small = large.qrels["train"].of_queries(large.qrels["train"].query_rows[:39])
    given = training_data(
        dataclasses.replace(large, qrels={"train": small, "test": large.qrels["test"]}), table, True, 1
    )
    assert given.dev is None
    assert given.train is small


def nearest(corpus: np.ndarray, query: np.ndarray, own: int, k: int = 10) -> list[int]:
    return [row for row in np.argsort(-(corpus @ query), kind="stable").tolist() if row != own][:k]


def test_yardstick_agrees_with_a_naive_one(small_collection):
    collection = source(small_collection(documents=40, queries=30)).load()
    own = np.arange(30) % 7 - 1
    collection = dataclasses.replace(
        collection,
        own_document=own,
        qrels={split: qrels.without_own(own) for split, qrels in collection.qrels.items()},
    )
    yardstick = Yardstick.of(collection)
    encoder = FloatEncoder(truncate, (8,))
    values, distances = yardstick.measure(encoder, Size(8, 32))
    corpus, queries = unit_rows(collection.corpus), unit_rows(collection.queries)
    small, asked = truncate(corpus, 8), truncate(queries, 8)
    judged = collection.qrels["test"].query_rows
    assert len(values["ndcg@10"]) == len(judged)
    for place, row in enumerate(judged.tolist()):
        wanted, found = nearest(corpus, queries[row], own[row]), nearest(small, asked[row], own[row])
        assert values["overlap@10"][place] == pytest.approx(len(set(wanted) & set(found)) / 10)
        relevant = collection.qrels["test"].relevant_by_query()[row]
        ranks = [rank for rank, document in enumerate(found, start=1) if document in relevant]
        assert values["mrr@10"][place] == pytest.approx(1 / ranks[0] if ranks else 0)
    changes, overlaps = [], []
    for row in range(40):
        wanted, found = nearest(corpus, corpus[row], row), nearest(small, small[row], row)
        changes += [abs(corpus[row] @ corpus[other] - small[row] @ small[other]) for other in wanted]
        overlaps.append(len(set(wanted) & set(found)) / 10)
    assert distances["topk_distance"] == pytest.approx(np.mean(changes), abs=1e-6)
    assert distances["document_overlap@10"] == pytest.approx(np.mean(overlaps))
    assert (yardstick.partners != yardstick.sample[:, None]).all()
    assert 0 < distances["pair_distance"] < 1


def test_yardstick_of_the_original_shows_no_change(toy):
    yardstick = Yardstick.of(source(toy).load())
    encoder = FloatEncoder(lambda vectors, dim: unit_rows(vectors), (32,))
    values, distances = yardstick.measure(encoder, Size(32, 128))
    assert (values["overlap@10"] == 1).all()
    assert distances == pytest.approx({"topk_distance": 0, "pair_distance": 0, "document_overlap@10": 1}, abs=1e-6)
