"""The recipe: the one path from vectors to a folded map."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smec_st.classes import labels_are_classes
from smec_st.config import FitConfig
from smec_st.data import DataError, Qrels, VectorTable
from smec_st.folding import FoldedMap, Layer
from smec_st.guard import Choice
from smec_st.quiet import quiet_libraries
from smec_st.stages import Stage, StageReport, check_dims, default_dims, plan_stages

if TYPE_CHECKING:
    from smec_st.arguments import SequentialTrainingArguments
    from smec_st.losses import SMECLoss


PAIRS_PER_QUERY = 16
MOST_HIDDEN = 2048


@dataclass(frozen=True)
class Fitted:
    """The outcome of a fit.

    Attributes:
        maps: Folded map and the sizes it serves; one map with several sizes when they are nested.
        reports: One per stage.
        teacher_strength: How far the full width moved before them; 0 for not at all.
    """

    maps: tuple[tuple[FoldedMap, tuple[int, ...]], ...]
    reports: tuple[StageReport, ...] = ()
    teacher_strength: float = 0.0


def fit_untrained(method: str, table: VectorTable, dims: Sequence[int]) -> Fitted:
    """``truncate`` or ``pca`` as a map like any other."""
    import torch

    from smec_st.functional import leftover_axes
    from smec_st.moments import corpus_moments

    dims = check_dims(dims, table.width)
    rows = np.eye(dims[0], table.width, dtype=np.float32)
    if method == "pca":
        rows = leftover_axes(corpus_moments(table)[1], torch.zeros(0, table.width), dims[0]).numpy()
    return Fitted(((FoldedMap((Layer(rows),)), dims),))


def fit_stages(
    table: VectorTable,
    qrels: Qrels | None,
    held_out: Qrels | None,
    config: FitConfig,
    *,
    unlabelled_queries: np.ndarray | None = None,
    base: FoldedMap | None = None,
    stages: tuple[Stage, ...] | None = None,
    choices: Mapping[int, Choice] | None = None,
    work_dir: Path | None = None,
    progress: bool = False,
    title: str = "",
) -> Fitted:
    """Train a plan of stages on cached vectors with :class:`~smec_st.trainer.SequentialTrainer`.

    Args:
        table: Corpus and queries.
        qrels: Training judgements; None to train without labels.
        held_out: Judgements for the guard; None for no guard.
        config: Settings.
        unlabelled_queries: Query rows to train on beside the corpus when there are no labels; None for all.
        base: A finished map to start from, for continual compression.
        stages: The plan; None to make it from ``config``.
        choices: What fits before this one chose, by size, in place of ``held_out``.
        work_dir: Where checkpoints go, and where an unfinished run is continued from; None to keep none.
        progress: Show a progress bar.
        title: What the bar calls this fit, where it is one of several.
    """
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from transformers import set_seed

    from smec_st.evaluation.evaluator import HeldOutEvaluator
    from smec_st.modules import EmbeddingInput
    from smec_st.teacher import moved_by
    from smec_st.trainer import SequentialTrainer

    config = config.for_labels(labels_are_classes(table, qrels))
    _check_corpus(table, config)
    teacher = None
    if qrels is not None and base is None and config.may_move:
        teacher = moved_by(table, qrels, config.teacher_strength or 0.0, config.seed)
        table = table.moved(teacher)
    stages = stages or plan_stages(
        table.width,
        config.dims or default_dims(table.width),
        "shrink" if config.order == "shrink" else "grow",
        config.selection_ratio,
    )
    columns = _training_rows(table, qrels, unlabelled_queries, config.seed)
    batch_size = min(config.batch_size, len(columns["anchor"]))
    set_seed(config.seed)
    with quiet_libraries(), _work_dir(work_dir) as folder:
        model = SentenceTransformer(modules=[EmbeddingInput(table.width)], device=None)
        if base is not None:
            for module in _finished_modules(base):
                model.append(module.to(model.device))
        loss = make_loss(config, model, table, qrels)
        arguments = _make_arguments(config, folder, batch_size, keep=work_dir is not None, progress=progress)
        if qrels is not None and base is None:  # a finished map can only be continued when it is linear
            hidden = round((config.narrow_hidden or 0) * table.width)
            arguments.narrow_hidden_dim = min(hidden, MOST_HIDDEN) or None
        neighbors = None
        if qrels is not None and config.hard_neighbors > 0:
            neighbors = _nearest_pairs(table, columns["anchor"], config.hard_neighbors)
        trainer = SequentialTrainer(
            model,
            arguments,
            table=table,
            loss=loss,
            stages=stages,
            train_dataset=Dataset.from_dict(columns),
            guard=HeldOutEvaluator(table, held_out).per_query if held_out is not None and config.guard else None,
            choices=choices,
            distinct=qrels is not None and _can_be_distinct(columns, batch_size),
            neighbors=neighbors,
        )
        trainer.progress.title = title
        reports = trainer.train(resume_from_checkpoint=work_dir is not None)
        modules = list(model)
    maps = _maps_of(modules, stages, config, base)
    if teacher is not None:
        maps = tuple((folded.after(teacher.numpy()), sizes) for folded, sizes in maps)
    return Fitted(maps, tuple(reports), 0.0 if teacher is None else config.teacher_strength or 0.0)


def make_loss(config: FitConfig, model: Any, table: VectorTable, qrels: Qrels | None) -> SMECLoss:
    """The loss that the settings describe, with a memory of its own."""
    from smec_st.losses import Relevance, SMECLoss
    from smec_st.memory import SelectableCrossBatchMemory

    config = config.for_labels(labels_are_classes(table, qrels))
    assert config.alignment_weight is not None
    return SMECLoss(
        model,
        table,
        None if qrels is None else Relevance(qrels, table),
        SelectableCrossBatchMemory(table.width, min(config.memory, table.corpus_size)) if config.memory else None,
        rank="pairwise" if config.rank == "pairwise" else "contrastive",
        alignment="l1" if config.alignment == "l1" else "kl",
        rank_weight=config.rank_weight,
        alignment_weight=config.alignment_weight,
        reconstruction_weight=config.reconstruction_weight,
        wide_weight=config.wide_weight,
        tau=config.tau,
        alignment_tau=config.alignment_tau,
        narrow_alignment_tau=config.narrow_alignment_tau,
        sharpening=config.sharpening,
        top_k=config.top_k,
        random_rows=config.random_rows,
        stream_rows=config.stream_rows,
        shadow_share=config.shadow_share,
        seed=config.seed,
    )


def _make_arguments(
    config: FitConfig, folder: Path, batch_size: int, keep: bool, progress: bool
) -> SequentialTrainingArguments:
    from smec_st.arguments import SequentialTrainingArguments

    assert config.learning_rate is not None
    return SequentialTrainingArguments(
        output_dir=str(folder),
        start=config.start,
        mean_last=config.mean_last,
        order=config.order,
        hidden_dim=config.hidden_dim,
        activation=config.activation,
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


def _maps_of(
    modules: list[Any], stages: Sequence[Stage], config: FitConfig, base: FoldedMap | None
) -> tuple[tuple[FoldedMap, tuple[int, ...]], ...]:
    """One map for all sizes that grew; in ``shrink`` a map per size, and the first adapter's for the full width."""
    from smec_st.folding import fold

    if all(stage.order == "grow" for stage in stages):
        sizes = tuple(sorted({stage.out_dim for stage in stages}, reverse=True))
        return ((fold(modules).first(sizes[0]), sizes),)
    before = 1 if base is None else 3  # the input module, and the finished map's two
    maps = [(fold(modules[: before + 2 * (i + 1)]), (stage.out_dim,)) for i, stage in enumerate(stages)]
    width = modules[0].dim
    if base is None and width in (config.dims or ()):
        maps.insert(0, (_full_width(modules), (width,)))
    return tuple(maps)


