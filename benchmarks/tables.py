"""Write the tables and plots of README.md, docs/ and ablation.md from the recorded results.

python benchmarks/tables.py
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from smec_st.evaluation.report import markdown_table
from smec_st.fitting.config import CANDIDATES, TRIAL

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"
IMAGES = DOCS / "images"
METHODS = {"truncate": "truncated", "pca": "PCA (uncentred)", "smec": "**smec_st**"}
RATIOS = (4, 8, 16, 32, 64)
#: Columns of the table of versions.
VERSIONS = ("python", "torch", "transformers", "sentence-transformers", "datasets", "accelerate", "numpy")
BUDGETS = ("96", "48", "24", "12", "6")


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


def plot_by_size(result: dict, path: Path) -> None:
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


def with_labels() -> dict[str, dict]:
    """What is recorded of equal bytes with labels, by collection; those that are being measured are left out."""
    collections = json.loads((RESULTS / "bytes.json").read_text())["collections"]
    return {name: collection for name, collection in collections.items() if "best" in collection}


def without_labels() -> dict[str, dict]:
    """What is recorded of equal bytes without labels, by collection; nothing where there is no record."""
    path = RESULTS / "bytes-no-labels.json"
    return json.loads(path.read_text())["collections"] if path.exists() else {}


def lines_by_bytes(name: str, judged: dict) -> dict[str, dict[int, float]]:
    """Quality by bytes of one collection: ours and the best rival's, with labels and, where recorded, without."""
    best = judged["best"]
    ours = {int(budget): row["test"] for budget, row in best["smec_st"].items()}
    lines = {"smec_st, labels": ours, "best rival, labels": {budget: best_other(best, budget) for budget in ours}}
    if name in without_labels():
        budgets = without_labels()[name]["budgets"]
        for key, label in (("ours", "smec_st, no labels"), ("rival", "best rival, no labels")):
            lines[label] = {int(budget): row[key] for budget, row in budgets.items()}
    return lines


def best_other(best: dict, budget: int) -> float:
    """The best figure of all methods but ours and the original vectors."""
    others = [rows for method, rows in best.items() if method not in ("smec_st", "original")]
    return max(rows[str(budget)]["test"] for rows in others if str(budget) in rows)


def plot_by_bytes(path: Path) -> None:
    """One panel per collection: quality against bytes a document, with and without labels."""
    collections = with_labels()
    figure = Figure(figsize=(3.6 * len(collections), 3.9), layout="constrained")
    panels = figure.subplots(1, len(collections), squeeze=False)[0]
    labels: dict[str, object] = {}
    for axes, (name, judged) in zip(panels, collections.items(), strict=True):
        whole = axes.axhline(judged["original_float32"], color="0.5", linestyle=":", linewidth=1.5)
        labels["original, float32"] = whole
        for label, points in lines_by_bytes(name, judged).items():
            budgets = sorted(budget for budget in points if budget <= int(BUDGETS[0]))
            style = {"color": "black" if label.startswith("smec_st") else "tab:orange"}
            style["linestyle"] = "--" if label.endswith("no labels") else "-"
            labels[label], *_ = axes.plot(budgets, [points[budget] for budget in budgets], marker="o", ms=4, **style)
        axes.set_xscale("log", base=2)
        axes.set_xticks([int(budget) for budget in BUDGETS], BUDGETS)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(name)
        axes.set_xlabel("bytes a document")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("nDCG@10")
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=5, fontsize=9)
    figure.savefig(path, dpi=130)


def plot_section() -> str:
    """The plot of quality by bytes, and what it shows."""
    both = "with and without labels" if without_labels().keys() & with_labels().keys() else "with labels"
    return (
        "![Quality by bytes, beside the best of other methods](docs/images/by_bytes.png)\n\n"
        f"nDCG@10 by bytes a document, {both}, on judged queries that no fit has seen, beside the best of all\nother "
        "methods at each number of bytes. All methods, and how this was measured: [benchmarks](docs/benchmarks.md)."
    )


def headline_section() -> str:
    """A few figures for the README: quality at 48 numbers."""
    result = json.loads((RESULTS / "quality.json").read_text())
    lines = []
    for name, collection in result["collections"].items():
        scores = collection["median_ndcg@10"]
        (whole,) = scores["original"].values()
        small = [f"{scores[method]['48']:.3f}" for method in ("truncate", "pca")]
        lines.append([name, f"{whole:.3f}", *small, *(f"**{scores['smec'][dim]:.3f}**" for dim in ("48", "192"))])
    head = [
        "nDCG@10 on test queries",
        "384 numbers, original",
        "48, truncated",
        "48, PCA",
        "48, smec_st",
        "192, smec_st",
    ]
    return markdown_table(head, lines)


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
    return f"![Quality by size](images/quality.png)\n\n{table(result)}\n\n{note}"


