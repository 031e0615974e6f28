"""Attach a compressor to its backbone as stock modules, and save the result as a model that loads anywhere.

Module types are written under their names of before sentence-transformers 5.4, which every release since 5.2, and
servers that know a fixed list of names, still read. Loading needs neither this package nor a flag.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from torch import nn

from smec_st.data import DataError
from smec_st.files import new_folder
from smec_st.hub.card import write_card
from smec_st.hub.load import INSIDE
from smec_st.modules.adapter import ACTIVATIONS
from smec_st.quiet import quiet_libraries

if TYPE_CHECKING:
    from smec_st.compressor import Compressor

LEGACY = "sentence_transformers.models."
_LEGACY_NAMES = ("Transformer", "Pooling", "Normalize", "Dense")
_POOLING_MODES = {
    "cls": "cls_token",
    "max": "max_tokens",
    "mean": "mean_tokens",
    "lasttoken": "lasttoken",
    "weightedmean": "weightedmean_tokens",
}


def attach(compressor: Compressor, model: SentenceTransformer | str, dim: int | None = None) -> SentenceTransformer:
    """See :meth:`smec_st.compressor.Compressor.attach`."""
    from smec_st.data.embedding import backbone_record, load_model

    backbone = load_model(model) if isinstance(model, str) else model
    width = backbone.get_embedding_dimension()
    if width != compressor.width:
        raise DataError(f"The backbone gives {width} numbers; this compressor reads {compressor.width}.")
    try:
        layers = compressor.map_for(compressor.nested_dims[0] if dim is None else dim).layers
    except ValueError as error:
        raise DataError(str(error)) from error
    dense: list[nn.Module] = []
    for layer in layers:
        activation = nn.Identity() if layer.activation is None else ACTIVATIONS[layer.activation]()
        out_features, in_features = layer.weight.shape
        weight = torch.from_numpy(layer.weight.copy())
        module = Dense(in_features, out_features, bias=False, activation_function=activation, init_weight=weight)
        dense.append(module)
    modules = list(backbone)
    if not isinstance(modules[-1], Normalize) and any(layer.activation for layer in layers):
        dense.insert(0, Normalize())  # the map was fitted on unit vectors, and a hidden layer does not ignore length
    result = SentenceTransformer(
        modules=[*modules, *dense, Normalize()],
        prompts=dict(backbone.prompts or {}),
        default_prompt_name=backbone.default_prompt_name,
        similarity_fn_name=backbone.similarity_fn_name,
        device=str(backbone.device),
    )
    known = (compressor.info.get("backbone") or {}).get("model")
    result.model_card_data.base_model = known or backbone_record(backbone)["model"]
    return result


def export(
    compressor: Compressor,
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
    """Rewrite ``modules.json`` and the module configs to what sentence-transformers 5.2 wrote.

    Raises:
        DataError: If a module has no counterpart there.
    """
    path = folder / "modules.json"
    modules: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    for module in modules:
        name = module["type"].rpartition(".")[2]
        if not module["type"].startswith("sentence_transformers.") or name not in _LEGACY_NAMES:
            continue  # an image or other backbone: it needs the release that knows it anyway
        module["type"] = LEGACY + name
        module.pop("kwargs", None) if not module.get("kwargs") else None
        _LEGACY_CONFIGS[name](folder / module["path"])
    path.write_text(json.dumps(modules, indent=2) + "\n", encoding="utf-8")


def _legacy_transformer(folder: Path) -> None:
    path = folder / "sentence_bert_config.json"
    config = _read(path)
    if config.get("transformer_task") not in (None, "feature-extraction"):
        return
    length = config.get("max_seq_length")
    if length is None:
        tokenizer = _read(folder / "tokenizer_config.json")
        length = tokenizer.get("model_max_length")
    _write(path, {"max_seq_length": length, "do_lower_case": bool(config.get("do_lower_case", False))})


def _legacy_pooling(folder: Path) -> None:
    config = _read(folder / "config.json")
    if "pooling_mode" not in config:
        return
    mode = config["pooling_mode"]
    modes = (mode,) if isinstance(mode, str) else tuple(mode)
    unknown = [name for name in modes if name not in _POOLING_MODES]
    if unknown:
        raise DataError(f"pooling mode {unknown[0]!r} has no form that sentence-transformers 5.2 reads.")
    flags = {f"pooling_mode_{legacy}": name in modes for name, legacy in _POOLING_MODES.items()}
    width = config.get("embedding_dimension", config.get("word_embedding_dimension"))
    _write(
        folder / "config.json",
        {"word_embedding_dimension": width, **flags, "include_prompt": config.get("include_prompt", True)},
    )


def _legacy_normalize(folder: Path) -> None:
    (folder / "config.json").unlink(missing_ok=True)
    folder.mkdir(exist_ok=True)


def _legacy_dense(folder: Path) -> None:
    config = _read(folder / "config.json")
    for name in ("module_input_name", "module_output_name"):
        if config.get(name) == "sentence_embedding":
            del config[name]
    _write(folder / "config.json", config)


_LEGACY_CONFIGS = {
    "Transformer": _legacy_transformer,
    "Pooling": _legacy_pooling,
    "Normalize": _legacy_normalize,
    "Dense": _legacy_dense,
}


def _keep_attention(folder: Path, model: SentenceTransformer) -> None:
    """A decoder made to look both ways must do so after loading: in releases that can, and never silently in others.

    A merged backbone says ``is_causal`` in its own config. One kept as a PEFT reference takes its config from the base
    model, so the change goes where sentence-transformers passes settings on to that config.
    """
    config = getattr(getattr(model[0], "auto_model", None), "config", None)
    if getattr(config, "is_causal", None) is not False:
        return
    if (folder / "adapter_config.json").is_file():
        settings = _read(folder / "sentence_bert_config.json")
        _write(folder / "sentence_bert_config.json", {**settings, "config_args": {"is_causal": False}})
    path = folder / "config_sentence_transformers.json"
    reason = "Older releases ignore `is_causal: false` and give other vectors."
    _write(path, {**_read(path), "requirements": {"transformers": {"specifier": ">=5.2", "reason": reason}}})


def _mark_matryoshka(folder: Path, compressor: Compressor, dim: int | None) -> None:
    """Tell servers which sizes may be asked for; only true of a nested map."""
    path = folder / "config.json"
    if dim is not None or len(compressor.nested_dims) < 2 or not path.is_file():
        return
    _write(path, {**_read(path), "is_matryoshka": True, "matryoshka_dimensions": sorted(compressor.nested_dims)})


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _write(path: Path, config: dict[str, Any]) -> None:
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