def _full_width(modules: list[Any]) -> FoldedMap:
    """In ``shrink`` the first stage's adapter serves the full width, before its selection."""
    from smec_st.folding import fold
    from smec_st.modules import AdaptiveDimensionSelection

    adapter = modules[1]
    everything = AdaptiveDimensionSelection(adapter.out_dim, adapter.out_dim, reads=adapter.writes, frozen=True)
    return fold([modules[0], adapter, everything])


def _finished_modules(base: FoldedMap) -> tuple[Any, Any]:
    """A finished linear map as a frozen stage."""
    import torch

    from smec_st.modules import AdaptiveDimensionSelection, ResidualAdapter

    if len(base.layers) > 1:
        raise DataError("continual compression needs a linear compressor; this one has a hidden layer.")
    adapter = ResidualAdapter(
        base.in_dim,
        base.out_dim,
        reads="source_embedding",
        writes="candidate_embedding",
        start=torch.from_numpy(base.layers[0].weight),
    )
    selection = AdaptiveDimensionSelection(base.out_dim, base.out_dim, reads="candidate_embedding", frozen=True)
    return adapter, selection


def _check_corpus(table: VectorTable, config: FitConfig) -> None:
    needed = config.top_k + 1
    if table.corpus_size < needed:
        raise DataError(
            f"the corpus has {table.corpus_size} documents; at least {needed} are needed "
            f"to mine {config.top_k} neighbors."
        )


