"""Check that a model gives the same vectors wherever it is served."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from smec_st.data import DataError, unit_rows
from smec_st.hub.load import local_folder
from smec_st.hub.onnx import FILE
from smec_st.hub.serving import as_onnx, as_onnx_backend, as_tei, as_tei_onnx, as_vllm, onnx_outputs, token_vectors
from smec_st.system.errors import one_line
from smec_st.system.files import read_json

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

TEXTS = (
    "how do I delete a directory tree",
    "The cell membrane is a biological membrane that separates the interior of all cells from the outside.",
    "x",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich; 1,234.5 % of them are not here.",
)
TOLERANCE, HALF_TOLERANCE = 1e-4, 2e-2  # for weights of 32 and of 16 bits
TEI_ONNX, ST_ONNX = "text-embeddings-inference on ONNX Runtime", 'sentence-transformers with backend="onnx"'
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


@dataclass(frozen=True)
class Check:
    """The result of loading the model in one way, at one size.

    Attributes:
        way: The library or server that loads it.
        dim: Numbers per vector.
        difference: Largest absolute difference between a number and that of plain sentence-transformers, truncated and
            normalised.
        length: Length of a vector as served, of the one whose length is furthest from 1.
        problem: Why the model cannot be loaded in this way, or what is wrong with the vectors.
        is_note: Whether this is only information, and no fault of the model.
    """

    way: str
    dim: int
    difference: float | None = None
    length: float | None = None
    problem: str | None = None
    is_note: bool = False

    @property
    def is_good(self) -> bool:
        """Whether nothing needs to be fixed."""
        return self.is_note or self.problem is None


def verify(model: str | Path) -> list[Check]:
    """Load an exported model as servers do, and compare the vectors.

    Args:
        model: Folder, or id on the Hub.

    Returns:
        A check for each way and size: sentence-transformers; text-embeddings-inference, which knows a fixed list of
        module names; vLLM, which looks up the sizes in ``config.json``; and, as a note, the length of vectors from a
        server that truncates after the last Normalize. If there is ``onnx/model.onnx``, also ONNX Runtime,
        text-embeddings-inference on ONNX Runtime, and ``SentenceTransformer(folder, backend="onnx")``. A way that
        cannot be tried here is a note without a difference that says what is missing.

    Raises:
        DataError: If there is no such model, or sentence-transformers cannot load it.
    """
    from smec_st.data.embedding import load_model

    folder = local_folder(model)
    loaded = load_model(str(folder))
    whole = np.asarray(loaded.encode(list(TEXTS), prompt="", show_progress_bar=False), dtype=np.float32)
    width = whole.shape[1]
    sizes = sizes_of(folder, width)
    tolerance = HALF_TOLERANCE if next(loaded.parameters()).element_size() < 4 else TOLERANCE
    checks = [Check("sentence-transformers", width, 0.0, _furthest(whole), _foreign_parts(loaded, folder))]
    tokens = cache(lambda: token_vectors(folder, TEXTS))  # a large backbone should run once, not once per size
    outputs = cache(lambda: onnx_outputs(folder, TEXTS))
    backend = cache(lambda: as_onnx_backend(folder, TEXTS))
    ways: list[tuple[str, Callable[[int], np.ndarray]]] = [
        ("text-embeddings-inference", lambda dim: _cut(as_tei(folder, tokens), width, dim)),
        ("vLLM", lambda dim: _cut(as_vllm(folder, tokens, dim), dim, dim)),
    ]
    if (folder / FILE).is_file():
        ways.append(("ONNX Runtime", lambda dim: _cut(as_onnx(outputs()), width, dim)))
        ways.append((TEI_ONNX, lambda dim: _cut(as_tei_onnx(folder, outputs()), width, dim)))
        if find_spec("optimum") and find_spec("optimum.onnxruntime"):
            ways.append((ST_ONNX, lambda dim: _cut(backend(), width, dim)))
        else:
            missing = "not tried: needs optimum-onnx, which so far needs transformers 4"
            checks.append(Check(ST_ONNX, width, problem=missing, is_note=True))
    for way, embed in ways:
        checks += [_check(way, embed, unit_rows(whole[:, :dim]), tolerance) for dim in sizes]
    for dim in sizes[1:]:
        length = _furthest(whole[:, :dim])
        note = "same direction, but not of length 1: normalise in the client, or publish this size by itself"
        checks.append(Check("a server that cuts after Normalize", dim, None, length, note, is_note=True))
    return checks


def sizes_of(folder: Path, width: int) -> list[int]:
    """Return the sizes that ``config.json`` lists, in descending order, with the full width first."""
    return sorted({width, *read_json(folder / "config.json").get("matryoshka_dimensions", [])}, reverse=True)


def _foreign_parts(model: SentenceTransformer, folder: Path) -> str | None:
    """Say what of the model needs another package, remote code or a pickle; return None for nothing."""
    kinds = {type(module).__module__ for module in model}
    foreign = sorted(kind for kind in kinds if not kind.startswith("sentence_transformers."))
    if foreign:
        return f"needs {', '.join(foreign)}: servers have only what comes with sentence-transformers"
    pickles = sorted(path.name for path in folder.rglob("*") if path.suffix in PICKLES)
    if pickles:
        return f"holds {', '.join(pickles)}: publish safetensors only"
    return None


def _cut(vectors: np.ndarray, width: int, dim: int) -> np.ndarray:
    """Truncate and normalise ``(n, width)`` vectors, and refuse those of another width."""
    if vectors.shape[1] != width:
        raise DataError(f"gives vectors of {vectors.shape[1]} numbers: the compression is not applied")
    return unit_rows(vectors[:, :dim])


def _check(way: str, embed: Callable[[int], np.ndarray], expected: np.ndarray, tolerance: float) -> Check:
    dim = expected.shape[1]
    try:
        got = embed(dim)
    except (DataError, OSError, ValueError) as error:
        return Check(way, dim, problem=one_line(error))
    difference, length = float(np.abs(got - expected).max()), _furthest(got)
    problem = None
    if not difference <= tolerance:  # NaN counts as different
        problem = "the vectors differ"
    elif abs(length - 1) > tolerance:
        problem = "the vectors are not of length 1"
    return Check(way, dim, difference, length, problem)


def _furthest(vectors: np.ndarray) -> float:
    """Return the vector length that is furthest from 1."""
    lengths = np.linalg.norm(vectors, axis=1)
    return float(lengths[np.abs(lengths - 1).argmax()])
