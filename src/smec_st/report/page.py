"""Write the report as one HTML file that needs no network."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from smec_st import __version__
from smec_st.compressor import Compressor
from smec_st.data import Collection, DataError
from smec_st.evaluation.choice import Decision
from smec_st.evaluation.report import label_of
from smec_st.report.figures import METRIC, plotly_script, quality_by_bytes, quality_by_dim
from smec_st.report.items import Items, read_items
from smec_st.report.measure import OURS, Measured, Variant, measure_variants
from smec_st.system.files import write_text

MEANINGS = {
    "neighbourhoods": "keeps full-width neighbourhoods; reads no label",
    "start": "learns nothing: principal axes",
    "adapted": "the full width learns from labels, then its neighbourhoods are kept",
    "ranked": "learns labels and neighbourhoods, on the original vectors",
    "adapted and ranked": "the full width learns from labels, then labels and neighbourhoods",
    "labels alone": "the full width learns from labels, then labels alone",
}


def write_page(
    compressor: Compressor,
    collection: Collection,
    path: str | Path,
    split: str = "test",
    source: str | Path | None = None,
    progress: bool = False,
) -> None:
    """Measure a compressor on a collection and write a report as one HTML file.

    The file holds all that it shows, loads nothing, and appears only when it is complete.

    Args:
        compressor: The compressor to report on.
        collection: Corpus, queries and judgements.
        path: Name of the file; it must end in ``.html``.
        split: Which judgements to score against.
        source: Where the collection was loaded from, to show texts and images; None to show ids.
        progress: Show a progress bar.

    Raises:
        DataError: If plotly is not installed, or the collection cannot be used.
    """
    if Path(path).suffix.lower() != ".html":
        raise DataError(f"a report is an HTML file; choose a name that ends in .html, got {path}.")
    script = plotly_script()
    measured = measure_variants(compressor, collection, split, progress)
    write_text(
        Path(path), render(compressor, collection, split, measured, _items(measured, collection, source), script)
    )


def render(
    compressor: Compressor, collection: Collection, split: str, measured: Measured, items: Items, script: str
) -> str:
    """Return the text of the report.

    Args:
        compressor: The compressor.
        collection: Gives names.
        split: Name of the judgements.
        measured: The figures.
        items: What is shown of documents and queries.
        script: The source of plotly.js.
    """
    thumbnails = list(dict.fromkeys(i.thumbnail for i in (*items.documents.values(), *items.queries.values())))
    frontier = [measured.variants[place] for place in measured.frontier]
    equal = (place for place, variant in enumerate(frontier) if variant.interval.low >= 0)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(label=label_of, size=_size)
    return environment.get_template("page.html").render(
        collection=collection.name,
        split=split,
        metric=METRIC,
        measured=measured,
        frontier=frontier,
        start=next(equal, len(frontier) - 1),  # the smallest that is surely as good as the original
        own=OURS,
        items=items,
        thumbnails=thumbnails,
        thumbnail_number={address: number for number, address in enumerate(thumbnails)},
        kept=lambda variant: _kept(variant, measured.original),
        verdict=_verdict,
        facts=_facts(compressor),
        decisions=[Decision(**decision) for decision in compressor.info.get("decisions") or []],
        meanings=MEANINGS,
        target=compressor.info.get("target"),
        codes=[head for head in compressor.heads if "for_bytes" in head.info],
        figures={"by-dim": quality_by_dim(measured), "by-bytes": quality_by_bytes(measured)},
        plotly=script,
        version=__version__,
    )


def _items(measured: Measured, collection: Collection, source: str | Path | None) -> Items:
    changes = [change for variant in measured.variants for change in (*variant.losses, *variant.wins)]
    hits = [hit for change in changes for hit in (*change.top_before, *change.top_after, *change.relevant)]
    documents = {hit.document for hit in hits}
    return read_items(collection, source, documents, {change.query for change in changes})


def _kept(variant: Variant, original: Variant) -> tuple[float, float, float] | None:
    """Share of the original's quality that is kept, with its interval; None if there is nothing to keep."""
    base = original.metrics[METRIC]
    if base == 0:
        return None
    _, low, high = variant.interval
    return variant.metrics[METRIC] / base, 1 + low / base, 1 + high / base


def _verdict(variant: Variant) -> str:
    if variant.interval.low >= 0:
        return "not below the original, with 95 % confidence"
    return "below the original" if variant.interval.high < 0 else "not surely different from the original"


def _facts(compressor: Compressor) -> dict[str, str]:
    """What a compressor records about itself."""
    info = compressor.info
    backbone, data = info.get("backbone") or {}, info.get("data") or {}
    seconds = sum(stage.get("seconds", 0.0) for stage in info.get("stages") or [])
    counts = {name: f"{number:,}" for name, number in data.items() if isinstance(number, int)}
    facts = {
        "Backbone": backbone.get("model"),
        "Revision": backbone.get("revision"),
        "Method": info.get("method"),
        "Width": f"{compressor.width:,}",
        "Sizes": ", ".join(map(str, compressor.dims)),
        "Nested": "yes: every size is a prefix of the widest" if compressor.is_nested else "no",
        "Fitted on": f"{counts['documents']} documents" if "documents" in counts else None,
        "Judged queries it learned from": counts.get("training_queries"),
        "Training": f"{seconds:,.0f} s" if seconds else None,
        "Fingerprint": compressor.fingerprint,
    }
    return {name: str(value) for name, value in facts.items() if value}


def _size(count: int) -> str:
    """A number of bytes for people."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count:,} bytes"