def no_labels_section() -> str:
    """What the defaults give without labels."""
    result = json.loads((RESULTS / "quality-no-labels.json").read_text())
    seeds = len(result["arguments"]["seeds"])
    return f"{table(result)}\n\nTest queries, no judgements, the defaults, median of {seeds} seeds."


def comparison_means() -> tuple[dict[tuple[str, int], float], float, list[str]]:
    """Mean nDCG@10 over the collections by method and compression; the original's mean; and the collections."""
    rows = json.loads((RESULTS / "compare" / "report.json").read_text())
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
    return means, statistics.mean(row["ndcg@10"] for row in original.values()), collections


def comparison_section() -> str:
    """Every method's mean over the collections at equal compression, and how far each goes without loss."""
    folder = RESULTS / "compare"
    lossless = json.loads((folder / "lossless.json").read_text())
    means, average, collections = comparison_means()
    best = {ratio: max(v for (_, other), v in means.items() if other == ratio) for ratio in RATIOS}
    further = {(entry["collection"], entry["method"]): entry["byte_ratio"] for entry in lossless}
    lines = []
    for method in dict.fromkeys(method for method, _ in means if method != "original"):
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
    return (
        f"{markdown_table(head, lines)}\n\nMean over {', '.join(collections)} (original: {average:.3f}), by bytes per "
        "vector; then how many times smaller before nDCG@10 falls below the original's. Codebooks and maps are not "
        f"counted. Each collection's own table, with intervals: `benchmarks/results/compare/report.md`.{waiting}"
    )


def bytes_section() -> str:
    """The best codes of our vectors and of the original ones at equal bytes."""
    lines, seeds = [], set()
    for name, collection in with_labels().items():
        best = collection["best"]
        seeds |= {len(row.get("seeds", [0])) for row in best["smec_st"].values()}
        others = {budget: best_other(best, int(budget)) for budget in BUDGETS}
        lines += [
            [f"{name}, original", *(f"{best['original'][budget]['test']:.3f}" for budget in BUDGETS)],
            [f"{name}, best of {len(best) - 2} other methods", *(f"{others[budget]:.3f}" for budget in BUDGETS)],
            [f"{name}, **smec_st**", *(f"{best['smec_st'][budget]['test']:.3f}" for budget in BUDGETS)],
        ]
    return (
        f"{markdown_table(['nDCG@10', *(f'{budget} bytes' for budget in BUDGETS)], lines)}\n\n"
        "Each method's floats at every size under every precision that takes that many bytes. The dev split chooses "
        f"size and precision, the test split gives the figure. {of_seeds(seeds)} of ours, one of the others; "
        "`bytes.json`."
    )


def of_seeds(counts: set[int]) -> str:
    """How many seeds figures are of, which may differ by collection."""
    return "One seed" if counts == {1} else f"Median of {' or '.join(map(str, sorted(counts)))} seeds"


def with_rivals() -> dict[str, dict]:
    """Collections of which every rival's figures are recorded."""
    return {name: collection for name, collection in without_labels().items() if collection.get("rivals")}


def leads_without_labels() -> list[list[str]]:
    """By bytes, the method that comes closest to ours, and our mean lead over it.

    A method is what is stored (original, principal axes, first numbers) and the precision; its size and bits are those
    that are best on test, for each collection whose rivals are all recorded.
    """
    collections, lines = with_rivals(), []
    if not collections:
        return []
    for budget in next(iter(collections.values()))["budgets"]:
        best: dict[str, dict[str, float]] = {}
        for name, collection in collections.items():
            for rival, row in collection["rivals"].items():
                floats, way = rival.split(", ", 1)
                words = way.replace(",", "").split()  # without a number of bits or bytes
                method = f"{floats.split()[0]}, {' '.join(words[: 2 if words[0] in ('median', 'balanced') else 1])}"
                if row["bytes"] <= int(budget):
                    scores = best.setdefault(method, {})
                    scores[name] = max(scores.get(name, 0.0), row["ndcg@10"])
        leads = {
            method: statistics.mean(
                collections[name]["budgets"][budget]["ours"] - score for name, score in scores.items()
            )
            for method, scores in best.items()
            if len(scores) == len(collections)
        }
        closest = min(leads, key=leads.__getitem__)
        lines.append([budget, f"{leads[closest]:+.3f}", closest])
    return lines


