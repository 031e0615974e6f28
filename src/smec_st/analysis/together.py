"""SMRL off: the same losses at all sizes at once, on prefixes of one shared map, as MRL would."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from smec_st.arguments import SequentialTrainingArguments
from smec_st.baselines import TrainingData
from smec_st.classes import labels_are_classes
from smec_st.config import FitConfig
from smec_st.evaluation import HeldOutEvaluator
from smec_st.folding import FoldedMap, fold
from smec_st.losses import SMECLoss
from smec_st.memory import SelectableCrossBatchMemory
from smec_st.modules import EmbeddingInput, ResidualAdapter
from smec_st.quiet import quiet_libraries
from smec_st.recipe import make_loss
from smec_st.stages import Stage
from smec_st.trainer import SequentialTrainer


class Prefix(nn.Module):
    """A model cut to the first ``dim`` numbers of its embedding.

    Args:
        model: What is cut; shared, not copied.
        dim: Numbers that stay.
    """

    def __init__(self, model: Any, dim: int) -> None:
        super().__init__()
        self.model, self.dim = model, dim

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.model.device
        return device

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """The model's features, with ``sentence_embedding`` ``(B, dim)``."""
        features = self.model(features)
        features["sentence_embedding"] = features["sentence_embedding"][:, : self.dim]
        return features


class AllSizesLoss(nn.Module):
    """Sum of one :class:`~smec_st.losses.SMECLoss` per size, each on its :class:`Prefix` of the same model.

    Args:
        model: What is trained.
        losses: The loss of each size.
        width: Full width ``D``.
    """

    def __init__(self, model: nn.Module, losses: Mapping[int, SMECLoss], width: int) -> None:
        super().__init__()
        self.model = model  # the trainer collects the trainable weights under this name
        self.width = width
        self.by_size = nn.ModuleDict({str(dim): loss for dim, loss in losses.items()})

    def _losses(self) -> dict[int, SMECLoss]:
        return {int(dim): cast(SMECLoss, loss) for dim, loss in self.by_size.items()}

    @property
    def memory(self) -> SelectableCrossBatchMemory | None:
        """That of the first size; all have the same capacity."""
        return next(iter(self._losses().values())).memory

    def get_config_dict(self) -> dict[str, Any]:
        """Settings of the first size's loss, and the sizes."""
        return {**next(iter(self._losses().values())).get_config_dict(), "dims": list(self._losses())}

    def diagnostics(self) -> dict[str, float]:
        """Those of each size's loss, by name and size."""
        return {
            f"{name}_{dim}": value
            for dim, loss in self._losses().items()
            for name, value in loss.diagnostics().items()
        }

    def begin_stage(
        self,
        stage: int,
        adapter: ResidualAdapter | None = None,
        share: float = 1.0,
        live: bool = False,
        finished: Sequence[nn.Module] = (),
    ) -> None:
        """Begin it for each size; the size decides the share."""
        for dim, loss in self._losses().items():
            loss.begin_stage(stage, adapter, dim / self.width, live, finished)

    def begin_step(self, stage: int, step: int) -> None:
        """Begin it for each size."""
        for loss in self._losses().values():
            loss.begin_step(stage, step)

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> dict[str, Tensor]:
        """The weighted terms of all sizes by name; the trainer sums them."""
        columns = list(sentence_features)
        return {
            f"{name}_{dim}": term
            for dim, loss in self._losses().items()
            for name, term in loss(columns, labels).items()
        }


def fit_together(data: TrainingData, dims: Sequence[int], config: FitConfig) -> FoldedMap:
    """One stage of ``config.steps`` steps on a ``D -> D`` map, each step with the losses of all sizes.

    Each size's loss is evaluated as often as in SMRL, which has a stage of as many steps per size. Sizes are prefixes,
    so there is nothing for ADS to choose. The guard, if on, looks at the mean over the sizes.

    Args:
        data: With training judgements.
        dims: Sizes that have a loss.
        config: Settings.

    Returns:
        A map whose first ``m`` outputs are the ``m``-dimensional vector.
    """
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from transformers import set_seed

    assert data.train is not None
    table, pairs = data.table, data.train.pairs
    set_seed(config.seed)
    with quiet_libraries(), tempfile.TemporaryDirectory(prefix="smec-st-") as folder:
        model = SentenceTransformer(modules=[EmbeddingInput(table.width)], device=None)
        one_width = dataclasses.replace(config, wide_weight=0.0)
        by_size = {dim: make_loss(one_width, Prefix(model, dim), table, data.train) for dim in dims}
        loss = AllSizesLoss(model, by_size, table.width)
        trainer = SequentialTrainer(
            model,
            SequentialTrainingArguments(
                output_dir=folder,
                order="shrink",
                start=config.start,
                max_steps=config.steps,
                per_device_train_batch_size=min(config.batch_size, len(pairs)),
                learning_rate=cast(float, config.for_labels(labels_are_classes(table, data.train)).learning_rate),
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                seed=config.seed,
                data_seed=config.seed,
            ),
            table=table,
            loss=cast(SMECLoss, loss),
            stages=(
                Stage(
                    index=0,
                    order="shrink",
                    phase="adapt",
                    in_dim=table.width,
                    out_dim=table.width,
                    candidates=table.width,
                ),
            ),
            train_dataset=Dataset.from_dict({"anchor": table.query_ids(pairs[:, 0]), "document": pairs[:, 1]}),
            guard=_guard(data, dims) if config.guard else None,
        )
        trainer.train()
        return fold(list(model))


def _guard(data: TrainingData, dims: Sequence[int]) -> Any:
    assert data.dev is not None
    evaluator = HeldOutEvaluator(data.table, data.dev)
    return lambda model: np.mean([evaluator.per_query(cast(Any, Prefix(model, dim))) for dim in dims], axis=0)
