"""A small staged trainer over vectors, and its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from smec_st.data import Qrels, VectorTable
from smec_st.evaluation.evaluator import HeldOutEvaluator
from smec_st.losses.memory import SelectableCrossBatchMemory
from smec_st.losses.relevance import Relevance
from smec_st.losses.settings import LossSettings
from smec_st.losses.smec import SMECLoss
from smec_st.modules import EmbeddingInput
from smec_st.training.arguments import SequentialTrainingArguments
from smec_st.training.trainer import SequentialTrainer

WIDTH, DIMS = 16, [8, 4]


def make_trainer(
    folder: Path, *, order: str = "grow", memory: int = 64, judged: bool = True, guarded: bool = True, **arguments
):
    own = {name: arguments.pop(name) for name in ("evaluator", "callbacks") if name in arguments}
    rng = np.random.default_rng(0)
    signal_, nuisance = rng.standard_normal((120, 5)), 2 * rng.standard_normal((120, 11))
    corpus = np.concatenate([signal_, nuisance], axis=1).astype(np.float32)
    queries = np.concatenate([signal_[:80], 2 * rng.standard_normal((80, 11))], axis=1).astype(np.float32)
    mix = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0].astype(np.float32)
    table = VectorTable(corpus @ mix, queries @ mix)
    rows = np.arange(60)
    model = SentenceTransformer(modules=[EmbeddingInput(WIDTH)], device="cpu")
    relevance = Relevance(Qrels(rows, rows, np.ones(60)), table) if judged else None
    settings = LossSettings(random_rows=40, stream_rows=7, shadow_share=0.5)
    loss = SMECLoss(model, table, relevance, SelectableCrossBatchMemory(WIDTH, memory), settings)
    held = np.arange(60, 80)
    settings = {
        "output_dir": str(folder),
        "dims": DIMS,
        "order": order,
        "start": "principal" if order == "grow" else "identity",
        "max_steps": 12,
        "adapt_steps": 8,
        "selection_steps": 6,
        "per_device_train_batch_size": 16,
        "save_strategy": "steps",
        "save_steps": 5,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        **arguments,
    }
    columns = {"anchor": table.query_ids(rows)}
    if judged:
        columns["document"] = rows
    return SequentialTrainer(
        model,
        SequentialTrainingArguments(**settings),
        table=table,
        loss=loss,
        train_dataset=Dataset.from_dict(columns),
        guard=HeldOutEvaluator(table, Qrels(held, held, np.ones(20))).per_query if guarded else None,
        distinct=judged,
        **own,
    )


def weights(trainer: SequentialTrainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