def bytes_no_labels_section() -> str:
    """Ours and the best rival without labels, at equal bytes."""
    lines = []
    for name, collection in without_labels().items():
        for budget, row in collection["budgets"].items():
            shorter = "" if row["rival_bytes"] == int(budget) else f" ({row['rival_bytes']} bytes)"
            change = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*row["difference"])
            rival = f"{row['rival_is']}{shorter}"
            lines.append([name, budget, f"{row['ours']:.3f}", f"{row['rival']:.3f}", change, rival])
    if not lines:
        return "Nothing is recorded yet."
    wholes = [f"{name} {collection['original_float32']:.3f}" for name, collection in without_labels().items()]
    head = ["collection", "bytes", "**smec_st**", "best rival", "difference", "the rival"]
    seeds = of_seeds({len(collection["seeds"]) for collection in without_labels().values()})
    return (
        f"{markdown_table(head, lines)}\n\n"
        f"nDCG@10 on test queries. {seeds}; the difference and its 95 % interval over queries are of the first. The "
        "rival is the best on test of all label-free ways to store the original vectors, their principal axes or "
        "their first numbers in at most that many bytes. "
        f"Original: {', '.join(wholes)}. `bytes-no-labels.json`.\n\n"
        "A rival that is named before the test keeps one method for all collections. Over "
        f"{', '.join(with_rivals())}, the closest of them, with the best size and bits on test for each:\n\n"
        f"{markdown_table(['bytes', 'mean lead', 'closest method'], leads_without_labels())}"
    )


def search_section() -> str:
    """The funnel beside exact and HNSW search at full width, and what it costs in quality."""
    engines, with_codes = (
        json.loads((RESULTS / "search" / f"{name}.json").read_text()) for name in ("engines", "engines-codes")
    )
    quality = json.loads((RESULTS / "search" / "quality.json").read_text())
    labels = {"flat": "exact, full width", "hnsw": "HNSW, full width", "funnel, hnsw-int8": "funnel, `hnsw-int8`"}
    of_codes = {f"funnel, codes:{bytes_}": f"funnel, `codes:{bytes_}`" for bytes_ in (12, 24)}
    named = [(engines, name, label) for name, label in labels.items()]
    named += [(with_codes, name, label) for name, label in of_codes.items()]
    lines = []
    for record, name, label in named:
        method = record["methods"][name]
        times = [f"{method[f'batch_{batch}']['qps_against_flat']:.0f}x" for batch in (1, 64)]
        size = f"{method['ram'] / record['arguments']['rows']:,.0f}"
        lines.append([label, f"{method['recall']:.3f}", *times, size])
    head = ["", "recall@10", "queries a second, singly", "in batches of 64", "bytes a document in memory"]
    arguments = engines["arguments"]
    scored = [found for found in quality.values() if isinstance(found, dict) and "ndcg@10 funnel" in found]
    change = max(abs(found["ndcg@10 funnel"] - found["ndcg@10 exact"]) for found in scored)
    return (
        f"{markdown_table(head, lines)}\n\n{arguments['rows']:,} made, clustered vectors of {arguments['width']} "
        "numbers, one thread, queries that the schedule was not chosen on; speed against exact search. All lists, "
        "graphs and ids count as memory; the funnel's originals lie on disk. Codes are searched by inverted "
        "lists, in a second run that had three other programs beside it. "
        f"On {len(scored)} real collections nDCG@10 moves by {change:.4f} at most (`benchmarks/results/search/`)."
    )


def robustness_section() -> str:
    """Each recorded hard case: nDCG@10 by size, one row per fit."""
    parts = []
    for name, says in ROBUSTNESS.items():
        rows = json.loads((RESULTS / "robustness" / f"{name}.json").read_text())["rows"]
        if name == "few":  # ours beside PCA, which is the same with any number of labels
            ours = [row for row in rows if row["method"] == "smec"]
            rows = [row for row in rows if row["method"] == "pca" and row["queries"] == 0] + ours
            rows.sort(key=lambda row: (row["data"], row["method"], row["queries"]))
        note = f" {FEW}" if name == "few" else ""
        parts.append(f"### {says}\n\n{rows_table(rows)}\n\n`benchmarks/results/robustness/{name}.json`.{note}")
    return "\n\n".join(parts)


def rows_table(rows: list[dict]) -> str:
    """A table of recorded fits: what tells them apart, and the median over the seeds by size."""
    keys = [key for key in rows[0] if key not in ("ndcg@10", "seed", "seconds")]
    keys = [key for key in keys if len({row[key] for row in rows}) > 1]
    found: dict[tuple, dict[int, list[float]]] = {}
    for row in rows:
        by_size = found.setdefault(tuple(row[key] for key in keys), {})
        for dim, score in row["ndcg@10"].items():
            by_size.setdefault(int(dim), []).append(score)
    sizes = sorted({dim for by_size in found.values() for dim in by_size}, reverse=True)
    lines = [
        [*map(str, label), *(f"{statistics.median(by_size[dim]):.3f}" if dim in by_size else "" for dim in sizes)]
        for label, by_size in found.items()
    ]
    return markdown_table([*(key.replace("_", " ") for key in keys), *(f"{dim} dims" for dim in sizes)], lines)


