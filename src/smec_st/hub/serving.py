"""Reference readers that read an exported model as servers do: from its files, without sentence-transformers.

Each reader follows the source code of one server: which names in ``modules.json`` and which activations it knows, what
it ignores, and when it truncates. They are simple and slow, for comparison only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smec_st.data import DataError, read_safetensors, unit_rows
from smec_st.system.errors import one_line
from smec_st.system.files import read_json
from smec_st.system.optional import load_optional

LEGACY = "sentence_transformers.models."  # module names before sentence-transformers 5.4
KNOWN_NAMES = tuple(LEGACY + name for name in ("Transformer", "Pooling", "Dense", "Normalize"))
TEI_ACTIVATIONS = ("torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Tanh")
POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
Tokens = Callable[[], tuple[np.ndarray, np.ndarray]]  # gives the `token_vectors` of some texts


@dataclass(frozen=True)
class Parts:
    """The parts of a model that servers read from its files.

    Attributes:
        pooling: ``cls``, ``mean`` or ``last``.
        dense: Weight ``(out, in)`` and activation of each Dense module, in order.
    """

    pooling: str
    dense: tuple[tuple[np.ndarray, str], ...]


def read_parts(folder: Path) -> Parts:
    """Read ``modules.json`` and the modules that it names.

    Raises:
        DataError: If a server that knows a fixed list of names could not read them, and would serve uncompressed
            vectors.
    """
    if (folder / "adapter_config.json").is_file():
        raise DataError("the backbone is kept as a PEFT reference, which servers do not resolve; merge the adapters.")
    modules = _json(folder / "modules.json")
    for module in modules:
        if module["type"] not in KNOWN_NAMES:
            raise DataError(f"modules.json names {module['type']}, which servers do not know.")
    by_kind: dict[str, list[Path]] = {}
    for module in modules:
        by_kind.setdefault(module["type"].removeprefix(LEGACY), []).append(folder / module["path"])
    if len(by_kind.get("Transformer", [])) != 1 or len(by_kind.get("Pooling", [])) != 1:
        raise DataError("modules.json must name one Transformer and one Pooling.")
    config = _json(by_kind["Pooling"][0] / "config.json")
    modes = [name for flag, name in POOLINGS.items() if config.get(flag)]
    if len(modes) != 1:
        raise DataError(
            f"servers pool by one of {', '.join(POOLINGS.values())}; this model asks for {modes or 'another'}."
        )
    return Parts(modes[0], tuple(_dense(path) for path in by_kind.get("Dense", [])))


def _dense(folder: Path) -> tuple[np.ndarray, str]:
    config = _json(folder / "config.json")
    if config.get("bias"):
        raise DataError(f"{folder.name} has a bias, which a compressor never has.")
    weight = read_safetensors(folder / "model.safetensors", ["linear.weight"])["linear.weight"]
    return weight.astype(np.float32), str(config["activation_function"])


def token_vectors(folder: Path, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the backbone's output, ``(n, length, width)``, and its attention mask, ``(n, length)``."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    length = read_json(folder / "sentence_bert_config.json").get("max_seq_length")
    model = AutoModel.from_pretrained(folder, dtype="auto").eval()
    inputs = tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
    with torch.inference_mode():
        tokens = model(**inputs).last_hidden_state
    return tokens.float().numpy(), inputs["attention_mask"].numpy()


def pool(tokens: np.ndarray, mask: np.ndarray, mode: str) -> np.ndarray:
    """Pool token vectors, ``(n, length, width) -> (n, width)``."""
    if mode == "mean":
        weights = mask[:, :, None] / mask.sum(axis=1)[:, None, None]
        return np.asarray((tokens * weights).sum(axis=1), dtype=np.float32)
    position = mask.argmax(axis=1) if mode == "cls" else mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)
    return np.asarray(tokens[np.arange(len(tokens)), position], dtype=np.float32)


def as_tei(folder: Path, tokens: Tokens) -> np.ndarray:
    """Embed as text-embeddings-inference does: pool, apply every Dense module, and normalise at the end; ``(n, dim)``.

    It ignores Normalize modules between the others, and knows few activations.

    Raises:
        DataError: If it could not read the model.
    """
    parts = read_parts(folder)
    for _, activation in parts.dense:
        if activation not in TEI_ACTIVATIONS:
            raise DataError(f"text-embeddings-inference does not know the activation {activation.rpartition('.')[2]}.")
    return unit_rows(_projected(parts, pool(*tokens(), parts.pooling)))


def as_vllm(folder: Path, tokens: Tokens, dim: int) -> np.ndarray:
    """Embed as vLLM does: pool, apply every Dense module, truncate to ``dim``, and then normalise; ``(n, dim)``.

    vLLM refuses requests for ``dimensions`` that the model's ``config.json`` does not list.

    Raises:
        DataError: If it could not read the model, or would refuse the request.
    """
    parts = read_parts(folder)
    vectors = _projected(parts, pool(*tokens(), parts.pooling))
    config = _json(folder / "config.json")
    if dim != vectors.shape[1]:
        allowed = config.get("matryoshka_dimensions")
        if not config.get("is_matryoshka") or (allowed and dim not in allowed):
            raise DataError(f"vLLM refuses `dimensions: {dim}`: config.json does not offer it.")
    return unit_rows(vectors[:, :dim])


def onnx_outputs(folder: Path, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the outputs of ``onnx/model.onnx`` by name, from ONNX Runtime and the tokenizer of the folder.

    The inputs are added to them: readers that pool need the ``attention_mask``.

    Raises:
        DataError: If ONNX Runtime is missing.
    """
    from transformers import AutoTokenizer

    from smec_st.hub.onnx import FILE

    onnxruntime = load_optional("onnxruntime", "reading ONNX")
    session = onnxruntime.InferenceSession(str(folder / FILE), providers=["CPUExecutionProvider"])
    inputs = AutoTokenizer.from_pretrained(folder)(list(texts), padding=True, truncation=True, return_tensors="np")
    named = {node.name: inputs[node.name].astype(np.int64) for node in session.get_inputs()}
    names = [node.name for node in session.get_outputs()]
    found = {name: np.asarray(value) for name, value in zip(names, session.run(names, named), strict=True)}
    return {**inputs, **found}


