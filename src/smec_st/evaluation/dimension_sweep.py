"""An evaluator for sentence-transformers that scores every size of a model and encodes each text once."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator

from smec_st.data import DataError, EncodedTable, Qrels, as_numpy, unit_rows
from smec_st.evaluation.metrics import evaluate_retrieval
from smec_st.evaluation.report import Row
from smec_st.evaluation.sweep import METRICS
from smec_st.modules import LiveBackbone

if TYPE_CHECKING:
    from smec_st.data import VectorTable


class DimensionSweepEvaluator(BaseEvaluator):
    """Computes retrieval metrics at every size: from the first ``m`` dimensions, scaled to length 1 again.

    Corpus and queries are encoded once per call. They may be texts (images, anything that ``encode_query`` and
    ``encode_document`` accept) or vectors, for a model that starts with :class:`~smec_st.modules.EmbeddingInput`.
    Relevance may be graded. In :class:`~smec_st.training.trainer.SequentialTrainer` the evaluator can select each
    stage's best checkpoint (``load_best_model_at_end=True``, ``metric_for_best_model="eval_sweep_ndcg@10"``) and stop
    a stage early.

    The result has ``{name}_{dim}_{metric}`` for each size up to the model's width, and ``{name}_{metric}``, the value
    chosen by ``main``.

    Args:
        corpus: Documents: texts, or vectors ``(N, D)``.
        queries: Queries: texts, or vectors ``(Q, D)``.
        qrels: Judgements by row of both; only judged queries are encoded.
        dims: Sizes; those above the model's width are skipped. None for the model's width alone, as in the order
            ``shrink``, where prefixes are no embeddings.
        metrics: Names as in :func:`~smec_st.evaluation.metrics.evaluate_retrieval`; the first is the primary one.
        main: The size reported as ``{name}_{metric}``: the ``widest`` (in a ``grow`` stage, the size being trained),
            the ``mean`` over sizes, or one of ``dims``.
        name: Prefix of the metrics.
        own_document: Corpus row that is the query itself and is left out of its ranking, -1 for none, ``(Q,)``.
        batch_size: Texts encoded at a time.
        write_csv: Whether to append a line per size and call to ``{name}_sweep.csv`` in the output folder.

    Raises:
        DataError: If no document is relevant, or the judgements name rows that do not exist.
        ValueError: If ``main`` is not one of the choices.
    """

    def __init__(
        self,
        corpus: Sequence[object] | np.ndarray,
        queries: Sequence[object] | np.ndarray,
        qrels: Qrels,
        dims: Sequence[int] | None = None,
        *,
        metrics: Sequence[str] = METRICS,
        main: Literal["widest", "mean"] | int = "widest",
        name: str = "sweep",
        own_document: np.ndarray | None = None,
        batch_size: int = 32,
        write_csv: bool = True,
    ) -> None:
        super().__init__()
        if isinstance(main, int) and main not in (dims or ()):
            raise ValueError(f"`main` must be widest, mean or one of `dims`, got {main}.")
        if len(qrels.pairs) == 0:
            raise DataError("the judgements to evaluate on hold no relevant pair.")
        judged = qrels.query_rows
        if judged.max() >= len(queries) or qrels.pairs[:, 1].max() >= len(corpus):
            raise DataError(
                f"the judgements name query {judged.max()} and document {qrels.pairs[:, 1].max()}; "
                f"there are {len(queries)} and {len(corpus)}."
            )
        self.corpus = corpus
        rows: Any = queries
        if isinstance(rows, _TableRows):
            self.queries: Any = rows.only(judged)
        else:
            self.queries = rows[judged] if hasattr(rows, "shape") else [rows[row] for row in judged.tolist()]
        self.qrels = qrels.renumbered()
        self.own_document = None if own_document is None else np.asarray(own_document)[judged]
        self.dims = None if dims is None else tuple(sorted(set(dims), reverse=True))
        self.metrics, self.main, self.name = tuple(metrics), main, name
        self.batch_size, self.write_csv = batch_size, write_csv
        self.primary_metric = f"{name}_{self.metrics[0]}"

    @classmethod
    def from_table(
        cls, table: VectorTable, qrels: Qrels, dims: Sequence[int] | None = None, **settings: Any
    ) -> DimensionSweepEvaluator:
        """Build an evaluator for the rows of a table; ``qrels`` numbers queries from 0.

        While a backbone is being trained, the table's texts or images are encoded again at each call.
        """
        import torch

        own = table.own(torch.arange(table.corpus_size, len(table))).numpy()
        settings.setdefault("own_document", own if (own >= 0).any() else None)
        corpus, queries = (_TableRows(table, ids) for ids in np.split(np.arange(len(table)), [table.corpus_size]))
        return cls(corpus, queries, qrels, dims, **settings)  # type: ignore[arg-type]

    def sizes(self, width: int) -> tuple[int, ...]:
        """Return the sizes at which a model of this width is scored, in descending order."""
        if self.dims is None:
            return (width,)
        return tuple(dim for dim in self.dims if dim <= width) or (width,)

    def rows(self, model: SentenceTransformer, method: str = "model") -> list[Row]:
        """Encode once, and return a row of scores per size."""
        corpus, queries = self._encode(model, self.corpus, "document"), self._encode(model, self.queries, "query")
        rows = []
        for dim in self.sizes(corpus.shape[1]):
            scores = evaluate_retrieval(
                unit_rows(corpus[:, :dim]), unit_rows(queries[:, :dim]), self.qrels, self.metrics, self.own_document
            )
            means = {metric: float(values.mean()) for metric, values in scores.items()}
            rows.append(Row(method=method, dim=dim, bytes_per_vector=4 * dim, metrics=means))
        return rows

    def __call__(
        self,
        model: SentenceTransformer,
        output_path: str | None = None,
        epoch: int = -1,
        steps: int = -1,
        **kwargs: Any,
    ) -> dict[str, float]:
        """Evaluate a model, and return metrics by name; see the class."""
        rows = self.rows(model)
        result = {f"{self.name}_{row.dim}_{metric}": value for row in rows for metric, value in row.metrics.items()}
        for metric in self.metrics:
            result[f"{self.name}_{metric}"] = self._main({row.dim: row.metrics[metric] for row in rows})
        if output_path is not None and self.write_csv:
            self._append(Path(output_path) / f"{self.name}_sweep.csv", rows, epoch, steps)
        return result

    def _main(self, by_dim: dict[int, float]) -> float:
        if self.main == "mean":
            return float(np.mean(list(by_dim.values())))
        return by_dim.get(self.main, by_dim[max(by_dim)]) if isinstance(self.main, int) else by_dim[max(by_dim)]

    def _encode(self, model: SentenceTransformer, items: Any, side: str) -> np.ndarray:
        if isinstance(items, _TableRows) and isinstance(model[0], LiveBackbone):
            items = items.items()  # the table's vectors are those of the backbone before it was trained
        if hasattr(items, "shape"):
            return np.concatenate(list(_map_vectors(model, items)))
        encode = model.encode_query if side == "query" else model.encode_document
        with model.truncate_embeddings(None):  # the model may be set to truncate; all sizes are needed
            vectors = encode(list(items), batch_size=self.batch_size, convert_to_numpy=True, show_progress_bar=False)
        return as_numpy(vectors).astype(np.float32)

    def _append(self, path: Path, rows: Sequence[Row], epoch: int, steps: int) -> None:
        is_new = not path.is_file()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if is_new:
                writer.writerow(["epoch", "steps", "dim", *self.metrics])
            writer.writerows([epoch, steps, row.dim, *(row.metrics[m] for m in self.metrics)] for row in rows)


class _TableRows:
    """Some rows of a table, which are read when they are sliced."""

    def __init__(self, table: VectorTable, ids: np.ndarray) -> None:
        self._table, self._ids, self.shape = table, ids, (len(ids), table.width)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, rows: slice) -> np.ndarray:
        import torch

        return self._table[torch.from_numpy(self._ids[rows])].numpy()

    def only(self, rows: np.ndarray) -> _TableRows:
        """Return a part of these rows."""
        return _TableRows(self._table, self._ids[rows])

    def items(self) -> list[object]:
        """Return the texts or images that the vectors were encoded from."""
        assert isinstance(self._table, EncodedTable)
        return self._table.items(self._ids)


def _map_vectors(
    model: SentenceTransformer, vectors: np.ndarray | _TableRows, chunk: int = 16384
) -> Iterator[np.ndarray]:
    """Yield the output of a model that starts with ``EmbeddingInput``, in chunks and without dropout."""
    import torch

    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(vectors), chunk):
            rows = torch.from_numpy(unit_rows(as_numpy(vectors[start : start + chunk]))).to(model.device)
            with torch.no_grad():
                yield model({"sentence_embedding": rows})["sentence_embedding"].float().cpu().numpy()
    finally:
        model.train(was_training)
