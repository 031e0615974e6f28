"""The staged trainer (SMRL): stages are trained one after the other, and each is frozen when it ends."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from torch import Tensor, nn
from transformers.integrations import TensorBoardCallback
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK, TRAINER_STATE_NAME
from transformers.trainer_callback import EarlyStoppingCallback, PrinterCallback, TrainerState

from smec_st.data import Table
from smec_st.evaluation.choice import first_unbeaten
from smec_st.losses.ranks import same_on_all_ranks, total, world_size
from smec_st.losses.smec import SMECLoss
from smec_st.modules import AdaptiveDimensionSelection, LiveBackbone, ResidualAdapter
from smec_st.quantization.choice import FIT_ROWS, CodesWanted, start_of_rounding
from smec_st.quantization.pairs import pairs_to_try
from smec_st.quantization.rounding import Rounding
from smec_st.quantization.starts import sample_rows
from smec_st.stages import Order, Stage, StageReport, default_dims, plan_stages
from smec_st.system.matmul import fast_matmul
from smec_st.training import run_folder
from smec_st.training.arguments import SequentialTrainingArguments
from smec_st.training.backbone import PREFIX, BackboneInTraining
from smec_st.training.callbacks import LOSS_STATE, Diagnostics, PlanProgress, StepCallback
from smec_st.training.collator import VectorCollator
from smec_st.training.moments import forget_moments
from smec_st.training.new_modules import new_modules
from smec_st.training.sampler import SpreadPairSampler

if TYPE_CHECKING:
    from datasets import Dataset

#: Arguments that stages set for themselves.
STAGE_ARGUMENTS = ("max_steps", "learning_rate", "lr_scheduler_type")
Guard = Callable[[SentenceTransformer, tuple[int, ...]], np.ndarray]


class SequentialTrainer(SentenceTransformerTrainer):
    """Run a plan of stages: each trains its own modules, then freezes them.

    ``train()`` is a loop over the stages. Each begins with its modules appended to the model and everything before
    them frozen, runs the parent's ``train()``, and ends with its modules frozen as well. When an ``adapt`` stage ends,
    the stages to come read their vectors through it, once each, and pass it by during training. With a ``guard``, held
    out queries decide whether a stage keeps what it learned or goes back to its start.

    Finished stages are saved under ``output_dir/stage-…/final``. With ``resume_from_checkpoint=True`` they are loaded
    and skipped, and the running one continues from its last complete checkpoint, bit for bit.

    Args:
        model: A model whose first module is :class:`~smec_st.modules.EmbeddingInput`; finished stages may follow. Or
            :class:`~smec_st.modules.LiveBackbone`, with an :class:`~smec_st.data.EncodedTable` of the same backbone:
            then what is trainable of it trains with the first stage, and is frozen with it.
        args: :class:`SequentialTrainingArguments`.
        table: Frozen vectors by row id; its rows are what the dataset's columns name.
        stages: The plan; None to make it from ``args``.
        distinct: Passed to the sampler.
        unlabelled_dataset: Dataset of the stages that learn from neighbourhoods alone, with the column ``anchor``;
            None for ``train_dataset``.
        adapter: What the first stage trains, with whatever weights it begins from; None to make one from ``args``.
        codes: How many bytes documents will be stored in: every stage but ``adapt``, if one of its sizes can be stored
            so, trains through the rounding as well. None to train on floats alone.
        guard: Scores a model at some sizes on each held-out query, ``(q, sizes)``, higher is better; see
            :meth:`smec_st.evaluation.evaluator.HeldOutEvaluator.per_query`. None to keep every trained result.
        **kwargs: As for :class:`~sentence_transformers.SentenceTransformerTrainer`. ``train_dataset`` has the integer
            columns ``anchor`` and, with labels, ``document``.
    """

    args: SequentialTrainingArguments
    optimizer: torch.optim.Optimizer | None
    lr_scheduler: Any
    train_dataset: Any
    training_args_class = SequentialTrainingArguments

    def __init__(
        self,
        model: SentenceTransformer,
        args: SequentialTrainingArguments,
        *,
        table: Table,
        loss: SMECLoss,
        stages: tuple[Stage, ...] | None = None,
        distinct: bool = True,
        unlabelled_dataset: Dataset | None = None,
        codes: CodesWanted | None = None,
        guard: Guard | None = None,
        adapter: ResidualAdapter | None = None,
        **kwargs: Any,
    ) -> None:
        order: Order = "shrink" if args.order == "shrink" else "grow"
        self.plan = stages or plan_stages(
            table.width,
            args.dims or default_dims(table.width),
            order,
            adapt=args.adapt_steps > 0 and loss.relevance is not None and not isinstance(model[0], LiveBackbone),
            selection_ratio=args.selection_ratio,
        )
        self.table = table
        self.distinct = distinct
        self.guard = guard
        self.codes = codes
        if codes is not None:
            sizes = {size for stage in self.plan if stage.phase != "adapt" for size in stage.sizes}
            widest_first = sorted(sizes, reverse=True)
            pairs_to_try(widest_first, widest_first, bytes=codes.bytes)  # refuses what nothing can be stored in
        self._first_adapter = adapter
        self.reports: list[StageReport] = []
        self.stage = self.plan[0]
        self.batch_sampler: SpreadPairSampler | None = None
        self._of_run = {name: getattr(args, name) for name in STAGE_ARGUMENTS}
        if args.fsdp or args.deepspeed:
            raise ValueError("Stages are trained with DDP: leave `fsdp` and `deepspeed` out; a compressor is small.")
        model.model_card_data.generate_widget_examples = False
        self.backbone = BackboneInTraining(model, table) if isinstance(model[0], LiveBackbone) else None
        kwargs.setdefault("data_collator", VectorCollator(preprocess_fn=model.preprocess, table=table))
        super().__init__(model=model, args=args, loss=loss, **kwargs)
        self._labelled_dataset, self._unlabelled_dataset = self.train_dataset, unlabelled_dataset
        for callback in (DEFAULT_PROGRESS_CALLBACK, PrinterCallback):  # in a notebook, the first is a table
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
                change if the total batch size stays the same.
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
            self.args.output_dir = str(root)
            for name, value in self._of_run.items():
                setattr(self.args, name, value)
            self.progress.close()
        return self.reports

    def _one_run_for_all_stages(self, root: Path) -> None:
        """Give all stages one name and folder: experiment trackers take each ``train()`` of the parent for a run."""
        self.args.run_name = self.args.run_name or root.name
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
                callback.logging_dir = str(root / "runs")

    @property
    def steps_done(self) -> int:
        """Optimizer steps of all finished stages."""
        return sum(report.steps for report in self.reports)

    def steps_of(self, stage: Stage) -> int:
        """Return the optimizer steps of a stage; -1 if epochs decide."""
        own = {"select": self.args.selection_steps, "adapt": self.args.adapt_steps}
        return int(own.get(stage.phase, self._of_run["max_steps"]))

    def _begin_stage(self, stage: Stage, root: Path) -> None:
        """Append the stage's modules, freeze all others, and make trainer, wrapper and loss forget the last stage."""
        self.stage = stage
        adapter, selection = self._stage_modules(stage)
        self.model.requires_grad_(False)
        if stage.phase != "select":
            for part in (adapter.hidden, adapter.residual, adapter.narrow):
                if part is not None:
                    part.requires_grad_(True)
        if stage.phase in ("select", "joint"):
            selection.logits.requires_grad_(True)
        is_live = self._is_live
        if self.backbone is not None and is_live:
            self.backbone.begin()
        self.data_collator.live = is_live
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, EarlyStoppingCallback):
                callback.early_stopping_patience_counter = 0  # each stage has its own patience
        self.optimizer, self.lr_scheduler = None, None  # else the last stage's optimizer goes on, over frozen weights
        # Else the first log counts terms of the last stage.
        self.accum_loss_components: dict[str, Any] = {"train": {}, "eval": {}}
        self.accelerator.free_memory()
        self.model_wrapped = self.model  # else DDP keeps the last stage's parameter list
        self.loss.model = self.model  # else the loss calls the last stage's wrapper
        for module in list(self.model)[1:-2]:
            module.is_finished = True
        self.loss.begin_stage(stage, live=is_live, prepared=self._is_prepared)
        self.loss.rounding = self._rounding(stage)
        learns_from_labels = self.loss.ranks or self._unlabelled_dataset is None
        self.train_dataset = self._labelled_dataset if learns_from_labels else self._unlabelled_dataset
        self.args.output_dir, self.args.max_steps = str(root / stage.name), self.steps_of(stage)
        is_adapt = stage.phase == "adapt"
        self.args.learning_rate = (
            self.args.adapt_rate / self.table.width if is_adapt else self._of_run["learning_rate"]
        )
        self.args.lr_scheduler_type = "constant" if is_adapt else self._of_run["lr_scheduler_type"]

    @torch.no_grad()
    def _rounding(self, stage: Stage) -> Rounding | None:
        """The codes that this stage trains through, fitted to what its modules give before they train."""
        if self.codes is None or stage.phase == "adapt":
            return None
        rows = self.table[torch.from_numpy(sample_rows(self.table.corpus_size, self.args.seed, FIT_ROWS))]
        embedding = self.loss.mapped(rows.to(self.model.device))["sentence_embedding"].float().cpu().numpy()
        start = same_on_all_ranks(start_of_rounding(embedding, stage.sizes, self.codes.bytes, self.args.seed))
        if start is None:
            return None
        rotation, codec = start
        return Rounding(codec, rotation).requires_grad_(False).to(self.model.device)

    def _end_stage(self, stage: Stage, loss: float, steps: int, seconds: float) -> StageReport:
        adapter, selection = self.last_pair()
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise FloatingPointError(
                f"{stage.name} diverged (its weights are no longer finite); lower `learning_rate`."
            )
        loss = float(total(torch.tensor(loss, device=self.args.device))) / world_size()  # each knows its own rows'
        self._freeze_backbone()
        report = StageReport(stage=stage.name, dim=stage.out_dim, steps=steps, seconds=seconds, loss=loss)
        if isinstance(self.loss.rounding, Rounding):
            codec = self.loss.rounding.codec
            report.rounding = {"precision": codec.precision, "dim": codec.dim, "bytes": codec.bytes}
        chosen = selection.freeze()
        if stage.phase in ("select", "joint"):
            report.selected = chosen.tolist()
            if stage.order == "grow":  # what was not chosen is never needed again
                adapter.keep_outputs(chosen)
                selection.renumber()
        self.model.requires_grad_(False)
        if stage.phase in ("compress", "joint") and self.guard is not None:
            report.decision = same_on_all_ranks(self._decide(stage, adapter))
        if stage.phase == "adapt":
            self._read_through(adapter)
        return report

    @torch.no_grad()
    def _decide(self, stage: Stage, adapter: ResidualAdapter) -> dict[str, Any]:
        """Keep what the stage learned, or return to its start; held-out queries decide, over all its sizes."""
        assert self.guard is not None
        scores = {}
        for name, strength in (("start", 0.0), ("trained", 1.0)):
            adapter.strength.fill_(strength)
            scores[name] = self.guard(self.model, stage.sizes).mean(axis=1)
        decision = first_unbeaten(scores)
        adapter.strength.fill_(float(decision.chosen == "trained"))
        return decision.to_dict()

    def _read_through(self, adapter: ResidualAdapter) -> None:
        """Make training read the vectors that a finished map of the full width has moved."""
        self.table = self.table.moved(adapter.linear_map().detach().cpu())
        self.data_collator.table = self.table
        self.loss.read_from(self.table)

    @property
    def _is_prepared(self) -> bool:
        """Whether the table holds the output of the finished modules, as it does after an adapt stage."""
        return any(stage.phase == "adapt" for stage in self.plan[: self.stage.index])

    @property
    def keeps_rows_orthonormal(self) -> bool:
        """Whether the running stage trains a linear map on neighbourhoods alone.

        Then nothing is gained by stretching the vectors, and an orthonormal map loses nothing at full width.
        """
        is_whole = self.stage.phase == "compress" and self.stage.have == 0 and self.args.start == "principal"
        is_whole = is_whole and self._first_adapter is None
        return is_whole and not self.args.hidden_dim and not self.loss.ranks

    # -- a backbone that trains ---------------------------------------------------------------------------------------

    @property
    def _is_live(self) -> bool:
        return self.backbone is not None and self.backbone.is_live

    @property
    def trained_backbone(self) -> bool:
        """Whether a backbone trains, or trained, with the first stage."""
        return self.backbone is not None and self.backbone.trains

    def training_state(self) -> dict[str, Tensor]:
        """Return what a checkpoint of the model lacks: the state of the loss, and of a backbone while it trains."""
        backbone = self.backbone.state() if self.backbone is not None and self._is_live else {}
        return {**self.loss.training_state(), **backbone}

    def _freeze_backbone(self) -> None:
        if self.backbone is not None and self._is_live:
            self.backbone.finish()
            forget_moments(self.table)

    # -- modules ------------------------------------------------------------------------------------------------------

    def last_pair(self) -> tuple[ResidualAdapter, AdaptiveDimensionSelection]:
        """Return adapter and selection of the running stage."""
        adapter, selection = list(self.model)[-2:]
        assert isinstance(adapter, ResidualAdapter)
        assert isinstance(selection, AdaptiveDimensionSelection)
        return adapter, selection

    def _stage_modules(self, stage: Stage) -> tuple[ResidualAdapter, AdaptiveDimensionSelection]:
        follows_selection = stage.index > 0 and self.plan[stage.index - 1].phase == "select"
        if not follows_selection:
            finished = list(self.model)[1:]
            for module in new_modules(
                stage,
                self.args,
                self.table,
                finished,
                ranks=self.loss.will_rank,
                adapter=self._first_adapter if stage.index == 0 else None,
            ):
                self.model.append(module.to(self.model.device))
        return self.last_pair()

    # -- trainer hooks ------------------------------------------------------------------------------------------------

    def get_batch_sampler(
        self,
        dataset: Dataset,
        batch_size: int,
        drop_last: bool,
        valid_label_columns: list[str] | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
    ) -> SpreadPairSampler:
        """Make the sampler; every stage draws other batches, which are cut into one part per rank."""
        ranks = self.args.world_size
        columns = dataset.with_format("numpy")[:]  # a column alone would come row by row, through Python
        anchors = columns["anchor"]
        documents = columns.get("document", anchors)
        self.batch_sampler = SpreadPairSampler(
            dataset,
            batch_size * ranks,
            drop_last,
            seed=self.args.seed * 1009 + self.stage.index,
            pairs=np.stack([anchors, documents], axis=1),
            distinct=self.distinct and "document" in columns,
            parts=ranks,
        )
        return self.batch_sampler

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Optimize what this stage trains; the selection has its own learning rate and no weight decay."""
        optimizer = self.optimizer
        if optimizer is None:
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
            optimizer = self.optimizer = cls(groups, **kwargs)
        return optimizer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the stage, its diagnostics, and a step that counts over all stages, which trackers draw over."""
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
        """Add no callback: the stock card would print whole vectors as examples, and the compressor writes its own."""

    # -- saving and resuming ------------------------------------------------------------------------------------------

    def _settings_of_run(self) -> dict[str, Any]:
        """Return the settings that the result depends on."""
        args = self.args
        names = (
            "seed", "num_train_epochs", "warmup_steps", "optim", "weight_decay", "max_grad_norm", "start",
            "hidden_dim", "narrow_hidden_dim", "activation", "adapt_rate", "selection_learning_rate", "selection_tau",
            "backbone_learning_rate", "bf16", "fp16",
        )  # fmt: skip
        batch = args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps
        table = [self.table.corpus_size, self.table.query_size, self.table.width]
        settings = {
            "stages": [f"{stage.name}-{stage.candidates}-{stage.sizes}-{self.steps_of(stage)}" for stage in self.plan],
            "batch": batch,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "rows": [*table, len(self._labelled_dataset)],
            "memory": None if self.loss.memory is None else self.loss.memory.capacity,
            "loss": self.loss.get_config_dict(),
            "trains_backbone": self.trained_backbone,
            "bytes": None if self.codes is None else self.codes.bytes,
            **self._of_run,
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
            if self.plan[0].phase == "adapt":
                self._read_through(self.model[1])
        return len(self.reports)

    def _save_stage(self, folder: Path, report: StageReport) -> None:
        if self._keeps:
            backbone = None if self.backbone is None else self.backbone.state()
            run_folder.save_stage(folder, self.model, report, backbone)

    @property
    def _keeps(self) -> bool:
        """Whether this process writes the files that a run is continued from."""
        return bool(self.args.should_save and self.args.save_strategy != "no")

    def _load_complete(self, checkpoint: Path) -> float:
        """End a stage that was interrupted after its last step; the parent would train one more step."""
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        best = self.state.best_model_checkpoint
        wanted = best if best is not None and self.args.load_best_model_at_end else str(checkpoint)
        self._load_from_checkpoint(wanted)
        return next((float(logs["loss"]) for logs in self.state.log_history[::-1] if "loss" in logs), float("nan"))

    def _load_from_checkpoint(self, checkpoint_path: str, *args: Any) -> None:
        """Load the weights of the model, and the state of the loss, which the parent does not load."""
        folder = Path(checkpoint_path)
        if self.backbone is not None and self._is_live:
            self.backbone.load(folder / LOSS_STATE)
        loaded = run_folder.load_modules(folder)
        for own, saved in zip(list(self.model)[1:], list(loaded)[1:], strict=True):
            own.load_state_dict(saved.state_dict())
        state = load_file(folder / LOSS_STATE)
        self.loss.load_training_state({name: value for name, value in state.items() if not name.startswith(PREFIX)})
