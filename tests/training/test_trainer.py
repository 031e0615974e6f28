"""The staged trainer: freezing, resets, the guard, determinism, resume, two processes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback

from paths import HELPERS
from smec_st.modules import AdaptiveDimensionSelection, ResidualAdapter
from smec_st.training.trainer import SequentialTrainer
from training_world import DIMS, WIDTH, assert_equal, make_trainer, weights


@pytest.mark.parametrize(
    ("settings", "judged", "phases"),
    [
        ({}, True, ["adapt", "compress"]),
        ({}, False, ["compress"]),
        ({"selection_ratio": 1.5}, True, ["adapt", "select", "compress"]),
        ({"order": "shrink"}, True, ["joint", "joint"]),
        ({"order": "shrink"}, False, ["joint", "joint"]),
    ],
)
def test_trainer_trains_each_stage_and_leaves_finished_ones_alone(tmp_path, monkeypatch, settings, judged, phases):
    trainer = make_trainer(tmp_path, judged=judged, **settings)
    after: list[dict[str, torch.Tensor]] = []
    end = SequentialTrainer._end_stage

    def recording(self, *arguments):
        report = end(self, *arguments)
        after.append(weights(self))
        return report

    monkeypatch.setattr(SequentialTrainer, "_end_stage", recording)
    reports = trainer.train()
    assert [stage.phase for stage in trainer.plan] == phases
    assert len(reports) == len(trainer.plan) == len(after)
    for before, now, stage in zip(after, after[1:], trainer.plan, strict=False):
        goes_on = 2 if stage.phase == "select" else 0  # the next stage trains the modules that ADS chose from
        finished = [name for name in before if int(name.split(".")[0]) <= _modules(before) - goes_on]
        assert_equal({name: before[name] for name in finished}, {name: now[name] for name in finished})
    residuals = [m.residual.weight for m in trainer.model if isinstance(m, ResidualAdapter)]
    assert len(residuals) == len(set(phases) - {"select", "joint"}) + 2 * ("joint" in phases)
    assert all(residual.abs().max() > 0 for residual in residuals)
    assert not any(parameter.requires_grad for parameter in trainer.model.parameters())


def _modules(state: dict[str, torch.Tensor]) -> int:
    """Index of the last module."""
    return max(int(name.split(".")[0]) for name in state)


def test_trainer_grows_a_nested_map_that_ends_as_wide_as_asked(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    out = trainer.model({"sentence_embedding": torch.eye(WIDTH)})["sentence_embedding"]
    assert out.shape == (WIDTH, max(DIMS))
    assert all(m.frozen for m in trainer.model if isinstance(m, AdaptiveDimensionSelection))


def test_trainer_selects_before_it_compresses_and_says_what_it_selected(tmp_path):
    trainer = make_trainer(tmp_path, selection_ratio=1.5)
    reports = trainer.train()
    assert [len(report.selected) for report in reports] == [0, 8, 0]
    assert [report.steps for report in reports] == [8, 6, 12]
    assert reports[1].selected == sorted(set(reports[1].selected))


@pytest.mark.slow
def test_smaller_sizes_are_trained_as_if_there_were_no_larger_ones(tmp_path):
    """SMRL in one pass: the columns of a size do not know of the sizes above."""
    maps = []
    for name, dims in (("alone", [4]), ("both", [8, 4])):
        trainer = make_trainer(tmp_path / name, dims=dims)
        trainer.train()
        maps.append(trainer.last_pair()[0].linear_map()[:4])
    torch.testing.assert_close(maps[0], maps[1], rtol=1e-4, atol=1e-5)


def test_stages_after_the_adapt_stage_read_moved_vectors_and_fold_to_the_same_map(tmp_path):
    trainer = make_trainer(tmp_path)
    before = trainer.table
    trainer.train()
    rows = torch.arange(len(before))
    moved = torch.nn.functional.normalize(before[rows] @ trainer.model[1].linear_map().T, dim=1)
    torch.testing.assert_close(trainer.table[rows], moved)
    assert trainer.data_collator.table is trainer.table
    one = trainer.model({"sentence_embedding": before[rows]})["sentence_embedding"]
    known = trainer.model({"sentence_embedding": moved, "finished_embedding": moved})["sentence_embedding"]
    one, known = (torch.nn.functional.normalize(x, dim=1) for x in (one, known))
    torch.testing.assert_close(one, known, rtol=1e-4, atol=1e-5)


def test_the_adapt_stage_has_its_own_rate_and_the_others_get_theirs_back(tmp_path):
    rates = {}

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            rates.setdefault(trainer.stage.phase, []).append(trainer.optimizer.param_groups[0]["lr"])

    trainer = make_trainer(tmp_path, callbacks=[Watch()], learning_rate=0.03)
    trainer.train()
    assert set(rates["adapt"]) == {trainer.args.adapt_rate / WIDTH}
    assert max(rates["compress"]) <= 0.03 < 0.031
    assert rates["compress"][0] > rates["compress"][-1]
    assert (trainer.args.learning_rate, trainer.args.max_steps) == (0.03, 12)


def test_without_labels_rows_stay_orthonormal_and_full_width_keeps_all_similarities(tmp_path):
    trainer = make_trainer(tmp_path, judged=False, guarded=False, dims=[WIDTH, 4])
    trainer.train()
    rows = trainer.last_pair()[0].linear_map()
    torch.testing.assert_close(rows @ rows.T, torch.eye(WIDTH), rtol=0, atol=1e-5)
    assert (rows[:4] - trainer.last_pair()[0].start[:4]).abs().max() > 1e-3


@pytest.mark.parametrize(("gain", "chosen"), [(-0.1, "start"), (0.01, "start"), (0.2, "trained")])
def test_guard_keeps_what_was_trained_only_where_that_surely_gains(tmp_path, gain, chosen):
    trainer = make_trainer(tmp_path)
    asked = []

    def score(model, sizes):
        adapter, _ = trainer.last_pair()
        asked.append((float(adapter.strength), sizes))
        spread = np.tile([-1.0, 1.0], 50) * 0.5  # of the difference: a standard error of 0.05
        return np.stack([float(adapter.strength) * (gain + spread)] * len(sizes), axis=1)

    trainer.guard = score
    *_, report = trainer.train()
    assert asked == [(0.0, (4, 8)), (1.0, (4, 8))]
    assert report.decision["chosen"] == chosen
    assert report.decision["queries"] == 100
    assert float(trainer.last_pair()[0].strength) == float(chosen == "trained")


def test_trainer_says_so_when_a_stage_diverges(tmp_path):
    trainer = make_trainer(tmp_path, learning_rate=1e30)
    with pytest.raises(FloatingPointError, match="stage-01-grow-8-compress diverged.*lower `learning_rate`"):
        trainer.train()


@pytest.mark.slow
@pytest.mark.parametrize("order", ["grow", "shrink"])
def test_trainer_is_deterministic_given_the_seed(tmp_path, order):
    runs = []
    for name in ("a", "b", "c"):
        trainer = make_trainer(tmp_path / name, order=order, seed=1 if name == "c" else 0)
        trainer.train()
        runs.append(weights(trainer))
    assert_equal(runs[0], runs[1])
    assert any(not torch.equal(runs[0][name], runs[2][name]) for name in runs[0])


class CutOff(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("order", ["grow", "shrink"])
@pytest.mark.parametrize(
    ("stage", "step"),
    [(1, 5), *(pytest.param(*at, marks=pytest.mark.slow) for at in [(0, 3), (0, 6), (1, 3), (1, 11), (2, 8)])],
)
def test_resumed_run_ends_bit_identical(tmp_path, order, stage, step):
    whole = make_trainer(tmp_path / "whole", order=order)
    whole.train()
    cut = make_trainer(tmp_path / "cut", order=order)
    begin = cut.loss.begin_step

    def failing(at_stage: int, at_step: int) -> None:
        if (at_stage, at_step) == (stage, step):
            raise CutOff
        begin(at_stage, at_step)

    cut.loss.begin_step = failing
    reached = stage < len(cut.plan) and step < cut.steps_of(cut.plan[stage])
    if reached:
        with pytest.raises(CutOff):
            cut.train()
    else:
        cut.train()
    resumed = make_trainer(tmp_path / "cut", order=order)
    resumed.train(resume_from_checkpoint=True)
    assert_equal(weights(whole), weights(resumed))
    assert [report.stage for report in resumed.reports] == [s.name for s in resumed.plan]


@pytest.mark.slow
def test_resume_passes_over_a_checkpoint_whose_writing_was_cut_off(tmp_path):
    whole = make_trainer(tmp_path / "whole")
    whole.train()
    cut = make_trainer(tmp_path / "cut")
    begin = cut.loss.begin_step

    def failing(at_stage: int, at_step: int) -> None:
        if (at_stage, at_step) == (1, 11):
            raise CutOff
        begin(at_stage, at_step)

    cut.loss.begin_step = failing
    with pytest.raises(CutOff):
        cut.train()
    newest = tmp_path / "cut" / cut.plan[1].name / "checkpoint-10"
    (newest / "smec_state.safetensors").unlink()
    (newest / "optimizer.pt").write_bytes(b"half a fi")
    resumed = make_trainer(tmp_path / "cut")
    resumed.train(resume_from_checkpoint=True)
    assert_equal(weights(whole), weights(resumed))


def test_parent_trainer_trains_nothing_in_a_second_train_call_without_the_reset(tmp_path):
    """Seen in sentence-transformers 6.2 with transformers 5.23: why every stage resets optimizer and wrapper."""
    trainer = make_trainer(tmp_path, selection_ratio=1.0, save_strategy="no")
    trainer.train()
    adapter = trainer.model[1]
    before = adapter.residual.weight.detach().clone()
    adapter.residual.weight.requires_grad_(True)
    super(SequentialTrainer, trainer).train()
    assert torch.equal(before, adapter.residual.weight)


def test_private_loading_hook_of_sentence_transformers_is_there():
    """``_load_with_module_classes``: seen in sentence-transformers 6.2; finished stages are loaded with it."""
    assert callable(SentenceTransformer._load_with_module_classes)


TWO_RANKS = textwrap.dedent(
    """
    import sys, torch
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from training_world import make_trainer, weights
    order, folder = sys.argv[1], Path(sys.argv[2])
    trainer = make_trainer(folder, order=order, ddp_backend="gloo")
    trainer.train()
    torch.save(weights(trainer), folder / f"rank{{trainer.args.process_index}}.pt")
    torch.distributed.barrier()  # a rank that is left alone while it ends may abort
    torch.distributed.destroy_process_group()
    """
)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["grow", "shrink"])
def test_two_processes_end_every_stage_with_equal_weights(tmp_path, order):
    script = tmp_path / "two_ranks.py"
    script.write_text(TWO_RANKS.format(tests=str(HELPERS)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launch, str(script), order, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, other = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert_equal(one, other)
    assert all(one[name].abs().max() > 0 for name in one if name.endswith("residual.weight"))
