"""Choosing the cheapest schedule that reaches its target, from ranks; and filters."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from search_world import clustered, compressor, naive, unit
from smec_st.data import DataError
from smec_st.search import FunnelIndex
from smec_st.search.backend import FULL
from smec_st.search.build import Sample
from smec_st.search.calibration import Truth, exact_neighbours, neighbour_ranks, recall
from smec_st.search.filters import arrow_mask, milvus_expression
from smec_st.search.schedule import JUMP, Schedule, Step, choose_schedule, default_schedule, head_cost, lower_bound


def price(schedule, cost, full):
    sizes, keeps = schedule.sizes, [step.keep for step in schedule.steps]
    return cost(sizes[0], keeps[0]) + sum(n * (s + JUMP) for n, s in zip(keeps, sizes[1:], strict=False))


def reached(ranks, steps):
    alive = np.ones_like(next(iter(ranks.values())), dtype=bool)
    for step in steps:
        alive &= ranks[step.size] < step.keep
    return lower_bound(alive.mean(axis=1))


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
@pytest.mark.parametrize("target", [0.8, 0.95])
def test_choice_is_the_cheapest_of_all_that_reach_the_target(kind, target):
    rng = np.random.default_rng(0)
    rows, full = 60, 64
    ranks = {
        size: np.minimum(rng.geometric(p, size=(30, 5)) - 1, rows - 1) for size, p in ((8, 0.1), (16, 0.3), (32, 0.7))
    }
    cost = head_cost(kind, rows)
    chosen = choose_schedule(ranks, full, rows, cost, target=target)
    assert reached(ranks, chosen.steps[:-1]) >= target
    grid = [5, 6, 8, 10, 13, 17, 22, 29, 38, 49, 60]
    every = []
    for length in (1, 2, 3):
        for chain in itertools.combinations(sorted(ranks), length):
            for keeps in itertools.product(grid, repeat=length):
                if list(keeps) == sorted(keeps, reverse=True):
                    steps = [Step(size, keep) for size, keep in zip(chain, keeps, strict=True)]
                    if reached(ranks, steps) >= target:
                        every.append(price(Schedule((*steps, Step(full, 5))), cost, full))
    assert price(chosen, cost, full) == pytest.approx(min(every))


def test_choice_keeps_a_given_head_and_falls_back_to_everything():
    ranks = {4: np.full((3, 2), 99), 8: np.zeros((3, 2), dtype=int)}
    assert choose_schedule(ranks, 16, 100, head_cost("hnsw", 100)).sizes == (8, 16)
    kept = choose_schedule(ranks, 16, 100, head_cost("hnsw", 100), heads=[4])
    assert kept.steps == (Step(4, 100), Step(8, 2), Step(16, 2)) or kept.steps == (Step(4, 100), Step(16, 2))
    noisy = {4: np.array([[0, 0], [50, 60]])}
    assert choose_schedule(noisy, 16, 61, head_cost("flat", 61), target=1.0).steps[0].keep == 61


def test_shortlists_grow_with_the_index_and_with_k_and_never_shrink():
    schedule = Schedule((Step(8, 40), Step(16, 20), Step(32, 10)), k=10, rows=1000)
    assert [step.keep for step in schedule.at(10, 1000)] == [40, 20, 10]
    assert [step.keep for step in schedule.at(10, 3000)] == [120, 60, 10]
    assert [step.keep for step in schedule.at(20, 1000)] == [80, 40, 20]
    assert [step.keep for step in schedule.at(5, 500)] == [40, 20, 5]
    assert [step.keep for step in schedule.at(100, 50)] == [100, 100, 100]


def test_schedules_survive_json_and_refuse_bad_steps():
    schedule = default_schedule((4, 8, 16), 32)
    assert [step.keep for step in schedule.steps] == [1600, 400, 100, 10]
    assert Schedule.from_dict(schedule.to_dict()) == schedule
    with pytest.raises(ValueError, match="Sizes of a schedule must ascend"):
        Schedule((Step(8, 4), Step(4, 2)))
    with pytest.raises(ValueError, match="must shrink"):
        Schedule((Step(4, 2), Step(8, 4)))


def test_ranks_are_those_of_a_naive_count():
    corpus, queries = clustered(300), clustered(20, seed=1)
    made = compressor()
    documents = {8: made.transform(corpus, dim=8), 4: made.transform(corpus, dim=4), FULL: unit(corpus)}
    asked = {8: made.transform(queries, dim=8), 4: made.transform(queries, dim=4), FULL: unit(queries)}
    truth = exact_neighbours(Sample(documents), FULL, asked[FULL], 5)
    assert np.array_equal(truth.keys, naive(corpus, queries, 5))
    ranks = neighbour_ranks(Sample(documents), (4, 8), asked, truth)
    for size in (4, 8):
        for q in range(20):
            scores = documents[size] @ asked[size][q]
            for place, row in enumerate(truth.keys[q]):
                assert ranks[size][q, place] == np.sum(scores > scores[row] + 1e-6)


def test_a_query_that_is_a_row_is_not_its_own_neighbour():
    corpus = clustered(50)
    own = np.array([3, 20])
    truth = exact_neighbours(Sample({FULL: unit(corpus)}), FULL, unit(corpus[own]), 60, own)
    assert truth.keys.shape == (2, 49)
    assert not (truth.keys == own[:, None]).any()


def test_recall_counts_results_that_score_as_high_as_the_last_true_neighbour():
    truth = Truth(np.array([[1, 2], [8, 5]]), np.array([[0.9, 0.8], [0.7, 0.7]], dtype=np.float32))
    scores = np.array([[0.9, 0.8, 0.8], [0.7, 0.6, -np.inf]], dtype=np.float32)
    assert recall(scores, truth).tolist() == [1.0, 0.5]


@pytest.mark.parametrize("with_queries", [True, False])
def test_equal_rows_do_not_lengthen_the_search(with_queries, tmp_path):
    corpus, queries = clustered(1000), clustered(50, seed=1)
    equal = corpus.copy()
    equal[::4] = corpus[7]
    queries[::5] = corpus[7]
    kept = []
    for name, rows in (("distinct", corpus), ("equal", equal)):
        asked = queries if with_queries else None
        with FunnelIndex.build(tmp_path / name, compressor(), rows, dims=(16,), head="flat", queries=asked) as index:
            kept.append(index.schedule.steps[0].keep)
            assert index.schedule.recall_low >= 0.99
    assert kept[1] <= 1.5 * kept[0]


def test_a_missed_target_is_said(tmp_path, caplog):
    corpus = clustered(40)
    with FunnelIndex.create(tmp_path / "index", compressor(), dims=(4,)) as index:
        index.add(corpus)
        schedule = index.tune(recall=1.0)
        assert (schedule.recall_low < 1.0) == ("recall target 1.0 is missed" in caplog.text)
        lost = replace(schedule, steps=(Step(4, 10), Step(32, 10)), recall=0.5, recall_low=0.4, target=0.99)
        assert lost.misses_target
        assert not replace(lost, recall_low=0.99).misses_target


# -- filters ----------------------------------------------------------------------------------------------------------

FIELDS = {"lang": "str", "year": "int", "price": "float", "new": "bool"}
ROWS = [
    {"lang": "en", "year": 2020, "price": 1.5, "new": True},
    {"lang": "de", "year": 2021, "price": None, "new": False},
    {"lang": None, "year": None, "price": 3.0, "new": None},
    {"lang": 'a "b" \\ c', "year": 1999, "price": 0.0, "new": True},
]
OPERATIONS = {
    "$eq": lambda a, b: a == b, "$ne": lambda a, b: a != b, "$gt": lambda a, b: a > b, "$gte": lambda a, b: a >= b,
    "$lt": lambda a, b: a < b, "$lte": lambda a, b: a <= b, "$in": lambda a, b: a in b,
}  # fmt: skip


@pytest.mark.parametrize(
    "where",
    [
        {"lang": "en"}, {"lang": ["en", "de"]}, {"lang": []}, {"year": {"$gte": 2000, "$lt": 2021}}, {"new": True},
        {"price": {"$ne": 3}}, {"price": 3, "lang": "en"}, {"lang": 'a "b" \\ c'}, {"year": {"$in": [1999]}}, {},
        {"price": {"$lte": 1.5}, "new": {"$eq": True}}, {"year": {"$gt": 1e3.__int__()}},
    ],
)  # fmt: skip
def test_filters_keep_what_a_naive_loop_keeps(where):
    import pyarrow as pa

    kept = arrow_mask(pa.Table.from_pylist(ROWS), where, FIELDS).tolist()
    for row, here in zip(ROWS, kept, strict=True):
        expected = True
        for name, wanted in where.items():
            wanted = {"$in": wanted} if isinstance(wanted, list) else wanted
            for operator, value in (wanted if isinstance(wanted, dict) else {"$eq": wanted}).items():
                expected &= row[name] is not None and OPERATIONS[operator](row[name], value)
        assert here == expected


@pytest.mark.parametrize(
    ("where", "match"),
    [
        ({"size": 1}, "has no field 'size'; it has lang, new, price"),
        ({"year": "2020"}, "'year' holds int, got '2020'"),
        ({"year": True}, "'year' holds int, got True"),
        ({"year": {"$near": 1}}, r"unknown operator '\$near'"),
        ({"lang": {"$in": "en"}}, r"\$in takes a list"),
        ({"lang": None}, "'lang' holds str, got None"),
    ],
)
def test_filters_refuse_unknown_fields_operators_and_types(where, match):
    with pytest.raises(DataError, match=match):
        milvus_expression(where, FIELDS)


def test_filter_text_cannot_leave_its_quotes():
    assert milvus_expression({"lang": 'x" or "1" == "1'}, FIELDS) == r'lang == "x\" or \"1\" == \"1"'
