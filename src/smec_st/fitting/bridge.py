"""Learn a bridge: a map of a new model's queries into the space that holds an old model's documents.

Pairs need no labels: a document or a query that both models embed is one. Candidates, from safe to bold, are a ridge
regression, the same with random features on top, both in closed form, and each of the two trained on by
:class:`~smec_st.training.trainer.SequentialTrainer`. Held-out queries choose, so what is trained is never taken unless
it surely beats what is not.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from smec_st.data import DataError, Qrels, VectorTable, unit_rows
from smec_st.evaluation.choice import Decision, first_unbeaten
from smec_st.fitting.config import FEWEST_QUERIES
from smec_st.losses.settings import LossSettings
from smec_st.maps import FoldedMap

if TYPE_CHECKING:
    from torch import Tensor

    from smec_st.modules import ResidualAdapter

FORMS = ("ridge", "random features")  # what has a closed form; each can be trained on from there
CANDIDATES = (*FORMS, *(f"{form}, trained" for form in FORMS))  # from safe to bold
RIDGE = 0.01  # of the mean eigenvalue; .001 to .03 gave the same in cross-validation
NOISE = 0.015  # variance of what random features leave over
FEATURES = 4096  # half as many kept .01 less in cross-validation
CONSTANT = 0.3  # beside centred rows of mean length 1, for the map's bias
STEPS, BATCH, RATE = 150, 128, 1e-3  # ten times the learning rate forgot the start
MEMORY = 8192
FOLDS = 2  # every query is held out once
NEIGHBOURS = 10  # of the old model, that count as relevant where nothing was judged
METRIC = "ndcg@10"


@dataclass(frozen=True)
class Sample:
    """Texts that both models have embedded, row by row; vectors of length 1.

    Attributes:
        old_corpus: ``(n, d)``, in the space of the index.
        new_corpus: ``(n, D)``.
        old_queries: ``(q, d)``, in the space of the index.
        new_queries: ``(q, D)``.
        sizes: Prefixes of the old space that are searched, descending; the first is ``d``.
        share: Part of the store's documents that the sample holds, in [0, 1].
        own_document: Document that is the query itself, -1 for none, ``(q,)``.
    """

    old_corpus: np.ndarray
    new_corpus: np.ndarray
    old_queries: np.ndarray
    new_queries: np.ndarray
    sizes: tuple[int, ...]
    share: float
    own_document: np.ndarray

    def of(self, documents: np.ndarray, queries: np.ndarray) -> Sample:
        """Return the sample of some rows of each side."""
        return replace(
            self,
            old_corpus=self.old_corpus[documents],
            new_corpus=self.new_corpus[documents],
            old_queries=self.old_queries[queries],
            new_queries=self.new_queries[queries],
            own_document=np.full(len(queries), -1),  # training does not ask, and rows have changed
        )


@dataclass(frozen=True)
class Kept:
    """What a bridge keeps on held-out queries: mean nDCG@10 by size of the old space.

    Attributes:
        bridged: Mean nDCG@10 of new queries, mapped through the bridge, on old documents.
        old: Mean nDCG@10 of the old model's queries on old documents.
        new: Mean nDCG@10 of the new model alone, at full width.
        queries: Number of held-out queries.
        judged: Whether judgements say what is relevant; else the old model's ten nearest documents are.
        scales: For each size, factor and offset that map bridged cosines to the scale of the new model's cosines,
            fitted on the top-ranked documents.
    """

    bridged: dict[int, float]
    old: dict[int, float]
    new: float
    queries: int
    judged: bool
    scales: dict[int, tuple[float, float]]
    metric = METRIC

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the ratio for JSON."""
        return {**json.loads(json.dumps(asdict(self))), "metric": self.metric, "ratio": self.ratio}

    @property
    def ratio(self) -> float:
        """Mean over the sizes of the bridged score divided by the old one."""
        return float(np.mean([self.bridged[size] / max(self.old[size], 1e-9) for size in self.old]))


@dataclass(frozen=True)
class FittedBridge:
    """The chosen map of rows ``[x, 1]``, ``x`` of length 1, ``(n, D + 1) -> (n, d)``; why; and what it keeps."""

    folded: FoldedMap
    decision: Decision
    kept: Kept


