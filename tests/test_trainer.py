"""The staged trainer: freezing, resets, the guard, determinism, resume, two processes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from smec_st.arguments import SequentialTrainingArguments
from smec_st.data import Qrels, VectorTable
from smec_st.evaluation import HeldOutEvaluator
from smec_st.guard import STRENGTHS, best_strength
from smec_st.losses import Relevance, SMECLoss
from smec_st.memory import SelectableCrossBatchMemory
from smec_st.modules import AdaptiveDimensionSelection, EmbeddingInput, ResidualAdapter
from smec_st.trainer import SequentialTrainer

WIDTH, DIMS = 16, [8, 4]


def make_trainer(
    folder: Path, *, order: str = "grow", memory: int = 64, judged: bool = True, guarded: bool = True, **arguments
):
    own = {name: arguments.pop(name) for name in ("evaluator", "callbacks") if name in arguments}
    rng = np.random.default_rng(0)
    signal_, nuisance = rng.standard_normal((120, 5)), 2 * rng.standard_normal((120, 11))
    corpus = np.concatenate([signal_, nuisance], axis=1).astype(np.float32)
    queries = np.concatenate([signal_[:80], 2 * rng.standard_normal((80, 11))], axis=1).astype(np.float32)
    mix = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0].astype(np.float32)
    table = VectorTable(corpus @ mix, queries @ mix)
    rows = np.arange(60)
    model = SentenceTransformer(modules=[EmbeddingInput(WIDTH)], device="cpu")
    relevance = Relevance(Qrels(rows, rows, np.ones(60)), table) if judged else None
    loss = SMECLoss(model, table, relevance, SelectableCrossBatchMemory(WIDTH, memory), random_rows=40, stream_rows=7)
    held = np.arange(60, 80)
    settings = {
        "output_dir": str(folder),
        "dims": DIMS,
        "order": order,
        "start": "principal" if order == "grow" else "identity",
        "max_steps": 12,
        "selection_steps": 6,
        "per_device_train_batch_size": 16,
        "save_strategy": "steps",
        "save_steps": 5,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        **arguments,
    }
    columns = {"anchor": table.query_ids(rows)}
    if judged:
        columns["document"] = rows
    return SequentialTrainer(
        model,
        SequentialTrainingArguments(**settings),
        table=table,
        loss=loss,
        train_dataset=Dataset.from_dict(columns),
        guard=HeldOutEvaluator(table, Qrels(held, held, np.ones(20))).per_query if guarded else None,
        distinct=judged,
        **own,
    )


def weights(trainer: SequentialTrainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("order", ["grow", "shrink"])
@pytest.mark.parametrize("judged", [True, False])
def test_trainer_trains_each_stage_and_leaves_finished_ones_alone(tmp_path, monkeypatch, order, judged):
    trainer = make_trainer(tmp_path, order=order, judged=judged)
    after: list[dict[str, torch.Tensor]] = []
    end = SequentialTrainer._end_stage

    def recording(self, *arguments):
        report = end(self, *arguments)
        after.append(weights(self))
        return report

    monkeypatch.setattr(SequentialTrainer, "_end_stage", recording)
    reports = trainer.train()
    assert len(reports) == len(trainer.plan) == len(after)
    for stage, before, now in zip(trainer.plan[1:], after, after[1:], strict=False):
        own = {"select": 0, "adapt": 2, "joint": 0}[stage.phase]  # modules it goes on with: the last of `before`
        finished = [name for name in before if int(name.split(".")[0]) <= _modules(before) - own]
        assert_equal({name: before[name] for name in finished}, {name: now[name] for name in finished})
    residuals = [m.residual.weight for m in trainer.model if isinstance(m, ResidualAdapter)]
    assert len(residuals) == 2
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
    selections = [m for m in trainer.model if isinstance(m, AdaptiveDimensionSelection)]
    assert [s.keep for s in selections] == [4, 4]
    assert all(s.frozen for s in selections)


def test_trainer_selects_before_it_adapts_and_says_what_it_selected(tmp_path):
    trainer = make_trainer(tmp_path)
    reports = trainer.train()
    assert [stage.phase for stage in trainer.plan] == ["adapt", "select", "adapt"]
    assert [len(report.selected) for report in reports] == [0, 4, 0]
    assert [report.steps for report in reports] == [12, 6, 12]
    assert reports[1].selected == sorted(set(reports[1].selected))


def test_guard_leaves_the_strength_it_reports(tmp_path):
    trainer = make_trainer(tmp_path)
    reports = [report for report in trainer.train() if report.held_out]
    adapters = [module for module in trainer.model if isinstance(module, ResidualAdapter)]
    assert [set(report.held_out) for report in reports] == [{f"{strength:g}" for strength in STRENGTHS}] * 2
    assert [report.strength for report in reports] == [float(adapter.strength) for adapter in adapters]


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ([0.5, 0.5, 0.5, 0.5, 0.5], 1.0),  # from result to start; equal: all of it
        ([0.9, 0.8, 0.6, 0.3, 0.1], 1.0),
        ([0.3, 0.4, 0.5, 0.6, 0.7], 0.0),
        ([0.5, 0.6, 0.62, 0.6, 0.5], 0.5),
        ([0.70, 0.68, 0.60, 0.705, 0.50], 1.0),  # one lucky point
        ([0.60, 0.59, 0.58, 0.57, 0.602], 0.0),  # no gain over the start
    ],
)
def test_best_strength_follows_the_curve_and_not_a_lucky_point(means, expected):
    scores = {strength: np.full(20, mean) for strength, mean in zip(STRENGTHS, means, strict=True)}
    assert best_strength(scores) == expected


@pytest.mark.parametrize(
    ("gain", "proven", "expected"),
    [(0.05, False, 0.0), (0.3, False, 1.0), (0.05, True, 1.0), (-0.05, True, 0.0)],
)
def test_best_strength_is_the_start_where_the_gain_may_be_chance(gain, proven, expected):
    spread = np.tile([-1.0, 1.0], 10)  # of the difference to the start: a standard error of 0.23
    scores = {strength: strength * (gain + spread) for strength in STRENGTHS}
    assert best_strength(scores, proven) == expected


@pytest.mark.parametrize(("first", "expected"), [(0.1, 0.0), (0.3, 1.0)])
def test_training_that_has_proven_itself_needs_no_more_proof(tmp_path, first, expected):
    """The second size gains a fifth of a standard error; that is kept where the first gained more than one."""
    trainer = make_trainer(tmp_path, selection_ratio=1.0)
    spread = np.tile([-1.0, 1.0], 10)

    def score(_):
        adapter, _ = trainer.last_pair()
        return float(adapter.strength) * ((first if trainer.stage.index == 0 else 0.05) + spread)

    trainer.guard = score
    assert [report.strength for report in trainer.train()] == [expected, expected]


@pytest.mark.parametrize("judged", [True, False])
def test_with_labels_a_stage_begins_from_axes_as_long_as_the_frozen_columns(tmp_path, judged):
    trainer = make_trainer(tmp_path, judged=judged, guarded=False, learning_rate=0.5, selection_ratio=1.0)
    trainer.train()
    first, second = (m for m in trainer.model if isinstance(m, ResidualAdapter))
    corpus = trainer.table[torch.arange(trainer.table.corpus_size)]
    columns = first.linear_map()
    basis = torch.linalg.qr(columns.T).Q.T
    length = (corpus @ columns.T).norm() / (corpus @ basis.T).norm()
    assert length > 1.2
    length = length if judged else 1.0
    grams = second.start @ torch.cat([second.start, columns]).T
    expected = torch.cat([length**2 * torch.eye(4), torch.zeros(4, 4)], dim=1)
    assert torch.allclose(grams, expected, atol=1e-4 * float(length) ** 2)


def test_guard_goes_back_to_the_start_when_training_misled(tmp_path):
    trainer = make_trainer(tmp_path, learning_rate=5.0, selection_ratio=1.0)  # far too high: destroys what it touches
    reports = trainer.train()
    assert reports[0].strength < 1
    assert reports[0].held_out[f"{reports[0].strength:g}"] >= reports[0].held_out["0"]


@pytest.mark.parametrize("proven", [False, True])
def test_a_start_that_nothing_learned_has_proven_is_the_leading_axes(tmp_path, monkeypatch, proven):
    """What ADS chose for the second size went by the labels; it stands where these have done good, and only there."""
    begin = AdaptiveDimensionSelection.set_importance  # ADS prefers the last axes here, not the leading ones
    monkeypatch.setattr(AdaptiveDimensionSelection, "set_importance", lambda self, by: begin(self, by.flip(0)))
    trainer = make_trainer(tmp_path, selection_learning_rate=1e-6)
    judged = []

    def score(_):
        adapter, _ = trainer.last_pair()
        is_first = trainer.stage.index == 0
        judged.append((trainer.stage.index, float(adapter.strength), adapter.start.clone()))
        return np.full(20, float(adapter.strength) * (1.0 if is_first and proven else -1.0))

    trainer.guard = score
    reports = trainer.train()
    assert [report.strength for report in reports if report.held_out] == [float(proven), 0.0]
    chosen = next(report.selected for report in reports if report.selected)
    assert chosen == [4, 5, 6, 7]
    first, second = (module for module in trainer.model if isinstance(module, ResidualAdapter))
    candidates = trainer._principal_axes(trainer.plan[1])
    expected = candidates[chosen] if proven else candidates[:4]
    assert torch.allclose(second.start, expected, atol=1e-5)
    at_zero = [start for index, strength, start in judged if index == 2 and strength == 0]
    assert torch.equal(at_zero[0], second.start)
    results = [start for index, strength, start in judged if index == 2 and strength > 0]
    assert all(torch.allclose(start, candidates[chosen], atol=1e-5) for start in results)
    if not proven:
        outputs = trainer.model({"sentence_embedding": torch.eye(WIDTH)})["sentence_embedding"].T
        assert torch.equal(outputs, torch.cat([first.start, second.start]))


def test_trainer_says_so_when_a_stage_diverges(tmp_path):
    trainer = make_trainer(tmp_path, learning_rate=1e30)
    with pytest.raises(FloatingPointError, match="stage-00-grow-4-adapt diverged.*lower `learning_rate`"):
        trainer.train()


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


@pytest.mark.parametrize("order", ["grow", "shrink"])
@pytest.mark.parametrize(("stage", "step"), [(0, 3), (0, 11), (1, 3), (1, 5), (1, 11), (2, 8)])
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


def test_resume_passes_over_a_checkpoint_whose_writing_was_cut_off(tmp_path):
    whole = make_trainer(tmp_path / "whole")
    whole.train()
    cut = make_trainer(tmp_path / "cut")
    begin = cut.loss.begin_step

    def failing(at_stage: int, at_step: int) -> None:
        if (at_stage, at_step) == (0, 11):
            raise CutOff
        begin(at_stage, at_step)

    cut.loss.begin_step = failing
    with pytest.raises(CutOff):
        cut.train()
    newest = tmp_path / "cut" / cut.plan[0].name / "checkpoint-10"
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
    from test_trainer import make_trainer, weights
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
    script.write_text(TWO_RANKS.format(tests=str(Path(__file__).parent)))
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
