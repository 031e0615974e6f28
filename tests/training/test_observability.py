"""What a run says of itself: loss terms, diagnostics, a step that never goes back, trackers, one progress bar."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from smec_st.training.callbacks import GradientMeter
from training_world import make_trainer


def logs_of(trainer):
    seen = []
    callbacks = trainer.callback_handler
    on_log = callbacks.on_log

    def recording(args, state, control, logs):
        seen.append({**logs, "seen_step": state.global_step})
        return on_log(args, state, control, logs)

    callbacks.on_log = recording
    trainer.train()
    return [logs for logs in seen if "loss" in logs]


def test_gradient_variance_is_that_of_each_weight_over_the_steps(rng):
    gradients = rng.standard_normal((7, 6, 5)) + 100
    meter = GradientMeter()
    for gradient in gradients:
        meter.add(torch.from_numpy(gradient))
    variance = gradients.var(axis=0)
    assert meter.take([0, 2, 6]) == pytest.approx([variance[:2].mean(), variance[2:].mean()])
    meter.add(torch.from_numpy(gradients[0]))
    assert meter.take([0, 6]) == []  # one step has no variance


@pytest.mark.slow
@pytest.mark.parametrize("order", ["grow", "shrink"])
def test_logs_say_what_happened_and_steps_never_go_back(tmp_path, order):
    trainer = make_trainer(tmp_path, order=order, logging_steps=3, selection_ratio=1.5, save_strategy="no")
    logs = logs_of(trainer)
    steps = [entry["total_step"] for entry in logs]
    assert steps == sorted(set(steps)) == [entry["seen_step"] for entry in logs]
    assert steps[-1] == sum(report.steps for report in trainer.reports)
    assert sorted({entry["stage"] for entry in logs}) == list(range(len(trainer.plan)))
    for entry in logs:
        adapts = trainer.plan[int(entry["stage"])].phase == "adapt"  # by the labels alone, without the memory
        assert ("alignment" in entry) != adapts
        assert entry["rank"] + entry.get("alignment", 0.0) == pytest.approx(entry["loss"], rel=1e-3)
        assert entry["memory_fill"] == (0 if adapts else 1)
        assert entry["temperature"] > 0
    selecting = [entry for entry in logs if trainer.plan[int(entry["stage"])].phase in ("select", "joint")]
    assert selecting
    assert all(0 <= entry["selection_churn"] <= 1 and entry["selection_tau"] > 0 for entry in selecting)
    assert all("selection_churn" not in entry for entry in logs if entry not in selecting)
    blocks = {name for entry in logs for name in entry if name.startswith("gradient_variance")}
    expected = {"grow": ("0_4", "4_8", "0_8", "8_16"), "shrink": ("0_4", "4_8", "8_16")}[order]
    assert blocks == {f"gradient_variance_{block}" for block in expected}


def test_churn_is_the_share_of_kept_dimensions_that_are_new(tmp_path):
    trainer = make_trainer(tmp_path, order="shrink")
    trainer._begin_stage(trainer.plan[0], tmp_path)
    trainer.diagnostics.on_train_begin(None, None, None)
    _, selection = trainer.last_pair()
    selection.set_importance(torch.arange(16.0, 0, -1))
    trainer.diagnostics.take()
    logits = torch.arange(16.0, 0, -1)
    logits[[0, 1]], logits[[14, 15]] = -1.0, 20.0  # two of the eight kept leave, two others come
    selection.set_importance(logits)
    assert trainer.diagnostics.take()["selection_churn"] == 0.25
    assert trainer.diagnostics.take()["selection_churn"] == 0


def test_tensorboard_gets_one_run_for_all_stages(tmp_path):
    trainer = make_trainer(tmp_path, logging_steps=3, report_to="tensorboard", save_strategy="no")
    trainer.train()
    (tmp_path / "runs").is_dir()
    assert not list(tmp_path.glob("stage-*/runs"))
    events = EventAccumulator(str(tmp_path / "runs"))
    events.Reload()
    scalars = [scalar for scalar in events.Scalars("train/loss")]
    steps = np.array([scalar.step for scalar in scalars])
    assert (np.diff(steps) > 0).all()
    assert {"train/stage", "train/temperature", "train/rank"} <= set(events.Tags()["scalars"])


def test_one_bar_runs_through_all_stages(tmp_path, capsys):
    trainer = make_trainer(tmp_path, disable_tqdm=False, logging_steps=3, save_strategy="no")
    trainer.train()
    shown = capsys.readouterr().err
    assert "20/20" in shown.replace(" ", "")
    assert "adapt 16 dims (1/2)" in shown
    assert "compress 8 dims (2/2)" in shown
    assert "loss" in shown
    assert trainer.progress.bar is None


def test_the_bar_is_closed_when_training_is_interrupted(tmp_path, capsys):
    trainer = make_trainer(tmp_path, disable_tqdm=False, save_strategy="no", learning_rate=1e30)
    with pytest.raises(FloatingPointError):
        trainer.train()
    assert trainer.progress.bar is None


def test_the_bar_knows_the_steps_that_epochs_make(tmp_path, capsys):
    trainer = make_trainer(tmp_path, disable_tqdm=False, save_strategy="no", max_steps=-1, num_train_epochs=2)
    reports = trainer.train()
    total = sum(report.steps for report in reports)
    assert f"{total}/{total}" in capsys.readouterr().err.replace(" ", "")
