"""Whether a model gives the same vectors wherever it is served."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from smec_st.data import DataError, unit_rows
from smec_st.data.errors import one_line
from smec_st.hub.serving import as_onnx, as_tei, as_vllm, token_vectors

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

TEXTS = (
    "how do I delete a directory tree",
    "The cell membrane is a biological membrane that separates the interior of all cells from the outside.",
    "x",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich; 1,234.5 % of them are not here.",
)
TOLERANCE, HALF_TOLERANCE = 1e-4, 2e-2
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


@dataclass(frozen=True)
class Check:
    """One way to load the model, at one size.

    Attributes:
        way: Who loads it.
        dim: Numbers per vector.
        difference: Greatest difference of a number to plain sentence-transformers, cut and scaled to length 1.
        length: Length of the vector that is furthest from 1, as it comes.
        problem: Why it cannot be loaded in this way, or what is wrong.
        is_note: Whether it is told for information: it does not make the model wrong.
    """

    way: str
    dim: int
    difference: float | None = None
    length: float | None = None
    problem: str | None = None
    is_note: bool = False

    @property
    def is_good(self) -> bool:
        """Whether there is nothing to mend."""
        return self.is_note or self.problem is None


def verify(model: str | Path, texts: Sequence[str] = TEXTS, tolerance: float | None = None) -> list[Check]:
    """Load an exported model the ways servers do and compare the vectors.

    Args:
        model: Folder, or id on the Hub.
        texts: What to embed.
        tolerance: Greatest difference of a number that passes; by default 1e-4, and 2e-2 for weights of 16 bits.

    Returns:
        A check per way and size: sentence-transformers; text-embeddings-inference, which knows a fixed list of module
        names; vLLM, which asks ``config.json`` which sizes there are; ONNX where ``onnx/model.onnx`` is there; and, as
        a note, how long a vector is where a server cuts after the last Normalize.

    Raises:
        DataError: If there is no such model, or sentence-transformers cannot load it.
    """
    from smec_st.data.embedding import load_model

    folder = local_folder(model)
    loaded = load_model(str(folder))
    whole = _encode(loaded, texts)
    sizes = sizes_of(folder, whole.shape[1])
    if tolerance is None:
        tolerance = HALF_TOLERANCE if next(loaded.parameters()).element_size() < 4 else TOLERANCE
    checks = [Check("sentence-transformers", whole.shape[1], 0.0, _furthest(whole), _foreign(loaded, folder))]
    tokens = cache(lambda: token_vectors(folder, texts))  # a large backbone runs once, not once a size
    full = cache(lambda: as_onnx(folder, texts))
    ways: list[tuple[str, Callable[[int], np.ndarray]]] = [
        ("text-embeddings-inference", lambda dim: unit_rows(as_tei(folder, tokens)[:, :dim])),
        ("vLLM", lambda dim: as_vllm(folder, tokens, dim)),
    ]
    if (folder / "onnx" / "model.onnx").is_file():
        ways.append(("ONNX", lambda dim: unit_rows(full()[:, :dim])))
    for way, give in ways:
        checks += [_check(way, give, unit_rows(whole[:, :dim]), tolerance) for dim in sizes]
    for dim in sizes[1:]:
        length = _furthest(whole[:, :dim])
        note = "same direction, but not of length 1: normalise in the client, or publish this size by itself"
        checks.append(Check("a server that cuts after Normalize", dim, None, length, note, is_note=True))
    return checks


def local_folder(model: str | Path) -> Path:
    """A folder as it is; an id on the Hub, downloaded."""
    from huggingface_hub import snapshot_download

    from smec_st.hub.errors import hub_errors

    if Path(model).is_dir():
        return Path(model)
    if str(model).startswith((".", "/", "~")):
        raise DataError(f"no such folder: {model}")
    with hub_errors(str(model)):
        return Path(snapshot_download(str(model)))


def sizes_of(folder: Path, width: int) -> list[int]:
    """Sizes that the root config offers, falling; the whole width comes first."""
    import json

    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return sorted({width, *config.get("matryoshka_dimensions", [])}, reverse=True)


def _encode(model: SentenceTransformer, texts: Sequence[str]) -> np.ndarray:
    vectors = model.encode(list(texts), prompt="", convert_to_numpy=True, show_progress_bar=False)
    return np.asarray(vectors, dtype=np.float32)


def _foreign(model: SentenceTransformer, folder: Path) -> str | None:
    """What would need another package, remote code or a pickle."""
    kinds = {type(module).__module__ for module in model}
    strange = sorted(kind for kind in kinds if not kind.startswith("sentence_transformers."))
    if strange:
        return f"needs {', '.join(strange)}: servers have only what sentence-transformers brings"
    pickles = sorted(path.name for path in folder.rglob("*") if path.suffix in PICKLES)
    if pickles:
        return f"holds {', '.join(pickles)}: publish safetensors only"
    return None


def _check(way: str, give: Callable[[int], np.ndarray], expected: np.ndarray, tolerance: float) -> Check:
    dim = expected.shape[1]
    try:
        got = give(dim)
    except (DataError, OSError, ValueError) as error:
        return Check(way, dim, problem=one_line(error))
    if got.shape != expected.shape:
        return Check(way, dim, problem=f"gives vectors of {got.shape[1]} numbers: the compression is not applied")
    difference, length = float(np.abs(got - expected).max()), _furthest(got)
    wrong = "the vectors differ" if not difference <= tolerance else None
    if wrong is None and abs(length - 1) > tolerance:
        wrong = "the vectors are not of length 1"
    return Check(way, dim, difference, length, wrong)


def _furthest(vectors: np.ndarray) -> float:
    lengths = np.linalg.norm(vectors, axis=1)
    return float(lengths[np.abs(lengths - 1).argmax()])
