"""Embed texts or images with a sentence-transformers model and its own prompts, and cache the vectors on disk."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from smec_st.data.safetensors import read_safetensors, write_safetensors
from smec_st.data.vectors import as_numpy, unit_rows
from smec_st.system.errors import DataError, one_line, some
from smec_st.system.optional import load_optional
from smec_st.system.quiet import quiet_libraries

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from smec_st.data.vectors import ArrayLike

PROBE_TEXT, PROBE_NUMBERS = "The quick brown fox jumps over the lazy dog.", 8
_RECORDS: dict[str, dict[str, Any]] = {}  # descriptions of the models that `embed_tables` loaded, by id

Items = Sequence[str] | Sequence[Path]  # texts, or paths of image files


def load_model(model: str) -> SentenceTransformer:
    """Load a sentence-transformers model by id or path.

    Raises:
        DataError: If it cannot be loaded.
    """
    from sentence_transformers import SentenceTransformer

    if (Path(model) / "compressor.json").is_file():
        raise DataError(
            f"{model} holds a compressor, which is no model by itself: "
            f"`smec-st export {model} --model BACKBONE --out MODEL` makes a model of it and its backbone."
        )
    try:
        with quiet_libraries():
            return SentenceTransformer(model)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot load the model {model!r}: {one_line(error)}") from error


def backbone_record(model: SentenceTransformer) -> dict[str, Any]:
    """Describe a backbone: what a compressor saves about the model whose vectors it was fitted on."""
    card = model.model_card_data
    name = card.base_model or getattr(model[0], "model_name_or_path", None)
    auto = getattr(model[0], "auto_model", None)
    if name is None and auto is not None:
        name = auto.config.name_or_path
    return {
        "model": name and str(name),
        "revision": card.base_model_revision or getattr(getattr(auto, "config", None), "_commit_hash", None),
        "width": model.get_embedding_dimension(),
        "prompts": {name: prompt for name, prompt in (model.prompts or {}).items() if prompt},
        "similarity": model.similarity_fn_name,
        "probe": _probe(model),
    }


def _probe(model: SentenceTransformer) -> list[float] | None:
    """Return the first numbers of a fixed text's vector. A model that is trained further keeps its name, not these."""
    if not model.supports("text"):
        return None
    vector = unit_rows(embed(model, [PROBE_TEXT], "document"))[0, :PROBE_NUMBERS]
    return [round(float(number), 4) for number in vector]


def model_record(model_id: str) -> dict[str, Any]:
    """Describe the model that embedded tables in this process; see :func:`backbone_record`."""
    return _RECORDS.get(model_id, {"model": model_id})


def embed(model: SentenceTransformer, texts: Sequence[str], side: str, progress: bool = False) -> np.ndarray:
    """Embed texts with ``encode_query`` if ``side`` is "query", else ``encode_document``, ``(n, D)``.

    The rows are float32, also where the model itself gives int8 codes. They have length 1 if the model compares by
    cosine. Otherwise they keep the lengths that its scores depend on.
    """
    if not len(texts):
        return np.empty((0, model.get_embedding_dimension() or 0), dtype=np.float32)
    encode = model.encode_query if side == "query" else model.encode_document
    # sentence-transformers cannot normalise whole numbers.
    vectors = encode(list(texts), convert_to_numpy=True, normalize_embeddings=False, show_progress_bar=progress)
    rows = as_numpy(vectors)
    return unit_rows(rows) if model.similarity_fn_name == "cosine" else rows.astype(np.float32)


def embed_images(model: SentenceTransformer, paths: Sequence[Path], batch: int = 256) -> np.ndarray:
    """Embed image files, opening ``batch`` of them at a time; unit rows, ``(n, D)`` float32.

    Raises:
        DataError: If the model does not take images, or a file is not a readable image.
    """
    from tqdm.auto import tqdm

    if not model.supports("image"):
        raise DataError("this model does not take images; use an image model such as CLIP, or a file of vectors.")
    parts = []
    for start in tqdm(range(0, len(paths), batch), desc="images", leave=False):
        images = [_open_image(path) for path in paths[start : start + batch]]
        parts.append(unit_rows(as_numpy(model.encode(images, show_progress_bar=False))))
    return np.concatenate(parts)


def _open_image(path: Path) -> Any:
    pillow = load_optional("PIL.Image", "reading images")
    try:
        with pillow.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise DataError(f"{path} is not a readable image: {one_line(error)}") from error


def model_state(model: SentenceTransformer) -> str:
    """Hash all that a model's vectors depend on: weights, the settings of its modules, tokenizers, prompts."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    for name, module in model.named_modules():
        kind = type(module)
        settings = [kind.__module__, kind.__qualname__, module.extra_repr()]
        if hasattr(module, "get_config_dict"):
            settings.append(module.get_config_dict())
        if hasattr(getattr(module, "config", None), "to_dict"):
            settings.append(module.config.to_dict())
        for part in {id(part): part for part in _processors(module)}.values():
            settings.append(_saved(part))
        digest.update(json.dumps([name, *settings], default=_plain, sort_keys=True).encode())
    served = [model.prompts, model.default_prompt_name, model.truncate_dim, model.similarity_fn_name]
    digest.update(json.dumps([*served, model.max_seq_length]).encode())
    return digest.hexdigest()


def _processors(module: object) -> list[Any]:
    """Return the tokenizer and the processor of a module, those that it has."""
    found = (getattr(module, name, None) for name in ("tokenizer", "processor"))
    return [part for part in found if hasattr(part, "to_str") or hasattr(part, "save_pretrained")]


def _saved(processor: Any) -> dict[str, str]:
    """Hash the files that a tokenizer or processor saves, by name."""
    if hasattr(processor, "to_str"):
        return {"tokenizer.json": _file_hash("tokenizer.json", processor.to_str().encode())}
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        paths = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
        return {str(path.relative_to(folder)): _file_hash(path.name, path.read_bytes()) for path in paths}


def _file_hash(name: str, content: bytes) -> str:
    if name == "tokenizer.json":  # it also saves how the last batch was padded and cut
        settings = json.loads(content)
        content = json.dumps({**settings, "padding": None, "truncation": None}, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


def _plain(value: object) -> str:
    """Return a text for a setting that is no JSON, the same in every process."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}" if isinstance(value, type) or callable(value) else str(value)