def as_onnx(outputs: dict[str, np.ndarray]) -> np.ndarray:
    """Embed as a program of one's own does: read ``sentence_embedding``, ``(n, dim)``.

    Raises:
        DataError: If there is no such output.
    """
    from smec_st.hub.onnx import VECTOR

    if VECTOR not in outputs:
        raise DataError(f"onnx/model.onnx has no output {VECTOR}; export it with --onnx.")
    return outputs[VECTOR].astype(np.float32)


def as_tei_onnx(folder: Path, outputs: dict[str, np.ndarray]) -> np.ndarray:
    """Embed as the ONNX Runtime backend of text-embeddings-inference does, ``(n, dim)``.

    It takes ``sentence_embedding`` if the graph has it. Otherwise it pools ``last_hidden_state`` or
    ``token_embeddings``, and knows no Dense module. At the end it normalises.

    Raises:
        DataError: If it could not read the model.
    """
    from smec_st.hub.onnx import VECTOR

    for name in ("hidden_size", "num_hidden_layers"):
        if name not in _json(folder / "config.json"):
            raise DataError(f"text-embeddings-inference needs {name} in config.json.")
    if VECTOR in outputs:
        return unit_rows(outputs[VECTOR])
    tokens = next((outputs[name] for name in ("last_hidden_state", "token_embeddings") if name in outputs), None)
    if tokens is None:
        raise DataError("text-embeddings-inference knows none of the outputs of onnx/model.onnx.")
    return unit_rows(pool(tokens, outputs["attention_mask"], read_parts(folder).pooling))


def as_onnx_backend(folder: Path, texts: Sequence[str]) -> np.ndarray:
    """Embed with ``SentenceTransformer(folder, backend="onnx")``, ``(n, dim)``.

    Raises:
        DataError: If it cannot load the model.
    """
    from sentence_transformers import SentenceTransformer

    from smec_st.system.quiet import quiet_libraries

    try:
        with quiet_libraries():
            model = SentenceTransformer(
                str(folder), backend="onnx", model_kwargs={"provider": "CPUExecutionProvider", "export": False}
            )
            return np.asarray(model.encode(list(texts), prompt="", show_progress_bar=False), dtype=np.float32)
    except Exception as error:  # Optimum raises errors of any kind
        raise DataError(f'SentenceTransformer(folder, backend="onnx") fails: {one_line(error)}') from error


def _projected(parts: Parts, vectors: np.ndarray) -> np.ndarray:
    import torch

    for weight, activation in parts.dense:
        activate = getattr(torch.nn, activation.rpartition(".")[2])()
        vectors = activate(torch.from_numpy(vectors @ weight.T)).numpy()
    return vectors


def _json(path: Path) -> Any:
    if not path.is_file():
        raise DataError(f"{path.name} is missing; this is not an exported sentence-transformers model.")
    return json.loads(path.read_text(encoding="utf-8"))
