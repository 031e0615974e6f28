"""SMRL: train size after size, freeze what is done."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from torch import Tensor, nn
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from smec_st.callbacks import LOSS_STATE, PlanProgress, StepCallback
from smec_st.data import VectorTable
from smec_st.functional import leftover_axes, second_moment
from smec_st.losses import SMECLoss
from smec_st.modules import AdaptiveDimensionSelection, EmbeddingInput, ResidualAdapter
from smec_st.sampler import SpreadPairSampler
from smec_st.stages import Order, Stage, StageReport, default_dims, plan_stages

REPORT = "stage.json"
STRENGTHS = (1.0, 0.75, 0.5, 0.25, 0.0)


@dataclass
class SequentialTrainingArguments(SentenceTransformerTrainingArguments):
    """Arguments of :class:`SequentialTrainer`; step counts, learning rate and schedule apply to each stage anew.

    Args:
        dims: Sizes to train; None for :func:`~smec_st.stages.default_dims`.
        order: ``grow`` or ``shrink``; see :class:`~smec_st.stages.Stage`.
        start: What adapters begin from: ``principal`` axes of the data (of what the frozen columns leave over), or the
            ``identity``, as published (``shrink`` only).
        hidden_dim: Width of each adapter's hidden layer; None for linear adapters.
        activation: Of the hidden layer.
        selection_ratio: Directions that ADS chooses from per direction kept, in ``grow``.
        selection_steps: Steps of a ``select`` stage.
        selection_learning_rate: Learning rate of the selection's logits.
        selection_tau: Temperature of the selection at the first and the last step, falling linearly.
    """

    dims: list[int] | None = None
    order: str = "grow"
    start: str = "principal"
    hidden_dim: int | None = None
    activation: str = "relu"
    selection_ratio: float = 2.0
    selection_steps: int = 120
    selection_learning_rate: float = 0.05
    selection_tau: list[float] = field(default_factory=lambda: [1.0, 0.1])
    max_steps: int = 250
    learning_rate: float = 1e-2
    lr_scheduler_type: str = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float = 0.0
    per_device_train_batch_size: int = 256
    logging_steps: float = 50
    ddp_find_unused_parameters: bool | None = False
    dataloader_pin_memory: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start not in ("principal", "identity"):
            raise ValueError(f"`start` must be principal or identity, got {self.start!r}.")
        if self.order == "grow" and self.start == "identity":
            raise ValueError("The order `grow` starts from principal axes; `identity` is for `shrink`.")


@dataclass
class VectorCollator(SentenceTransformerDataCollator):
    """Gather a batch's vectors by row id: columns ``anchor`` and, with labels, ``document`` of the dataset.

    Args:
        table: Vectors by row id.
    """

    table: VectorTable | None = None

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Rows to ``anchor_sentence_embedding`` ``(B, D)``, the same for ``document``, and ``label`` ``(B, 2)``."""
        assert self.table is not None
        anchors = torch.tensor([row["anchor"] for row in features])
        batch = {"anchor_sentence_embedding": self.table[anchors]}
        documents = torch.full_like(anchors, -1)
        if "document" in features[0]:
            documents = torch.tensor([row["document"] for row in features])
            batch["document_sentence_embedding"] = self.table[documents]
        batch["label"] = torch.stack([anchors, documents], dim=1)
        return batch


