"""Write the tables of README.md and ablation.md, and the plot, from the recorded results.

python benchmarks/tables.py
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from matplotlib.figure import Figure

from smec_st.evaluation.report import markdown_table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
METHODS = {"truncate": "truncated", "pca": "PCA (uncentred)", "smec": "**smec_st**"}
RATIOS = (4, 8, 16, 32, 64)


def table(result: dict) -> str:
    """Rows are collections and methods, columns sizes; medians over the seeds."""
    collections = result["collections"]
    sizes = sorted({int(dim) for c in collections.values() for dim in c["median_ndcg@10"]["smec"]}, reverse=True)
    head = "| nDCG@10 | original | " + " | ".join(f"{dim} dims" for dim in sizes) + " |"
    lines = [head, "|---|---|" + "---|" * len(sizes)]
    for name, collection in collections.items():
        scores = collection["median_ndcg@10"]
        (whole,) = scores["original"].values()
        for i, (method, label) in enumerate(METHODS.items()):
            cells = " | ".join(f"{scores[method][str(dim)]:.3f}" for dim in sizes)
            lines.append(f"| {name}, {label} | {f'{whole:.3f}' if i == 0 else ''} | {cells} |")
    return "\n".join(lines)


def plot(result: dict, path: Path) -> None:
    """One panel per collection: quality against size."""
    collections = result["collections"]
    figure = Figure(figsize=(4 * len(collections), 3.2), layout="constrained")
    for axes, (name, collection) in zip(
        figure.subplots(1, len(collections), squeeze=False)[0], collections.items(), strict=True
    ):
        scores = collection["median_ndcg@10"]
        ((width, whole),) = scores["original"].items()
        axes.axhline(whole, color="0.4", linestyle="--", label=f"original ({width})")
        for method, label in METHODS.items():
            points = sorted((int(dim), score) for dim, score in scores[method].items())
            axes.plot(
                *zip(*points, strict=True),
                marker="o",
                label=label.strip("*"),
                linewidth=2.5 if method == "smec" else 1.3,
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks([dim for dim, _ in points], [str(dim) for dim, _ in points])
        axes.minorticks_off()
        axes.set_title(name)
        axes.set_xlabel("numbers per vector")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("nDCG@10")
    figure.axes[0].legend()
    figure.savefig(path, dpi=130)


def quality_section() -> str:
    """What the defaults give."""
    result = json.loads((RESULTS / "quality.json").read_text())
    seeds = len(result["arguments"]["seeds"])
    seconds = [fit["seconds"] for c in result["collections"].values() for fit in c["fits"]]
    machines = f" ({result['note']})" if "note" in result else ""
    note = (
        f"Test queries, all-MiniLM-L6-v2, the defaults of `smec-st fit`, median of {seeds} seeds. A fit took "
        f"{min(seconds):.0f} to {max(seconds):.0f} seconds on {result['arguments']['threads']} thread(s){machines}."
    )
    return f"![Quality by size](benchmarks/results/quality.png)\n\n{table(result)}\n\n{note}"


def comparison_section() -> str:
    """Every method's mean over the collections at equal compression, and how far each goes without loss."""
    folder = RESULTS / "compare"
    rows = json.loads((folder / "report.json").read_text())
    lossless = json.loads((folder / "lossless.json").read_text())
    collections = list(dict.fromkeys(row["collection"] for row in rows))
    original = {row["collection"]: row for row in rows if row["method"] == "original"}
    scores: dict[tuple[str, int], dict[str, float]] = {}
    for row in rows:
        whole = original[row["collection"]]["bytes_per_vector"]
        if whole % row["bytes_per_vector"] == 0:
            scores.setdefault((row["method"], whole // row["bytes_per_vector"]), {})[row["collection"]] = row[
                "ndcg@10"
            ]
    means = {key: statistics.mean(v.values()) for key, v in scores.items() if set(v) == set(collections)}
    best = {ratio: max(v for (_, other), v in means.items() if other == ratio) for ratio in RATIOS}
    further = {(entry["collection"], entry["method"]): entry["byte_ratio"] for entry in lossless}
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows if row["method"] != "original"):
        if not any((method, ratio) in means for ratio in RATIOS):
            continue
        cells = []
        for ratio in RATIOS:
            value = means.get((method, ratio))
            text = "" if value is None else f"{value:.3f}"
            cells.append(f"**{text}**" if value is not None and value == best[ratio] else text)
        kept = [further.get((name, method)) for name in collections]
        lines.append([method, *cells, *("" if ratio is None else f"{ratio:.3g}x" for ratio in kept)])
    head = ["mean nDCG@10", *(f"{ratio}x smaller" for ratio in RATIOS), *(f"lossless, {name}" for name in collections)]
    run = json.loads((folder / "run.json").read_text())
    waiting = f" {len(run['missing'])} fits are still to be run (`run.json`)." if run["missing"] else ""
    average = statistics.mean(row["ndcg@10"] for row in original.values())
    return (
        f"{markdown_table(head, lines)}\n\nMean over {', '.join(collections)} (original: {average:.3f}), by bytes per "
        "vector; then how many times smaller before nDCG@10 falls below the original's. Codebooks and maps are not "
        f"counted. Each collection's own table, with intervals: `benchmarks/results/compare/report.md`.{waiting}"
    )


