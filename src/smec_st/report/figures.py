"""The plots of a report, as figures of plotly: quality by dimensions, and by bytes."""

from __future__ import annotations

from typing import Any

from smec_st.evaluation.report import label_of, thin_ticks
from smec_st.evaluation.sweep import METRICS
from smec_st.report.measure import OURS, Measured, Variant
from smec_st.system.optional import load_optional

METRIC = METRICS[0]
PRECISIONS = {  # colour and symbol of each, legible on white and on black
    "float32": ("#d1495b", "circle"),
    "float16": ("#e08a3c", "square"),
    "int8": ("#3d8bd4", "diamond"),
    "binary": ("#2a9d6f", "triangle-up"),
    "pq": ("#a06cd5", "star"),
}
QUIET = {"truncate": ("#8c8c8c", "dot"), "pca": ("#a38f68", "dash")}

Figure = dict[str, Any]


def plotly_script() -> str:
    """The source of plotly.js.

    Raises:
        DataError: If plotly is not installed.
    """
    return str(load_optional("plotly.offline", "a report").get_plotlyjs())


def quality_by_dim(measured: Measured) -> Figure:
    """Quality of float32 vectors by their dimensions, as a figure of plotly (``plotly.graph_objects.Figure(...)``)."""
    own = [variant for variant in measured.variants if variant.method == OURS and variant.precision == "float32"]
    traces = [*_untrained(measured, "dim"), _own(own, "dim", OURS, "float32", line=True)]
    return _figure(measured, traces, "dim", "dimensions (float32)")


def quality_by_bytes(measured: Measured) -> Figure:
    """Quality of every way to store documents by its bytes, as a figure of plotly."""
    own = [variant for variant in measured.variants if variant.method == OURS]
    used = [name for name in PRECISIONS if any(variant.precision == name for variant in own)]
    traces = [
        _own([variant for variant in own if variant.precision == name], "bytes", name, name, line=False)
        for name in used
    ]
    return _figure(measured, [*_untrained(measured, "bytes"), *traces], "bytes", "bytes per document")


def _untrained(measured: Measured, axis: str) -> list[dict[str, Any]]:
    """Lines of truncation and PCA, and a horizontal one of the original vectors."""
    places = [getattr(variant, axis) for variant in measured.variants]
    ends = [min(places), max(places)]
    original = measured.original
    traces = [
        {
            "name": "original",
            "x": ends,
            "y": [original.metrics[METRIC]] * 2,
            "mode": "lines",
            "line": {"dash": "5px,3px", "width": 1.5, "color": "#7a7a7a"},
            "hovertemplate": f"{_described(original, original)}<extra></extra>",
        }
    ]
    for name, (color, dash) in QUIET.items():
        shown = [variant for variant in measured.variants if variant.method == name]
        traces.append(
            {
                **_points(shown, axis, original),
                "name": name,
                "mode": "lines+markers",
                "line": {"color": color, "width": 1.5, "dash": dash},
                "marker": {"size": 5},
            }
        )
    return traces


def _own(variants: list[Variant], axis: str, name: str, precision: str, line: bool) -> dict[str, Any]:
    """Points of the compressor, with the interval of the difference around each."""
    color, symbol = PRECISIONS[precision]
    ordered = sorted(variants, key=lambda variant: variant.dim)
    return {
        **_points(ordered, axis, None),
        "name": name,
        "mode": "lines+markers",
        "line": {"color": color, "width": 2.5 if line else 1},
        "marker": {"size": 9, "symbol": symbol, "color": color},
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [variant.interval.high - variant.interval.difference for variant in ordered],
            "arrayminus": [variant.interval.difference - variant.interval.low for variant in ordered],
            "thickness": 1.2,
            "width": 3,
            "color": color,
        },
    }


def _points(variants: list[Variant], axis: str, original: Variant | None) -> dict[str, Any]:
    return {
        "type": "scatter",
        "x": [getattr(variant, axis) for variant in variants],
        "y": [variant.metrics[METRIC] for variant in variants],
        "text": [_described(variant, original) for variant in variants],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _described(variant: Variant, original: Variant | None) -> str:
    """What is shown when the pointer rests on a point."""
    low, high = variant.interval.low, variant.interval.high
    lines = [
        f"<b>{variant.method if variant.method != OURS else variant.precision}, {variant.dim} dimensions</b>",
        f"{variant.bytes:,} bytes per document",
        *(f"{label_of(metric)} {value:.3f}" for metric, value in variant.metrics.items()),
    ]
    if variant is not original:
        lines.append(f"{variant.interval.difference:+.3f} ({low:+.3f} to {high:+.3f}) against the original")
    return "<br>".join(lines)


def _figure(measured: Measured, traces: list[dict[str, Any]], axis: str, title: str) -> Figure:
    ticks = thin_ticks({getattr(variant, axis) for variant in measured.variants}, 1.9)
    layout = {
        "height": 380,
        "margin": {"l": 56, "r": 12, "t": 8, "b": 48},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hovermode": "closest",
        "hoverlabel": {"align": "left"},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "xaxis": {
            "type": "log",
            "title": {"text": title},
            "tickvals": ticks,
            "ticktext": [f"{tick:,}" for tick in ticks],
            "zeroline": False,
        },
        "yaxis": {"title": {"text": label_of(METRIC)}, "zeroline": False},
    }
    return {"data": traces, "layout": layout}
