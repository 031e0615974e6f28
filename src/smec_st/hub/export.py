"""Attach a compressor to its backbone as stock modules, and save the result as a model that loads anywhere.

Modules are saved under the names that they had before sentence-transformers 5.4. Every release since 5.2 reads these
names, and so do servers that know a fixed list of names. Loading needs neither this package nor a flag.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from torch import nn

from smec_st.data import DataError
from smec_st.hub.card import write_card
from smec_st.hub.load import INSIDE
from smec_st.hub.serving import LEGACY
from smec_st.maps import Layer
from smec_st.modules.adapter import ACTIVATIONS
from smec_st.quantization.interface import CompressorLike
from smec_st.system.files import new_folder, read_json, write_json
from smec_st.system.quiet import quiet_libraries

_POOLING_MODES = {
    "cls": "cls_token",
    "max": "max_tokens",
    "mean": "mean_tokens",
    "lasttoken": "lasttoken",
    "weightedmean": "weightedmean_tokens",
}


def attach(
    compressor: CompressorLike, model: SentenceTransformer | str, dim: int | None = None
) -> SentenceTransformer:
    """See :meth:`smec_st.compressor.Compressor.attach`."""
    from smec_st.data.embedding import backbone_record, load_model

    backbone = load_model(model) if isinstance(model, str) else model
    width = backbone.get_embedding_dimension()
    if width != compressor.width:
        raise DataError(f"The backbone gives {width} numbers; this compressor reads {compressor.width}.")
    folded = compressor.map_for(compressor.nested_dims[0] if dim is None else dim)
    has_hidden = len(folded.layers) > 1
    with backbone.truncate_embeddings(None):
        whole = int(backbone.get_embedding_dimension() or 0)
    # A backbone that was loaded with `truncate_dim` cuts after all of its modules, which here come first.
    cut = np.eye(compressor.width, whole, dtype=np.float32) if whole > compressor.width else None
    layers = folded.layers if cut is None or has_hidden else folded.after(cut).layers
    dense: list[nn.Module] = [_dense(layer) for layer in layers]
    modules = list(backbone)
    if has_hidden and (cut is not None or not isinstance(modules[-1], Normalize)):
        dense.insert(0, Normalize())  # maps are fitted on unit vectors, and a hidden layer depends on length
    if has_hidden and cut is not None:
        dense.insert(0, _dense(Layer(cut)))
    result = SentenceTransformer(
        modules=[*modules, *dense, Normalize()],
        prompts=dict(backbone.prompts or {}),
        default_prompt_name=backbone.default_prompt_name,
        similarity_fn_name=backbone.similarity_fn_name,
        device=str(backbone.device),
    )
    recorded = (compressor.info.get("backbone") or {}).get("model")
    result.model_card_data.base_model = recorded or backbone_record(backbone)["model"]
    return result


def _dense(layer: Layer) -> Dense:
    activation = nn.Identity() if layer.activation is None else ACTIVATIONS[layer.activation]()
    out_features, in_features = layer.weight.shape
    weight = torch.from_numpy(layer.weight.copy())
    return Dense(in_features, out_features, bias=False, activation_function=activation, init_weight=weight)


def export(
    compressor: CompressorLike,
    model: SentenceTransformer | str,
    folder: str | Path,
    dim: int | None = None,
    onnx: bool = False,
) -> None:
    """See :meth:`smec_st.compressor.Compressor.export`."""
    with new_folder(folder) as draft:
        attached = attach(compressor, model, dim)
        with quiet_libraries():
            attached.save_pretrained(str(draft), create_model_card=False)
        write_legacy_layout(draft)
        _keep_attention(draft, attached)
        _mark_matryoshka(draft, compressor, dim)
        if onnx:
            from smec_st.hub.onnx import write_onnx

            write_onnx(attached, draft)
        (draft / INSIDE).mkdir()
        compressor.write_into(draft / INSIDE)
        write_card(compressor, draft, Path(folder).name, dim, base=attached.model_card_data.base_model)


def write_legacy_layout(folder: Path) -> None:
    """Rewrite ``modules.json`` and the module configs in the form that sentence-transformers 5.2 wrote.

    Raises:
        DataError: If a pooling mode has no counterpart there.
    """
    path = folder / "modules.json"
    modules: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    for module in modules:
        name = module["type"].rpartition(".")[2]
        if not module["type"].startswith("sentence_transformers.") or name not in _LEGACY_CONFIGS:
            continue  # backbones of other kinds, such as images, need the release that introduced them anyway
        module["type"] = LEGACY + name
        if not module.get("kwargs"):
            module.pop("kwargs", None)
        _LEGACY_CONFIGS[name](folder / module["path"])
    write_json(path, modules)


def _legacy_transformer(folder: Path) -> None:
    path = folder / "sentence_bert_config.json"
    config = read_json(path)
    if config.get("transformer_task") not in (None, "feature-extraction"):
        return
    length = config.get("max_seq_length")
    if length is None:
        length = read_json(folder / "tokenizer_config.json").get("model_max_length")
    write_json(path, {"max_seq_length": length, "do_lower_case": bool(config.get("do_lower_case", False))})


def _legacy_pooling(folder: Path) -> None:
    config = read_json(folder / "config.json")
    if "pooling_mode" not in config:
        return
    mode = config["pooling_mode"]
    modes = (mode,) if isinstance(mode, str) else tuple(mode)
    unknown = [name for name in modes if name not in _POOLING_MODES]
    if unknown:
        raise DataError(f"pooling mode {unknown[0]!r} has no form that sentence-transformers 5.2 reads.")
    flags = {f"pooling_mode_{legacy}": name in modes for name, legacy in _POOLING_MODES.items()}
    width = config.get("embedding_dimension", config.get("word_embedding_dimension"))
    legacy_config = {"word_embedding_dimension": width, **flags, "include_prompt": config.get("include_prompt", True)}
    write_json(folder / "config.json", legacy_config)


def _legacy_normalize(folder: Path) -> None:
    (folder / "config.json").unlink(missing_ok=True)
    folder.mkdir(exist_ok=True)


def _legacy_dense(folder: Path) -> None:
    config = read_json(folder / "config.json")
    for name in ("module_input_name", "module_output_name"):
        if config.get(name) == "sentence_embedding":
            del config[name]
    write_json(folder / "config.json", config)


_LEGACY_CONFIGS = {
    "Transformer": _legacy_transformer,
    "Pooling": _legacy_pooling,
    "Normalize": _legacy_normalize,
    "Dense": _legacy_dense,
}


def _keep_attention(folder: Path, model: SentenceTransformer) -> None:
    """Make sure that a decoder with bidirectional attention keeps it when it is loaded.

    The config of a merged backbone says ``is_causal: false``. A backbone kept as a PEFT reference gets its config from
    the base model, so the setting is written where sentence-transformers passes settings on to that config. Releases
    that would ignore it refuse to load the model.
    """
    config = getattr(getattr(model[0], "auto_model", None), "config", None)
    if getattr(config, "is_causal", None) is not False:
        return
    if (folder / "adapter_config.json").is_file():
        path = folder / "sentence_bert_config.json"
        write_json(path, {**read_json(path), "config_args": {"is_causal": False}})
    path = folder / "config_sentence_transformers.json"
    reason = "Older releases ignore `is_causal: false` and give other vectors."
    write_json(path, {**read_json(path), "requirements": {"transformers": {"specifier": ">=5.2", "reason": reason}}})


def _mark_matryoshka(folder: Path, compressor: CompressorLike, dim: int | None) -> None:
    """List the sizes of a nested map in ``config.json``, where servers look up which sizes a client may request."""
    path = folder / "config.json"
    if dim is not None or len(compressor.nested_dims) < 2 or not path.is_file():
        return
    sizes = {"is_matryoshka": True, "matryoshka_dimensions": sorted(compressor.nested_dims)}
    write_json(path, {**read_json(path), **sizes})
