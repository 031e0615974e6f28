"""A saved compressor works with numpy alone, and as ONNX."""

from __future__ import annotations

import ast
import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import smec_st
from paths import ROOT
from smec_st.cli import run
from smec_st.compressor import Compressor
from smec_st.data import DataError
from smec_st.data.space import check_backbone
from smec_st.maps import ACTIVATIONS
from smec_st.maps.folding import FoldedMap, Layer
from smec_st.modules.adapter import ACTIVATIONS as MODULES
from smec_st.system.optional import INSTALLED_BY, load_optional

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

NUMPY_ALONE = """
import sys
class Others:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in ("numpy", "smec_st") and top not in sys.stdlib_module_names:
            raise ImportError(f"{name} is not there")
sys.meta_path.insert(0, Others())
import numpy as np
from smec_st import Compressor
compressor = Compressor.load(sys.argv[1])
vectors = np.load(sys.argv[2])
np.save(sys.argv[3], compressor.transform(vectors, 6))
for precision in ("int8", "binary"):
    head = compressor.head(6, precision)
    assert head.scores(head.queries(vectors), head.encode(vectors)).shape == (50, 50)
"""

IN_A_BARE_ENVIRONMENT = """
import importlib.util, json, sys
import numpy as np
import smec_st
from smec_st import Compressor, DataError, FunnelIndex, load_vectors, open_vectors

for name in ("torch", "transformers", "sentence_transformers", "scipy", "click", "rich", "tqdm", "datasets", "yaml"):
    assert importlib.util.find_spec(name) is None, name
saved, vectors, out = sys.argv[1:]
compressor = Compressor.load(saved)
rows = load_vectors(vectors)
found = {"transform": compressor.transform(rows, 6)}
for precision in ("float16", "int8", "binary"):
    head = compressor.head(6, precision)
    codes = head.encode(rows)
    found[precision] = head.scores(head.queries(rows), codes)
    assert head.decode(codes).shape == (50, 6)
np.savez(out, **found)
compressor.save(saved + "-again")
assert Compressor.load(saved + "-again").fingerprint == compressor.fingerprint
assert sum(len(batch.rows) for batch in open_vectors(vectors).batches(20)) == 50
told = []
for call in (
    lambda: Compressor.fit(rows),
    lambda: compressor.quantize(rows, bytes=4),
    lambda: compressor.to_onnx("model.onnx"),
    lambda: open_vectors("vectors.parquet"),
):
    try:
        call()
    except DataError as error:
        told.append(str(error))
print(json.dumps(told))
"""


def copy_package(name: str, site: Path) -> int:
    """Install a package as it is installed here, without a network; return its size in bytes."""
    size = 0
    for file in importlib.metadata.distribution(name).files:
        source = Path(file.locate())
        if ".." not in file.parts and source.is_file() and file.suffix != ".pyc":
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, site / file)
            size += source.stat().st_size
    return size


def make(activation, rng):
    last = rng.normal(size=(8, 16 if activation else 10)).astype(np.float32)
    first = Layer(rng.normal(size=(16, 10)).astype(np.float32), activation)
    layers = (first, Layer(last)) if activation else (Layer(last),)
    info = {"backbone": {"model": "org/m", "width": 10}}
    return Compressor([(FoldedMap(layers), (8, 6))], info).calibrate(rng.normal(size=(300, 10)))


@pytest.fixture
def vectors(rng):
    return rng.normal(size=(50, 10)).astype(np.float32)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_are_those_of_torch(name, rng):
    x = rng.normal(size=(40, 5)).astype(np.float32) * 4
    expected = MODULES[name]()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(ACTIVATIONS[name](x), expected, atol=1e-6)
    assert isinstance(MODULES[name](), nn.Module)


@pytest.mark.parametrize("activation", [None, "gelu"])
def test_a_saved_compressor_needs_numpy_alone(tmp_path, rng, vectors, activation):
    compressor = make(activation, rng)
    compressor.save(tmp_path / "saved")
    np.save(tmp_path / "in.npy", vectors)
    paths = [str(tmp_path / name) for name in ("saved", "in.npy", "out.npy")]
    subprocess.run([sys.executable, "-c", NUMPY_ALONE, *paths], check=True, timeout=60)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), compressor.transform(vectors, 6), atol=1e-6)


