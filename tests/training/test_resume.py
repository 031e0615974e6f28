"""Resume and continual compression: every checkpoint of every stage, other settings refused, published compressors."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from smec_st import Compressor, DataError
from training_world import assert_equal, make_trainer, weights

EVERY = {"save_steps": 2, "save_total_limit": 20, "max_steps": 6, "selection_steps": 4}


RUNS = {"grow": {"selection_ratio": 1.5}, "shrink": {}, "grow, hidden": {"hidden_dim": 24}}


@pytest.fixture(scope="module", params=RUNS)
def whole(request, tmp_path_factory):
    """A run whose checkpoints are all kept aside, by stage and step, and its end."""
    folder = tmp_path_factory.mktemp(request.param.replace(", ", "-"))
    settings = {"order": request.param.partition(",")[0], **EVERY, **RUNS[request.param]}
    trainer = make_trainer(folder / "run", **settings)
    save, kept = trainer._save_stage, {}

    def keeping(stage_folder, report):
        for checkpoint in stage_folder.glob("checkpoint-*"):
            kept[trainer.stage.index, int(checkpoint.name.split("-")[1])] = (
                folder / f"{trainer.stage.index}-{checkpoint.name}"
            )
            shutil.copytree(checkpoint, kept[trainer.stage.index, int(checkpoint.name.split("-")[1])])
        save(stage_folder, report)

    trainer._save_stage = keeping
    trainer.train()
    return settings, folder / "run", kept, weights(trainer), trainer


@pytest.mark.slow
def test_every_checkpoint_of_every_stage_continues_to_the_same_bits(whole, tmp_path):
    settings, run, kept, end, trainer = whole
    steps = sum(trainer.steps_of(stage) for stage in trainer.plan)
    assert len(kept) == steps // settings["save_steps"]
    for number, ((index, step), checkpoint) in enumerate(kept.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        shutil.copy(run / "run.json", folder)
        for stage in trainer.plan[:index]:
            shutil.copytree(run / stage.name, folder / stage.name)
        shutil.copytree(checkpoint, folder / trainer.plan[index].name / f"checkpoint-{step}")
        resumed = make_trainer(folder, **settings)
        reports = resumed.train(resume_from_checkpoint=True)
        assert_equal(end, weights(resumed))
        assert [report.steps for report in reports] == [resumed.steps_of(stage) for stage in resumed.plan]


def test_finished_stages_leave_final_and_no_checkpoints(whole):
    _, run, _, _, trainer = whole
    for stage in trainer.plan:
        assert [path.name for path in (run / stage.name).iterdir()] == ["final"]
        assert json.loads((run / stage.name / "final" / "stage.json").read_text())["stage"] == stage.name


def test_a_finished_run_is_not_trained_again(whole):
    settings, run, _, end, _ = whole
    again = make_trainer(run, **settings)
    again.loss.begin_step = None  # a step would fail
    again.train(resume_from_checkpoint=True)
    assert_equal(end, weights(again))


def test_a_run_with_other_settings_is_refused(whole):
    settings, run, _, _, _ = whole
    for change, name in (
        ({"seed": 7}, "seed"),
        ({"learning_rate": 0.5}, "learning_rate"),
        ({"memory": 32}, "memory"),
        ({"per_device_train_batch_size": 8}, "batch"),
    ):
        other = make_trainer(run, **{**settings, **change})
        with pytest.raises(DataError, match=rf"other settings \({name}\)"):
            other.train(resume_from_checkpoint=True)


# -- continual --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A compressor as its users get it, the data, and what its sizes give."""
    rng = np.random.default_rng(0)
    corpus = rng.standard_normal((150, 24)).astype(np.float32)
    queries = corpus[:60] + 0.5 * rng.standard_normal((60, 24)).astype(np.float32)
    pairs = np.stack([np.arange(60), np.arange(60)], axis=1)
    settings = {"steps": 8, "batch_size": 16, "memory": 64, "random_rows": 32, "candidates": ("adapted and ranked",)}
    folder = tmp_path_factory.mktemp("published") / "compressor"
    Compressor.fit(corpus, queries, pairs, dims=(12, 6), **settings).save(folder)
    return folder, (corpus, queries, pairs)


@pytest.mark.slow
def test_sizes_added_to_a_published_compressor_leave_the_others_bit_for_bit(published, tmp_path):
    folder, (corpus, queries, pairs) = published
    before = Compressor.load(folder)
    once = before.extend(corpus, queries, pairs, dims=(18, 9, 3))
    once.save(tmp_path / "once")
    twice = Compressor.load(tmp_path / "once").extend(corpus, queries, pairs, dims=(24, 4))
    assert twice.dims == (24, 18, 12, 9, 6, 4, 3)
    for dim in before.dims:
        assert np.array_equal(before.transform(corpus, dim), twice.transform(corpus, dim))
    for dim in once.dims:
        assert np.array_equal(once.transform(corpus, dim), twice.transform(corpus, dim))
    wide = twice.transform(corpus, 24)[:, :12]
    prefix = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    assert prefix == pytest.approx(before.transform(corpus, 12), abs=1e-6)
    assert twice.fingerprint != before.fingerprint


def test_a_published_compressor_is_extended_without_labels_or_on_other_data(published):
    folder, (corpus, queries, _) = published
    before = Compressor.load(folder)
    other = np.random.default_rng(1).standard_normal((80, 24)).astype(np.float16)
    for data in ((corpus, queries), (other,)):
        after = before.extend(*data, dims=(18,))
        assert np.array_equal(before.transform(corpus, 6), after.transform(corpus, 6))
        assert torch.as_tensor(after.transform(corpus, 18)).norm(dim=1).allclose(torch.ones(150))


@pytest.mark.parametrize(
    ("dims", "message"), [((12,), "size 12 exists already"), ((48,), "must not exceed"), ((), "at least one")]
)
def test_sizes_that_cannot_be_added_are_refused(published, dims, message):
    folder, data = published
    with pytest.raises(DataError, match=message):
        Compressor.load(folder).extend(*data, dims=dims)
