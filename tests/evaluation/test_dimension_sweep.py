"""The sweep evaluator: against scoring each size apart, on text, in the trainer (best checkpoint, early stopping)."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import EarlyStoppingCallback

from smec_st import DataError, EmbeddingInput, Qrels, VectorTable
from smec_st.data import unit_rows
from smec_st.evaluation.dimension_sweep import DimensionSweepEvaluator
from smec_st.evaluation.metrics import evaluate_retrieval
from tiny_models import WORDS, tiny_model
from training_world import make_trainer


@pytest.fixture
def made(rng):
    corpus = rng.standard_normal((60, 12), dtype=np.float32)
    queries = corpus[:20] + rng.standard_normal((20, 12), dtype=np.float32)
    grades = Qrels(np.r_[np.arange(5, 20), 7], np.r_[np.arange(5, 20), 3], np.r_[np.full(15, 2), 1])
    return corpus, queries, grades


def test_each_size_scores_as_it_would_alone(made):
    corpus, queries, qrels = made
    model = SentenceTransformer(modules=[EmbeddingInput(12)], device="cpu")
    evaluator = DimensionSweepEvaluator(corpus, queries, qrels, dims=[4, 12, 8, 16], main="mean")
    scores = evaluator(model)
    expected = {}
    for dim in (12, 8, 4):  # 16 is above the width
        parts = (unit_rows(unit_rows(table)[:, :dim]) for table in (corpus, queries))
        for metric, values in evaluate_retrieval(*parts, qrels).items():
            expected[f"sweep_{dim}_{metric}"] = values.mean()
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value, abs=1e-6)
    assert scores[evaluator.primary_metric] == pytest.approx(
        np.mean([expected[f"sweep_{d}_ndcg@10"] for d in (12, 8, 4)])
    )
    assert not any("_16_" in name for name in scores)


def test_a_table_and_its_queries_own_documents(made):
    corpus, queries, qrels = made
    own = np.where(np.arange(20) == 9, 4, -1)
    table = VectorTable(corpus, queries, own)
    model = SentenceTransformer(modules=[EmbeddingInput(12)], device="cpu")
    from_table = DimensionSweepEvaluator.from_table(table, qrels, [12])(model)
    plain = DimensionSweepEvaluator(corpus, queries, qrels, [12], own_document=own)(model)
    assert from_table == pytest.approx(plain)


def test_texts_are_encoded_once_at_full_width(tmp_path):
    model = tiny_model(tmp_path)
    model.truncate_dim = 4
    texts = [f"{a} {b}" for a, b in zip(WORDS[::2], WORDS[1::2], strict=True)]
    evaluator = DimensionSweepEvaluator(texts, texts, Qrels(np.arange(9), np.arange(9), np.ones(9)), [16, 8, 4])
    calls = []
    forward = model.forward
    model.forward = lambda features, **kwargs: calls.append(len(features["input_ids"])) or forward(features, **kwargs)
    scores = evaluator(model, output_path=str(tmp_path))
    assert sum(calls) == len(texts) + 9
    assert scores["sweep_16_ndcg@10"] == scores["sweep_ndcg@10"] == 1
    lines = list(csv.reader((tmp_path / "sweep_sweep.csv").read_text().splitlines()))
    assert [line[2] for line in lines] == ["dim", "16", "8", "4"]


def test_what_cannot_be_evaluated_is_refused(made):
    corpus, queries, qrels = made
    with pytest.raises(DataError, match="there are 20 and 10"):
        DimensionSweepEvaluator(corpus[:10], queries, qrels)
    with pytest.raises(DataError, match="no relevant pair"):
        DimensionSweepEvaluator(corpus, queries, Qrels(np.arange(2), np.arange(2), np.zeros(2)))
    with pytest.raises(ValueError, match="`main` must be"):
        DimensionSweepEvaluator(corpus, queries, qrels, [4], main=8)


# -- in the trainer ---------------------------------------------------------------------------------------------------


class Scripted(DimensionSweepEvaluator):
    """Scores in a fixed order: what the trainer makes of them is what is tested."""

    def __call__(self, model, **kwargs):
        self.seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return {self.primary_metric: self.script[len(self.seen) - 1]}


def scripted(made_with, script):
    evaluator = Scripted.from_table(made_with, Qrels(np.arange(9), np.arange(9), np.ones(9)))
    evaluator.seen, evaluator.script = [], script
    return evaluator


EVALUATE = {"eval_strategy": "steps", "eval_steps": 4, "save_steps": 4, "load_best_model_at_end": True}


@pytest.mark.parametrize("order", ["grow", "shrink"])
def test_each_stage_keeps_its_best_checkpoint(tmp_path, order):
    table = make_trainer(tmp_path / "t").table
    script = [0.3, 0.9] + ([] if order == "grow" else [0.1]) + [0.5, 0.4, 0.45]  # the adapt stage: two calls
    evaluator = scripted(table, script)
    trainer = make_trainer(
        tmp_path, order=order, guarded=False, evaluator=evaluator, metric_for_best_model="eval_sweep_ndcg@10",
        save_total_limit=5, **EVALUATE,
    )  # fmt: skip
    trainer.train()
    assert len(evaluator.seen) == len(script)
    residuals = [name for name in trainer.model.state_dict() if name.endswith("residual.weight")]
    final = trainer.model.state_dict()
    best = evaluator.seen[1][residuals[0]]
    assert torch.equal(final[residuals[0]], best)  # of the first stage, at its second call
    assert torch.equal(final[residuals[1]], evaluator.seen[-3][residuals[1]])  # of the last, at its first
    assert not torch.equal(evaluator.seen[0][residuals[0]], best)


def test_each_stage_stops_early_by_its_own_patience(tmp_path):
    table = make_trainer(tmp_path / "t").table
    evaluator = scripted(table, [0.9, 0.1, 0.8, 0.7])
    trainer = make_trainer(
        tmp_path, order="shrink", guarded=False, evaluator=evaluator, callbacks=[EarlyStoppingCallback(1)],
        metric_for_best_model="eval_sweep_ndcg@10", **EVALUATE,
    )  # fmt: skip
    assert [report.steps for report in trainer.train()] == [8, 8]


def test_a_stage_is_scored_at_all_sizes_and_by_the_largest(tmp_path):
    table = make_trainer(tmp_path / "t").table
    held = np.arange(60, 80)
    evaluator = DimensionSweepEvaluator.from_table(table, Qrels(held, held, np.ones(20)), [8, 4])
    trainer = make_trainer(tmp_path, evaluator=evaluator, eval_strategy="steps", eval_steps=6)
    seen = []
    log = trainer.log
    trainer.log = lambda logs, *a: seen.append((trainer.stage.out_dim, dict(logs))) or log(logs, *a)
    trainer.train()
    evaluated = [(dim, logs) for dim, logs in seen if "eval_sweep_ndcg@10" in logs]
    assert {dim for dim, _ in evaluated} == {16, 8}, "the adapt stage keeps the full width"
    assert all(logs["eval_sweep_ndcg@10"] == logs["eval_sweep_8_ndcg@10"] for _, logs in evaluated)
    assert all("eval_sweep_4_ndcg@10" in logs for _, logs in evaluated)
