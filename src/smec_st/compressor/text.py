"""Training on texts or images, with the backbone in the loop: frozen, or trained together with the first size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from smec_st.compressor.compressor import Compressor
from smec_st.data import DataError, EncodedTable, number_pairs
from smec_st.data.embedding import backbone_record
from smec_st.evaluation.evaluator import HeldOutEvaluator
from smec_st.fitting.recipe import can_be_distinct, folded_maps
from smec_st.losses.memory import SelectableCrossBatchMemory
from smec_st.losses.relevance import Relevance
from smec_st.losses.settings import LossSettings
from smec_st.losses.smec import SMECLoss
from smec_st.modules import EmbeddingInput, LiveBackbone
from smec_st.quantization.choice import CodesWanted, add_best
from smec_st.system.errors import whole_number
from smec_st.training.arguments import SequentialTrainingArguments
from smec_st.training.trainer import SequentialTrainer

if TYPE_CHECKING:
    from collections.abc import Sequence


def text_trainer(
    backbone: SentenceTransformer,
    args: SequentialTrainingArguments,
    train_dataset: Dataset,
    *,
    train_backbone: bool = False,
    corpus: Sequence[object] = (),
    held_out_share: float = 0.1,
    memory: int = 8192,
    loss: LossSettings | None = None,
    bytes: int | None = None,
    **kwargs: Any,
) -> SequentialTrainer:
    """A :class:`~smec_st.training.trainer.SequentialTrainer` over pairs of texts or images.

    Frozen, the backbone embeds each item once, when it is first needed. With ``train_backbone`` what is trainable of
    it (everything, or the LoRA adapters added to it) trains with the first stage, at full width and at the stage's
    sizes together; then it is frozen.

    Args:
        backbone: Any sentence-transformers model. It is trained in place.
        args: Settings; ``dims`` names the sizes.
        train_dataset: Columns anchor, positive, and any number of negatives, of texts or images; a column ``label`` or
            ``score`` grades the pairs.
        train_backbone: Whether the backbone trains.
        corpus: Further documents for the memory to draw on.
        held_out_share: Share of the queries held out, to keep what was trained only if it ranks them better than the
            start does; 0 for none.
        memory: Rows that S-XBM holds, at most; 0 for none.
        loss: Settings of :class:`~smec_st.losses.smec.SMECLoss`.
        bytes: Bytes per document that codes will take. Then the map, and a backbone that trains, train through the
            rounding as well: both terms of the loss apply once more to documents as they would be stored, with a
            straight-through gradient; queries stay floats. :func:`trained_compressor` then adds the codes.
        **kwargs: As for the trainer: ``evaluator``, ``callbacks``, ``stages``.

    Raises:
        DataError: If no relevant pair is left, or no size can be stored in this many ``bytes``.
    """
    pairs = number_pairs(train_dataset)
    known = set(pairs.corpus) if corpus and isinstance(pairs.corpus[0], str) else set()
    documents = [*pairs.corpus, *(item for item in corpus if not isinstance(item, str) or item not in known)]
    table = EncodedTable(backbone, documents, pairs.queries, pairs.own_document)
    train, held = pairs.qrels.hold_out(held_out_share, args.seed) if held_out_share > 0 else (pairs.qrels, None)
    if len(train.pairs) == 0:
        raise DataError("no relevant pair is left to train on.")
    rows = {"anchor": table.query_ids(train.pairs[:, 0]), "document": train.pairs[:, 1]}
    first = LiveBackbone(backbone) if train_backbone else EmbeddingInput(table.width)
    model = SentenceTransformer(modules=[first], device=str(backbone.device), prompts=dict(backbone.prompts or {}))
    capacity = min(memory, table.corpus_size)
    objective = SMECLoss(
        model,
        table,
        Relevance(train, table),
        SelectableCrossBatchMemory(table.width, capacity) if capacity else None,
        loss or LossSettings(seed=args.seed),
    )
    if held is not None and "guard" not in kwargs:
        # The evaluator is made when it is asked: by then a backbone that trains has its last weights.
        kwargs["guard"] = lambda trained, sizes: HeldOutEvaluator(table, held).per_query(trained, sizes)
    batch = args.per_device_train_batch_size * args.world_size
    return SequentialTrainer(
        model,
        args,
        table=table,
        loss=objective,
        train_dataset=Dataset.from_dict(rows),
        codes=None if bytes is None else CodesWanted(whole_number(bytes, "bytes"), table, train, held),
        distinct=can_be_distinct({name: np.asarray(column) for name, column in rows.items()}, batch),
        **kwargs,
    )


def trained_compressor(trainer: SequentialTrainer, backbone: SentenceTransformer) -> Compressor:
    """Fold a trainer's stages into a compressor; ``attach`` it to the backbone to serve it.

    After ``text_trainer(..., bytes=24)`` it has codes of 24 bytes as well, fitted on what was trained, as
    :meth:`~smec_st.Compressor.quantize` does: ``compressor.head(bytes=24)``. Held-out queries choose them, or kept
    neighbours where no queries are held out.

    Args:
        trainer: After :meth:`~smec_st.training.trainer.SequentialTrainer.train`.
        backbone: The model whose vectors it read.
    """
    if len(trainer.reports) < len(trainer.plan):
        raise ValueError(f"{len(trainer.reports)} of {len(trainer.plan)} stages are finished; call `train` first.")
    info = {
        "method": "smec",
        "backbone": backbone_record(backbone),
        "trained_backbone": trainer.trained_backbone,
        "loss": trainer.loss.get_config_dict(),
        "data": {"documents": trainer.table.corpus_size, "training_pairs": len(trainer.train_dataset)},
        "stages": [report.to_dict() for report in trainer.reports],
    }
    compressor = Compressor(folded_maps(list(trainer.model), trainer.plan, ()), info)
    if trainer.codes is None:
        return compressor
    wanted = trainer.codes
    asking = wanted.train.query_rows
    return add_best(compressor, wanted.table, wanted.train, wanted.held_out, wanted.bytes, trainer.args.seed, asking)