class SequentialTrainer(SentenceTransformerTrainer):
    """Run a plan of stages: each trains its own modules, then freezes them.

    ``train()`` is a loop over the stages; each begins with its modules appended to the model and everything before
    them frozen, runs the parent's ``train()``, and ends with the selection fixed and, when a ``guard`` is given, with
    a point on the line between start and result chosen by held-out queries. Finished stages are saved under
    ``output_dir/stage-…/final``; with ``resume_from_checkpoint=True`` they are loaded and skipped, and the running one
    continues from its last complete checkpoint, bit for bit.

    Args:
        model: A model whose first module is :class:`~smec_st.modules.EmbeddingInput`; finished stages may follow.
        args: :class:`SequentialTrainingArguments`.
        table: Frozen vectors by row id; its rows are what the dataset's columns name.
        stages: A plan of one's own, for continual compression; None to follow ``args.dims`` and ``args.order``.
        distinct: Passed to the sampler.
        neighbors: Passed to the sampler.
        guard: Scores a model on held-out queries, higher is better; see
            :meth:`smec_st.evaluation.HeldOutEvaluator.score`. None to keep every result as it is trained.
        **kwargs: As for :class:`~sentence_transformers.SentenceTransformerTrainer`. ``train_dataset`` has the integer
            columns ``anchor`` and, with labels, ``document``.
    """

    args: SequentialTrainingArguments
    optimizer: Any
    lr_scheduler: Any
    training_args_class = SequentialTrainingArguments

    def __init__(
        self,
        model: SentenceTransformer,
        args: SequentialTrainingArguments,
        *,
        table: VectorTable,
        loss: SMECLoss,
        stages: tuple[Stage, ...] | None = None,
        distinct: bool = True,
        neighbors: np.ndarray | None = None,
        guard: Callable[[SentenceTransformer], float] | None = None,
        **kwargs: Any,
    ) -> None:
        order: Order = "shrink" if args.order == "shrink" else "grow"
        self.plan = stages or plan_stages(
            table.width, args.dims or default_dims(table.width), order, args.selection_ratio
        )
        self.table = table
        self.distinct = distinct
        self.neighbors = neighbors
        self.guard = guard
        self.reports: list[StageReport] = []
        self.stage = self.plan[0]
        self._moment: Tensor | None = None
        self._max_steps = args.max_steps
        model.model_card_data.generate_widget_examples = False
        kwargs.setdefault("data_collator", VectorCollator(preprocess_fn=model.preprocess, table=table))
        super().__init__(model=model, args=args, loss=loss, **kwargs)
        for callback in (ProgressCallback, PrinterCallback):
            self.remove_callback(callback)
        self.add_callback(StepCallback(self))
        if not args.disable_tqdm:
            self.add_callback(PlanProgress(self))

    # -- the loop -----------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: bool | str | None = None, *args: Any, **kwargs: Any) -> list[StageReport]:
        """Run the stages that are not finished yet and return a report of each.

        Args:
            resume_from_checkpoint: True to continue what ``args.output_dir`` holds.
            *args: Passed on.
            **kwargs: Passed on.
        """
        root = Path(self.args.output_dir)
        finished = self._load_finished(root) if resume_from_checkpoint else 0
        try:
            for stage in self.plan[finished:]:
                self._begin_stage(stage, root)
                checkpoint = _last_complete_checkpoint(Path(self.args.output_dir)) if resume_from_checkpoint else None
                began = time.perf_counter()
                outcome = super().train(checkpoint, *args, **kwargs)
                seconds = time.perf_counter() - began
                report = self._end_stage(stage, outcome.training_loss, outcome.global_step, seconds)
                self.reports.append(report)
                self._save_stage(root / stage.name, report)
        finally:
            self.args.output_dir, self.args.max_steps = str(root), self._max_steps
        return self.reports

    def steps_of(self, stage: Stage) -> int:
        """Optimizer steps of a stage; -1 when epochs decide."""
        return self.args.selection_steps if stage.phase == "select" else self._max_steps

    def _begin_stage(self, stage: Stage, root: Path) -> None:
        """Append the stage's modules, freeze all others, and make trainer, wrapper and loss forget the last stage."""
        self.stage = stage
        adapter, selection = self._stage_modules(stage)
        self.model.requires_grad_(False)
        if stage.phase != "select":
            for part in (adapter.hidden, adapter.residual):
                if part is not None:
                    part.requires_grad_(True)
        if stage.phase != "adapt":
            selection.logits.requires_grad_(True)
        self.optimizer, self.lr_scheduler = None, None  # else the last stage's optimizer goes on, over frozen weights
        self.accelerator.free_memory()
        self.model_wrapped = self.model  # else DDP keeps the last stage's parameter list
        self.loss.model = self.model  # else the loss calls the last stage's wrapper
        self.loss.begin_stage(stage.index, adapter, stage.out_dim / self.table.width)
        self.args.output_dir, self.args.max_steps = str(root / stage.name), self.steps_of(stage)

    def _end_stage(self, stage: Stage, loss: float, steps: int, seconds: float) -> StageReport:
        adapter, selection = self.last_pair()
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise FloatingPointError(
                f"{stage.name} diverged (its weights are no longer finite); lower `learning_rate`."
            )
        report = StageReport(stage=stage.name, dim=stage.out_dim, steps=steps, seconds=seconds, loss=loss)
        if stage.phase != "adapt":
            chosen = selection.freeze()
            report.selected = chosen.tolist()
            if stage.order == "grow":  # what was not chosen is never needed again
                adapter.keep_outputs(chosen)
                selection.renumber()
        else:
            selection.freeze()
        self.model.requires_grad_(False)
        if stage.phase != "select":
            report.strength, report.held_out = self._guard(adapter)
        return report

    @torch.no_grad()
    def _guard(self, adapter: ResidualAdapter) -> tuple[float, dict[str, float]]:
        """Of the points between start and result, keep the one that :func:`best_strength` names."""
        if self.guard is None:
            return 1.0, {}
        scores: dict[float, float] = {}
        for strength in STRENGTHS:
            adapter.strength.fill_(strength)
            scores[strength] = self.guard(self.model)
        chosen = best_strength(scores)
        adapter.strength.fill_(chosen)
        return chosen, {f"{strength:g}": score for strength, score in scores.items()}

    # -- modules ------------------------------------------------------------------------------------------------------

    def last_pair(self) -> tuple[ResidualAdapter, AdaptiveDimensionSelection]:
        """Adapter and selection of the running stage."""
        adapter, selection = list(self.model)[-2:]
        assert isinstance(adapter, ResidualAdapter)
        assert isinstance(selection, AdaptiveDimensionSelection)
        return adapter, selection

    def _stage_modules(self, stage: Stage) -> tuple[ResidualAdapter, AdaptiveDimensionSelection]:
        follows_selection = stage.index > 0 and self.plan[stage.index - 1].phase == "select"
        if not follows_selection:
            adapter = self._new_adapter(stage)
            selection = AdaptiveDimensionSelection(
                adapter.out_dim, stage.new_dims, offset=stage.have, reads="candidate_embedding"
            )
            if self.args.start == "principal":  # the axes come by falling variance: begin with the first
                selection.set_importance(torch.linspace(1.0, 0.0, adapter.out_dim))
            for module in (adapter, selection):
                self.model.append(module.to(self.model.device))
        return self.last_pair()

    def _new_adapter(self, stage: Stage) -> ResidualAdapter:
        start: Tensor | None = None
        if self.args.start == "principal":
            linear = self._linear_map()
            if stage.order == "grow":
                start = leftover_axes(self._data_moment(), linear[: stage.have], stage.candidates)
            else:
                moment = linear.double() @ self._data_moment() @ linear.double().T
                start = leftover_axes(moment, linear[:0, :0].reshape(0, stage.in_dim), stage.in_dim)
        return ResidualAdapter(
            stage.in_dim,
            stage.candidates,
            hidden_dim=self.args.hidden_dim,
            activation=self.args.activation,
            reads="source_embedding" if stage.order == "grow" else "sentence_embedding",
            writes="candidate_embedding",
            start=start,
        )

    def _linear_map(self) -> Tensor:
        """Directions that the frozen columns look along, ``(m, D)``; of non-linear adapters, their linear part."""
        rows = torch.eye(self.table.width)
        for module in list(self.model)[1:]:
            if isinstance(module, ResidualAdapter):
                learned = module.residual.weight.detach() if module.hidden is None else 0.0
                direct = (module.start + module.strength * learned).cpu()
                candidates = direct if module.reads == "source_embedding" else direct @ rows
            elif isinstance(module, AdaptiveDimensionSelection):
                kept = candidates[module.indices.cpu()]
                rows = torch.cat([rows, kept]) if module.offset else kept
        return rows

    def _data_moment(self) -> Tensor:
        if self._moment is None:
            self._moment = corpus_moment(self.table)
        return self._moment

    # -- trainer hooks ------------------------------------------------------------------------------------------------

    def get_batch_sampler(
        self,
        dataset: Any,
        batch_size: int,
        drop_last: bool,
        valid_label_columns: list[str] | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
    ) -> SpreadPairSampler:
        """The sampler that knows of the memory; every stage draws other batches."""
        columns = dataset.with_format("numpy")[:]  # a column alone would come row by row, through Python
        anchors = columns["anchor"]
        documents = columns.get("document", anchors)
        return SpreadPairSampler(
            dataset,
            batch_size,
            drop_last,
            valid_label_columns,
            generator,
            seed=self.args.seed * 1009 + self.stage.index,
            pairs=np.stack([anchors, documents], axis=1),
            neighbors=self.neighbors,
            distinct=self.distinct,
        )

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        """Only what this stage trains, without weight decay on the selection, which has its own learning rate."""
        if self.optimizer is None:
            cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            kwargs = {
                name: value for name, value in kwargs.items() if name not in ("params", "model", "optimizer_dict")
            }
            logits = [p for n, p in self.loss.named_parameters() if p.requires_grad and n.endswith(".logits")]
            others = [p for n, p in self.loss.named_parameters() if p.requires_grad and not n.endswith(".logits")]
            groups: list[dict[str, Any]] = [{"params": others, "weight_decay": self.args.weight_decay}]
            if logits:
                groups.append({"params": logits, "weight_decay": 0.0, "lr": self.args.selection_learning_rate})
            self.optimizer = cls(groups, **kwargs)
        return self.optimizer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the stage and a step that never goes back."""
        done = sum(report.steps for report in self.reports)
        super().log({**logs, "stage": self.stage.index, "total_step": done + self.state.global_step}, start_time)

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """None: the stock card would print whole vectors as examples; the compressor writes its own."""

    # -- saving and resuming ------------------------------------------------------------------------------------------

    def _save_stage(self, folder: Path, report: StageReport) -> None:
        """Write ``final/`` under another name, then rename it: a folder of that name is always whole."""
        if not self.args.should_save or self.args.save_strategy == "no":
            return
        draft = folder / "final.partial"
        shutil.rmtree(draft, ignore_errors=True)
        self.model.save_pretrained(str(draft), create_model_card=False)
        (draft / REPORT).write_text(json.dumps(report.to_dict(), indent=1))
        os.replace(draft, folder / "final")
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint, ignore_errors=True)

    def _load_finished(self, root: Path) -> int:
        """Load the last finished stage; return how many are finished."""
        self.reports = []
        for stage in self.plan:
            path = root / stage.name / "final" / REPORT
            if not path.is_file():
                break
            self.reports.append(StageReport(**json.loads(path.read_text())))
        if self.reports:
            loaded = self._load_modules(root / self.reports[-1].stage / "final")
            while len(self.model):
                del self.model[-1]
            for module in loaded:
                self.model.append(module.to(self.args.device))
        return len(self.reports)

    def _load_modules(self, folder: Path) -> SentenceTransformer:
        ours = (EmbeddingInput, ResidualAdapter, AdaptiveDimensionSelection)
        classes = {f"{cls.__module__}.{cls.__name__}": cls for cls in ours}
        return SentenceTransformer._load_with_module_classes(str(folder), classes, device="cpu")

    def _load_from_checkpoint(self, checkpoint_path: str, *args: Any) -> None:
        """Weights of the model, and the state of the loss, which the parent knows nothing of."""
        self.model.load_state_dict(self._load_modules(Path(checkpoint_path)).state_dict())
        self.loss.load_training_state(load_file(os.path.join(checkpoint_path, LOSS_STATE)))


def best_strength(scores: Mapping[float, float]) -> float:
    """The strength with the best smoothed score; the greatest of equals.

    Quality changes smoothly from start to result, while a score on few held-out queries does not: each score is
    averaged with a parabola fitted through all of them, so that no single lucky point decides.

    Args:
        scores: Mean held-out score by strength, at least three.
    """
    strengths = sorted(scores, reverse=True)
    measured = np.array([scores[strength] for strength in strengths])
    fitted = np.polyval(np.polyfit(strengths, measured, 2), strengths)
    smoothed = np.round((measured + fitted) / 2, 9)  # equal scores stay equal
    return strengths[int(smoothed.argmax())]


def corpus_moment(table: VectorTable, chunk: int = 65536) -> Tensor:
    """Uncentred second moment of the corpus, ``(D, D)`` float64, read in chunks."""
    total = torch.zeros(table.width, table.width, dtype=torch.float64)
    for start in range(0, table.corpus_size, chunk):
        rows = table[torch.arange(start, min(start + chunk, table.corpus_size))]
        total += second_moment(rows) * len(rows)
    return total / table.corpus_size


def _last_complete_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint whose writing was not interrupted."""
    found = [path.parent for path in folder.glob(f"checkpoint-*/{LOSS_STATE}")]
    return str(max(found, key=lambda path: int(path.name.rpartition("-")[2]))) if found else None
