"""Train one candidate's settings with the staged trainer, and fold the result into maps."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from smec_st.data import DataError, Qrels, Table
from smec_st.fitting.config import MOST_HIDDEN, PAIRS_PER_QUERY, FitConfig
from smec_st.maps.folding import FoldedMap, Layer
from smec_st.stages import Stage, StageReport, check_dims, default_dims, plan_stages
from smec_st.system.quiet import quiet_libraries

if TYPE_CHECKING:
    from torch import nn

    from smec_st.modules import ResidualAdapter
    from smec_st.training.arguments import SequentialTrainingArguments

Maps = Sequence[tuple[FoldedMap, tuple[int, ...]]]


@dataclass(frozen=True)
class Fitted:
    """The outcome of a fit.

    Attributes:
        maps: Folded maps and the sizes each serves; one map with several sizes when they are nested.
        reports: One per stage.
    """

    maps: Maps
    reports: tuple[StageReport, ...] = ()


def fit_untrained(method: str, table: Table, dims: Sequence[int]) -> Fitted:
    """Make the maps of ``truncate``, of uncentred ``pca``, or of the ``start`` of training."""
    import torch

    from smec_st.functional import leftover_axes
    from smec_st.training.moments import corpus_moments

    dims = check_dims(dims, table.width)
    if method == "truncate":
        rows = np.eye(dims[0], table.width, dtype=np.float32)
    else:
        mean, moment = corpus_moments(table)
        last = mean if method == "start" else None
        rows = leftover_axes(moment, torch.zeros(0, table.width), dims[0], last).numpy()
    return Fitted(((FoldedMap((Layer(rows),)), dims),))


def fit_stages(
    table: Table,
    qrels: Qrels | None,
    config: FitConfig,
    *,
    unlabelled_queries: np.ndarray | None = None,
    base: FoldedMap | None = None,
    stages: tuple[Stage, ...] | None = None,
    work_dir: Path | None = None,
    progress: bool = False,
    title: str = "",
) -> Fitted:
    """Train a plan of stages on cached vectors with :class:`~smec_st.training.trainer.SequentialTrainer`.

    Args:
        table: Corpus and queries.
        qrels: Training judgements; None to train without labels.
        config: Settings.
        unlabelled_queries: Query rows to train on together with the corpus if there are no labels; None for all.
        base: A finished map to start from, for continual compression.
        stages: The plan; None to make it from ``config``.
        work_dir: Where checkpoints go, and where an unfinished run is continued from; None to keep none.
        progress: Show a progress bar.
        title: Label of the progress bar.
    """
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from transformers import set_seed

    from smec_st.losses.memory import SelectableCrossBatchMemory
    from smec_st.losses.relevance import Relevance
    from smec_st.losses.smec import SMECLoss
    from smec_st.modules import EmbeddingInput
    from smec_st.training.trainer import SequentialTrainer

    dims = check_dims(config.dims or default_dims(table.width), table.width)
    if config.steps == 0 and base is None:
        return fit_untrained("start", table, dims)
    stages = stages or plan_stages(
        table.width,
        dims,
        "shrink" if config.order == "shrink" else "grow",
        adapt=config.adapts and qrels is not None,
        selection_ratio=config.selection_ratio,
    )
    anchors = _anchors(table, unlabelled_queries, config.batch_size)
    columns = anchors if qrels is None else _pairs(table, qrels, config.seed)
    batch_size = min(config.batch_size, len(columns["anchor"]))
    set_seed(config.seed)
    with quiet_libraries(), _work_dir(work_dir) as folder:
        model = SentenceTransformer(modules=[EmbeddingInput(table.width)], device=None)
        if base is not None:
            for module in _finished_modules(base):
                model.append(module.to(model.device))
        capacity = min(config.memory, table.corpus_size)
        trainer = SequentialTrainer(
            model,
            _make_arguments(config, table.width, folder, batch_size, keep=work_dir is not None, progress=progress),
            table=table,
            loss=SMECLoss(
                model,
                table,
                None if qrels is None else Relevance(qrels, table),
                SelectableCrossBatchMemory(table.width, capacity) if capacity else None,
                config,
            ),
            stages=stages,
            train_dataset=Dataset.from_dict(columns),
            unlabelled_dataset=Dataset.from_dict(anchors),
            distinct=qrels is not None and can_be_distinct(columns, batch_size),
        )
        trainer.progress.title = title
        reports = trainer.train(resume_from_checkpoint=work_dir is not None)
        return Fitted(folded_maps(list(model), stages, dims, base), tuple(reports))


def _make_arguments(
    config: FitConfig, width: int, folder: str, batch_size: int, keep: bool, progress: bool
) -> SequentialTrainingArguments:
    from smec_st.training.arguments import SequentialTrainingArguments

    return SequentialTrainingArguments(
        output_dir=folder,
        start=config.start,
        order=config.order,
        hidden_dim=config.hidden_dim or None,
        narrow_hidden_dim=min(round(config.narrow_hidden * width), MOST_HIDDEN) or None,
        activation=config.activation,
        adapt_steps=config.adapt_steps if config.adapts else 0,
        selection_ratio=config.selection_ratio,
        selection_steps=config.selection_steps,
        max_steps=config.steps,
        per_device_train_batch_size=batch_size,
        learning_rate=config.learning_rate,
        save_strategy="steps" if keep else "no",
        save_steps=config.checkpoint_steps,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=not progress,
        seed=config.seed,
        data_seed=config.seed,
    )


def folded_maps(
    modules: Sequence[nn.Module], stages: Sequence[Stage], dims: Sequence[int], base: FoldedMap | None = None
) -> Maps:
    """Fold modules into one map for all sizes; in the order ``shrink``, into a map per size.

    Args:
        modules: Of a trained model, the input module first.
        stages: The plan it was trained by.
        dims: Sizes that were asked for.
        base: The finished map that training continued, if any.
    """
    from smec_st.maps.folding import fold, fold_adapter

    if all(stage.order == "grow" for stage in stages):
        sizes = tuple(sorted(stages[-1].sizes, reverse=True))
        return ((fold(modules).first(sizes[0]), sizes),)
    before = 1 if base is None else 3  # the input module, and the finished map's two
    maps = [(fold(modules[: before + 2 * (i + 1)]), (stage.out_dim,)) for i, stage in enumerate(stages)]
    width, first_adapter = cast(int, modules[0].dim), cast("ResidualAdapter", modules[1])
    if base is None and width in dims:
        maps.insert(0, (fold_adapter(first_adapter), (width,)))  # what the first stage selects from
    return tuple(maps)


def _finished_modules(base: FoldedMap) -> tuple[nn.Module, nn.Module]:
    """Return a finished linear map as the modules of a frozen stage."""
    import torch

    from smec_st.modules import AdaptiveDimensionSelection, ResidualAdapter

    if len(base.layers) > 1:
        raise DataError("no sizes can be added to a compressor with a hidden layer; fit again with all sizes.")
    adapter = ResidualAdapter(
        base.in_dim,
        base.out_dim,
        reads="source_embedding",
        writes="candidate_embedding",
        start=torch.from_numpy(base.layers[0].weight),
    )
    selection = AdaptiveDimensionSelection(base.out_dim, base.out_dim, reads="candidate_embedding", frozen=True)
    return adapter, selection


def _pairs(table: Table, qrels: Qrels, seed: int) -> dict[str, np.ndarray]:
    """Return the columns of the training dataset with labels, as row ids: relevant pairs."""
    if len(qrels.pairs) == 0:
        raise DataError("the training judgements hold no relevant pair; fit without labels instead.")
    pairs = _some_of_each_query(qrels.pairs, seed)
    return {"anchor": table.query_ids(pairs[:, 0]), "document": pairs[:, 1]}


def _anchors(table: Table, unlabelled_queries: np.ndarray | None, least: int) -> dict[str, np.ndarray]:
    """Return the column of the training dataset without labels: queries, or documents where there are none.

    They are repeated until there are at least ``least``, so that a batch is full.
    """
    queries = np.arange(table.query_size) if unlabelled_queries is None else np.asarray(unlabelled_queries)
    rows = table.query_ids(queries) if len(queries) else np.arange(table.corpus_size)
    return {"anchor": np.resize(rows, max(len(rows), least))}


def _some_of_each_query(pairs: np.ndarray, seed: int) -> np.ndarray:
    """Draw at most :data:`~smec_st.fitting.config.PAIRS_PER_QUERY` random pairs of each query, ``(P, 2) -> (p, 2)``.

    The loss still knows all judgements.
    """
    order = np.random.default_rng(seed).permutation(len(pairs))
    order = order[np.argsort(pairs[order, 0], kind="stable")]
    first = np.searchsorted(pairs[order, 0], pairs[order, 0])
    kept: np.ndarray = pairs[np.sort(order[np.arange(len(order)) - first < PAIRS_PER_QUERY])]
    return kept


def can_be_distinct(columns: dict[str, np.ndarray], batch_size: int) -> bool:
    """Return whether batches without shared documents can be about full.

    With many relevant documents per query (classes as labels) or many queries per document they cannot.
    """
    queries = len(np.unique(columns["anchor"]))
    batches = -(-len(columns["anchor"]) // batch_size)
    few = len(columns["anchor"]) <= 4 * queries
    return bool(few and np.bincount(columns["document"]).max() <= max(2 * batches, 4))


def _work_dir(folder: Path | None) -> AbstractContextManager[str]:
    if folder is None:
        return tempfile.TemporaryDirectory(prefix="smec-st-")
    folder.mkdir(parents=True, exist_ok=True)
    return nullcontext(str(folder))
