"""Write model cards from what a compressor records about itself and from measurements."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smec_st import __version__
from smec_st.evaluation.choice import Decision
from smec_st.evaluation.report import (
    METRIC,
    Row,
    can_plot,
    draw_lines,
    label_of,
    label_sizes,
    markdown_rows,
    new_figure,
    save_figure,
)
from smec_st.quantization.interface import CompressorLike
from smec_st.system.optional import is_installed

if TYPE_CHECKING:
    from smec_st.hub.evidence import Evidence

TEMPLATE = Path(__file__).with_name("card_template.md")
PLOT = "quality.png"
REPO_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def write_card(
    compressor: CompressorLike,
    folder: Path,
    repo_id: str,
    dim: int | None = None,
    *,
    head_only: bool = False,
    evidence: Evidence | None = None,
    license: str | None = None,
    base: str | None = None,
) -> None:
    """Write ``README.md`` into a folder, and the plot if there are measurements.

    Args:
        compressor: The compressor that the card describes.
        folder: Folder of the finished model or compressor.
        repo_id: Name on the Hub, or a path; the card tells readers to load this.
        dim: The only size that the folder serves; None if it serves all.
        head_only: Whether the folder holds the compressor without its backbone.
        evidence: Measurements.
        license: The Hub's short name of the licence, such as ``apache-2.0``.
        base: Name of the backbone, used if the compressor does not record it.
    """
    if evidence is not None and can_plot(folder / PLOT):
        plot_quality(evidence.rows, folder / PLOT)
    text = model_card(
        compressor, repo_id, dim, folder=folder, head_only=head_only, evidence=evidence, license=license, base=base
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def model_card(
    compressor: CompressorLike,
    repo_id: str,
    dim: int | None = None,
    *,
    folder: Path | None = None,
    head_only: bool = False,
    evidence: Evidence | None = None,
    license: str | None = None,
    base: str | None = None,
) -> str:
    """Return the text of the card; see :func:`write_card`."""
    from huggingface_hub import ModelCard

    backbone = compressor.info.get("backbone") or {}
    base = public_name(backbone.get("model") or base)
    sizes = (dim,) if dim is not None else compressor.dims if head_only else compressor.nested_dims
    is_nested = len(sizes) > 1 and (compressor.is_nested or not head_only)
    values = {
        "title": _title(base, sizes),
        "summary": _summary(compressor, base, sizes, evidence),
        "repo_id": repo_id,
        "base": base,
        "base_revision": backbone.get("revision"),
        "head_only": head_only,
        "has_compressor": folder is not None and (folder / "compressor").is_dir(),
        "size_of_files": _size_of(folder),
        "attach_argument": f'"{base}"' if REPO_ID.fullmatch(base) else "backbone",
        "dim_argument": f", dim={dim}" if dim is not None else "",
        "truncate_argument": f", truncate_dim={sizes[-1]}" if len(sizes) > 1 else "",
        "activation_note": _activation_note(compressor),
        "smallest": sizes[-1],
        "width": compressor.width,
        "sizes": _listed(sizes),
        "is_nested": is_nested,
        "nested": "yes: every size is a prefix of the widest" if is_nested else _not_nested(sizes),
        "fingerprint": compressor.fingerprint,
        "similarity": backbone.get("similarity") or "cosine",
        "prompts": _prompts(backbone.get("prompts") or {}),
        "training": _training(compressor, evidence),
        "measured_on": f"measured on {evidence.collection} only" if evidence else "not measured",
        "version": __version__,
        **_measured(evidence, compressor),
    }
    template = TEMPLATE.read_text(encoding="utf-8")
    card = ModelCard.from_template(
        _metadata(compressor, base, sizes, head_only, evidence, license), template_str=template, **values
    )
    return re.sub(r"\n{3,}", "\n\n", str(card.content)).strip() + "\n"


def public_name(model: str | None) -> str:
    """Return a backbone's id, or the last part of its path, so that a card reveals no local folders."""
    if model is None:
        return "the backbone"
    return model if REPO_ID.fullmatch(model) and not Path(model).exists() else Path(model).name