def search_section() -> str:
    """The funnel beside exact and HNSW search at full width, and what it costs in quality."""
    engines = json.loads((RESULTS / "search" / "engines.json").read_text())
    quality = json.loads((RESULTS / "search" / "quality.json").read_text())
    labels = {"flat": "exact, full width", "hnsw": "HNSW, full width", "funnel, hnsw-int8": "funnel, `hnsw-int8`"}
    lines = []
    for name, label in labels.items():
        method = engines["methods"][name]
        times = [f"{method[f'batch_{batch}']['qps_against_flat']:.0f}x" for batch in (1, 64)]
        lines.append([label, f"{method['recall']:.3f}", *times, f"{method['ram_against_hnsw']:.2f}"])
    head = ["", "recall@10", "queries a second, singly", "in batches of 64", "memory"]
    arguments = engines["arguments"]
    scored = [found for found in quality.values() if isinstance(found, dict) and "ndcg@10 funnel" in found]
    change = max(abs(found["ndcg@10 funnel"] - found["ndcg@10 exact"]) for found in scored)
    return (
        f"{markdown_table(head, lines)}\n\n{arguments['rows']:,} made, clustered vectors of {arguments['width']} "
        "numbers, one thread, queries that the schedule was not chosen on; speed against exact search, memory "
        "against HNSW (the funnel's originals lie on disk). "
        f"On {len(scored)} real collections nDCG@10 moves by {change:.4f} at most (`benchmarks/results/search/`)."
    )


def ablation_section() -> str:
    """Each recorded ablation: what every change of a setting costs or gains, with its interval."""
    parts = []
    for path in sorted((RESULTS / "ablation").glob("*.json")):
        record = json.loads(path.read_text())
        sizes = list(dict.fromkeys(row["dim"] for row in record["rows"]))
        usual = record["rows"][0]["variant"]
        lines: dict[str, list[str]] = {}
        for row in record["rows"]:
            changed = {key: value for key, value in row["variant"].items() if usual.get(key) != value}
            name = ", ".join(f"`{key}: {json.dumps(value)}`" for key, value in changed.items()) or "reference"
            lines.setdefault(name, [name]).append(
                f"{row['ndcg@10']:.3f}"
                if row["interval"] is None
                else "{:+.3f} [{:+.3f}, {:+.3f}]".format(row["difference"], *row["interval"])
            )
        data = record["data"] if isinstance(record["data"], str) else ", ".join(record["data"])
        settings = ", ".join(f"`{key}: {json.dumps(value)}`" for key, value in usual.items()) or "the defaults"
        unseen = ", about documents never trained on" if record["arguments"].get("unseen") is True else ""
        head = (
            f"**{data}**, {record['rows'][0]['queries']} queries{unseen} (`{path.name}`); the reference is {settings}."
        )
        rows = markdown_table(["", *(f"{size} dims" for size in sizes)], list(lines.values()))
        parts.append(f"{head}\n\n{rows}")
    return "\n\n".join(parts)


PAGES = {
    ROOT / "README.md": {"search": search_section, "quality": quality_section, "comparison": comparison_section},
    ROOT / "benchmarks" / "ablation.md": {"ablation": ablation_section},
}


def with_sections(page: Path) -> str:
    """The page's text, with what stands between each pair of marks written anew."""
    text = page.read_text(encoding="utf-8")
    for name, section in PAGES[page].items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = f"{before}{begin}\n{section()}\n{end}{after}"
    return text


def main() -> None:
    plot(json.loads((RESULTS / "quality.json").read_text()), RESULTS / "quality.png")
    for page in PAGES:
        page.write_text(with_sections(page), encoding="utf-8")


if __name__ == "__main__":
    main()