def fit_bridge(sample: Sample, qrels: Qrels | None, seed: int = 0) -> FittedBridge:
    """Fit every candidate with queries held out, choose, and fit the chosen one on the whole sample.

    In each of :data:`FOLDS` folds, the documents relevant to held-out queries are removed from the sample, except for
    a share ``sample.share`` of these queries: that share of future queries will ask for a document of the sample.

    Args:
        sample: Texts that both models have embedded.
        qrels: Judgements by row of the sample; None to count the old model's nearest documents as relevant.
        seed: Random seed.

    Raises:
        DataError: If fewer than :data:`~smec_st.fitting.config.FEWEST_QUERIES` queries can be held out.
    """
    judged = qrels if qrels is not None else _nearest(sample)
    if len(judged.query_rows) < FEWEST_QUERIES:
        raise DataError(
            f"a bridge is measured on queries that both models embed: {FEWEST_QUERIES} at least, "
            f"got {len(judged.query_rows)} with a relevant document."
        )
    scores: dict[str, list[np.ndarray]] = {name: [] for name in CANDIDATES}
    mapped = {name: np.zeros_like(sample.old_queries) for name in CANDIDATES}
    old: list[np.ndarray] = []
    new: list[np.ndarray] = []
    for number, (part, held) in enumerate(_folds(sample, judged, seed)):
        old.append(_score(sample, sample.old_queries, held))
        new.append(_score_at(sample, sample.new_corpus, sample.new_queries, held))
        maps = _fit_all(part, CANDIDATES, seed * 1009 + number)
        for name, folded in maps.items():
            mapped[name][held.query_rows] = apply(folded, sample.new_queries[held.query_rows])
            scores[name].append(_score(sample, mapped[name], held))
    by_name = {name: np.concatenate(parts, axis=1) for name, parts in scores.items()}
    decision = first_unbeaten({name: values.mean(axis=0) for name, values in by_name.items()}, "bridge")
    chosen = by_name[decision.chosen].mean(axis=1)
    reference = np.concatenate(old, axis=1).mean(axis=1)
    kept = Kept(
        bridged=dict(zip(sample.sizes, map(float, chosen), strict=True)),
        old=dict(zip(sample.sizes, map(float, reference), strict=True)),
        new=float(np.concatenate(new).mean()),
        queries=decision.queries,
        judged=qrels is not None,
        scales=_scales(sample, mapped[decision.chosen], judged.query_rows),
    )
    return FittedBridge(_fit_all(sample, (decision.chosen,), seed)[decision.chosen], decision, kept)


def apply(folded: FoldedMap, vectors: np.ndarray) -> np.ndarray:
    """Map a new model's vectors of any length into the old space, unit norm. ``(n, D) -> (n, d)``."""
    return folded.compress(np.c_[unit_rows(vectors), np.ones(len(vectors), dtype=np.float32)])


# -- held-out queries -------------------------------------------------------------------------------------------------


def _nearest(sample: Sample) -> Qrels:
    """Return the old model's nearest documents of each query as judgements."""
    from smec_st.evaluation.metrics import search_others

    found = search_others(sample.old_corpus, sample.old_queries, NEIGHBOURS, sample.own_document)
    rows, documents = np.repeat(np.arange(len(found)), found.shape[1]), found.ravel()
    there = documents >= 0
    return Qrels(rows[there], documents[there], np.ones(int(there.sum())))


def _folds(sample: Sample, judged: Qrels, seed: int) -> Iterator[tuple[Sample, Qrels]]:
    """Yield what is trained on, and the judgements of the queries that are held out."""
    rng = np.random.default_rng(seed)
    queries = rng.permutation(judged.query_rows)
    documents = np.arange(len(sample.old_corpus))
    for rows in np.array_split(queries, FOLDS):
        held = judged.of_queries(rows)
        unseen = held.of_queries(rows[rng.random(len(rows)) >= sample.share])
        gone = np.union1d(unseen.documents[unseen.grades > 0], sample.own_document[rows])
        kept = np.setdiff1d(documents, gone)
        left = np.setdiff1d(np.arange(len(sample.old_queries)), rows)
        if len(kept) < FEWEST_QUERIES:
            raise DataError(
                f"only {len(kept)} documents of the sample are left to learn from without those that held-out queries "
                "ask for; embed more documents with both models."
            )
        yield sample.of(kept, left), held


def _score(sample: Sample, queries: np.ndarray, held: Qrels) -> np.ndarray:
    """Compute nDCG@10 of queries in the old space at every size, ``(sizes, held-out queries)``."""
    return np.stack(
        [
            _score_at(sample, unit_rows(sample.old_corpus[:, :size]), unit_rows(queries[:, :size]), held)
            for size in sample.sizes
        ]
    )


