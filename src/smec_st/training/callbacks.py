"""Callbacks of the staged trainer: per-step state, checkpoints of the loss, and one progress bar."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState

from smec_st.functional import top_k_indices
from smec_st.losses.smec import SMECLoss
from smec_st.modules import AdaptiveDimensionSelection, ResidualAdapter
from smec_st.stages import Stage
from smec_st.training.arguments import SequentialTrainingArguments
from smec_st.training.sampler import SpreadPairSampler

LOSS_STATE = "smec_state.safetensors"  # written last, so it also marks a checkpoint as complete


class StagedTrainer(Protocol):
    """What the callbacks read of a :class:`~smec_st.training.trainer.SequentialTrainer`."""

    plan: tuple[Stage, ...]
    stage: Stage
    loss: SMECLoss
    batch_sampler: SpreadPairSampler | None

    @property
    def steps_done(self) -> int:
        """Optimizer steps of all finished stages."""

    @property
    def keeps_rows_orthonormal(self) -> bool:
        """Whether the rows of the map are made orthonormal after each step."""

    def steps_of(self, stage: Stage) -> int:
        """Return the optimizer steps of a stage; -1 when epochs decide."""

    def last_pair(self) -> tuple[ResidualAdapter, AdaptiveDimensionSelection]:
        """Return adapter and selection of the running stage."""

    def training_state(self) -> dict[str, Tensor]:
        """Return everything that a checkpoint of the model lacks."""


class StepCallback(TrainerCallback):
    """Updates state once per optimizer step and per checkpoint, whatever the number of forward passes."""

    def __init__(self, trainer: StagedTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(
        self, args: SequentialTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell the sampler the epoch: on several processes a resumed loader does not (transformers 5.23)."""
        sampler = self.trainer.batch_sampler
        if sampler is not None:
            steps = -(-(len(sampler) // args.world_size) // args.gradient_accumulation_steps)
            sampler.set_epoch(state.global_step // steps)

    def on_step_begin(
        self, args: SequentialTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move the memory on and draw the selection's noise, both as functions of (seed, stage, step)."""
        stage = self.trainer.stage
        self.trainer.loss.begin_step(stage.index, state.global_step)
        _, selection = self.trainer.last_pair()
        if selection.logits.requires_grad:
            done = state.global_step / max(args.max_steps, 1)
            first, last = args.selection_tau
            selection.draw(args.seed, stage.index, state.global_step, tau=first + (last - first) * done)

    def on_optimizer_step(
        self, args: SequentialTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the rows of a map that learns from neighbourhoods alone orthonormal."""
        if self.trainer.keeps_rows_orthonormal:
            self.trainer.last_pair()[0].orthonormalize()

    def on_save(
        self, args: SequentialTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the loss's state into the checkpoint, as its last file."""
        if args.should_save:
            path = os.path.join(args.output_dir, f"checkpoint-{state.global_step}", LOSS_STATE)
            tensors = {name: value.contiguous() for name, value in self.trainer.training_state().items()}
            save_file(tensors, path + ".partial")
            os.replace(path + ".partial", path)


class GradientMeter:
    """Variance of a matrix's gradients over steps, by block of rows (output dimensions).

    SMEC's argument for training sizes in sequence is that their gradients disturb each other; this is its measure
    while a stage trains: the variance of each weight's gradient over the steps, mean over the block.
    """

    def __init__(self) -> None:
        self._steps = 0

    def add(self, gradient: Tensor) -> None:
        """Add one step's gradient, ``(rows, columns)``."""
        if self._steps == 0:
            self._first = gradient.detach().clone()  # sums of differences to it lose no digits
            self._total, self._squares = torch.zeros_like(self._first), torch.zeros_like(self._first)
        change = gradient.detach() - self._first
        self._total += change
        self._squares.addcmul_(change, change)
        self._steps += 1

    def take(self, edges: Sequence[int]) -> list[float]:
        """Return the variance of the blocks between ``edges`` since the last call; none before two steps."""
        steps, self._steps = self._steps, 0
        if steps < 2:
            return []
        variance = (self._squares - self._total.square() / steps).clamp_min(0) / steps
        return [float(variance[first:last].mean()) for first, last in pairwise(edges)]


class Diagnostics(TrainerCallback):
    """Figures that are logged together with the loss of a stage."""

    def __init__(self, trainer: StagedTrainer) -> None:
        self.trainer = trainer
        self.gradients = GradientMeter()
        self._kept: set[int] = set()

    def on_train_begin(
        self, args: SequentialTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Reset the figures: every stage has its own."""
        self.gradients.take([])
        self._kept = self._selected()

    def on_pre_optimizer_step(
        self, args: SequentialTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the gradient of the whole step, accumulated and averaged over ranks."""
        gradient = self.trainer.last_pair()[0].residual.weight.grad
        if gradient is not None:
            self.gradients.add(gradient)

    def take(self) -> dict[str, float]:
        """Return temperature, memory, changes of the selection, and gradient variance since the last call."""
        trainer = self.trainer
        found: dict[str, float] = trainer.loss.diagnostics()
        _, selection = trainer.last_pair()
        if selection.logits.requires_grad:
            kept = self._selected()
            found["selection_churn"] = len(kept - self._kept) / selection.keep
            found["selection_tau"] = selection.tau
            self._kept = kept
        edges = self._edges()
        for (first, last), variance in zip(pairwise(edges), self.gradients.take(edges), strict=False):
            have = trainer.stage.have
            found[f"gradient_variance_{have + first}_{have + last}"] = variance
        return found

    def _selected(self) -> set[int]:
        _, selection = self.trainer.last_pair()
        return set(top_k_indices(selection.logits.detach().float(), selection.keep).tolist())

    def _edges(self) -> list[int]:
        """Return where the blocks of the adapter's outputs begin and end: at the sizes of the stage."""
        stage, rows = self.trainer.stage, self.trainer.last_pair()[0].out_dim
        inside = {size - stage.have for size in (*stage.sizes, *(other.out_dim for other in self.trainer.plan))}
        return [0, *sorted(edge for edge in inside if 0 < edge < rows), rows]


class PlanProgress(TrainerCallback):
    """One bar for the whole plan: the stage, the steps of all stages, the time left, the last loss."""

    def __init__(self, trainer: StagedTrainer) -> None:
        self.trainer = trainer
        self.title = ""  # of the run, where there are several
        self.bar: Any = None

    def on_train_begin(
        self, args: SequentialTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar at the first stage; name the stage."""
        if not state.is_world_process_zero:
            return
        trainer = self.trainer
        done = trainer.steps_done + state.global_step
        # Where epochs decide, the stages to come take as many steps as this one.
        steps = [trainer.steps_of(stage) for stage in trainer.plan[trainer.stage.index + 1 :]]
        total = trainer.steps_done + state.max_steps + sum(count if count > 0 else state.max_steps for count in steps)
        if self.bar is None:
            self.bar = tqdm(total=total, initial=done, unit="step", dynamic_ncols=True)
        self.bar.total = total  # less than was thought when a stage stopped early
        stage = trainer.stage
        place = f"{stage.phase} {stage.out_dim} dims ({stage.index + 1}/{len(trainer.plan)})"
        self.bar.set_description(f"{self.title}: {place}" if self.title else place)

    def on_step_end(
        self, args: SequentialTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Advance the bar by one step."""
        if self.bar is not None:
            self.bar.update()

    def on_log(
        self,
        args: SequentialTrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the loss."""
        if self.bar is not None and logs and "loss" in logs:
            self.bar.set_postfix_str(f"loss {float(logs['loss']):.4g}")

    def close(self) -> None:
        """Close the bar: the plan has ended, or was interrupted."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
