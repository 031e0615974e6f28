"""What the staged trainer does beside training: per-step state, checkpoints of the loss, one progress bar."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from tqdm.auto import tqdm
from transformers import TrainerCallback

if TYPE_CHECKING:
    from smec_st.trainer import SequentialTrainer

LOSS_STATE = "smec_state.safetensors"  # written last, so it also marks a checkpoint as complete


class StepCallback(TrainerCallback):
    """What happens once per optimizer step and per checkpoint, whatever the number of forwards."""

    def __init__(self, trainer: SequentialTrainer) -> None:
        self.trainer = trainer

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the memory on and draw the selection's noise, both as functions of (seed, stage, step)."""
        stage = self.trainer.stage
        self.trainer.loss.begin_step(stage.index, state.global_step)
        _, selection = self.trainer.last_pair()
        if selection.logits.requires_grad:
            done = state.global_step / max(args.max_steps, 1)
            first, last = args.selection_tau
            selection.draw(args.seed, stage.index, state.global_step, tau=first + (last - first) * done)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the loss's state into the checkpoint, last of all."""
        if args.should_save:
            path = os.path.join(args.output_dir, f"checkpoint-{state.global_step}", LOSS_STATE)
            state_of = {**self.trainer.loss.training_state(), **self.trainer.backbone_state()}
            tensors = {name: value.contiguous() for name, value in state_of.items()}
            save_file(tensors, path + ".partial")
            os.replace(path + ".partial", path)


class PlanProgress(TrainerCallback):
    """One bar for the whole plan."""

    def __init__(self, trainer: SequentialTrainer) -> None:
        self.trainer = trainer
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar at the first stage; name the stage."""
        if not state.is_world_process_zero:
            return
        trainer = self.trainer
        if self.bar is None:
            steps = [trainer.steps_of(stage) for stage in trainer.plan]
            done = sum(report.steps for report in trainer.reports) + state.global_step
            total = sum(steps) if min(steps) > 0 else None
            self.bar = tqdm(total=total, initial=done, unit="step", dynamic_ncols=True)
        stage = trainer.stage
        self.bar.set_description(f"{stage.phase} {stage.out_dim} dims ({stage.index + 1}/{len(trainer.plan)})")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step on."""
        if self.bar is not None:
            self.bar.update()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar behind the last stage."""
        if self.bar is not None and self.trainer.stage.index == len(self.trainer.plan) - 1:
            self.bar.close()
            self.bar = None
