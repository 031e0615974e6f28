"""Exact search equals a plain sort, and metrics equal their formulas."""

import math

import numpy as np
import pytest
import pytrec_eval

from smec_st.data import Qrels
from smec_st.evaluation.metrics import evaluate_retrieval, exact_search, leave_out, neighbour_overlap, score_rankings

CORPUS_IDS = list(range(8))
JUDGED = {0: {2: 3, 5: 1, 6: 0, 7: 2}, 1: {0: 1}, 3: {4: 0}, 2: {1: 2, 3: 2, 4: 1}}
RANKINGS = {0: [5, 6, 2, 0, 7], 1: [3, 2, 1, 0, 5], 2: [4, 0, 1, 7, 3], 3: [4, 0, 1, 2, 3]}


@pytest.fixture
def qrels():
    return Qrels.from_dict(JUDGED, [0, 1, 2, 3], CORPUS_IDS)


@pytest.fixture
def rankings():
    return {query: np.array(ranked) for query, ranked in RANKINGS.items()}


def naive_ndcg(ranked, grades, k):
    gain = sum(grades.get(document, 0) / math.log2(rank + 2) for rank, document in enumerate(ranked[:k]))
    ideal = sorted(grades.values(), reverse=True)[:k]
    return gain / sum(grade / math.log2(rank + 2) for rank, grade in enumerate(ideal))


def naive_recall(ranked, grades, k):
    relevant = {document for document, grade in grades.items() if grade > 0}
    return len(relevant & set(ranked[:k])) / len(relevant)


def naive_mrr(ranked, grades, k):
    return max(
        [1 / (rank + 1) for rank, document in enumerate(ranked[:k]) if grades.get(document, 0) > 0], default=0.0
    )


def naive_search(corpus, queries, k):
    return np.array(
        [sorted(range(len(corpus)), key=lambda row: (-(corpus[row] @ query), row))[:k] for query in queries]
    )


@pytest.mark.parametrize("k", [1, 5, 49, 50, 80])
@pytest.mark.parametrize("chunk", [1, 4, 256])
def test_exact_search_equals_a_plain_sort(rng, k, chunk):
    corpus, queries = rng.normal(size=(50, 6)).astype(np.float32), rng.normal(size=(7, 6)).astype(np.float32)
    rows, scores = exact_search(corpus, queries, k, chunk=chunk)
    np.testing.assert_array_equal(rows, naive_search(corpus, queries, min(k, 50)))
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ corpus.T, rows, axis=1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [2, 4, 12])
def test_exact_search_gives_equal_scores_to_the_lower_row(k):
    corpus = np.array([1, 3, 2, 3, 1, 2, 0, 0, -1, -1, -2, -2], dtype=np.float32)[:, None]
    rows, _ = exact_search(corpus, np.ones((1, 1), dtype=np.float32), k)
    assert rows[0].tolist() == [1, 3, 2, 5, 0, 4, 6, 7, 8, 9, 10, 11][:k]


def test_exact_search_gives_many_equal_scores_to_the_lower_row(rng):
    corpus = rng.integers(0, 4, (500, 1)).astype(np.float32)
    rows, _ = exact_search(corpus, np.ones((1, 1), dtype=np.float32), 500)
    np.testing.assert_array_equal(rows, naive_search(corpus, np.ones((1, 1)), 500))


@pytest.mark.parametrize("k", [1, 3, 5, 10])
@pytest.mark.parametrize(("name", "formula"), [("ndcg", naive_ndcg), ("recall", naive_recall), ("mrr", naive_mrr)])
def test_score_rankings_equals_the_formula(qrels, rankings, name, formula, k):
    values = score_rankings(rankings, qrels, [f"{name}@{k}"])[f"{name}@{k}"]
    expected = [formula(RANKINGS[query], JUDGED[query], k) for query in (0, 1, 2)]  # query 3 has no relevant document
    np.testing.assert_allclose(values, expected, rtol=1e-9)


