"""Several processes over gloo: as many rows in all, the same weights as one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from paths import HELPERS
from smec_st.losses.ranks import any_rank, gather_rows, mean_gradient, same_on_all_ranks, share_of_mean

# What two processes may differ by from one: sums in another order, after up to 12 steps of Adam at a rate of 1e-2.
TOLERANCE = 1e-5

# How each script ends. Threads of gloo may outlive the group, and then the interpreter's own end is an abort.
END = textwrap.dedent(
    """
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    sys.stderr.flush()
    os._exit(0)
    """
)

TRAIN = textwrap.dedent(
    """
    import dataclasses, json, os, sys, torch
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    import text_world, training_world
    from training_world import weights
    from tiny_models import tiny_model
    from smec_st.training.trainer import SequentialTrainer
    rank = os.environ.get("RANK", "0")
    end = SequentialTrainer._end_stage

    def recording(self, *arguments):
        report = end(self, *arguments)
        memory = self.loss.memory.state_dict()
        state = {{**weights(self), **(self.backbone.state() if self.backbone else {{}})}}
        ends.append((report.loss, report.decision, report.selected, state, memory, self.loss.log_scale.data))
        return report

    def make_trainer(folder, loss, texts=False, **settings):
        if texts:
            backbone = tiny_model(Path.cwd() / f"qwen2-{{rank}}", "qwen2")  # has no dropout
            trainer = text_world.make_trainer(backbone, folder, train_backbone=True, **settings)
        else:
            trainer = training_world.make_trainer(folder, **settings)
        trainer.loss.settings = dataclasses.replace(trainer.loss.settings, **loss)
        trainer.loss.read_from(trainer.table)
        return trainer

    SequentialTrainer._end_stage = recording
    for name, settings in json.loads(sys.argv[1]).items():
        folder = Path.cwd() / name
        loss, cut = settings.pop("loss", {{}}), settings.pop("cut", None)
        if "RANK" in os.environ:
            settings["ddp_backend"] = "gloo"
        ends = []
        trainer = make_trainer(folder, loss, **settings)
        if cut:
            begin = trainer.loss.begin_step
            def failing(*at):
                if list(at) == cut:
                    raise InterruptedError
                begin(*at)
            trainer.loss.begin_step = failing
        try:
            trainer.train(resume_from_checkpoint=settings.get("save_strategy") == "steps")
        except InterruptedError:
            trainer = make_trainer(folder, loss, **settings)
            trainer.train(resume_from_checkpoint=True)
        torch.save(ends, Path.cwd() / f"{{name}}-{{trainer.args.process_index}}.pt")
    """
)


def launch(script: Path, processes: int, *arguments: str) -> None:
    command = [sys.executable, str(script), *arguments]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [sys.executable, *launcher, str(script), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, env=environment, cwd=script.parent, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


SETTINGS = {
    # First, as transformers saves a model on the first rank only, once there are ranks. With SGD: Adam makes a step of
    # full length out of a gradient that is zero but for rounding, like that of a key's bias.
    "texts": {"texts": True, "order": "grow", "optim": "sgd", "learning_rate": 0.1, "backbone_learning_rate": 0.1},
    "texts-in-2-bytes": {"texts": True, "bytes": 2, "optim": "sgd", "learning_rate": 0.1},
    "grow": {"order": "grow", "save_strategy": "steps"},
    "grow-select": {"order": "grow", "selection_ratio": 1.5, "loss": {"shadow_share": 0.0, "prefix_gradient": 0.5}},
    "grow-hidden": {"order": "grow", "hidden_dim": 24, "optim": "sgd", "learning_rate": 0.1},
    "grow-without-labels": {"order": "grow", "judged": False, "max_steps": 4},
    "shrink-as-published": {
        "order": "shrink",
        "gradient_accumulation_steps": 2,
        "loss": {"rank": "pairwise", "alignment": "l1", "wide_weight": 1.0, "top_k": 4},
    },
}
CUT = {"cut": {**SETTINGS["grow"], "cut": [1, 7]}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """By number of processes and settings: of each rank, the stages' ends."""
    found = {}
    for processes, settings in ((1, SETTINGS), (2, SETTINGS | CUT)):
        script = tmp_path_factory.mktemp(f"ranks-{processes}") / "train.py"
        script.write_text(TRAIN.format(tests=str(HELPERS)) + END)
        quick = {"save_strategy": "no", "selection_steps": 4, "max_steps": 10}
        given = {n: {**quick, **s, "per_device_train_batch_size": 16 // processes} for n, s in settings.items()}
        launch(script, processes, json.dumps(given))
        for name in settings:
            files = [script.parent / f"{name}-{rank}.pt" for rank in range(processes)]
            found[processes, name] = [torch.load(file, weights_only=True) for file in files]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_with_half_the_batch_train_as_one_with_the_whole(runs, name):
    """Batches of 15 rows: the halves are unequal. The memory (64 of 120 rows) moves."""
    for ranks in zip(*runs[1, name], *runs[2, name], strict=True):  # a stage on each
        (loss, decision, selected, weights, memory, scale), *others = ranks
        for other_loss, *other_choices, other_weights, other_memory, other_scale in others:
            assert other_loss == pytest.approx(loss, rel=1e-4)
            assert other_choices == [decision, selected]
            for key, value in weights.items():
                assert torch.allclose(value, other_weights[key], rtol=0, atol=TOLERANCE), key
            assert all(torch.allclose(value, other_memory[key], atol=TOLERANCE) for key, value in memory.items())
            assert memory["row_ids"].equal(other_memory["row_ids"])
            assert torch.allclose(scale, other_scale, rtol=0, atol=TOLERANCE)
        assert all(torch.equal(others[0][3][key], others[1][3][key]) for key in weights)  # ranks, to the bit
    assert any(value.abs().max() > 0.01 for key, value in weights.items() if key.endswith("residual.weight"))


@pytest.mark.slow
def test_two_processes_resume_to_the_bit(runs):
    for whole, cut in zip(runs[2, "grow"], runs[2, "cut"], strict=True):
        assert len(whole) == len(cut) == 2
        for stage, (expected, found) in enumerate(zip(whole, cut, strict=True)):
            different = [key for key, value in expected[3].items() if not torch.equal(value, found[3][key])]
            assert not different, f"stage {stage}: {different}, {expected[:3]}, {found[:3]}"


RANKS = textwrap.dedent(
    """
    import os, sys, torch, torch.distributed as dist
    from smec_st.losses.ranks import any_rank, gather_rows, mean_gradient, same_on_all_ranks, share_of_mean
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    rows = torch.arange(6.0).reshape(3, 2)[: 1 + rank] + 10 * rank  # 1 row here, 2 there
    gathered, first = gather_rows(rows)
    assert gathered.tolist() == [[0, 1], [10, 11], [12, 13]] and first == rank, gathered
    ids, _ = gather_rows(torch.arange(2 * rank))  # none here
    assert ids.tolist() == [0, 1]
    rows.requires_grad_(True)
    both, _ = gather_rows(rows, with_grad=True)
    (both.sum(dim=1) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()  # each rank the same: gradients add up
    assert rows.grad[:, 0].tolist() == ([2.0] if rank == 0 else [4.0, 6.0]), rows.grad
    assert any_rank(torch.tensor([rank == 0, rank == 1, False])).tolist() == [True, True, False]
    amount, count = torch.tensor(3.0 + rank), torch.tensor(1 + rank)
    mean = share_of_mean(amount, count)
    assert abs(float(gather_rows(mean.view(1))[0].mean()) - 7 / 3) < 1e-6
    assert float(mean_gradient(torch.tensor(float(rank)))) == 0.5
    assert same_on_all_ranks((rank, "a")) == (0, "a")
    """
)


def test_ranks_put_rows_counts_and_choices_together(tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS + END)
    launch(script, 2)


FSDP = textwrap.dedent(
    """
    import warnings; warnings.simplefilter("ignore")
    import copy, os, sys, torch, torch.distributed as dist
    from sentence_transformers import SentenceTransformer
    from torch import nn
    from torch.distributed.fsdp import FullyShardedDataParallel
    from smec_st import SMECLoss, SelectableCrossBatchMemory
    from smec_st.losses.settings import LossSettings
    from smec_st.data import Qrels, VectorTable
    from smec_st.losses.relevance import Relevance
    from smec_st.modules import AdaptiveDimensionSelection, EmbeddingInput, ResidualAdapter
    from smec_st.stages import Stage

    torch.manual_seed(0)
    table = VectorTable(torch.randn(40, 16).numpy(), torch.randn(12, 16).numpy())
    qrels = Qrels(torch.arange(12).numpy(), torch.arange(12).numpy(), torch.ones(12).numpy())
    modules = [EmbeddingInput(16)]
    for have, new, width in ((0, 4, None), (4, 4, 32)):  # a frozen stage, and one with a hidden layer that trains
        adapter = ResidualAdapter(16, new, width, reads="source_embedding", writes="candidate_embedding",
                                  start=torch.randn(new, 16))
        nn.init.normal_(adapter.residual.weight, std=0.1)
        selection = AdaptiveDimensionSelection(new, new, offset=have, reads="candidate_embedding")
        selection.freeze()
        modules += [adapter, selection]
    plain = SentenceTransformer(modules=modules, device="cpu")
    plain.requires_grad_(False)
    plain[3].requires_grad_(True)
    before = copy.deepcopy(plain)

    def step(model, queries):
        memory = SelectableCrossBatchMemory(16, 40)
        loss = SMECLoss(model, table, Relevance(qrels, table), memory, LossSettings(random_rows=8, top_k=3))
        loss.begin_stage(Stage(index=0, order="grow", phase="compress", in_dim=16, out_dim=8, sizes=(6, 8), have=4))
        loss.begin_step(0, 0)
        ids = torch.stack([torch.from_numpy(table.query_ids(queries.numpy())), queries], dim=1)
        columns = [{"sentence_embedding": table[ids[:, side]]} for side in (0, 1)]
        sum(loss(columns, ids).values()).backward()
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1.0).step()

    shared = copy.deepcopy(plain)
    step(plain, torch.arange(12))
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    whole = FullyShardedDataParallel(shared, use_orig_params=True, device_id=torch.device("cpu"))
    step(whole, torch.arange(12)[7 * rank : 7 + 5 * rank])  # 7 rows here, 5 there
    state = whole.state_dict()
    for name, value in plain.state_dict().items():
        assert torch.allclose(state[name], value, atol=1e-6), name
        if not name.startswith("3."):
            assert torch.equal(state[name], before.state_dict()[name]), name
    assert not torch.allclose(state["3.residual.weight"], before[3].residual.weight, atol=1e-3)
    """
)


@pytest.mark.slow
def test_frozen_parts_and_loss_are_safe_under_fsdp(tmp_path):
    """The trainer itself runs DDP; accelerate starts FSDP on accelerators only (1.15)."""
    script = tmp_path / "fsdp.py"
    script.write_text(FSDP + END)
    launch(script, 2)


def test_a_single_process_is_left_alone():
    rows = torch.randn(3, 2)
    assert gather_rows(rows)[0] is rows
    assert any_rank(rows > 0).equal(rows > 0)
    assert mean_gradient(rows) is rows
    assert same_on_all_ranks("x") == "x"
    assert float(share_of_mean(torch.tensor(3.0), torch.tensor(0))) == 3.0
