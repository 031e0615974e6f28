"""Judgements by row: their order, how they are split, and which input they refuse."""

import numpy as np
import pytest

from counting import counted
from smec_st.data import DataError, Qrels, places_among
from smec_st.evaluation.metrics import score_rankings


@pytest.fixture
def qrels():
    judged = {"q0": {"d1": 2, "d0": 1}, "q1": {"d2": 0}, "q3": {"d2": 1}, "q2": {"d0": 3, "d3": 0}}
    return Qrels.from_dict(judged, ["q0", "q1", "q2", "q3"], ["d0", "d1", "d2", "d3"])


def test_qrels_from_dict_are_sorted_by_query_then_document(qrels):
    assert qrels.queries.tolist() == [0, 0, 1, 2, 2, 3]
    assert qrels.documents.tolist() == [0, 1, 2, 0, 3, 2]
    assert qrels.grades.tolist() == [1, 2, 0, 3, 0, 1]
    assert (qrels.queries.dtype, qrels.documents.dtype, qrels.grades.dtype) == (np.int64, np.int64, np.float32)
    assert len(qrels) == 6


def test_qrels_pairs_are_the_relevant_ones(qrels):
    assert qrels.pairs.tolist() == [[0, 0], [0, 1], [2, 0], [3, 2]]


def test_qrels_relevant_by_query_leaves_out_queries_without_relevant_documents(qrels):
    assert qrels.relevant_by_query() == {0: {0: 1.0, 1: 2.0}, 2: {0: 3.0}, 3: {2: 1.0}}


def test_qrels_of_queries_keeps_all_judgements_of_these(qrels):
    part = qrels.of_queries([2, 1, 99])
    assert (part.queries.tolist(), part.documents.tolist()) == ([1, 2, 2], [2, 0, 3])


def test_qrels_from_an_empty_dict_hold_nothing():
    empty = Qrels.from_dict({}, ["q"], ["d"])
    assert len(empty) == 0
    assert empty.pairs.shape == (0, 2)
    assert empty.relevant_by_query() == {}


@pytest.mark.parametrize(("share", "held"), [(0.0, 0), (0.25, 10), (0.5, 20), (1.0, 40)])
def test_qrels_split_divides_the_queries(rng, share, held):
    whole = Qrels(rng.permutation(np.repeat(np.arange(40), 3)), rng.integers(0, 9, 120), np.ones(120))
    kept, out = whole.split(share, seed=1)
    assert len(np.unique(out.queries)) == held
    assert sorted(set(kept.queries.tolist()) | set(out.queries.tolist())) == list(range(40))
    assert not set(kept.queries.tolist()) & set(out.queries.tolist())
    assert len(kept) + len(out) == len(whole)


def test_qrels_split_depends_on_the_seed_alone(rng):
    whole = Qrels(np.arange(40), rng.integers(0, 9, 40), np.ones(40))
    assert whole.split(0.3, seed=1)[1].queries.tolist() == whole.split(0.3, seed=1)[1].queries.tolist()
    assert whole.split(0.3, seed=1)[1].queries.tolist() != whole.split(0.3, seed=2)[1].queries.tolist()


@pytest.mark.parametrize("grade", [0.5, -1, float("nan")])
def test_qrels_reject_grades_that_are_not_whole_numbers(grade):
    with pytest.raises(DataError, match="relevance grades must be whole numbers, 0 or more"):
        Qrels.from_dict({"q": {"d": grade}}, ["q"], ["d"])


@pytest.mark.parametrize(
    ("judged", "match"),
    [
        ({"q9": {"d0": 1}}, "qrels names 1 id that the queries lack: q9"),
        ({"q0": {"d9": 1, "d8": 1}}, "qrels names 2 ids that the corpus lacks: d8, d9"),
        ({"q0": {f"x{i}": 1 for i in range(5)}}, "names 5 ids that the corpus lacks: x0, x1, x2 and 2 more"),
    ],
)
def test_qrels_reject_unknown_ids(judged, match):
    with pytest.raises(DataError, match=match):
        Qrels.from_dict(judged, ["q0"], ["d0"])