def _metadata(
    compressor: CompressorLike,
    base: str,
    sizes: Sequence[int],
    head_only: bool,
    evidence: Evidence | None,
    license: str | None,
) -> Any:
    from huggingface_hub import ModelCardData

    is_id = REPO_ID.fullmatch(base) is not None
    tags = ["sentence-transformers", "smec-st", "embedding-compression", "feature-extraction"]
    return ModelCardData(
        base_model=base if is_id else None,
        base_model_relation=("adapter" if head_only else "finetune") if is_id else None,
        datasets=[evidence.dataset] if evidence and evidence.dataset else None,
        library_name="smec-st" if head_only else "sentence-transformers",
        license=license,
        pipeline_tag="sentence-similarity",
        tags=[*tags, *(["matryoshka"] if len(sizes) > 1 else [])],
        model_name=_title(base, sizes) if evidence else None,
        eval_results=_results(compressor, evidence, sizes) if evidence else None,
    )


def _results(compressor: CompressorLike, evidence: Evidence, sizes: Sequence[int]) -> list[Any]:
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="information-retrieval",
            task_name="Information Retrieval",
            dataset_type=evidence.dataset or "unknown",
            dataset_name=evidence.collection,
            dataset_split=evidence.split,
            metric_type=METRIC.replace("@", "_at_"),
            metric_name=f"{label_of(METRIC)} at {row.dim} dimensions",
            metric_value=round(row.metrics[METRIC], 4),
        )
        for row in ours(compressor, evidence.rows)
        if row.dim in sizes
    ]


# -- measurements -----------------------------------------------------------------------------------------------------


def ours(compressor: CompressorLike, rows: Sequence[Row]) -> list[Row]:
    """Return those rows of a report that measure the compressor itself, not a baseline."""
    return [row for row in rows if row.method == compressor.info.get("method")]


def _measured(evidence: Evidence | None, compressor: CompressorLike) -> dict[str, Any]:
    if evidence is None:
        return {"table": None}
    scale = [
        f"{evidence.queries:,} {evidence.split} queries" if evidence.queries else "",
        f"{evidence.documents:,} documents" if evidence.documents else "",
    ]
    where = ", ".join(part for part in (evidence.collection, *scale) if part)
    return {
        "quality": f"{label_of(METRIC)} on {where}; in brackets the mean difference to the original vectors with its "
        "95 % interval over the queries."
        if any("original_low" in row.extra for row in evidence.rows)
        else f"{label_of(METRIC)} on {where}.",
        "table": markdown_rows(evidence.rows, _difference),
        "lossless": lossless_sentence(compressor, evidence.rows),
        "plot": PLOT if is_installed("matplotlib") else None,
        "command": evidence.command,
        "versions": ", ".join(f"{name} {version}" for name, version in evidence.versions.items()),
    }


def _difference(row: Row) -> str:
    if "original_low" not in row.extra:
        return ""
    difference, low, high = (row.extra[f"original_{name}"] for name in ("difference", "low", "high"))
    return f" ({difference:+.3f}, {low:+.3f} to {high:+.3f})"


def lossless_sentence(compressor: CompressorLike, rows: Sequence[Row]) -> str:
    """Say how many times smaller the vectors can be before the score falls below the original's."""
    original = next((row for row in rows if row.method == "original"), None)
    own = ours(compressor, rows)
    if original is None or not own:
        return ""
    name = label_of(METRIC)
    lossless = [row for row in own if row.metrics[METRIC] >= original.metrics[METRIC]]
    if not lossless:
        return f"No size reaches the original's {name} of {original.metrics[METRIC]:.3f}."
    sentence = f"Lossless to {_times(lossless, original)}: {name} is not below the original's."
    if all("original_low" in row.extra for row in own):
        confident = [row for row in own if row.extra["original_low"] >= 0]
        sentence += f" With 95 % confidence: {_times(confident, original) if confident else 'no size'}."
    return sentence


