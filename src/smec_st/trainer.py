"""SMRL: train size after size, freeze what is done."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from torch import Tensor, nn
from transformers.integrations import TensorBoardCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import EarlyStoppingCallback, PrinterCallback, ProgressCallback, TrainerState

from smec_st import run_folder
from smec_st.arguments import NARROW, SequentialTrainingArguments
from smec_st.backbone_training import PREFIX, BackboneInTraining
from smec_st.callbacks import LOSS_STATE, Diagnostics, PlanProgress, StepCallback
from smec_st.collator import VectorCollator
from smec_st.data import VectorTable
from smec_st.functional import leftover_axes
from smec_st.guard import STRENGTHS, Choice, best_strength
from smec_st.losses import SMECLoss
from smec_st.losses.ranks import same_on_all_ranks, total, world_size
from smec_st.matmul import fast_matmul
from smec_st.modules import AdaptiveDimensionSelection, ResidualAdapter
from smec_st.moments import corpus_moments
from smec_st.sampler import SpreadPairSampler
from smec_st.stages import Order, Stage, StageReport, default_dims, plan_stages

SAMPLE = 4096  # documents that lengths are measured on


class SequentialTrainer(SentenceTransformerTrainer):
    """Run a plan of stages: each trains its own modules, then freezes them.

    ``train()`` is a loop over the stages; each begins with its modules appended to the model and everything before
    them frozen, runs the parent's ``train()``, and ends with the selection fixed and, when a ``guard`` is given, with
    a point on the line between start and result chosen by held-out queries. Finished stages are saved under
    ``output_dir/stage-…/final``; with ``resume_from_checkpoint=True`` they are loaded and skipped, and the running one
    continues from its last complete checkpoint, bit for bit.

    Args:
        model: A model whose first module is :class:`~smec_st.modules.EmbeddingInput`; finished stages may follow. Or
            :class:`~smec_st.modules.LiveBackbone`, with an :class:`~smec_st.data.EncodedTable` of the same backbone:
            then what is trainable of it trains with the first stage, and is frozen with it.
        args: :class:`SequentialTrainingArguments`.
        table: Frozen vectors by row id; its rows are what the dataset's columns name.
        stages: A plan of one's own, for continual compression; None to follow ``args.dims`` and ``args.order``.
        distinct: Passed to the sampler.
        neighbors: Passed to the sampler.
        guard: Scores a model on each held-out query, ``(q,)``, higher is better; see
            :meth:`smec_st.evaluation.HeldOutEvaluator.per_query`. None to keep every result as it is trained.
        choices: What fits before this one chose, by size, in place of the guard.
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
        guard: Callable[[SentenceTransformer], np.ndarray] | None = None,
        choices: Mapping[int, Choice] | None = None,
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
        self.choices = choices or {}
        self.reports: list[StageReport] = []
        self.stage = self.plan[0]
        self.batch_sampler: SpreadPairSampler | None = None
        self._moments: tuple[Tensor, Tensor] | None = None
        self._max_steps = args.max_steps
        if args.fsdp or args.deepspeed:
            raise ValueError("Stages are trained with DDP: leave `fsdp` and `deepspeed` out; a compressor is small.")
        model.model_card_data.generate_widget_examples = False
        self.backbone = BackboneInTraining.of(model, table)
        kwargs.setdefault("data_collator", VectorCollator(preprocess_fn=model.preprocess, table=table))
        super().__init__(model=model, args=args, loss=loss, **kwargs)
        for callback in (ProgressCallback, PrinterCallback):
            self.remove_callback(callback)
        self.add_callback(StepCallback(self))
        self.diagnostics = Diagnostics(self)
        self.add_callback(self.diagnostics)
        self.progress = PlanProgress(self)
        if not args.disable_tqdm:
            self.add_callback(self.progress)

    # -- the loop -----------------------------------------------------------------------------------------------------

    @fast_matmul()
    def train(self, resume_from_checkpoint: bool | str | None = None, *args: Any, **kwargs: Any) -> list[StageReport]:
        """Run the stages that are not finished yet and return a report of each.

        Args:
            resume_from_checkpoint: True to continue what ``args.output_dir`` holds. The number of processes may
                change as long as the batch of all together stays.
            *args: Passed on.
            **kwargs: Passed on.

        Raises:
            DataError: If it holds a run with other settings.
        """
        root = Path(self.args.output_dir)
        self._one_run_for_all_stages(root)
        settings = self._settings_of_run()
        if resume_from_checkpoint:
            run_folder.check_settings(root, settings)
        if self._keeps:
            run_folder.write_settings(root, settings)
        finished = self._load_finished(root) if resume_from_checkpoint else 0
        try:
            for stage in self.plan[finished:]:
                self._begin_stage(stage, root)
                checkpoint = run_folder.last_checkpoint(root / stage.name) if resume_from_checkpoint else None
                began = time.perf_counter()
                if checkpoint is not None and run_folder.is_complete(checkpoint):
                    loss = self._load_complete(checkpoint)
                else:
                    loss = super().train(checkpoint and str(checkpoint), *args, **kwargs).training_loss
                self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)  # stages end in full precision
                seconds = time.perf_counter() - began
                report = self._end_stage(stage, loss, self.state.global_step, seconds)
                self.reports.append(report)
                self._save_stage(root / stage.name, report)
        finally:
            self.args.output_dir, self.args.max_steps = str(root), self._max_steps
            self.progress.close()
        return self.reports

    def _one_run_for_all_stages(self, root: Path) -> None:
        """Experiment trackers take each ``train()`` of the parent for a run: give all the same name and folder."""
        self.args.run_name = self.args.run_name or root.name
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
                callback.logging_dir = str(root / "runs")

    @property
    def steps_done(self) -> int:
        """Optimizer steps of all finished stages."""
        return sum(report.steps for report in self.reports)

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
        is_live = self._is_live
        if self.backbone is not None and is_live:
            self.backbone.begin()
        self.data_collator.live = is_live
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, EarlyStoppingCallback):
                callback.early_stopping_patience_counter = 0  # each stage has its own patience
        self.optimizer, self.lr_scheduler = None, None  # else the last stage's optimizer goes on, over frozen weights
        self.accelerator.free_memory()
        self.model_wrapped = self.model  # else DDP keeps the last stage's parameter list
        self.loss.model = self.model  # else the loss calls the last stage's wrapper
        finished = list(self.model)[1:-2]
        for module in finished:
            module.is_finished = True
        share = stage.out_dim / self.table.width
        self.loss.begin_stage(stage.index, adapter, share, live=is_live, finished=finished)
        self.args.output_dir, self.args.max_steps = str(root / stage.name), self.steps_of(stage)

    def _end_stage(self, stage: Stage, loss: float, steps: int, seconds: float) -> StageReport:
        adapter, selection = self.last_pair()
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise FloatingPointError(
                f"{stage.name} diverged (its weights are no longer finite); lower `learning_rate`."
            )
        loss = float(total(torch.tensor(loss, device=self.args.device))) / world_size()  # each knows its own rows'
        self._freeze_backbone()
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
            choice = same_on_all_ranks(self._guard(stage, adapter))
            if choice.strength == 0 and self._may_be_untrained(stage):
                adapter.start.copy_(self._principal_axes(stage))
            report.strength = choice.strength
            report.held_out = {f"{strength:g}": float(score.mean()) for strength, score in choice.scores.items()}
            report.scores = {f"{strength:g}": score.tolist() for strength, score in choice.scores.items()}
            adapter.strength.fill_(report.strength)
        return report

    @torch.no_grad()
    def _guard(self, stage: Stage, adapter: ResidualAdapter) -> Choice:
        """Of the points between start and result, the one that :func:`best_strength` names."""
        if stage.out_dim in self.choices:
            return self.choices[stage.out_dim]
        if self.guard is None:
            return Choice(1.0, {})
        scores, start = {}, adapter.start.clone()
        for strength in STRENGTHS:
            adapter.strength.fill_(strength)
            if strength == 0 and self._may_be_untrained(stage):
                adapter.start.copy_(self._principal_axes(stage))
            scores[strength] = self.guard(self.model)
        adapter.start.copy_(start)
        return Choice(best_strength(scores, self._is_proven), scores)

    @property
    def _is_proven(self) -> bool:
        """Whether held-out queries took what a smaller size learned."""
        return any(report.held_out and report.strength > 0 for report in self.reports)

    def _may_be_untrained(self, stage: Stage) -> bool:
        """Whether strength 0 goes back behind ADS, to the leading axes: nothing learned has proven itself yet."""
        follows_selection = stage.index > 0 and self.plan[stage.index - 1].phase == "select"
        return stage.order == "grow" and follows_selection and not self._is_proven

    # -- a backbone that trains ---------------------------------------------------------------------------------------

    @property
    def _is_live(self) -> bool:
        return self.backbone is not None and self.backbone.is_live

    @property
    def trained_backbone(self) -> bool:
        """Whether a backbone trains, or trained, with the first stage."""
        return self.backbone is not None and self.backbone.trains

    def training_state(self) -> dict[str, Tensor]:
        """Everything that a checkpoint of the model lacks: of the loss, and of a backbone while it trains."""
        backbone = self.backbone.state() if self.backbone is not None and self._is_live else {}
        return {**self.loss.training_state(), **backbone}

    def _freeze_backbone(self) -> None:
        if self.backbone is not None and self._is_live:
            self.backbone.finish()
            self._moments = None

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
        start = self._principal_axes(stage) if self.args.start == "principal" else None
        adapter = ResidualAdapter(
            stage.in_dim,
            stage.candidates,
            hidden_dim=self._hidden_dim(stage),
            activation=self.args.activation,
            reads="source_embedding" if stage.order == "grow" else "sentence_embedding",
            writes="candidate_embedding",
            start=start,
        )
        adapter.draw_hidden(self.args.seed * 1009 + stage.index)  # wherever a run is continued
        return adapter

    def _principal_axes(self, stage: Stage) -> Tensor:
        """What a stage begins from, ``(candidates, in_dim)``: axes by falling variance.

        In ``grow`` those of what the frozen columns leave over. With labels they are as long as these: ranking makes
        columns longer, and beside them axes of length 1 would hardly count, least of all where the guard keeps them.
        """
        linear = self._linear_map()
        mean, moment = self._data_moments()
        if stage.order == "shrink":
            moment = linear.double() @ moment @ linear.double().T
            return leftover_axes(moment, linear[:0, :0].reshape(0, stage.in_dim), stage.in_dim)
        frozen = linear[: stage.have]
        axes = leftover_axes(moment, frozen, stage.candidates, mean if self.args.mean_last else None)
        return axes * self._length(frozen) if stage.have and self.loss.relevance is not None else axes

    @torch.no_grad()
    def _length(self, frozen: Tensor) -> float:
        """How much longer the frozen columns' outputs are than with orthonormal axes in their place, on documents."""
        rows = torch.arange(0, self.table.corpus_size, max(1, self.table.corpus_size // SAMPLE))
        vectors = self.table[rows].to(self.model.device)
        outputs = self.model({"sentence_embedding": vectors})["sentence_embedding"].float()[:, : len(frozen)]
        axes = torch.linalg.svd(frozen, full_matrices=False).Vh.to(vectors)
        return float(outputs.norm() / (vectors @ axes.T).norm())

    def _hidden_dim(self, stage: Stage) -> int | None:
        is_narrow = stage.order == "grow" and stage.out_dim <= NARROW * self.table.width
        return self.args.hidden_dim or (self.args.narrow_hidden_dim if is_narrow else None)

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

    def _data_moments(self) -> tuple[Tensor, Tensor]:
        if self._moments is None:
            self._moments = corpus_moments(self.table)
        return self._moments

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
        """The sampler that knows of the memory; every stage draws other batches, and cuts them for the ranks."""
        ranks = self.args.world_size
        columns = dataset.with_format("numpy")[:]  # a column alone would come row by row, through Python
        anchors = columns["anchor"]
        documents = columns.get("document", anchors)
        self.batch_sampler = SpreadPairSampler(
            dataset,
            batch_size * ranks,
            drop_last,
            valid_label_columns,
            generator,
            seed=self.args.seed * 1009 + self.stage.index,
            pairs=np.stack([anchors, documents], axis=1),
            neighbors=self.neighbors,
            distinct=self.distinct,
            parts=ranks,
        )
        return self.batch_sampler

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        """Only what this stage trains, without weight decay on the selection, which has its own learning rate."""
        if self.optimizer is None:
            cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            kwargs = {
                name: value for name, value in kwargs.items() if name not in ("params", "model", "optimizer_dict")
            }
            trained = {name: value for name, value in self.loss.named_parameters() if value.requires_grad}
            logits = {name for name in trained if name.endswith(".logits")}
            backbone = {name for name in trained if name.startswith("model.0.backbone.")}
            rates = (
                (set(trained) - logits - backbone, self.args.learning_rate, self.args.weight_decay),
                (logits, self.args.selection_learning_rate, 0.0),
                (backbone, self.args.backbone_learning_rate, self.args.weight_decay),
            )
            groups = [
                {"params": [trained[name] for name in trained if name in names], "lr": rate, "weight_decay": decay}
                for names, rate, decay in rates
                if names
            ]
            self.optimizer = cls(groups, **kwargs)
        return self.optimizer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the stage, its diagnostics, and a step that never goes back; trackers draw over that step."""
        if "loss" in logs:
            logs = {**logs, **self.diagnostics.take()}
        own = self.state.global_step
        total_step = self.steps_done + own
        try:
            self.state.global_step = total_step
            super().log(
                {**logs, "stage": self.stage.index, "dim": self.stage.out_dim, "total_step": total_step}, start_time
            )
        finally:
            self.state.global_step = own

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """None: the stock card would print whole vectors as examples; the compressor writes its own."""

    # -- saving and resuming ------------------------------------------------------------------------------------------

    def _settings_of_run(self) -> dict[str, Any]:
        """All that the result depends on, as far as it can be named."""
        args = self.args
        names = (
            "seed", "max_steps", "num_train_epochs", "learning_rate", "lr_scheduler_type", "warmup_steps", "optim",
            "weight_decay", "max_grad_norm", "start", "hidden_dim", "activation", "selection_learning_rate",
            "selection_tau", "backbone_learning_rate", "bf16", "fp16",
        )  # fmt: skip
        batch = args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps
        table = [self.table.corpus_size, self.table.query_size, self.table.width]
        settings = {
            "stages": [f"{stage.name}-{stage.candidates}-{self.steps_of(stage)}" for stage in self.plan],
            "batch": batch,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "rows": [*table, len(self.train_dataset)],
            "moved": round(self.table.distance_moved, 2),
            "memory": None if self.loss.memory is None else self.loss.memory.capacity,
            "loss": self.loss.get_config_dict(),
            "trains_backbone": self.trained_backbone,
            **{name: getattr(args, name) for name in names},
        }
        return json.loads(json.dumps(settings, default=str))  # type: ignore[no-any-return]

    def _load_finished(self, root: Path) -> int:
        """Load the last finished stage; return how many are finished."""
        self.reports = run_folder.finished_reports(root, self.plan)
        if self.reports:
            last = root / self.reports[-1].stage / run_folder.FINAL
            if self.backbone is not None:
                self.backbone.load(last / run_folder.BACKBONE)
                self._freeze_backbone()
            loaded = run_folder.load_modules(last)
            while len(self.model):
                del self.model[-1]
            for module in loaded:
                self.model.append(module.to(self.args.device))
        return len(self.reports)

    def _save_stage(self, folder: Path, report: StageReport) -> None:
        if self._keeps:
            backbone = None if self.backbone is None else self.backbone.state()
            run_folder.save_stage(folder, self.model, report, backbone)

    @property
    def _keeps(self) -> bool:
        """Whether this process writes what a run is continued from."""
        return bool(self.args.should_save and self.args.save_strategy != "no")

    def _load_complete(self, checkpoint: Path) -> float:
        """The end of a stage that was cut off behind its last step, where the parent would take one step more."""
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        best = self.state.best_model_checkpoint
        wanted = best if best is not None and self.args.load_best_model_at_end else str(checkpoint)
        self._load_from_checkpoint(wanted)
        return next((float(logs["loss"]) for logs in self.state.log_history[::-1] if "loss" in logs), float("nan"))

    def _load_from_checkpoint(self, checkpoint_path: str, *args: Any) -> None:
        """Weights of the model, and the state of the loss, which the parent knows nothing of."""
        folder = Path(checkpoint_path)
        if self.backbone is not None and self._is_live:
            self.backbone.load(folder / LOSS_STATE)
        loaded = run_folder.load_modules(folder)
        for own, saved in zip(list(self.model)[1:], list(loaded)[1:], strict=True):
            own.load_state_dict(saved.state_dict())
        state = load_file(folder / LOSS_STATE)
        self.loss.load_training_state({name: value for name, value in state.items() if not name.startswith(PREFIX)})