def embed_tables(items: Mapping[str, Items], model_id: str) -> list[np.ndarray]:
    """Embed named lists of texts or image files, and cache the vectors by model and content.

    The model counts with all that its vectors depend on (:func:`model_state`), so a model that was trained further and
    saved under the same name is embedded with again. The cache folder is ``$SMEC_ST_CACHE``, or ``~/.cache/smec-st``.

    Args:
        items: Texts or image paths by name. Texts named "queries" are embedded as queries, others as documents.
        model_id: Id or path of a sentence-transformers model.

    Returns:
        One table per name, in the order given.

    Raises:
        DataError: If the model cannot be loaded, or all texts of a list are empty.
    """
    for name, part in items.items():
        _refuse_empty(part, name)
    model = load_model(model_id)
    _RECORDS[model_id] = {**backbone_record(model), "model": model_id}
    content = {name: [_fingerprint(item) for item in part] for name, part in items.items()}
    key = hashlib.sha256(json.dumps([model_state(model), model_id, content]).encode()).hexdigest()
    root = Path(os.environ.get("SMEC_ST_CACHE") or Path.home() / ".cache" / "smec-st")
    path = root / "vectors" / f"{key[:32]}.safetensors"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        tables = {name: _embed_items(model, part, name) for name, part in items.items()}
        write_safetensors(path, tables)
    tables = read_safetensors(path, items)
    return [tables[name] for name in items]


def _embed_items(model: SentenceTransformer, items: Items, name: str) -> np.ndarray:
    paths = [item for item in items if isinstance(item, Path)]
    if paths:
        return embed_images(model, paths)
    return embed(model, [str(item) for item in items], "query" if name == "queries" else "document", progress=True)


def _fingerprint(item: str | Path) -> str | list[str | int | float]:
    if isinstance(item, str):
        return item
    try:
        state = item.stat()
    except OSError as error:
        raise DataError(f"no such file: {item}") from error
    return [str(item), state.st_size, state.st_mtime_ns]


def embed_if_texts(
    corpus: ArrayLike, queries: ArrayLike | None, model: SentenceTransformer | str | None, progress: bool
) -> tuple[ArrayLike, ArrayLike | None, dict[str, Any] | None]:
    """Embed corpus and queries if they are texts; return them as they are if they are vectors.

    Args:
        corpus: Texts or vectors.
        queries: The same kind as ``corpus``, or None.
        model: The model that embeds texts or that made the vectors, if known.
        progress: Whether to show a progress bar.

    Returns:
        Corpus vectors, query vectors, and the description of the backbone (see :func:`backbone_record`), if known.

    Raises:
        DataError: If there are texts and no model, or all texts of one side are empty.
    """
    corpus, queries = _listed(corpus, "corpus"), None if queries is None else _listed(queries, "queries")
    are_texts = _are_texts(corpus, "corpus")
    if queries is not None and len(queries) and _are_texts(queries, "queries") != are_texts:
        raise DataError("corpus and queries must both be texts, or both be vectors.")
    if isinstance(model, str) and not are_texts:
        return corpus, queries, {"model": model, "width": int(as_numpy(corpus).shape[-1])}
    if model is None:
        if are_texts:
            raise DataError("texts need a `model` that embeds them.")
        return corpus, queries, None
    if are_texts:
        _refuse_empty(corpus, "corpus")
        _refuse_empty(() if queries is None else queries, "queries")
    loaded = load_model(model) if isinstance(model, str) else model
    if are_texts:
        corpus = embed(loaded, cast("Sequence[str]", corpus), "document", progress)
        queries = None if queries is None else embed(loaded, cast("Sequence[str]", queries), "query", progress)
    return corpus, queries, backbone_record(loaded)


def _refuse_empty(items: Any, name: str) -> None:
    """Raise a :class:`DataError` if these are texts and all of them are empty: they would all get the same vector."""
    if len(items) and all(isinstance(item, str) and not item.strip() for item in items):
        what = "the one text" if len(items) == 1 else f"all {len(items)} texts"
        verb = "is" if len(items) == 1 else "are"
        raise DataError(f"{what} of the {name} {verb} empty; there is nothing to embed.")


def _listed(items: Any, what: str) -> Any:
    """Return a column of pandas, an array of texts or an iterator as a list; anything else as it is."""
    if isinstance(items, str):
        raise DataError(f"{what}: one text is no list of texts; a file's lines must be read first.")
    if getattr(items, "ndim", 0) == 1 and hasattr(items, "tolist"):
        return items.tolist()
    return list(items) if isinstance(items, Iterator) else items


def _are_texts(items: Any, what: str) -> bool:
    """Return whether these are texts and not vectors; a :class:`DataError` if only some are."""
    if not isinstance(items, Sequence):
        return False
    other = [row for row, item in enumerate(items) if not isinstance(item, str)]
    if 0 < len(other) < len(items):
        raise DataError(f"{what}: row{'s' if len(other) > 1 else ''} {some(other)} of the texts hold no text.")
    return len(items) > 0 and not other
