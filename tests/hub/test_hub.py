"""Push and load, with the unmodified ``huggingface_hub`` client, against a real HTTP Hub on localhost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
from huggingface_hub import ModelCard, snapshot_download

from hub_server import Hub, point_client_at
from paths import ROOT
from smec_st import Compressor, DataError
from smec_st.cli import run
from smec_st.hub.push import only_this
from tiny_models import tiny_bert

# Raised by the Hub client's own use of its HTTP library.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TEXTS = ["how to join two paths", "a cat sat on the mat", "sorting is stable", "x"]
SOURCE = ROOT / "src"
TOKEN = "hf_owner"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def compressor(backbone):
    vectors = np.random.default_rng(0).standard_normal((60, 32)).astype(np.float32)
    return Compressor.fit(vectors, dims=(16, 8, 4), model=backbone, steps=3, batch_size=16)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Start a Hub and configure the client in this process for it, as HF_ENDPOINT, HF_TOKEN and HF_HOME would."""
    with Hub(multipart=2000) as server:
        server.tokens = {TOKEN: {"org"}, "hf_stranger": {"someone"}}
        point_client_at(server, monkeypatch, tmp_path)
        yield server


def environment(hub: Hub, home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    return {**kept, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "OMP_NUM_THREADS": "1", **more}


# -- what is published ------------------------------------------------------------------------------------------------


def test_head_only_repository_round_trips(hub, compressor, backbone, tmp_path):
    address = compressor.push_to_hub("org/head")
    assert address.startswith(f"{hub.url}/org/head/commit/")
    files = hub.files("org/head")
    assert sorted(files) == ["README.md", "compressor.json", "compressor.safetensors"]
    loaded = Compressor.from_pretrained("org/head")
    assert loaded.fingerprint == compressor.fingerprint
    plain = backbone.encode(TEXTS)
    assert np.array_equal(loaded.transform(plain), compressor.transform(plain))
    attached = loaded.attach(backbone, dim=8)
    assert np.abs(attached.encode(TEXTS) - compressor.transform(plain, 8)).max() < 1e-5
    again = Compressor.from_pretrained("org/head", local_files_only=True)
    assert again.fingerprint == compressor.fingerprint


def test_whole_repository_holds_all_sizes_in_safetensors_and_the_compressor(hub, compressor, backbone):
    compressor.push_to_hub("org/whole", backbone)
    files = hub.files("org/whole")
    assert {"modules.json", "model.safetensors", "3_Dense/model.safetensors", "README.md"} <= set(files)
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl"))]
    config = json.loads(files["config.json"])
    assert config["matryoshka_dimensions"] == [4, 8, 16]
    assert Compressor.from_pretrained("org/whole").fingerprint == compressor.fingerprint
    assert not [
        name for name in files if name.endswith(".safetensors") and "/" not in name and name != "model.safetensors"
    ]


@pytest.mark.parametrize("kind", ["branches", "tags"])
def test_a_revision_for_each_size(hub, compressor, backbone, kind):
    compressor.push_to_hub("org/sizes", backbone, per_size=kind)
    repo = hub.repos["org/sizes"]
    named = repo.branches if kind == "branches" else repo.tags
    assert set(named) - {"main"} == {"dim-16", "dim-8", "dim-4"}
    assert set(repo.branches) == {"main"} | (set(named) if kind == "branches" else set())
    dense = json.loads(hub.files("org/sizes", "dim-8")["3_Dense/config.json"])
    assert dense["out_features"] == 8
    assert "is_matryoshka" not in json.loads(hub.files("org/sizes", "dim-8")["config.json"])
    uploads = [path for method, path in hub.requests if method == "POST" and path.endswith("/verify")]
    assert len(uploads) == len(set(uploads)), "the backbone was uploaded more than once"
    if kind == "tags":
        compressor.push_to_hub("org/sizes", backbone, per_size=kind, overwrite=True)
        assert set(repo.tags) == {"dim-16", "dim-8", "dim-4"}


def test_head_only_revision_of_one_size(hub, compressor, backbone):
    compressor.push_to_hub("org/head", per_size="branches")
    small = Compressor.from_pretrained("org/head", revision="dim-4")
    assert small.dims == (4,)
    plain = backbone.encode(TEXTS)
    assert np.array_equal(small.transform(plain), compressor.transform(plain, 4))


def test_overwriting_removes_what_would_change_the_model_and_nothing_else(hub, backbone, compressor):
    vectors = np.random.default_rng(0).standard_normal((60, 32)).astype(np.float32)
    deep = Compressor.fit(vectors, dims=(8,), steps=2, batch_size=16, hidden_dim=4)
    deep.push_to_hub("org/model", backbone)
    tree = hub.repos["org/model"].commits[hub.repos["org/model"].branches["main"]]
    tree["LICENSE"] = tree[".gitattributes"]
    assert "4_Dense/config.json" in hub.files("org/model")
    compressor.push_to_hub("org/model", backbone, overwrite=True)
    files = hub.files("org/model")
    assert "4_Dense/config.json" not in files
    assert "LICENSE" in files


def test_private_repository(hub, compressor, tmp_path):
    compressor.push_to_hub("org/secret", private=True)
    assert hub.repos["org/secret"].private
    assert Compressor.from_pretrained("org/secret").dims == (16, 8, 4)
    with pytest.raises(DataError, match=r"there is no model org/secret at http.*, or it is private; if so, log in"):
        Compressor.from_pretrained("org/secret", token=False, cache_dir=tmp_path / "other")


# -- what goes wrong --------------------------------------------------------------------------------------------------


def fails(match: str, call, *arguments, **options) -> str:
    with pytest.raises(DataError, match=match) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_a_token_nothing_is_sent(hub, compressor, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    fails("needs a token: log in with `hf auth login`", compressor.push_to_hub, "org/head")
    assert hub.requests == []


def test_invalid_tokens_and_tokens_without_write_permission_are_told_apart(hub, compressor):
    fails("does not accept this token", compressor.push_to_hub, "org/head", token="hf_wrong")
    fails("may not write to org: it needs the write permission", compressor.push_to_hub, "org/x", token="hf_stranger")
    assert hub.repos == {}


def test_what_exists_is_left_alone_unless_asked(hub, compressor):
    compressor.push_to_hub("org/head")
    before = dict(hub.repos["org/head"].branches)
    fails("org/head exists already", compressor.push_to_hub, "org/head")
    fails("exists and is public", compressor.push_to_hub, "org/head", private=True, overwrite=True)
    assert hub.repos["org/head"].branches == before


def test_gated_missing_and_foreign_repositories_are_told_apart(hub, compressor):
    compressor.push_to_hub("org/head")
    hub.repos["org/head"].gated = True
    fails("org/head is gated: ask for access at http", Compressor.from_pretrained, "org/head", token="hf_stranger")
    hub.readers.add("hf_stranger")
    assert Compressor.from_pretrained("org/head", token="hf_stranger").width == 32
    fails("there is no model org/nothing", Compressor.from_pretrained, "org/nothing")
    fails("org/head has no revision 'v9'", Compressor.from_pretrained, "org/head", revision="v9")
    fails("not a repository id", Compressor.from_pretrained, "org/a/b")
    hub.repos["org/head"].commit("bare", {})
    fails("holds no compressor", Compressor.from_pretrained, "org/head", revision="bare")


def test_a_size_or_a_backbone_that_does_not_fit_is_refused_before_anything_is_made(
    hub, compressor, tmp_path, backbone
):
    fails("`dim` must be one of 16, 8, 4, got 17", compressor.push_to_hub, "org/head", dim=17)
    fails("`dim` must be one of 16, 8, 4, got 17", compressor.push_to_hub, "org/model", backbone, dim=17)
    wide = tiny_bert(tmp_path / "wide", width=48)
    fails("The backbone gives 48 numbers; this compressor reads 32", compressor.push_to_hub, "org/model", wide)
    fails("`per_size` must be branches or tags", compressor.push_to_hub, "org/head", per_size="files")
    assert hub.repos == {}


def test_a_hub_that_is_not_there(hub, compressor, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    fails("cannot reach http://127.0.0.1:1", compressor.push_to_hub, "org/head")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    fails("HF_HUB_OFFLINE", compressor.push_to_hub, "org/head")


@pytest.mark.parametrize(
    ("method", "part"),
    [
        ("POST", "/objects/batch"),
        ("PUT", "/lfs/"),
        ("POST", "/complete"),
        ("POST", "/commit/main"),
        ("POST", "/preupload/"),
    ],
)
def test_a_broken_upload_to_a_new_repository_leaves_none(hub, compressor, method, part):
    hub.fail = lambda *request: 413 if request[0] == method and part in request[1] else None
    fails(r"push to org/head failed: .*The new repository was removed again", compressor.push_to_hub, "org/head")
    assert "org/head" not in hub.repos
    hub.fail = lambda *_: None
    compressor.push_to_hub("org/head")
    assert Compressor.from_pretrained("org/head").fingerprint == compressor.fingerprint


def test_a_broken_upload_that_cannot_be_undone_says_so(hub, compressor):
    hub.fail = lambda method, path: 413 if method in ("PUT", "DELETE") else None
    fails("is incomplete and could not be removed; delete it on the Hub: the repo", compressor.push_to_hub, "org/head")


@pytest.mark.parametrize("kind", ["branches", "tags"])
def test_a_broken_upload_to_what_exists_changes_nothing(hub, compressor, backbone, kind):
    compressor.push_to_hub("org/model", backbone)
    before, branches = hub.files("org/model"), dict(hub.repos["org/model"].branches)
    commits = []

    def fail(method, path):
        commits.append(path) if "/commit/" in path else None
        return 413 if "/commit/" in path and len(commits) == 3 else None

    hub.fail = fail
    other = Compressor.fit(np.random.default_rng(1).standard_normal((60, 32)).astype("f4"), dims=(16, 8), method="pca")
    push = {"overwrite": True, "per_size": kind}
    fails("Nothing on the Hub has changed", other.push_to_hub, "org/model", backbone, **push)
    assert hub.files("org/model") == before
    assert hub.repos["org/model"].branches == branches
    assert hub.repos["org/model"].tags == {}


def test_someone_elses_commit_in_between_is_not_overwritten(hub, compressor):
    only_this(compressor, 8).push_to_hub("org/head")
    repo = hub.repos["org/head"]

    def fail(method, path):
        if method == "POST" and path.endswith("/preupload/main"):
            repo.commit("main", dict(repo.commits[repo.branches["main"]]))

    hub.fail = fail
    fails("was changed by someone else in the meantime", compressor.push_to_hub, "org/head", overwrite=True)


@pytest.mark.slow
def test_a_killed_push_leaves_an_empty_repository_that_the_next_one_fills(hub, compressor, tmp_path):
    compressor.save(tmp_path / "compressor")
    waiting, killed = [], threading.Event()

    def stall(method, path):
        if method == "PUT":
            waiting.append(path)
            killed.wait(60)
            return "drop"
        return None

    hub.fail = stall
    command = [sys.executable, "-m", "smec_st", "push", str(tmp_path / "compressor"), "org/killed"]
    settings = environment(hub, tmp_path / "home", HF_TOKEN=TOKEN, HF_HUB_DISABLE_XET="1", PYTHONPATH=str(SOURCE))
    with subprocess.Popen(command, env=settings, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        until = time.monotonic() + 60
        while not waiting and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    killed.set()
    assert waiting
    hub.fail = lambda *_: None
    assert hub.files("org/killed") == {}
    fails("holds no compressor", Compressor.from_pretrained, "org/killed")
    compressor.push_to_hub("org/killed")
    assert Compressor.from_pretrained("org/killed").fingerprint == compressor.fingerprint


# -- the command, and a stranger who loads ----------------------------------------------------------------------------


def test_push_command(hub, compressor, backbone, tmp_path, capsys):
    compressor.save(tmp_path / "compressor")
    (tmp_path / "compressor" / "report.json").write_text(
        json.dumps(
            [
                {"method": name, "dim": dim, "bytes_per_vector": 4 * dim, "ndcg@10": score}
                for name, dim, score in (("original", 32, 0.5), ("smec", 16, 0.6), ("smec", 8, 0.5), ("smec", 4, 0.3))
            ]
        )
    )
    arguments = ["push", str(tmp_path / "compressor"), "org/head", "--license", "apache-2.0", "--per-size", "tags"]
    assert run(arguments) == 0
    assert 'load it with Compressor.from_pretrained("org/head")' in capsys.readouterr().out
    files = hub.files("org/head")
    assert files["quality.png"].startswith(b"\x89PNG")
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "apache-2.0"
    assert "Lossless to 4 times fewer bytes (8 dimensions)" in card.text
    assert run(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert "exists already" in error[0]


STRANGER = textwrap.dedent(
    """
    import json, sys
    sys.modules["smec_st"] = None  # an import of it would fail
    from sentence_transformers import SentenceTransformer
    name, texts = sys.argv[1], json.loads(sys.argv[2])
    model = SentenceTransformer(name)
    kinds = sorted({type(module).__module__.split(".")[0] for module in model})
    print(json.dumps([kinds, model.encode_query(texts, normalize_embeddings=True).tolist()]))
    """
)


def as_stranger(hub: Hub, name: str, home: Path):
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, name, json.dumps(TEXTS)],
        env=environment(hub, home),
        cwd=home.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kinds, vectors = json.loads(done.stdout.splitlines()[-1])
    return kinds, np.array(vectors)


@pytest.mark.slow
@pytest.mark.parametrize("store", ["lfs", "xet"])
def test_pushed_model_loads_by_its_name_in_a_clean_interpreter(compressor, backbone, tmp_path, store):
    """The installed client, configured only by its documented environment variables, without our package."""
    if store == "xet":
        pytest.importorskip("hf_xet")
    compressor.save(tmp_path / "compressor")
    backbone.save_pretrained(str(tmp_path / "backbone"), create_model_card=False)
    with Hub(multipart=4000, xet=tmp_path / "store" if store == "xet" else None) as hub:
        hub.tokens = {TOKEN: {"org"}}
        name = "org/llm2vec-smec-256"
        command = ["-m", "smec_st", "push", str(tmp_path / "compressor"), name, "--model", str(tmp_path / "backbone")]
        more = {
            "HF_TOKEN": TOKEN,
            "PYTHONPATH": str(SOURCE),
            **({"HF_HUB_DISABLE_XET": "1"} if store == "lfs" else {}),
        }
        subprocess.run([sys.executable, *command], env=environment(hub, tmp_path / "home", **more), check=True)
        assert bool(hub.large) == (store == "lfs")
        assert [path for _, path in hub.requests if "xet-write-token" in path if store == "lfs"] == []
        kinds, vectors = as_stranger(hub, name, tmp_path / "elsewhere")
    assert kinds == ["sentence_transformers"]
    assert np.abs(vectors - compressor.transform(backbone.encode_query(TEXTS))).max() < 1e-5


def test_the_servers_files_are_what_the_client_downloads(hub, compressor, tmp_path):
    compressor.push_to_hub("org/head")
    folder = Path(snapshot_download("org/head", local_dir=tmp_path / "copy"))
    for name, content in hub.files("org/head").items():
        assert (folder / name).read_bytes() == content
