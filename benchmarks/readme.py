"""Write the table and the plot of the README from ``benchmarks/results/quality.json``.

python benchmarks/readme.py
"""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- quality:begin -->", "<!-- quality:end -->"
METHODS = {"truncate": "truncated", "pca": "PCA (uncentred)", "smec": "**smec_st**"}


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


def section(result: dict) -> str:
    """What stands between the two marks in the README."""
    seeds = len(result["arguments"]["seeds"])
    seconds = [fit["seconds"] for c in result["collections"].values() for fit in c["fits"]]
    note = (
        f"Test queries, all-MiniLM-L6-v2, the defaults of `smec-st fit`, median of {seeds} seeds. A fit took "
        f"{min(seconds):.0f} to {max(seconds):.0f} seconds on {result['arguments']['threads']} thread(s)."
    )
    return f"{BEGIN}\n![Quality by size](benchmarks/results/quality.png)\n\n{table(result)}\n\n{note}\n{END}"


def main() -> None:
    result = json.loads((RESULTS / "quality.json").read_text())
    plot(result, RESULTS / "quality.png")
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    readme.write_text(before + section(result) + after, encoding="utf-8")


if __name__ == "__main__":
    main()