@pytest.mark.slow
def test_numpy_and_safetensors_are_all_that_serving_needs(tmp_path, rng, vectors):
    """What ``pip install --no-deps smec-st numpy safetensors`` gives: an environment that has nothing else."""
    compressor = make("gelu", rng)
    compressor.save(tmp_path / "saved")
    np.save(tmp_path / "vectors.npy", vectors)
    venv.create(tmp_path / "bare", with_pip=False, symlinks=os.name != "nt")
    where = sysconfig.get_paths("venv", {"base": str(tmp_path / "bare"), "platbase": str(tmp_path / "bare")})
    site = Path(where["purelib"])
    size = sum(copy_package(name, site) for name in ("numpy", "safetensors"))
    package = Path(smec_st.__file__).parent
    shutil.copytree(package, site / "smec_st", ignore=shutil.ignore_patterns("__pycache__"))
    size += sum(path.stat().st_size for path in (site / "smec_st").rglob("*") if path.is_file())
    assert size < 100e6
    python = Path(where["scripts"]) / Path(sys.executable).name
    command = [python, "-I", "-c", IN_A_BARE_ENVIRONMENT, "saved", "vectors.npy", "out.npz"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        'fitting needs torch. Install it with `pip install "smec-st"`.',
        'fitting needs torch. Install it with `pip install "smec-st"`.',
        'writing ONNX needs onnx. Install it with `pip install "smec-st[onnx]"`.',
        "no such file: vectors.parquet",
    ]
    found = np.load(tmp_path / "out.npz")
    np.testing.assert_allclose(found["transform"], compressor.transform(vectors, 6), atol=1e-6)
    for precision in ("float16", "int8", "binary"):
        head = compressor.head(6, precision)
        np.testing.assert_allclose(
            found[precision], head.scores(head.queries(vectors), head.encode(vectors)), atol=1e-5
        )


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        DataError, match=r'^a plot needs matplotlib. Install it with `pip install "smec-st\[plots\]"`.$'
    ):
        load_optional("matplotlib", "a plot")
    (tmp_path / "broken.py").write_text("import no_such_library")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        DataError, match="^this needs broken, which does not load: No module named 'no_such_library'.$"
    ):
        load_optional("broken", "this")


def test_a_command_names_a_missing_package(monkeypatch, capsys):
    def load(*_):
        raise ModuleNotFoundError("No module named 'datasets'", name="datasets.features")

    monkeypatch.setattr(Compressor, "load", load)
    assert run(["transform", "compressor", "vectors.npy", "out"]) == 2
    assert (
        capsys.readouterr().err == 'smec-st: this command needs datasets. Install it with `pip install "smec-st"`.\n'
    )


@pytest.mark.parametrize("package", sorted(INSTALLED_BY))
def test_every_optional_package_is_in_the_extra_that_is_named(package):
    extra = INSTALLED_BY[package].partition("[")[2].rstrip("]")
    if not extra:
        assert INSTALLED_BY[package] == {"optimum": "optimum-onnx"}.get(package, package)
        return
    other = {"PIL": "pillow", "faiss": "faiss-cpu", "sklearn": "scikit-learn", "haystack": "haystack-ai"}
    given = {**other, "llama_index": "llama-index-core"}.get(package, package.replace("_", "-"))
    names = [re.split(r"[\[>=;]", line)[0] for line in PROJECT["optional-dependencies"][extra]]
    assert given in names


def test_every_import_is_of_a_declared_package():
    base = {re.split(r"[\[>=;]", line)[0].replace("-", "_") for line in PROJECT["dependencies"]} | {"yaml"}
    known = base | set(INSTALLED_BY) | set(sys.stdlib_module_names) | {"smec_st"}
    imported = set()
    for path in Path(smec_st.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).partition(".")[0])
    assert imported - known == {"typing_extensions"}  # for type checking alone


@pytest.mark.parametrize("activation", [None, *sorted(ACTIVATIONS)])
@pytest.mark.parametrize("dim", [None, 6])
def test_onnx_gives_the_same_to_1e_5(tmp_path, rng, vectors, activation, dim):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    compressor = make(activation, rng)
    compressor.to_onnx(tmp_path / "m.onnx", dim)
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    for rows in (vectors, 100 * vectors[:1]):
        (found,) = session.run(["embedding"], {"vectors": rows})
        np.testing.assert_allclose(found, compressor.transform(rows, dim), atol=1e-5)
    about = session.get_modelmeta().custom_metadata_map
    assert about == {"fingerprint": compressor.fingerprint, "dim": str(dim or 8), "model": "org/m"}
    assert (tmp_path / "m.onnx").stat().st_size < 10_000


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_the_length_of_a_vector_does_not_matter(rng, vectors, activation):
    compressor = make(activation, rng)
    scaled = vectors * np.float32(10) ** rng.integers(-30, 30, size=(50, 1)).astype(np.float32)
    np.testing.assert_allclose(compressor.transform(scaled, 8), compressor.transform(vectors, 8), atol=2e-5)


@pytest.mark.parametrize(
    ("mine", "theirs", "is_same"),
    [
        ({"model": "org/m"}, {"model": "org/m"}, True),
        ({"model": "org/m"}, {"model": "m"}, True),
        ({"model": "org/m"}, {}, True),
        ({}, {"model": "m"}, True),
        ({"model": "org/m"}, {"model": "/somewhere/copy"}, True),
        ({"model": "org/m"}, {"model": "other/m"}, False),
        ({"model": "text-embedding-3-small"}, {"model": "text-embedding-3-large"}, False),
        ({"model": "m", "revision": "1"}, {"model": "m", "revision": "2"}, False),
        ({"model": "m", "prompt": "query: "}, {"model": "m", "prompt": "passage: "}, False),
    ],
)
def test_two_spaces_are_told_apart_by_what_is_known_of_both(mine, theirs, is_same):
    with contextlib.nullcontext() if is_same else pytest.raises(DataError, match="another embedding space"):
        check_backbone(mine, theirs, "these")