def _score_at(sample: Sample, corpus: np.ndarray, queries: np.ndarray, held: Qrels) -> np.ndarray:
    from smec_st.evaluation.metrics import evaluate_retrieval

    return evaluate_retrieval(corpus, queries, held, (METRIC,), sample.own_document)[METRIC]


def _scales(sample: Sample, mapped: np.ndarray, rows: np.ndarray) -> dict[int, tuple[float, float]]:
    """Compute factor and offset by size: bridged cosines get mean and deviation of the new model's.

    The best documents are those that either model puts among its first for a held-out query.
    """
    scales = {}
    for size in sample.sizes:
        corpus, queries = unit_rows(sample.old_corpus[:, :size]), unit_rows(mapped[rows, :size])
        ours, theirs = [], []
        for query, row in zip(queries, rows, strict=True):
            one, other = corpus @ query, sample.new_corpus @ sample.new_queries[row]
            best = np.union1d(np.argsort(-one)[:NEIGHBOURS], np.argsort(-other)[:NEIGHBOURS])
            ours.append(one[best])
            theirs.append(other[best])
        one, other = np.concatenate(ours), np.concatenate(theirs)
        factor = float(other.std() / max(one.std(), 1e-9))
        scales[size] = factor, float(other.mean() - factor * one.mean())
    return scales


# -- pairs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pairs:
    """Return pairs of the sample as rows that a map without bias can learn from; documents stand in for queries.

    Queries of a model often lie apart from its documents. A document becomes a query when the mean difference of the
    two sides is added, in both spaces. New vectors are then centred, and a constant is put beside them.

    Attributes:
        rows: Documents and then queries of the new model, unit norm, ``(n + q, W)``.
        targets: The same in the old space, ``(n + q, d)``.
        entry: What turns ``[x, 1]`` of a query into such a row, up to its length, ``(W, D + 1)``.
    """

    rows: np.ndarray
    targets: np.ndarray
    entry: np.ndarray

    @classmethod
    def of(cls, sample: Sample) -> _Pairs:
        new, old = [sample.new_corpus], [sample.old_corpus]
        centre = new[0].mean(axis=0)
        centres = [centre]
        if len(sample.new_queries):
            new.append(sample.new_queries)
            centres.append(sample.new_queries.mean(axis=0))
            old[0] = old[0] - old[0].mean(axis=0) + sample.old_queries.mean(axis=0)
            old.append(sample.old_queries)
        centred = np.concatenate([part - mean for part, mean in zip(new, centres, strict=True)])
        scale = float(np.sqrt(np.square(centred).sum(axis=1).mean())) or 1.0
        width, d = centred.shape[1], old[0].shape[1]
        wide = max(width + 1, d)  # a stage of the trainer delivers no more numbers than it reads
        rows = np.zeros((len(centred), wide), dtype=np.float32)
        rows[:, :width] = centred / scale
        rows[:, width] = CONSTANT
        entry = np.zeros((wide, width + 1), dtype=np.float32)
        entry[:width, :width] = np.eye(width) / scale
        entry[:width, width] = -centres[-1] / scale
        entry[width, width] = CONSTANT
        return cls(unit_rows(rows), np.concatenate(old), entry)


def _fit_all(sample: Sample, names: tuple[str, ...], seed: int) -> dict[str, FoldedMap]:
    """Fit these candidates, as dense layers that read ``[x, 1]``."""
    from smec_st.maps.folding import fold_adapter

    pairs = _Pairs.of(sample)
    start = _ridge(pairs)
    fitted = {}
    for form in FORMS:
        if any(name.startswith(form) for name in names):
            adapter = _adapter(pairs, start, seed if form == "random features" else None)
            fitted[form] = fold_adapter(adapter).after(pairs.entry)
        if f"{form}, trained" in names:
            fitted[f"{form}, trained"] = fold_adapter(_train(adapter, pairs, sample, seed)).after(pairs.entry)
    return {name: fitted[name] for name in names}


# -- closed forms -----------------------------------------------------------------------------------------------------


def _ridge(pairs: _Pairs) -> np.ndarray:
    """Regress targets on rows with a ridge penalty, ``(d, W)``."""
    rows = pairs.rows.astype(np.float64)
    gram = rows.T @ rows
    gram[np.diag_indices_from(gram)] += RIDGE * np.trace(gram) / len(gram)
    weight: np.ndarray = np.linalg.solve(gram, rows.T @ pairs.targets).T.astype(np.float32)
    return weight