def test_qrels_merge_a_judgement_given_twice_and_refuse_a_contradiction():
    assert len(Qrels([0, 0, 1], [5, 5, 5], [1, 1, 1])) == 2
    with pytest.raises(DataError, match="twice, with different grades"):
        Qrels([0, 0], [5, 5], [1, 2])


def test_qrels_refuse_an_infinite_grade_and_repeated_ids():
    with pytest.raises(DataError, match="whole numbers"):
        Qrels([0], [0], [np.inf])
    with pytest.raises(DataError, match="must not repeat"):
        Qrels.from_dict({"q": {"d": 1}}, ["q"], ["d", "d"])


def test_qrels_joined_hold_the_judgements_of_all_parts():
    one, other = Qrels([2, 0], [1, 5], [1, 0]), Qrels([1, 2], [3, 0], [2, 1])
    both = Qrels.joined([one, other])
    triples = zip(both.queries.tolist(), both.documents.tolist(), both.grades.tolist(), strict=True)
    assert list(triples) == [(0, 5, 0), (1, 3, 2), (2, 0, 1), (2, 1, 1)]
    with pytest.raises(DataError, match="twice, with different grades"):
        Qrels.joined([one, Qrels([2], [1], [3])])


def test_qrels_without_own_drop_each_query_with_its_document(qrels):
    own = np.array([1, 2, -1, 0])
    kept = qrels.without_own(own)
    expected = [
        (q, d, g)
        for q, d, g in zip(qrels.queries.tolist(), qrels.documents.tolist(), qrels.grades.tolist(), strict=True)
        if own[q] != d
    ]
    assert list(zip(kept.queries.tolist(), kept.documents.tolist(), kept.grades.tolist(), strict=True)) == expected
    assert len(kept) == 4


@pytest.mark.parametrize("corpus_rows", [None, [0, 2], [0, 1, 2, 3]])
def test_qrels_renumbered_name_the_same_pairs_by_position(qrels, corpus_rows):
    if corpus_rows == [0, 2]:
        qrels = qrels.of_queries([2, 3])
    part = qrels.renumbered(None if corpus_rows is None else np.array(corpus_rows))
    rows = range(4) if corpus_rows is None else corpus_rows
    named = [[qrels.query_rows[query], rows[document]] for query, document in part.pairs.tolist()]
    assert named == qrels.pairs.tolist()
    assert part.grades.tolist() == qrels.grades[qrels.grades > 0].tolist()
    assert part.query_rows.tolist() == list(range(len(qrels.query_rows)))


def test_qrels_renumbered_refuse_to_lose_a_relevant_document(qrels):
    with pytest.raises(ValueError, match="`corpus_rows` must hold every relevant document"):
        qrels.renumbered(np.array([0, 1, 3]))


