"""The size that holds a target: what is asked, the order of the tests, and the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest

from smec_st import Compressor
from smec_st.cli import run
from smec_st.cli.fit import _budgets
from smec_st.data import DataError, load_collection, unit_rows
from smec_st.evaluation.metrics import evaluate_retrieval
from smec_st.research.compare import Target, choose_size, paired_interval
from smec_st.system.errors import count


@pytest.fixture
def collection_dir(small_collection):
    return small_collection()


@pytest.fixture
def collection(collection_dir):
    return load_collection(collection_dir, collection_dir / "vectors.safetensors")


@pytest.mark.parametrize(
    ("text", "metric", "share"),
    [
        ("lossless", "ndcg@10", 1.0),
        ("ndcg@10 >= 0.99 original", "ndcg@10", 0.99),
        ("recall@100>=.9*original", "recall@100", 0.9),
        ("mrr@5 >= 1.1 original", "mrr@5", 1.1),
    ],
)
def test_target_is_read(text, metric, share):
    assert Target.parse(text) == Target(metric, share)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ndcg >= 1 original",
        "ndcg@10 > 1 original",
        "f1@3 >= 1 original",
        "ndcg@0 >= 1 original",
        "ndcg@10 >= 0 original",
    ],
)
def test_target_that_says_nothing_is_refused(text):
    with pytest.raises(DataError, match="a target is 'lossless'"):
        Target.parse(text)


def test_sizes_are_tested_from_the_widest_until_one_fails(collection):
    compressor = Compressor.fit(collection.corpus, method="pca", dims=(16, 12, 6, 3, 2))
    target, held_out = Target("ndcg@10", 0.9), collection.judged("test")
    choice = choose_size(target, compressor, collection, held_out)
    own = collection.own_document
    original = evaluate_retrieval(
        unit_rows(collection.corpus), unit_rows(collection.queries), held_out, own_document=own
    )
    expected = None
    for test, dim in zip(choice.tests, compressor.dims, strict=False):
        sides = compressor.transform(collection.corpus, dim), compressor.transform(collection.queries, dim)
        scores = evaluate_retrieval(*sides, held_out, own_document=own)["ndcg@10"]
        assert test.dim == dim
        assert test.score == pytest.approx(scores.mean())
        assert test.low == pytest.approx(paired_interval(scores, 0.9 * original["ndcg@10"]).low)
        assert test.holds == (test.low >= 0)
        expected = dim if test.holds else expected
    assert choice.dim == expected
    assert choice.queries == len(held_out.query_rows)
    assert [test.holds for test in choice.tests[:-1]] == [True] * (len(choice.tests) - 1)
    assert not choice.tests[-1].holds or len(choice.tests) == len(compressor.dims)


def test_lossless_at_full_width_is_the_original_itself(collection):
    width = collection.corpus.shape[1]
    same = Compressor.fit(collection.corpus, method="truncate", dims=(width,))
    choice = choose_size(Target(), same, collection, collection.judged("test"))
    assert choice.dim == width
    assert choice.tests[0].low == pytest.approx(0, abs=1e-12)


def _fit(folder, out, target):
    return run(["fit", "--data", str(folder), "--vectors", str(folder / "vectors.safetensors"), "--method", "pca",
                "--dims", "12,6,2", "--out", str(out), "--target", target])  # fmt: skip


def test_command_names_the_size_and_says_what_was_tested(collection_dir, tmp_path, capsys):
    assert _fit(collection_dir, tmp_path / "out", "ndcg@10 >= 0.01 original") == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "compressor.json").read_text())["target"]
    assert found["target"] == "ndcg@10 >= 0.01 original"
    assert f"{found['dim']} dims is the smallest size that holds" in said
    floats = [test["dim"] for test in found["tests"] if test["precision"] == "float32"]
    codes = [test["bytes"] for test in found["tests"] if test["precision"] != "float32"]
    assert floats == [12, 6, 2][: len(floats)]
    assert codes == [3, 1][: len(codes)]
    assert found["bytes"] is None or f"{count(found['bytes'], 'byte is', 'bytes are')} the fewest" in said


def test_command_ends_with_1_when_no_size_holds_and_2_on_a_bad_target(collection_dir, tmp_path, capsys):
    assert _fit(collection_dir, tmp_path / "none", "ndcg@10 >= 5 original") == 1
    assert "no size holds" in capsys.readouterr().out
    assert (tmp_path / "none" / "compressor.json").is_file()
    assert _fit(collection_dir, tmp_path / "bad", "better") == 2
    assert not (tmp_path / "bad").exists()


def test_codes_are_tested_from_the_most_bytes_until_one_fails(collection):
    compressor = Compressor.fit(collection.corpus, method="pca", dims=(16, 8), bytes=(8, 4, 2, 1))
    held_out = collection.judged("test")
    choice = choose_size(Target("ndcg@10", 0.5), compressor, collection, held_out)
    codes = [test for test in choice.tests if test.precision != "float32"]
    assert [test.bytes for test in codes] == [8, 4, 2, 1][: len(codes)]
    for test in codes:
        head = compressor.head(bytes=test.bytes)
        sides = head.decode(head.encode(collection.corpus)), head.queries(collection.queries)
        scores = evaluate_retrieval(*sides, held_out, own_document=collection.own_document)["ndcg@10"]
        assert test.score == pytest.approx(scores.mean())
        assert (test.dim, test.precision) == (head.dim, head.precision)
    assert choice.bytes == min((test.bytes for test in codes if test.holds), default=None)
    assert all(test.holds for test in codes[:-1])


@pytest.mark.parametrize(
    ("given", "budgets"),
    [
        (("48,12", None, None), (48, 12)),
        ((None, "2GB", "50M"), (40,)),
        ((None, "1.5 GiB", "100m"), (16,)),
        ((None, None, None), ()),
    ],
)
def test_budgets_are_bytes_or_what_memory_leaves(given, budgets):
    assert _budgets(*given) == budgets


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (("0", None, None), "1 or more"),
        (("x", None, None), "whole numbers"),
        ((None, "2GB", None), "go together"),
        (("8", "2GB", "1M"), "either"),
        ((None, "two", "1M"), "--ram takes a number"),
        ((None, "1KB", "1M"), "less than a byte"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(given, match):
    with pytest.raises(DataError, match=match):
        _budgets(*given)


def test_queries_that_choose_the_size_train_nothing(collection_dir, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(Compressor, "fit", classmethod(lambda cls, *args, **kwargs: seen.update(args=args, **kwargs)))
    with pytest.raises(AttributeError):  # nothing was fitted
        _fit(collection_dir, tmp_path / "out", "lossless")
    dev = load_collection(collection_dir, collection_dir / "vectors.safetensors").qrels["dev"]
    assert seen["dev_qrels"] is None
    assert not np.isin(seen["args"][2].query_rows, dev.query_rows).any()


def test_a_choice_by_few_queries_says_that_they_are_too_few(collection):
    compressor = Compressor.fit(collection.corpus, method="truncate", dims=(collection.corpus.shape[1],))
    test = collection.judged("test")
    few = choose_size(Target(), compressor, collection, test.of_queries(test.query_rows[:5]))
    assert "Fewer than 20 queries are too few to rely on this" in str(few)
    assert "too few" not in str(choose_size(Target(), compressor, collection, test))
