"""Pairs per second of training through the trainer, against a bare PyTorch loop over the same loss.

Both run in this process, in turns, on the same random vectors; what counts is the ratio.

    python benchmarks/throughput.py --json benchmarks/results/throughput.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import sentence_transformers
import torch
import transformers
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from smec_st import (
    EmbeddingInput,
    Qrels,
    SelectableCrossBatchMemory,
    SequentialTrainer,
    SequentialTrainingArguments,
    SMECLoss,
    VectorTable,
)
from smec_st.losses.relevance import Relevance
from smec_st.stages import Stage
from smec_st.system.matmul import fast_matmul
from smec_st.training.sampler import SpreadPairSampler


def make_trainer(options: argparse.Namespace, folder: str) -> SequentialTrainer:
    rng = np.random.default_rng(0)
    corpus = rng.standard_normal((options.documents, options.width), dtype=np.float32)
    queries = corpus[: options.pairs] + rng.standard_normal((options.pairs, options.width), dtype=np.float32)
    table = VectorTable(corpus, queries)
    rows = np.arange(options.pairs)
    qrels = Qrels(rows, rows, np.ones(options.pairs))
    model = SentenceTransformer(modules=[EmbeddingInput(options.width)], device="cpu")
    loss = SMECLoss(
        model, table, Relevance(qrels, table), SelectableCrossBatchMemory(options.width, min(8192, options.documents))
    )
    arguments = SequentialTrainingArguments(
        output_dir=folder,
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    stage = Stage(
        index=0, order="grow", phase="compress", in_dim=options.width, out_dim=options.dim, candidates=options.dim
    )
    return SequentialTrainer(
        model,
        arguments,
        table=table,
        loss=loss,
        stages=(stage,),
        train_dataset=Dataset.from_dict({"anchor": table.query_ids(rows), "document": rows}),
    )


def through_trainer(options: argparse.Namespace) -> float:
    with tempfile.TemporaryDirectory() as folder:
        report = make_trainer(options, folder).train()[0]
    return options.steps * options.batch_size / report.seconds


@fast_matmul()
def bare_loop(options: argparse.Namespace) -> float:
    """The same modules, loss, batches and optimizer, and nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(options, folder)
        trainer._begin_stage(trainer.plan[0], Path(folder))
    loss, table = trainer.loss, trainer.table
    anchors = np.asarray(trainer.train_dataset["anchor"])
    documents = np.asarray(trainer.train_dataset["document"])
    sampler = SpreadPairSampler(anchors, options.batch_size, pairs=np.stack([anchors, documents], axis=1))
    optimizer = torch.optim.AdamW([p for p in loss.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    loss.train()
    step, pairs = 0, 0
    began = time.perf_counter()
    while step < options.steps:
        for batch in sampler:
            rows = torch.from_numpy(anchors[batch])
            columns = torch.from_numpy(documents[batch])
            loss.begin_step(0, step)
            features = [{"sentence_embedding": table[rows]}, {"sentence_embedding": table[columns]}]
            terms = loss(features, torch.stack([rows, columns], dim=1))
            optimizer.zero_grad()
            sum(terms.values()).backward()
            optimizer.step()
            step, pairs = step + 1, pairs + len(batch)
            if step == options.steps:
                break
    return pairs / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=5000)
    parser.add_argument("--pairs", type=int, default=4096)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--dim", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    runs = []
    for _ in range(options.repeats):
        runs.append({"trainer": through_trainer(options), "bare": bare_loop(options)})
        print({name: round(value) for name, value in runs[-1].items()}, flush=True)
    ratios = [run["trainer"] / run["bare"] for run in runs]
    result = {
        "arguments": {name: str(value) for name, value in vars(options).items() if name != "json"},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "sentence-transformers": sentence_transformers.__version__,
        },
        "pairs_per_second": runs,
        "ratio_median": statistics.median(ratios),
        "ratios": ratios,
    }
    print(f"trainer / bare: {result['ratio_median']:.2f} (of {', '.join(f'{r:.2f}' for r in ratios)})")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