def _adapter(pairs: _Pairs, start: np.ndarray, seed: int | None) -> ResidualAdapter:
    """Fit the ridge regression and, if a ``seed`` is given, what random features add to it."""
    import torch

    from smec_st.modules import ResidualAdapter

    d, width = start.shape
    many = None if seed is None else FEATURES
    adapter = ResidualAdapter(
        width,
        d,
        hidden_dim=many,
        hidden_outputs=many and d,
        writes="candidate_embedding",
        start=torch.from_numpy(start),
    )
    if seed is None:
        return adapter
    adapter.draw_hidden(seed)
    assert adapter.hidden is not None
    assert adapter.narrow is not None
    rows = torch.from_numpy(pairs.rows)
    left = torch.from_numpy(pairs.targets) - rows @ adapter.start.T
    with torch.no_grad():
        features = torch.relu(adapter.hidden(rows)) * adapter.scale
        if len(rows) <= FEATURES:
            gram = features @ features.T
            weight = features.T @ _solve(gram, left)
        else:
            weight = _solve(features.T @ features, features.T @ left)
        adapter.narrow.weight.copy_(weight.T)
    return adapter


def _solve(gram: Tensor, right: Tensor) -> Tensor:
    import torch

    gram = gram.double()
    gram.diagonal().add_(NOISE)
    return torch.cholesky_solve(right.double(), torch.linalg.cholesky(gram)).float()


# -- training ---------------------------------------------------------------------------------------------------------


def _train(start: ResidualAdapter, pairs: _Pairs, sample: Sample, seed: int) -> ResidualAdapter:
    """Train from a closed-form start, until queries rank the old documents as both models rank their own."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from transformers import set_seed

    from smec_st.losses.memory import SelectableCrossBatchMemory
    from smec_st.losses.smec import SMECLoss, Target
    from smec_st.modules import EmbeddingInput
    from smec_st.stages import Stage
    from smec_st.system.quiet import quiet_libraries
    from smec_st.training.arguments import SequentialTrainingArguments
    from smec_st.training.trainer import SequentialTrainer

    documents = len(sample.old_corpus)
    table = VectorTable(pairs.rows[:documents], pairs.rows[documents:], check=False)
    target = Target(
        candidates=VectorTable(sample.old_corpus, sample.old_queries, check=False),
        teacher=VectorTable(*_taught(sample), check=False),
    )
    anchors = _as_many_queries(documents, len(pairs.rows) - documents)
    d, width = start.start.shape
    settings = LossSettings(seed=seed)
    sizes = tuple(sample.sizes[::-1])
    stage = Stage(index=0, order="grow", phase="compress", in_dim=width, out_dim=d, sizes=sizes)
    set_seed(seed)
    with quiet_libraries(), tempfile.TemporaryDirectory(prefix="smec-st-") as folder:
        model = SentenceTransformer(modules=[EmbeddingInput(width)], device=None)
        memory = SelectableCrossBatchMemory(d, min(MEMORY, documents))
        trainer = SequentialTrainer(
            model,
            SequentialTrainingArguments(
                output_dir=folder,
                max_steps=STEPS,
                per_device_train_batch_size=min(BATCH, len(anchors)),
                learning_rate=RATE,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                seed=seed,
                data_seed=seed,
            ),
            table=table,
            loss=SMECLoss(model, table, None, memory, settings, target),
            stages=(stage,),
            train_dataset=Dataset.from_dict({"anchor": anchors}),
            adapter=start,
        )
        trainer.train()
        adapter, _ = trainer.last_pair()
    adapter.cpu().requires_grad_(False)
    return adapter


def _as_many_queries(documents: int, queries: int) -> np.ndarray:
    """Return the rows of all documents and of as many queries, which are repeated or cut off to that number."""
    asked = np.resize(np.arange(queries), documents if queries else 0)
    return np.concatenate([np.arange(documents), documents + asked])


def _taught(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Compute vectors whose cosine is a mean of both models' cosines, which count by the inverse of their spread."""
    means = [unit_rows(part).mean(axis=0) for part in (sample.old_corpus, sample.new_corpus)]
    spreads = [max(1 - float(mean @ mean), 1e-3) for mean in means]
    weights = [np.sqrt(1 / spread / sum(1 / each for each in spreads)) for spread in spreads]
    sides = (sample.old_corpus, sample.new_corpus), (sample.old_queries, sample.new_queries)
    corpus, queries = (
        np.concatenate([weight * part for weight, part in zip(weights, side, strict=True)], axis=1) for side in sides
    )
    return corpus.astype(np.float32), queries.astype(np.float32)
