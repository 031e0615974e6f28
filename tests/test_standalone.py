"""A saved compressor works with numpy alone, and as ONNX."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from smec_st.compressor import Compressor
from smec_st.data import DataError
from smec_st.data.space import check_backbone
from smec_st.maps import ACTIVATIONS
from smec_st.maps.folding import FoldedMap, Layer
from smec_st.modules.adapter import ACTIVATIONS as MODULES

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