def _times(rows: Sequence[Row], original: Row) -> str:
    row = min(rows, key=lambda row: row.bytes_per_vector)
    return f"{original.bytes_per_vector / row.bytes_per_vector:g} times fewer bytes ({row.dim} dimensions)"


def plot_quality(rows: Sequence[Row], path: Path) -> None:
    """Plot quality against numbers per vector and against bytes per vector."""
    figure = new_figure(10, 4)
    sides = figure.subplots(1, 2, sharey=True)
    draw_lines(sides[0], [row for row in rows if row.is_float32], lambda row: row.dim, lambda row: row.metrics[METRIC])
    draw_lines(sides[1], rows, lambda row: row.bytes_per_vector, lambda row: row.metrics[METRIC])
    for axes, name in zip(sides, ("numbers per vector", "bytes per vector"), strict=True):
        label_sizes(axes, name)
    sides[0].set_ylabel(label_of(METRIC))
    sides[0].legend()
    save_figure(figure, path)


# -- sentences --------------------------------------------------------------------------------------------------------


def _title(base: str, sizes: Sequence[int]) -> str:
    return f"{base.rsplit('/')[-1]} in {_listed(sizes)} dimensions"


def _summary(compressor: CompressorLike, base: str, sizes: Sequence[int], evidence: Evidence | None) -> str:
    kind = "map with one hidden layer" if _activation_note(compressor) else "linear map"
    text = (
        f"Embeddings of `{base}`, {compressor.width} numbers each, compressed to {_listed(sizes)} by a learned {kind}."
    )
    own = [row for row in ours(compressor, evidence.rows) if row.dim in sizes] if evidence else []
    original = next((row for row in evidence.rows if row.method == "original"), None) if evidence else None
    if evidence and own and original:
        best = min(own, key=lambda row: row.bytes_per_vector)
        text += (
            f" On {evidence.collection}, {best.dim} of {original.dim} numbers give {label_of(METRIC)} "
            f"{best.metrics[METRIC]:.3f}; all {original.dim} of the original give {original.metrics[METRIC]:.3f}."
        )
    return text


def _training(compressor: CompressorLike, evidence: Evidence | None) -> str:
    info, data = compressor.info, compressor.info.get("data") or {}
    parts = [f"Method `{info.get('method')}`; the backbone was not changed."]
    if data:
        queries = data.get("training_queries", 0)
        judged = f"and {queries:,} judged queries" if queries else "without judgements"
        parts.append(f"Fitted on {data.get('documents') or 0:,} documents {judged}.")
    parts += [_chosen(Decision(**decision)) for decision in info.get("decisions", [])]
    if evidence and evidence.source:
        parts.append(f"Data: {evidence.source}.")
    if evidence and evidence.data_license:
        parts.append(f"Licence of the data: {evidence.data_license}.")
    parts.append("The backbone's licence applies to its weights. All settings of the fit are in `compressor.json`.")
    return " ".join(parts)


def _chosen(decision: Decision) -> str:
    """What a decision says to someone who does not know the candidates."""
    if not decision.queries:
        return f"Too few queries were judged to choose by, so the safe candidate `{decision.chosen}` was trained."
    gain = f", nDCG@10 {decision.gain:+.3f} ± {decision.error:.3f} against `{decision.instead_of}`"
    return (
        f"{decision.queries:,} held-out queries chose the candidate `{decision.chosen}`"
        f"{'' if decision.chosen == decision.instead_of else gain}."
    )


def _activation_note(compressor: CompressorLike) -> str:
    used = {layer.activation for layer in compressor.map_for().layers if layer.activation}
    return f", with {', '.join(sorted(used))} between the layers" if used else ""


def _prompts(prompts: Mapping[str, str]) -> str:
    return ", ".join(f"{name}: `{text}`" for name, text in prompts.items() if text) or "none"


def _not_nested(sizes: Sequence[int]) -> str:
    return "this is the only size" if len(sizes) == 1 else "no: each size has a map of its own"


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes))


def _size_of(folder: Path | None) -> str:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder is not None else 0
    return f"{size / 1e6:.1f} MB" if size > 1e5 else f"{max(1, round(size / 1e3))} kB"
