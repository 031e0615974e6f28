"""MTEB at every size from one encode, on a task made here."""

from __future__ import annotations

import pytest

mteb = pytest.importorskip("mteb")

from datasets import Dataset  # noqa: E402
from mteb.abstasks.retrieval import AbsTaskRetrieval  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402

from smec_st.evaluation.mteb import SizedEncoder, evaluate_mteb  # noqa: E402
from tiny_models import WORDS, tiny_model  # noqa: E402


class LocalRetrieval(AbsTaskRetrieval):
    metadata = TaskMetadata(
        name="LocalRetrieval",
        description="Made for a test.",
        reference=None,
        dataset={"path": "local/none", "revision": "1"},
        type="Retrieval",
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
        date=("2024-01-01", "2024-01-02"),
        domains=["Written"],
        task_subtypes=[],
        license="cc0-1.0",
        annotations_creators="derived",
        dialect=[],
        sample_creation="created",
        bibtex_citation="",
    )

    def load_data(self, *args, **kwargs) -> None:
        documents = [f"{a} {b}" for a, b in zip(WORDS[::2], WORDS[1::2], strict=True)]
        self.dataset = {
            "default": {
                "test": {
                    "corpus": Dataset.from_list(
                        [{"id": f"d{i}", "title": "", "text": text} for i, text in enumerate(documents)]
                    ),
                    "queries": Dataset.from_list([{"id": f"q{i}", "text": documents[i]} for i in range(12)]),
                    "relevant_docs": {f"q{i}": {f"d{i}": 1} for i in range(12)},
                    "top_ranked": None,
                }
            }
        }
        self.data_loaded = True


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_size_is_evaluated_with_one_encode(tmp_path, monkeypatch):
    model = tiny_model(tmp_path)
    model.truncate_dim = 8  # a serving size must not hide the wider ones
    calls = []
    encoder = SizedEncoder.encode
    monkeypatch.setattr(SizedEncoder, "encode", lambda self, *a, **k: calls.append(self) or encoder(self, *a, **k))
    results = evaluate_mteb(model, [LocalRetrieval()], [4, 16])
    assert list(results) == [16, 4]
    assert len({id(call) for call in calls}) == 1
    assert calls[0].encoded == 40 + 12  # corpus and queries, once
    scores = {dim: result.task_results[0].get_score() for dim, result in results.items()}
    assert scores[16] == 1
    for dim, score in scores.items():  # as mteb scores a model that serves this size alone
        model.truncate_dim = dim
        alone = mteb.evaluate(model, LocalRetrieval(), cache=None, show_progress_bar=False)
        assert score == pytest.approx(alone.task_results[0].get_score(), abs=1e-6)


def test_sizes_above_the_width_are_refused(tmp_path):
    with pytest.raises(ValueError, match="in \\[1, 16\\]"):
        evaluate_mteb(tiny_model(tmp_path), [], [32])
