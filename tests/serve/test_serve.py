"""``smec-st serve`` answers OpenAI's own client over real HTTP, and is harmed by nobody."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import openai
import pytest
from sentence_transformers import SentenceTransformer

from server_thread import serving
from smec_st import Compressor, DataError
from smec_st.cli import run
from smec_st.data import unit_rows
from smec_st.serve import app as app_module
from smec_st.serve import server as server_module
from smec_st.serve.batching import Batcher
from smec_st.serve.model import ServedModel
from tiny_models import tiny_bert

TEXTS = ["how to join two paths", "a cat sat on the mat", "sorting is stable", "x"]


@pytest.fixture(scope="module")
def compressor():
    rows = np.random.default_rng(0).standard_normal((300, 32)).astype(np.float32)
    fitted = Compressor.fit(rows, dims=(16, 8), method="pca")
    return fitted.quantize(rows, bytes=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, compressor):
    """An exported model."""
    desk = tmp_path_factory.mktemp("desk")
    compressor.export(tiny_bert(desk / "backbone"), desk / "small-model")
    return desk / "small-model"


@pytest.fixture(scope="module")
def model(folder):
    return SentenceTransformer(str(folder), device="cpu")


@pytest.fixture(scope="module")
def url(folder):
    with serving(folder) as address:
        yield address


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def vectors_of(response):
    assert [one.index for one in response.data] == list(range(len(response.data)))
    return np.array([one.embedding for one in response.data])


# -- what OpenAI's client gets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [{}, {"encoding_format": "float"}], ids=["base64", "float"])
@pytest.mark.parametrize("dim", [None, 16, 8])
def test_openai_client_gets_the_models_vectors(client, model, asked, dim):
    more = {} if dim is None else {"dimensions": dim}
    got = vectors_of(client.embeddings.create(model="small-model", input=TEXTS, **asked, **more))
    expected = unit_rows(model.encode(TEXTS, show_progress_bar=False)[:, : dim or 16])
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() < 1e-5


def test_openai_client_gets_one_text_tokens_and_the_list_of_models(client, model, compressor):
    response = client.embeddings.create(model="small-model", input=TEXTS[0], user="somebody")
    assert vectors_of(response).shape == (1, 16)
    assert response.usage.prompt_tokens == int(model.preprocess(TEXTS[:1])["attention_mask"].sum()) == 7
    (listed,) = client.models.list().data
    assert listed.id == "small-model"
    assert listed.smec_st["dimensions"] == [16, 8]
    assert listed.smec_st["fingerprint"] == compressor.fingerprint == response.smec_st["fingerprint"]


def test_prompts_are_those_of_the_side(client, model):
    for side, encode in (("query", model.encode_query), ("document", model.encode_document)):
        response = client.embeddings.create(model="small-model", input=TEXTS, extra_body={"input_type": side})
        assert np.abs(vectors_of(response) - unit_rows(encode(TEXTS))).max() < 1e-5


def test_codes_are_those_of_the_compressor_and_queries_stay_floats(client, folder, compressor):
    vectors = ServedModel(folder).embed(TEXTS, None)[0]
    for head in compressor.heads:
        body = {"precision": head.precision, "bytes": head.bytes}
        response = client.embeddings.create(
            model="small-model", input=TEXTS, dimensions=head.dim, extra_body={**body, "input_type": "document"}
        )
        chosen = compressor.head(head.dim, head.precision, head.bytes)
        assert (vectors_of(response) == chosen.encode(vectors)).all()  # the document prompt is empty
        response = client.embeddings.create(
            model="small-model", input=TEXTS, dimensions=head.dim, extra_body={**body, "input_type": "query"}
        )
        assert response.smec_st["precision"] == "float32"
        assert vectors_of(response).shape == (len(TEXTS), head.dim)
    assert {head.precision for head in compressor.heads} >= {"int8", "binary"}
    halves = client.embeddings.create(model="small-model", input=TEXTS, extra_body={"precision": "float16"})
    assert np.abs(vectors_of(halves) - compressor.transform(vectors)).max() < 1e-3


def test_requests_of_many_threads_are_batched_and_each_gets_its_own(url, client, model):
    texts = [f"w{i} w{i * 7 % 80}" for i in range(64)]
    expected = unit_rows(model.encode(texts, show_progress_bar=False))
    got = {}

    def ask(i):
        got[i] = vectors_of(client.embeddings.create(model="small-model", input=texts[i : i + 3]))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(62)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.abs(got[i] - expected[i : i + 3]).max() < 1e-5 for i in range(62))
    long = vectors_of(client.embeddings.create(model="small-model", input=texts * 4))
    assert np.abs(long - np.tile(expected, (4, 1))).max() < 1e-5
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    metrics = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert float(metrics["smec_st_texts_total"]) >= 62 * 3 + 256
    assert float(metrics['smec_st_requests_total{status="200"}']) >= 63
    assert float(metrics["smec_st_batch_texts_count"]) < float(metrics["smec_st_batch_texts_sum"])
    assert float(metrics["smec_st_waiting_texts"]) == 0


# -- what is refused --------------------------------------------------------------------------------------------------

HUGE = 10 << 20


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "not JSON"),
        (b'{"input": "x"', 400, "not JSON"),
        (b'{"input": "\xff\xfe"}', 400, "not JSON"),
        (b'{"input": "\\ud800"}', 400, "not JSON"),
        (b'{"input": "x", "dimensions": NaN}', 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        (b"[]", 400, "must be a JSON object"),
        ({}, 400, "`input` must be a text"),
        ({"input": None}, 400, "`input` must be a text"),
        ({"input": []}, 400, "`input` must be a text"),
        ({"input": {}}, 400, "`input` must be a text"),
        ({"input": ["x", None]}, 400, "`input` must be a text"),
        ({"input": [1.5]}, 400, "`input` must be a text"),
        ({"input": [1, 2]}, 400, "token ids of another tokenizer"),
        ({"input": [[1, 2]]}, 400, "token ids of another tokenizer"),
        ({"input": ""}, 400, "empty text"),
        ({"input": ["x"] * 2049}, 400, "2,048 texts, got 2,049"),
        ({"input": "x", "dimensions": 12}, 400, "has the sizes 16, 8; 12 is not"),
        ({"input": "x", "dimensions": "8"}, 400, "`dimensions` must be a whole number"),
        ({"input": "x", "dimensions": True}, 400, "`dimensions` must be a whole number"),
        ({"input": "x", "dimensions": 0}, 400, "`dimensions` must be a whole number"),
        ({"input": "x", "dimensions": 8.0}, 400, "`dimensions` must be a whole number"),
        ({"input": "x", "encoding_format": "hex"}, 400, "`encoding_format` must be float or base64"),
        ({"input": "x", "input_type": ["query"]}, 400, "`input_type` must be query or document"),
        ({"input": "x", "precision": "int4"}, 400, "`precision` must be"),
        ({"input": "x", "precision": "pq", "bytes": 5}, 400, "has no codes of pq in 5 bytes"),
        ({"input": "x", "model": "gpt-4"}, 404, "has the model 'small-model', not 'gpt-4'"),
        ({"input": "x", "model": 7}, 404, "not '7'"),
        ({"input": "x", "dimension": 8}, 400, "unknown field 'dimension'"),
        ({"input": "x" * HUGE}, 413, "may have 8 MB"),
    ],
    ids=range(30),
)
def test_what_cannot_be_answered_is_refused(url, body, status, message):
    content = body if isinstance(body, bytes) else json.dumps(body)
    response = httpx.post(f"{url}/v1/embeddings", content=content, timeout=60)
    assert response.status_code == status
    error = response.json()["error"]
    assert message in error["message"]
    assert len(error["message"]) < 300
    assert error["type"] == "invalid_request_error"
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}


def test_openai_client_raises_its_own_errors(client, url):
    with pytest.raises(openai.BadRequestError, match="12 is not one of them"):
        client.embeddings.create(model="small-model", input="x", dimensions=12)
    with pytest.raises(openai.NotFoundError, match="small-model"):
        client.embeddings.create(model="other", input="x")
    assert httpx.get(f"{url}/nowhere").json()["error"]["message"] == "GET /nowhere: Not Found"
    assert httpx.get(f"{url}/v1/embeddings").status_code == 405


@pytest.mark.parametrize("text", ["\0", "w1 " * 100_000, "\u202e\U0001f600\ufffe", "<script>", " \n\t"])
def test_strange_texts_are_embedded(client, text):
    assert np.isfinite(vectors_of(client.embeddings.create(model="small-model", input=[text]))).all()


# -- clients that do harm ---------------------------------------------------------------------------------------------


def connect(url):
    host, port = url.removeprefix("http://").split(":")
    one = socket.socket()
    one.settimeout(30)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.connect((host, int(port)))
    return one


HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n"


def test_clients_that_send_or_read_slowly_are_cut_off_and_others_are_served(folder, monkeypatch):
    monkeypatch.setattr(app_module, "SECONDS", 1.0)
    monkeypatch.setattr(server_module, "SECONDS", 1.0)
    body = json.dumps({"input": ["x"] * 500}).encode()
    request = HEAD.replace(b"100", str(len(body)).encode()) + b"\r\n" + body
    with serving(folder, send_buffer=4096) as url, contextlib.ExitStack() as sockets:
        silent, half_head, half_body, no_reader = (sockets.enter_context(connect(url)) for _ in range(4))
        half_head.sendall(HEAD)
        half_body.sendall(HEAD + b'\r\n{"input": ')
        no_reader.sendall(request * 2)  # the answers are more than the buffers between the two hold
        whole = len(httpx.post(f"{url}/v1/embeddings", content=body, timeout=60).content)
        assert silent.recv(100) == b""
        assert half_head.recv(100) == b""
        assert half_body.recv(1000).startswith(b"HTTP/1.1 408")
        time.sleep(1.5)
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while part := no_reader.recv(65536):
                received += len(part)
        assert received < 2 * whole
        assert httpx.get(f"{url}/health").status_code == 200


def test_a_client_that_leaves_ends_its_request(url):
    def embedded() -> float:
        return float(re.search(r"^smec_st_batch_texts_sum (\S+)", httpx.get(f"{url}/metrics").text, re.MULTILINE)[1])

    before = embedded()
    body = json.dumps({"input": ["w1 w2 " * 30] * 2000}).encode()
    for _ in range(3):
        leaver = connect(url)
        leaver.sendall(HEAD.replace(b"100", str(len(body)).encode()) + b"\r\n" + body)
        time.sleep(0.1)
        leaver.close()
    assert httpx.post(f"{url}/v1/embeddings", json={"input": "x"}).status_code == 200
    assert embedded() - before < 3 * 2000, "texts of clients that left were embedded"
    metrics = httpx.get(f"{url}/metrics").text
    assert 'smec_st_requests_total{status="499"}' in metrics


def test_bodies_that_are_held_at_once_are_limited(url, monkeypatch):
    monkeypatch.setattr(app_module, "MOST_HELD", 1000)
    response = httpx.post(f"{url}/v1/embeddings", json={"input": "x" * 2000})
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert httpx.post(f"{url}/v1/embeddings", json={"input": "x"}).status_code == 200


def test_a_text_on_which_the_model_fails_fails_alone():
    calls = []

    def embed(texts, side):
        calls.append(len(texts))
        if "poison" in texts:
            raise RuntimeError("no")
        return np.array([[len(text)] for text in texts]), np.ones(len(texts))

    async def ask():
        batcher = Batcher(embed, 4)
        batcher.start()
        texts = ["a", "poison", "ccc", "dddd", "eeeee"]
        jobs = [batcher.embed([text], "query" if text == "ccc" else None) for text in texts]
        found = await asyncio.gather(*jobs, return_exceptions=True)
        assert batcher.is_working
        batcher.stop()
        return found

    first, poison, *rest = asyncio.run(ask())
    assert isinstance(poison, RuntimeError)
    assert [one[0].item() for one in (first, *rest)] == [1, 3, 4, 5]
    assert calls[0] == 4


# -- models and the command -------------------------------------------------------------------------------------------


def test_a_model_without_a_compressor_has_its_own_sizes_and_no_codes(tmp_path):
    tiny_bert(tmp_path / "parts").save(str(tmp_path / "plain"))
    served = ServedModel(tmp_path / "plain")
    assert (served.sizes, served.codes, served.fingerprint) == ([32], [], None)
    rows = served.form().make(served.embed(TEXTS, None)[0])
    assert np.abs(rows - unit_rows(SentenceTransformer(str(tmp_path / "plain")).encode(TEXTS))).max() < 1e-5
    with pytest.raises(DataError, match="no compressor in its folder"):
        served.form(precision="int8")


def test_a_model_of_one_size(compressor, tmp_path):
    compressor.export(tiny_bert(tmp_path / "backbone"), tmp_path / "model", dim=8)
    assert ServedModel(tmp_path / "model", "mine").sizes == [8]


def test_a_compressor_that_is_not_the_models_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "compressor")
    rows = np.random.default_rng(1).standard_normal((60, 32)).astype(np.float32)
    Compressor.fit(rows, dims=(16, 8), method="pca").save(tmp_path / "model" / "compressor")
    with pytest.raises(DataError, match="export it again"):
        ServedModel(tmp_path / "model")


@pytest.mark.slow
def test_serve_command(folder, tmp_path, capsys):
    command = [sys.executable, "-m", "smec_st", "serve", str(folder), "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        line = process.stdout.readline()
        assert line.startswith("serving small-model (16, 8 dimensions) on http://127.0.0.1:")
        port = int(line.split(":")[-1].split("/")[0])
        response = None
        for _ in range(100):
            with contextlib.suppress(httpx.ConnectError):
                response = httpx.post(f"http://127.0.0.1:{port}/v1/embeddings", json={"input": "x"})
                break
            time.sleep(0.1)
        assert len(response.json()["data"][0]["embedding"]) == 16
        assert run(["serve", str(folder), "--port", str(port)]) == 2
        assert f"cannot listen on 127.0.0.1 port {port}" in capsys.readouterr().err
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stderr.read() == "stopped\n"
    assert run(["serve", str(tmp_path / "nowhere"), "--port", "0"]) == 2
