"""Every example runs, with a small setting."""

from __future__ import annotations

import base64
import importlib.util
import json
import re
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer

from hub_server import Hub, point_client_at
from paths import ROOT
from smec_st import Compressor
from tiny_models import tiny_bert, tiny_qwen2

EXAMPLES = ROOT / "examples"
pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
]


def example(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    model = tiny_bert(folder / "bare")
    model.save_pretrained(str(folder / "model"), create_model_card=False)
    return folder / "model"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_quickstart(backbone, here, capsys):
    example("quickstart").main(["--model", str(backbone), "--dims", "8,4", "--steps", "3"])
    assert "4 numbers per text instead of 32" in capsys.readouterr().out
    assert SentenceTransformer("quickstart-model", truncate_dim=4).encode(["x"]).shape == (1, 4)


@pytest.mark.slow
def test_beir(small_collection, here, capsys):
    folder = small_collection()
    vectors = str(folder / "vectors.safetensors")
    example("beir").main(["--data", str(folder), "--vectors", vectors, "--dims", "8,4", "--steps", "20"])
    assert "smec" in capsys.readouterr().out
    assert Compressor.load("beir-compressor").dims == (8, 4)
    assert (here / "beir-compressor" / "report.png").is_file()


def test_api_vectors(here, rng, capsys):
    def batch(number, vector):
        body = {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": vector.tolist()}]}
        return {"custom_id": f"doc-{number}", "response": {"status_code": 200, "body": body}, "error": None}

    vectors = rng.standard_normal((80, 24))
    (here / "corpus.jsonl").write_text("".join(json.dumps(batch(i, row)) + "\n" for i, row in enumerate(vectors)))
    plain = [{"id": f"q{i}", "embedding": row.tolist()} for i, row in enumerate(vectors[:20] + 0.1)]
    (here / "queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in plain))
    module = example("api_vectors")
    module.main(["corpus.jsonl", "--queries", "queries.jsonl", "--dims", "8,4", "--steps", "5"])
    assert "80 vectors: 24 -> 4 numbers each" in capsys.readouterr().out
    lines = [json.loads(line) for line in (here / "small.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines][:2] == ["doc-0", "doc-1"]
    expected = Compressor.load("small").transform(vectors.astype(np.float32), 4)
    assert np.allclose([line["embedding"] for line in lines], expected, atol=1e-6)
    (here / "bad.jsonl").write_text(json.dumps({"custom_id": "a", "response": None, "error": {"code": "x"}}) + "\n")
    with pytest.raises(SystemExit, match=r"bad.jsonl, line 1: no embedding; \{'code': 'x'\}"):
        module.read_answers("bad.jsonl")


@pytest.mark.slow
def test_images(here, rng, capsys):
    labels = rng.integers(0, 3, 90)
    records = [
        {"_id": f"i{row}", "split": "train" if row < 60 else "test", "label": f"c{label}"}
        for row, label in enumerate(labels)
    ]
    (here / "clothes").mkdir()
    (here / "clothes" / "images.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    vectors = rng.standard_normal((3, 16))[labels] + rng.standard_normal((90, 16))
    save_file({"images": vectors.astype(np.float32)}, here / "v.safetensors")
    example("images").main(["clothes", "--vectors", "v.safetensors", "--dims", "8,4", "--steps", "5"])
    assert "clothes (test)" in capsys.readouterr().out
    assert Compressor.load("image-compressor").width == 16


@pytest.mark.slow
def test_multimodal(here, rng, capsys):
    images = rng.standard_normal((60, 16))
    order = rng.integers(0, 60, 100)
    lines = [{"image": f"{place}.jpg", "text": f"a picture of {place}"} for place in order]
    (here / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    gap = 3 * rng.standard_normal(16)  # CLIP's two kinds of vectors lie apart
    mentioned = np.array(list(dict.fromkeys(order.tolist())))
    texts = images[order] + 0.3 * rng.standard_normal((100, 16)) + gap
    tables = {"images": images[mentioned], "texts": texts}
    save_file({name: table.astype(np.float32) for name, table in tables.items()}, here / "v.safetensors")
    example("multimodal").main(["captions.jsonl", "--vectors", "v.safetensors", "--dims", "8,4", "--steps", "20"])
    found = re.findall(r"recall@1 at (\d+): ([\d.]+)", capsys.readouterr().out)
    assert [dim for dim, _ in found] == ["16", "8", "4"]
    assert float(found[1][1]) > 0.2


def test_share(backbone, here, rng, capsys, monkeypatch):
    vectors = rng.standard_normal((60, 32)).astype(np.float32)
    Compressor.fit(vectors, dims=(8, 4), method="pca").save("compressor")
    with Hub() as hub:
        hub.tokens = {"hf_owner": {"me"}}
        point_client_at(hub, monkeypatch, here)
        example("share").main(["compressor", "me/small", "--model", str(backbone)])
        assert set(hub.repos["me/small"].branches) == {"main", "dim-8", "dim-4"}
        assert hub.repos["me/small"].private
    printed = capsys.readouterr().out
    assert "both are the same model: True" in printed
    assert "revision dim-4 gives 4 numbers of length 1" in printed


def test_serve_openai(backbone, here, rng):
    compressor = Compressor.fit(rng.standard_normal((60, 32)).astype(np.float32), dims=(8, 4), method="pca")
    compressor.export(str(backbone), here / "model")
    plain = SentenceTransformer(str(backbone)).encode(["x", "a cat"])
    server = example("serve_openai").make_server(str(here / "model"), 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def ask(**request):
        address = f"http://127.0.0.1:{server.server_address[1]}/v1/embeddings"
        with urllib.request.urlopen(urllib.request.Request(address, json.dumps(request).encode())) as answer:
            return json.load(answer)

    try:
        for dim in (8, 4):
            answer = ask(input=["x", "a cat"], model="m", dimensions=dim)
            rows = [item["embedding"] for item in answer["data"]]
            assert np.abs(np.array(rows) - compressor.transform(plain, dim)).max() < 1e-5
            assert answer["usage"]["prompt_tokens"] == 7
        coded = ask(input="x", encoding_format="base64")["data"][0]["embedding"]
        assert np.allclose(np.frombuffer(base64.b64decode(coded), "<f4"), compressor.transform(plain[0]), atol=1e-5)
        with pytest.raises(urllib.error.HTTPError, match="400") as refused:
            ask(input="x", dimensions=5)
        assert "must be one of 4, 8, got 5" in json.load(refused.value)["error"]["message"]
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::smec_st.fitting.fit.LabelsWarning")  # a random model knows nothing of its texts
def test_llm2vec(small_collection, here, capsys):
    qwen2 = tiny_qwen2(here / "qwen2")
    folder = small_collection(documents=60, queries=40)
    sizes = ["--dims", "16,8", "--steps", "5", "--out", "llm", "--device", "cpu"]
    example("llm2vec").main(["--model", str(qwen2), "--data", str(folder), *sizes])
    assert "smec" in capsys.readouterr().out
    assert SentenceTransformer("llm", truncate_dim=8).encode(["x"]).shape == (1, 8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_funnel_search(small_collection, here, capsys):
    pytest.importorskip("milvus_lite")
    folder = small_collection()
    vectors = str(folder / "vectors.safetensors")
    arguments = ["--data", str(folder), "--vectors", vectors, "--dims", "16,8", "--steps", "5"]
    example("funnel_search").main([*arguments, "--uri", "funnel.db"])
    recall = re.search(r"recall@10 of exact full-width search: ([\d.]+)", capsys.readouterr().out)
    assert float(recall[1]) > 0.9


def test_end_to_end(backbone, here, capsys):
    words = "how to join two paths a cat sat on the mat sorting is stable".split()
    pairs = [{"anchor": f"what {a} {b}", "positive": f"{b} {a} tree"} for a in words[:6] for b in words[6:12]]
    (here / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    before = SentenceTransformer(str(backbone)).encode(["a cat"])
    sizes = ["--dims", "8,4", "--steps", "4", "--batch-size", "8", "--cpu", "--out", "made"]
    example("end_to_end").main(["pairs.jsonl", "--model", str(backbone), *sizes])
    model = SentenceTransformer("made")
    assert model.encode(["a cat"]).shape == (1, 8)
    trained = model[0](model.preprocess(["a cat"]))["token_embeddings"].mean().item()
    plain = SentenceTransformer(str(backbone))
    assert trained != plain[0](plain.preprocess(["a cat"]))["token_embeddings"].mean().item()
    assert before.shape == (1, 32)


@pytest.mark.slow
def test_paper_tables(small_collection, here):
    folder = small_collection()
    arguments = ["--data", str(folder), "--vectors", str(folder / "vectors.safetensors"), "--dims", "8,4"]
    methods = ["--methods", "truncate,pca", "--analyses", ""]
    assert example("paper_tables").main([*arguments, *methods, "--out", "paper"]) == 0
    assert (here / "paper" / "methods" / "report.md").is_file()


def test_paper_tables_names_methods_that_there_are():
    from smec_st.research.compare.registry import METHODS

    assert set(example("paper_tables").METHODS.split(",")) <= set(METHODS)


def test_no_example_is_without_a_test():
    tests = Path(__file__).read_text()
    names = {path.stem for path in EXAMPLES.glob("*.py")} - {"demo"}
    assert {name for name in names if f'example("{name}")' not in tests} == set()
