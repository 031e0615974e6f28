"""Eight weeks of a search engine that drifts: queries of another field come first, their documents some weeks later.

A compressor for SciFact is watched by `check_drift` while MedQuAD's vectors take the place of SciFact's. Rows of both
sides that the record of the fit was made of are never sampled again.

    python benchmarks/drift.py --data shared/data --json benchmarks/results/drift.json --png docs/images/drift.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from smec_st import Compressor, load_collection
from smec_st.stores import check_drift

CARD = Path(__file__).resolve().parents[1] / "model_cards" / "all-MiniLM-L6-v2-smec-scifact"
SHARES = {  # of MedQuAD's vectors, week by week
    "documents": [0, 0, 0, 0, 0.25, 0.5, 0.75, 1],
    "queries": [0, 0, 0.25, 0.5, 0.75, 1, 1, 1],
}
ROWS = {"documents": 1000, "queries": 540}


def mix(ours: np.ndarray, others: np.ndarray, rows: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Rows of both at random, ``(rows, D)``."""
    other = round(share * rows)
    parts = ours[rng.permutation(len(ours))[: rows - other]], others[rng.permutation(len(others))[:other]]
    return rng.permutation(np.concatenate(parts))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--png", type=Path, required=True)
    options = parser.parse_args(arguments)
    rng = np.random.default_rng(0)
    ours, others = (
        load_collection(options.data / name, options.data / name / "all-MiniLM-L6-v2.safetensors")
        for name in ("scifact", "medquad")
    )
    documents, queries = rng.permutation(ours.corpus), rng.permutation(ours.queries)
    known = len(documents) // 2, len(queries) // 2
    compressor = Compressor.load(CARD).calibrate(documents[: known[0]], queries[: known[1]])
    weeks = []
    for week in range(8):
        found = check_drift(
            compressor,
            mix(documents[known[0] :], others.corpus, ROWS["documents"], SHARES["documents"][week], rng),
            mix(queries[known[1] :], others.queries, ROWS["queries"], SHARES["queries"][week], rng),
        )
        weeks.append({drift.side: drift.to_dict() for drift in found})
    options.json.write_text(json.dumps({"shares": SHARES, "weeks": weeks}, indent=1) + "\n")
    plot(weeks, options.png)


def plot(weeks: list[dict], path: Path) -> None:
    """The share of neighbours that is lost, week by week, one panel a side."""
    figure, panels = plt.subplots(1, 2, sharey=True, figsize=(9, 3.4), layout="constrained")
    numbers = range(1, len(weeks) + 1)
    for side, panel in zip(SHARES, panels, strict=True):
        for dim in weeks[0][side]["drop"]:
            panel.plot(numbers, [week[side]["drop"][dim] for week in weeks], marker="o", label=f"{dim} dimensions")
        panel.axhline(weeks[0][side]["threshold"], color="0.3", linestyle="--", label="threshold")
        panel.set(title=side, xlabel="week")
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("neighbours lost since the fit")
    panels[0].legend(fontsize="small")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