def transfer_section() -> str:
    """Fitted on one collection and used on another: the difference to PCA of the first, mean and worst."""
    record = json.loads((RESULTS / "robustness" / "transfer.json").read_text())
    scores: dict[tuple[str, str], dict[tuple[str, str], dict[str, float]]] = {}
    for row in record["rows"]:
        if row["fitted_on"] != row["used_on"]:
            pair = row["fitted_on"], row["used_on"]
            scores.setdefault((row["method"], row["labels"]), {})[pair] = row["ndcg@10"]
    pca = scores["pca", "none"]
    sizes = list(next(iter(pca.values())))
    lines = []
    for labels, label in (("judged", "with labels"), ("none", "without")):
        of_us = scores["smec", labels]
        gains = {dim: [of_us[pair][dim] - pca[pair][dim] for pair in pca] for dim in sizes}
        for name, of in (("mean", statistics.mean), ("worst", min)):
            lines.append([f"{label}, {name}", *(f"{of(gains[dim]):+.3f}" for dim in sizes)])
    return (
        f"{markdown_table(['nDCG@10 less that of PCA', *(f'{dim} dims' for dim in sizes)], lines)}\n\n"
        f"{len(pca)} pairs of {', '.join(record['data'])}, seed 0; `benchmarks/results/robustness/transfer.json`."
    )


def candidates_section() -> str:
    """The candidates and what makes each, from :mod:`smec_st.fitting.config`."""

    def listed(settings: dict) -> str:
        return ", ".join(f"`{name}` {value:g}" for name, value in settings.items()) or "none"

    rows = [f"| `{name}` | {LEARNS[name]} | {listed(settings)} |" for name, settings in CANDIDATES.items()]
    head = ["| candidate | what it learns | settings that differ from the defaults |", "|---|---|---|"]
    return "\n".join([*head, *rows, "", f"In a trial, at most: {listed(TRIAL)}."])


def ablation_section() -> str:
    """Each recorded ablation: what every change of a setting costs or gains, with its interval."""
    parts = ["Nothing is recorded yet."] if not any((RESULTS / "ablation").glob("*.json")) else []
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


LEARNS = {
    "start": "nothing: principal axes, the mean's direction last",
    "neighbourhoods": "full-width neighbourhoods; no label is read",
    "adapted": "the full width learns from labels, then its neighbourhoods are kept",
    "ranked": "both terms, on the original vectors",
    "adapted and ranked": "the full width learns from labels, then both terms",
    "labels alone": "the full width learns from labels, then ranking without the neighbourhood term",
}
FEW = (
    "No dev split: cross-validation over these queries decides. With all of SciFact's, the seeds 0, 1 and 2 trained "
    "`ranked`, `adapted` and `adapted and ranked`: half of the folds share no document with training, where ranking "
    "loses, and trials are short."
)
ROBUSTNESS = {
    "few": "Few labels",
    "unseen": "Queries about documents without a training label",
    "misleading": "Misleading labels",
    "gallery": "Classes as labels: half of the images are searched, the other half asks",
    "partial": "The same, with half of each class left out of the judgements",
    "cone": "Vectors in a narrow cone",
    "wide": "Made vectors of 4,096 numbers, their meaning under louder noise",
    "mix": "One map for several collections",
    "synthetic": "Queries made from the documents",
}


def versions_section() -> str:
    """One row per environment that was tried."""
    lines = []
    for row in json.loads((RESULTS / "versions.json").read_text())["rows"]:
        found = row.get("versions", {})
        verdict = "works" if row["works"] else f"fails ({row['failed']}): {row['error']}"
        shown = [str(found.get(name, "")) for name in VERSIONS]
        lines.append([row["set"], *shown, verdict])
    return markdown_table(["releases", *VERSIONS, "result"], lines)


PAGES = {
    ROOT / "README.md": {"plot": plot_section, "headline": headline_section},
    DOCS / "benchmarks.md": {
        "quality": quality_section,
        "no-labels": no_labels_section,
        "comparison": comparison_section,
        "bytes": bytes_section,
        "bytes-no-labels": bytes_no_labels_section,
        "search": search_section,
        "robustness": robustness_section,
    },
    DOCS / "guide" / "versions.md": {"versions": versions_section},
    DOCS / "guide" / "method.md": {"candidates": candidates_section},
    DOCS / "guide" / "without-labels.md": {"no-labels": no_labels_section, "transfer": transfer_section},
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
    plot_by_size(json.loads((RESULTS / "quality.json").read_text()), IMAGES / "quality.png")
    plot_by_bytes(IMAGES / "by_bytes.png")
    for page in PAGES:
        page.write_text(with_sections(page), encoding="utf-8")


if __name__ == "__main__":
    main()
