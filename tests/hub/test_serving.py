"""Servers read exported models correctly, and decoders work as backbones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from hub_server import Hub
from smec_st import Compressor, DataError
from smec_st.cli import run
from smec_st.hub.decoder import decoder_backbone, looks_both_ways
from smec_st.hub.push import write_repository
from smec_st.hub.serving import pool
from smec_st.hub.verify import verify
from tiny_models import tiny_bert, tiny_qwen2

# Raised by peft's own use of transformers.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

TEXTS = ["how to join two paths", "a cat sat on the mat", "sorting is stable", "x"]
QUICK = {"steps": 3, "selection_steps": 2, "batch_size": 16}


def vectors(width):
    return np.random.default_rng(0).standard_normal((60, width)).astype(np.float32)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def compressor():
    return Compressor.fit(vectors(32), dims=(16, 8, 4), **QUICK)


def ways(checks):
    return {(check.way, check.dim): check for check in checks}


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_servers_give_the_same_vectors_at_every_size(compressor, tmp_path, pooling):
    model = tiny_bert(tmp_path / "backbone", pooling=pooling)
    compressor.export(model, tmp_path / "model")
    checks = verify(tmp_path / "model")
    assert [check for check in checks if not check.is_good] == []
    found = ways(checks)
    for way in ("text-embeddings-inference", "vLLM"):
        assert [dim for name, dim in found if name == way] == [16, 8, 4]
    short = found["a server that cuts after Normalize", 4]
    assert 0 < short.length < 0.999
    assert short.is_note


def test_a_single_size_has_unit_length_everywhere(compressor, backbone, tmp_path):
    compressor.export(backbone, tmp_path / "model", dim=8)
    checks = verify(tmp_path / "model")
    assert {check.dim for check in checks} == {8}
    assert all(abs(check.length - 1) < 1e-5 for check in checks)


@pytest.mark.parametrize(
    ("break_it", "way", "problem"),
    [
        (lambda folder: rename_dense(folder), "text-embeddings-inference", "which servers do not know"),
        (lambda folder: edit(folder / "config.json", is_matryoshka=None), "vLLM", "refuses `dimensions: 8`"),
        (lambda folder: drop_dense(folder), "vLLM", None),
        (lambda folder: (folder / "pytorch_model.bin").write_bytes(b"x"), "sentence-transformers", "safetensors only"),
    ],
    ids=["module-name", "no-flag", "dense-hidden", "pickle"],
)
def test_what_a_server_would_get_wrong_is_found(compressor, backbone, tmp_path, break_it, way, problem):
    compressor.export(backbone, tmp_path / "model")
    break_it(tmp_path / "model")
    wrong = [check for check in verify(tmp_path / "model") if not check.is_good]
    if problem is None:  # the model is consistent, only no longer compressed
        assert wrong == []
        return
    assert way in {check.way for check in wrong}
    assert any(problem in check.problem for check in wrong)


def edit(path, **changes):
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def rename_dense(folder):
    path = folder / "modules.json"
    path.write_text(path.read_text().replace("models.Dense", "base.modules.dense.Dense"))


def drop_dense(folder):
    path = folder / "modules.json"
    modules = [module for module in json.loads(path.read_text()) if not module["type"].endswith("Dense")]
    path.write_text(json.dumps(modules))
    edit(folder / "config.json", matryoshka_dimensions=[32])


def test_an_activation_that_tei_does_not_know_is_reported(backbone, tmp_path):
    deep = Compressor.fit(vectors(32), dims=(8,), hidden_dim=4, activation="silu", learning_rate=1e-3, **QUICK)
    deep.export(backbone, tmp_path / "model")
    wrong = [check for check in verify(tmp_path / "model") if not check.is_good]
    assert any("does not know the activation SiLU" in check.problem for check in wrong)


def test_verify_command(compressor, backbone, tmp_path, capsys):
    compressor.export(backbone, tmp_path / "model")
    assert run(["verify", str(tmp_path / "model"), "--json", str(tmp_path / "checks.json")]) == 0
    assert "ok     vLLM, 4 dims: difference" in capsys.readouterr().out
    assert {check["way"] for check in json.loads((tmp_path / "checks.json").read_text())} >= {"vLLM"}
    edit(tmp_path / "model" / "config.json", is_matryoshka=None)
    assert run(["verify", str(tmp_path / "model")]) == 1
    assert "WRONG  vLLM, 8 dims" in capsys.readouterr().out
    assert run(["verify", str(tmp_path / "nowhere")]) == 2


def test_pooling_against_a_loop():
    rng = np.random.default_rng(0)
    tokens, mask = rng.standard_normal((3, 5, 2)), np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1]])
    for row in range(3):
        kept = [tokens[row, i] for i in range(5) if mask[row, i]]
        for mode, expected in (("mean", np.mean(kept, axis=0)), ("cls", kept[0]), ("last", kept[-1])):
            assert np.allclose(pool(tokens, mask, mode)[row], expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_onnx_holds_backbone_and_head_for_texts_of_any_length(compressor, backbone, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    compressor.export(backbone, tmp_path / "model", onnx=True)
    checks = [check for check in verify(tmp_path / "model") if check.way == "ONNX"]
    assert [check.dim for check in checks] == [16, 8, 4]
    assert all(check.is_good for check in checks), checks
    session = onnxruntime.InferenceSession(str(tmp_path / "model" / "onnx" / "model.onnx"))
    assert [node.name for node in session.get_outputs()] == ["last_hidden_state", "sentence_embedding"]


# -- decoders ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory):
    return tiny_qwen2(tmp_path_factory.mktemp("qwen2"))


@pytest.fixture(scope="module")
def explicit(tmp_path_factory):
    """The same weights with ``is_causal`` in the config, so that a PEFT reference to them can override it."""
    return tiny_qwen2(tmp_path_factory.mktemp("explicit"), is_causal=True)


@pytest.fixture(scope="module")
def adapter(explicit, tmp_path_factory):
    """A LoRA adapter that changes the output."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel, AutoTokenizer

    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(1)
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(AutoModel.from_pretrained(explicit), config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(explicit).save_pretrained(folder)
    return folder


def test_a_decoder_looks_both_ways_and_still_does_after_export(qwen2, tmp_path):
    backbone = decoder_backbone(qwen2, prompts={"query": "query: "}, device="cpu")
    compressor = Compressor.fit(TEXTS * 10, dims=(16, 8), model=backbone, **QUICK)
    compressor.export(backbone, tmp_path / "model")
    loaded = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert looks_both_ways(loaded)
    assert np.abs(loaded.encode(TEXTS) - compressor.transform(backbone.encode(TEXTS))).max() < 1e-5
    assert json.loads((tmp_path / "model" / "config.json").read_text())["is_causal"] is False
    needed = json.loads((tmp_path / "model" / "config_sentence_transformers.json").read_text())["requirements"]
    assert needed["transformers"]["specifier"] == ">=5.2"
    assert [check for check in verify(tmp_path / "model") if not check.is_good] == []


def test_merged_adapters_give_what_the_reference_gives(qwen2, explicit, adapter, tmp_path):
    merged = decoder_backbone(qwen2, [adapter], device="cpu")
    kept = decoder_backbone(explicit, [adapter], merge=False, device="cpu")
    plain = decoder_backbone(qwen2, device="cpu")
    assert np.abs(merged.encode(TEXTS) - kept.encode(TEXTS)).max() < 1e-5
    assert np.abs(merged.encode(TEXTS) - plain.encode(TEXTS)).max() > 1e-3
    compressor = Compressor.fit(vectors(48), dims=(16,), **QUICK)
    for name, backbone in (("merged", merged), ("kept", kept)):
        compressor.export(backbone, tmp_path / name)
        loaded = SentenceTransformer(str(tmp_path / name), device="cpu")
        assert np.abs(loaded.encode(TEXTS) - compressor.transform(merged.encode(TEXTS))).max() < 1e-5
        assert looks_both_ways(loaded)
    checks = verify(tmp_path / "kept")
    assert {check.way for check in checks if not check.is_good} == {"text-embeddings-inference", "vLLM"}
    with pytest.raises(DataError, match="which is not on the Hub; merge it"):
        write_repository(compressor, tmp_path / "pushed", "org/x", kept)
    assert not (tmp_path / "kept" / "model.safetensors").exists()
    assert (tmp_path / "kept" / "adapter_model.safetensors").is_file()


def test_adapters_that_do_not_fit_are_refused(qwen2, adapter, tmp_path):
    silent = tmp_path / "adapter"
    shutil.copytree(adapter, silent)
    edit(silent / "adapter_config.json", base_model_name_or_path=str(qwen2))
    with pytest.raises(DataError, match="does not state `is_causal`, so a reference to it would load causal"):
        decoder_backbone(qwen2, [silent], merge=False)
    with pytest.raises(DataError, match="there must be one adapter, got 0"):
        decoder_backbone(qwen2, merge=False)
    with pytest.raises(DataError, match="cannot load the model"):
        decoder_backbone(tmp_path / "nowhere")
    with pytest.raises(DataError, match="cannot apply the adapter"):
        decoder_backbone(qwen2, [tmp_path / "nowhere"])


CLEAN = textwrap.dedent(
    """
    import json, sys
    sys.modules["smec_st"] = None
    from sentence_transformers import SentenceTransformer
    print(json.dumps(SentenceTransformer(sys.argv[1]).encode_query(json.loads(sys.argv[2])).tolist()))
    """
)


@pytest.mark.slow
def test_a_decoder_kept_as_a_reference_loads_from_the_hub_with_its_base(explicit, adapter, tmp_path):
    """End to end: base, adapter and head on a Hub; the published repository holds no backbone."""
    settings = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_owner", "HF_HOME": str(tmp_path / "home")}
    script = textwrap.dedent(
        """
        import json, sys
        from pathlib import Path
        from huggingface_hub import HfApi
        from smec_st import Compressor
        from smec_st.hub.decoder import decoder_backbone
        base, adapter, texts = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
        HfApi().create_repo("org/base")
        HfApi().upload_folder(repo_id="org/base", folder_path=base)
        path = adapter / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "org/base"}))
        backbone = decoder_backbone("org/base", [adapter], merge=False, prompts={"query": "query: "}, device="cpu")
        fitted = Compressor.fit(texts * 10, dims=(16, 8), model=backbone, steps=3, selection_steps=2, batch_size=16)
        fitted.push_to_hub("org/llm2vec-smec-16", backbone)
        print(json.dumps(fitted.transform(backbone.encode_query(texts)).tolist()))
        """
    )
    with Hub() as hub:
        hub.tokens = {"hf_owner": {"org"}}
        settings |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
        found = []
        for code, arguments in ((script, [str(explicit), str(adapter)]), (CLEAN, ["org/llm2vec-smec-16"])):
            settings["HF_HOME"] += "x"
            command = [sys.executable, "-c", code, *arguments, json.dumps(TEXTS)]
            done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[-3000:]
            found.append(np.array(json.loads(done.stdout.splitlines()[-1])))
        names = set(hub.files("org/llm2vec-smec-16"))
    assert "model.safetensors" not in names
    assert "adapter_model.safetensors" in names
    assert np.abs(found[0] - found[1]).max() < 1e-5
