"""The evaluator of training and the table of sizes, against plain retrieval."""

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from smec_st import Compressor
from smec_st.compressor.scoring import measure, score_compressor
from smec_st.data import Collection, Qrels, VectorTable, unit_rows
from smec_st.evaluation.evaluator import HeldOutEvaluator
from smec_st.evaluation.metrics import evaluate_retrieval
from smec_st.evaluation.sweep import sweep
from smec_st.evaluation.untrained import original, truncate
from smec_st.modules import EmbeddingInput

DOCUMENTS, QUERIES, WIDTH = 40, 12, 16


@pytest.fixture
def collection(rng):
    """Vectors of both sides, own documents of some queries, and judgements of most."""
    corpus = rng.normal(size=(DOCUMENTS, WIDTH)).astype(np.float32)
    own = np.where(np.arange(QUERIES) % 3 == 0, -1, rng.permutation(DOCUMENTS)[:QUERIES])
    queries = corpus[own] + 0.05 * rng.normal(size=(QUERIES, WIDTH)).astype(np.float32)
    judged = rng.permutation(QUERIES * DOCUMENTS)[:60]
    qrels = Qrels(judged // DOCUMENTS, judged % DOCUMENTS, np.ones(60)).without_own(own).of_queries(range(2, QUERIES))
    return corpus, queries, own, qrels


def test_sweep_leaves_own_documents_out_at_every_size(collection):
    corpus, queries, own, qrels = collection
    rows = sweep(corpus, queries, qrels, {"original": original, "truncate": truncate}, [4, 8], own_document=own)
    assert [(row.method, row.dim) for row in rows] == [("original", WIDTH), ("truncate", 8), ("truncate", 4)]
    for row in rows:
        cut = unit_rows(corpus[:, : row.dim]), unit_rows(queries[:, : row.dim])
        expected = evaluate_retrieval(*cut, qrels, own_document=own)
        assert row.metrics == {metric: values.mean() for metric, values in expected.items()}
        assert row.metrics != {metric: values.mean() for metric, values in evaluate_retrieval(*cut, qrels).items()}


def test_a_compressor_is_scored_itself_even_if_its_method_is_a_baseline(collection):
    corpus, queries, own, qrels = collection
    data = Collection("toy", corpus, queries, [], [], {"test": qrels}, own)
    compressor = Compressor.fit(corpus[:20], dims=(8, 4), method="pca")  # other axes than those of the whole corpus
    for rows in (score_compressor(compressor, data), measure(compressor, data).rows):
        for row in rows[-2:]:
            vectors = (compressor.transform(table, row.dim) for table in (corpus, queries))
            expected = evaluate_retrieval(*vectors, qrels, own_document=own)
            assert row.method == "pca"
            assert row.metrics == pytest.approx({metric: values.mean() for metric, values in expected.items()})


@pytest.mark.parametrize("max_corpus", [1000, 5])
def test_held_out_evaluator_leaves_own_documents_out(collection, max_corpus):
    corpus, queries, own, qrels = collection
    evaluator = HeldOutEvaluator(VectorTable(corpus, queries, own), qrels, max_corpus=max_corpus)
    model = SentenceTransformer(modules=[EmbeddingInput(WIDTH)], device="cpu")
    kept = np.arange(DOCUMENTS)
    if max_corpus < DOCUMENTS:  # the documents it draws, and all relevant ones
        kept = np.union1d(np.random.default_rng(0).permutation(DOCUMENTS)[:max_corpus], qrels.pairs[:, 1])
    local = Qrels(qrels.pairs[:, 0], np.searchsorted(kept, qrels.pairs[:, 1]), np.ones(len(qrels.pairs)))
    local_own = np.array([kept.tolist().index(row) if row in kept else -1 for row in own])
    parts = unit_rows(corpus)[kept], unit_rows(queries), local, ("ndcg@10",)
    expected = evaluate_retrieval(*parts, local_own)["ndcg@10"].mean()
    assert evaluator.per_query(model, (WIDTH,)).mean() == pytest.approx(expected, abs=1e-9)
    assert expected != evaluate_retrieval(*parts)["ndcg@10"].mean()