def test_qrels_relevant_by_query_equals_a_plain_loop(rng):
    drawn = rng.permutation(30 * 40)[:500]
    qrels = Qrels(drawn // 40, drawn % 40, rng.integers(0, 3, 500))
    expected = {}
    for query, document, grade in zip(qrels.queries, qrels.documents, qrels.grades, strict=True):
        if grade > 0:
            expected.setdefault(int(query), {})[int(document)] = float(grade)
    assert qrels.relevant_by_query() == expected


def test_qrels_of_a_million_judgements_do_nothing_judgement_by_judgement():
    queries, documents = np.divmod(np.arange(1_000_000), 1000)
    qrels, made = counted(lambda: Qrels(queries, documents, np.ones(1_000_000)))
    assert len(qrels.pairs) == 1_000_000
    by_query, grouped = counted(qrels.relevant_by_query)
    assert len(by_query) == 1000
    ranked = np.arange(1000), np.tile(np.arange(100), (1000, 1))
    scores, scored = counted(lambda: score_rankings(ranked, qrels, ("ndcg@10",)))
    assert made + grouped + scored < 100_000, "something is done for each judgement"
    assert scores["ndcg@10"].tolist() == [1.0] * 1000


@pytest.mark.parametrize(("queries", "held"), [(300, 30), (199, 20), (60, 20), (40, 20), (39, None)])
def test_hold_out_takes_enough_queries_or_none(queries, held):
    qrels = Qrels(np.arange(queries), np.arange(queries), np.ones(queries))
    rest, dev = qrels.hold_out(0.1, seed=3)
    if held is None:
        assert dev is None
        assert rest is qrels
    else:
        assert len(dev.query_rows) == held
        assert sorted(np.r_[rest.query_rows, dev.query_rows]) == list(range(queries))


def test_queries_with_a_document_in_common_are_held_out_together(rng):
    documents = np.repeat(np.arange(60), 5)  # five queries per document
    qrels = Qrels(rng.permutation(300), documents, np.ones(300))
    rest, held = qrels.split(0.2, seed=1)
    assert len(held.query_rows) == 60
    assert not set(rest.documents.tolist()) & set(held.documents.tolist())
    assert sorted(np.r_[rest.query_rows, held.query_rows]) == list(range(300))
    other = qrels.split(0.2, seed=2)[1]
    assert other.query_rows.tolist() != held.query_rows.tolist()


def test_half_of_the_held_out_queries_ask_for_documents_that_are_trained_on(rng):
    documents = np.repeat(np.arange(60), 5)
    qrels = Qrels(rng.permutation(300), documents, np.ones(300))
    rest, held = qrels.hold_out(0.2, seed=1)
    assert len(held.query_rows) == 60
    assert sorted(np.r_[rest.query_rows, held.query_rows]) == list(range(300))
    trained = set(rest.documents.tolist())
    assert sum(document in trained for document in held.documents.tolist()) == 30
    assert qrels.hold_out(0.2, seed=2)[1].query_rows.tolist() != held.query_rows.tolist()


@pytest.mark.parametrize("count", [3, 4, 5])
def test_folds_hold_every_query_once_and_half_of_them_share_no_document_with_others(rng, count):
    documents = np.repeat(np.arange(60), 5)
    qrels = Qrels(rng.permutation(300), documents, np.ones(300))
    parts = qrels.folds(count, seed=1)
    assert sorted(np.concatenate([part.query_rows for part in parts])) == list(range(300))
    assert all(abs(len(part.query_rows) - 300 / count) <= 5 for part in parts)
    for number, part in enumerate(parts):
        others = {d for other in parts if other is not part for d in other.documents.tolist()}
        assert (not others & set(part.documents.tolist())) == (number < count // 2)


def test_groups_equal_those_of_a_breadth_first_search(rng):
    qrels = Qrels(rng.integers(0, 40, 60), rng.integers(0, 50, 60), rng.integers(0, 2, 60))
    neighbors = {q: set() for q in qrels.query_rows.tolist()}
    for query, document in qrels.pairs.tolist():
        neighbors[query] |= set(qrels.pairs[qrels.pairs[:, 1] == document, 0].tolist())
    expected, number = {}, 0
    for query in neighbors:
        if query not in expected:
            reached = [query]
            for one in reached:
                reached += [other for other in sorted(neighbors[one]) if other not in reached]
            expected.update(dict.fromkeys(reached, number))
            number += 1
    assert qrels._groups().tolist() == [expected[query] for query in neighbors]


def test_classes_are_split_query_by_query():
    queries, documents = np.divmod(np.arange(2500), 25)
    rest, held = Qrels(queries, documents + 25 * (queries % 2), np.ones(2500)).split(0.2, seed=0)
    assert (len(rest.query_rows), len(held.query_rows)) == (80, 20)


def test_own_documents_get_their_place_among_the_rows_that_are_searched():
    rows = np.array([2, 5, 9])
    np.testing.assert_array_equal(places_among(rows, np.array([9, -1, 2, 4, 11])), [2, -1, 0, -1, -1])
    assert places_among(rows[:0], np.array([1])).tolist() == [-1]
