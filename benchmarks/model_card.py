"""Fit, measure, and write a folder that can be published: the compressor alone, its card, its plot, its figures.

    python benchmarks/model_card.py DATA/scifact --out model_cards/all-MiniLM-L6-v2-smec-scifact

fits with the defaults of ``smec-st fit`` on the vectors beside the texts, scores the test split with 95 % intervals,
and writes ``compressor.json``, ``compressor.safetensors``, ``evidence.json``, ``quality.png``, ``README.md``. Nothing
of the texts goes into the folder. Publish it with ``smec-st push FOLDER owner/name``. Several collections are joined
into one, for a compressor that serves more than one domain; the test split is then that of all.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads stall a busy machine

import argparse
import dataclasses
import json
import shlex
import sys
from pathlib import Path

import torch

from smec_st import Compressor, load_collection
from smec_st.compressor.scoring import measure
from smec_st.data import join_collections
from smec_st.fitting.config import read_settings
from smec_st.hub.card import write_card
from smec_st.system.files import new_folder

SOURCE = "SciFact (Wadden et al., EMNLP 2020) in BEIR's form; 81 of its 809 training queries are the dev split"
BACKBONE = "sentence-transformers/all-MiniLM-L6-v2"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "data", type=Path, nargs="+", help="folder in BEIR layout with one safetensors file of vectors"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--repo", default="smec-st/all-MiniLM-L6-v2-smec-scifact", help="name on the Hub, for the card"
    )
    parser.add_argument("--backbone", default=BACKBONE, help="the model whose vectors they are")
    parser.add_argument("--dims", default="384,192,96,48,24")
    parser.add_argument("--dataset", default="BeIR/scifact", help="id on the Hub; empty for none")
    parser.add_argument("--source", default=SOURCE, help="where the data comes from, for the card")
    parser.add_argument("--license", default="apache-2.0", help="of the compressor, the Hub's short name")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--config", type=Path, help="settings that differ from the defaults, JSON or YAML")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    settings = read_settings(options.config) if options.config else {}
    licences = [_licence(folder) for folder in options.data]
    collections = [load_collection(folder, next(folder.glob("*.safetensors"))) for folder in options.data]
    data = collections[0] if len(collections) == 1 else join_collections(collections)
    compressor = Compressor.fit(
        data.corpus,
        data.queries,
        data.judged("train"),
        tuple(int(dim) for dim in options.dims.split(",")),
        dev_qrels=data.qrels.get("dev"),
        model=options.backbone,
        own_document=data.own_document,
        progress=sys.stderr.isatty(),
        **{**settings, "seed": options.seed},
    )
    shown = [
        "python",
        "benchmarks/model_card.py",
        *(f"DATA/{folder.name}" for folder in options.data),
        "--out",
        f"model_cards/{options.out.name}",
    ]
    evidence = dataclasses.replace(
        measure(compressor, data),
        dataset=options.dataset or None,
        data_license="; ".join(dict.fromkeys(filter(None, licences))) or None,
        source=options.source,
        command=shlex.join([*shown, "--dims", options.dims, "--seed", str(options.seed)]),
    )
    with new_folder(options.out) as draft:
        compressor.write_into(draft)
        evidence.save(draft)
        write_card(compressor, draft, options.repo, head_only=True, evidence=evidence, license=options.license)
    for row in evidence.rows:
        print(f"{row.method:10} {row.dim:4} {row.metrics['ndcg@10']:.4f}")


def _licence(folder: Path) -> str | None:
    about = folder / "about.json"
    found: str | None = json.loads(about.read_text()).get("licence") if about.is_file() else None
    return found


if __name__ == "__main__":
    main()