def _training_rows(
    table: VectorTable, qrels: Qrels | None, unlabelled_queries: np.ndarray | None, seed: int
) -> dict[str, np.ndarray]:
    """Columns of the training dataset, as row ids.

    With labels, the relevant pairs. Without, each query beside documents drawn at random, so that a step sees as many
    queries as documents however few queries there are; without queries, the documents.
    """
    if qrels is not None:
        if len(qrels.pairs) == 0:
            raise DataError("the training judgements hold no relevant pair; fit without labels instead.")
        pairs = _some_of_each_query(qrels.pairs, seed)
        return {"anchor": table.query_ids(pairs[:, 0]), "document": pairs[:, 1]}
    queries = np.arange(table.query_size) if unlabelled_queries is None else np.asarray(unlabelled_queries)
    if len(queries) == 0:
        return {"anchor": np.arange(table.corpus_size)}
    count = max(len(queries), table.corpus_size)
    documents = np.random.default_rng(seed).permutation(table.corpus_size)
    return {"anchor": np.resize(table.query_ids(queries), count), "document": np.resize(documents, count)}


def _some_of_each_query(pairs: np.ndarray, seed: int) -> np.ndarray:
    """At most :data:`PAIRS_PER_QUERY` pairs of each query, drawn at random. ``(P, 2) -> (p, 2)``.

    Else classes as labels would crowd out smaller ones, and memory. The loss still knows all judgements.
    """
    order = np.random.default_rng(seed).permutation(len(pairs))
    order = order[np.argsort(pairs[order, 0], kind="stable")]
    first = np.searchsorted(pairs[order, 0], pairs[order, 0])
    kept: np.ndarray = pairs[np.sort(order[np.arange(len(order)) - first < PAIRS_PER_QUERY])]
    return kept


def _can_be_distinct(columns: dict[str, np.ndarray], batch_size: int) -> bool:
    """Whether batches without shared documents can be about full.

    With many relevant documents a query (classes as labels) or many queries a document they cannot.
    """
    queries = len(np.unique(columns["anchor"]))
    batches = -(-len(columns["anchor"]) // batch_size)
    few = len(columns["anchor"]) <= 4 * queries
    return bool(few and np.bincount(columns["document"]).max() <= max(2 * batches, 4))


def _nearest_pairs(table: VectorTable, anchors: np.ndarray, count: int) -> np.ndarray:
    """For each pair, the pairs whose queries are nearest to its own at full width, ``(P, count)``."""
    import torch

    from smec_st.metrics import exact_search, leave_out

    vectors = table[torch.from_numpy(anchors)].numpy()
    ranked, _ = exact_search(vectors, vectors, count + 1)
    return leave_out(ranked, np.arange(len(anchors)))[:, :count]


@contextlib.contextmanager
def _work_dir(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="smec-st-") as name:
            yield Path(name)