def test_score_rankings_by_hand(qrels, rankings):
    scores = score_rankings(rankings, qrels, ["ndcg@3", "recall@3", "mrr@3"])
    ideal = 3 + 2 / math.log2(3) + 1 / 2
    assert scores["ndcg@3"][0] == pytest.approx((1 + 0 + 3 / 2) / ideal)
    assert scores["recall@3"].tolist() == pytest.approx([2 / 3, 0, 2 / 3])
    assert scores["mrr@3"].tolist() == [1, 0, 1]


def test_score_rankings_takes_rows_and_ranked_rows_as_arrays(qrels, rankings):
    arrays = (np.array([2, 0, 1]), np.stack([rankings[query] for query in (2, 0, 1)]))
    for metric, values in score_rankings(arrays, qrels).items():
        np.testing.assert_array_equal(values, score_rankings(rankings, qrels)[metric])


@pytest.mark.parametrize("metric", ["map@10", "ndcg", "ndcg@", "ndcg@ten", "@10", "ndcg@0"])
def test_score_rankings_rejects_an_unknown_metric(qrels, rankings, metric):
    with pytest.raises(ValueError, match=f"Unknown metric '{metric}'; use ndcg@k, recall@k or mrr@k"):
        score_rankings(rankings, qrels, [metric])


def test_score_rankings_rejects_missing_rankings(qrels, rankings):
    del rankings[1]
    with pytest.raises(ValueError, match="1 of 3 judged queries have no ranking"):
        score_rankings(rankings, qrels)


def test_score_rankings_rejects_judgements_without_relevant_documents(rankings):
    with pytest.raises(ValueError, match="0 of 0 judged queries have no ranking"):
        score_rankings(rankings, Qrels.from_dict({3: {4: 0}}, [0, 1, 2, 3], CORPUS_IDS))


def test_evaluate_retrieval_searches_then_scores(rng, qrels):
    corpus, queries = rng.normal(size=(8, 5)).astype(np.float32), rng.normal(size=(4, 5)).astype(np.float32)
    metrics = ("ndcg@3", "recall@5", "mrr@2")
    found = evaluate_retrieval(corpus, queries, qrels, metrics)
    expected = score_rankings(dict(enumerate(naive_search(corpus, queries, 5))), qrels, metrics)
    assert tuple(found) == metrics
    for metric in metrics:
        np.testing.assert_array_equal(found[metric], expected[metric])


def test_evaluate_retrieval_is_perfect_when_queries_are_their_documents(rng):
    corpus = rng.normal(size=(30, 16)).astype(np.float32)
    corpus /= np.linalg.norm(corpus, axis=1, keepdims=True)
    qrels = Qrels(np.arange(10), np.arange(10) * 3, np.ones(10))
    for values in evaluate_retrieval(corpus, corpus[::3], qrels).values():
        np.testing.assert_array_equal(values, np.ones(10))


def test_exact_search_keeps_the_lowest_rows_of_a_tie_across_the_cut():
    rows, scores = exact_search(np.ones((1000, 4), np.float32), np.ones((2, 4), np.float32), 5)
    assert rows.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert (scores == 4).all()


def test_exact_search_rejects_k_below_one():
    with pytest.raises(ValueError, match="`k` must be at least 1, got 0"):
        exact_search(np.ones((3, 2), np.float32), np.ones((1, 2), np.float32), 0)


def rankings_without_own(corpus, queries, own, k):
    everyone = naive_search(corpus, queries, len(corpus))
    return {q: np.array([row for row in ranked if row != own[q]][:k]) for q, ranked in enumerate(everyone.tolist())}


@pytest.mark.parametrize("depth", [1, 3, 7, 8, 20])
def test_evaluate_retrieval_leaves_the_own_document_out(rng, depth):
    corpus = rng.normal(size=(8, 5)).astype(np.float32)
    own = np.array([2, -1, 7, 0, -1, 4])
    queries = corpus[own] + 0.1 * rng.normal(size=(6, 5)).astype(np.float32)  # most find themselves first
    queries[5] = -corpus[4]  # finds itself last
    judged = rng.permutation(48)[:20]
    qrels = Qrels(judged // 8, judged % 8, rng.integers(1, 3, 20)).without_own(own)
    metrics = tuple(f"{name}@{depth}" for name in ("ndcg", "recall", "mrr"))
    found = evaluate_retrieval(corpus, queries, qrels, metrics, own)
    expected = score_rankings(rankings_without_own(corpus, queries, own, depth), qrels, metrics)
    for metric in metrics:
        np.testing.assert_array_equal(found[metric], expected[metric])


def test_evaluate_retrieval_without_own_documents_is_plain_retrieval(rng, qrels):
    corpus, queries = rng.normal(size=(8, 5)).astype(np.float32), rng.normal(size=(4, 5)).astype(np.float32)
    plain, left_out = (
        evaluate_retrieval(corpus, queries, qrels),
        evaluate_retrieval(corpus, queries, qrels, own_document=np.full(4, -1)),
    )
    for metric, values in plain.items():
        np.testing.assert_array_equal(left_out[metric], values)


def test_leave_out_moves_the_rest_up():
    ranked = np.array([[3, 1, 4], [1, 5, 9], [2, 6, 5]])
    assert leave_out(ranked, np.array([3, 5, -1])).tolist() == [[1, 4, -1], [1, 9, -1], [2, 6, 5]]


@pytest.mark.parametrize("k", [1, 5, 20])
def test_neighbour_overlap_equals_a_plain_loop(rng, k):
    found, reference = (np.stack([rng.permutation(25)[:k] for _ in range(9)]) for _ in range(2))
    expected = [len(set(a) & set(b)) / k for a, b in zip(found.tolist(), reference.tolist(), strict=True)]
    assert neighbour_overlap(found, reference).tolist() == expected


def test_neighbour_overlap_is_one_for_another_order_and_zero_for_disjoint_sets():
    assert neighbour_overlap(np.array([[3, 1, 2], [4, 5, 6]]), np.array([[1, 2, 3], [1, 2, 3]])).tolist() == [1, 0]


def test_metrics_are_those_of_trec_eval_to_the_last_bit(rng):
    grades = {query: {int(row): int(rng.integers(0, 4)) for row in rng.choice(80, 20, False)} for query in range(40)}
    grades = {query: {**of, 80: 1} for query, of in grades.items()}  # each query has a relevant document
    qrels = Qrels.from_dict(grades, list(range(40)), list(range(81)))
    rankings = np.stack([np.r_[rng.permutation(81)[:60], -1, -1] for _ in range(40)])
    run = {str(q): {str(d): float(-place) for place, d in enumerate(row[:60])} for q, row in enumerate(rankings)}
    gold = {str(query): {str(row): grade for row, grade in of.items()} for query, of in grades.items()}
    measures = {"ndcg@7": "ndcg_cut_7", "ndcg@60": "ndcg_cut_60", "recall@30": "recall_30", "mrr@100": "recip_rank"}
    asked = {"ndcg_cut.7,60", "recall.30", "recip_rank"}
    theirs = pytrec_eval.RelevanceEvaluator(gold, asked).evaluate(run)
    ours = score_rankings((np.arange(40), rankings), qrels, tuple(measures))
    for name, measure in measures.items():
        np.testing.assert_array_equal(ours[name], [theirs[str(query)][measure] for query in range(40)])


def test_an_empty_ranking_scores_zero(qrels, rankings):
    found = score_rankings({**rankings, 1: np.array([], dtype=np.int64)}, qrels, ("ndcg@10", "recall@10", "mrr@10"))
    assert [values[1] for values in found.values()] == [0, 0, 0]
