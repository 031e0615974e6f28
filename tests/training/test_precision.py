"""bfloat16 and gradient accumulation: what must stay in float32 stays there, what must be equal is equal."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from smec_st.modules import AdaptiveDimensionSelection, ResidualAdapter
from training_world import assert_equal, make_trainer, weights


@pytest.mark.slow
@pytest.mark.parametrize("order", ["grow", "shrink"])
def test_bfloat16_leaves_selection_noise_loss_and_weights_in_float32(tmp_path, monkeypatch, order):
    settings = {"order": order, "save_strategy": "no", "selection_ratio": 1.5}
    trainer = make_trainer(tmp_path, **settings, bf16=True)
    seen: dict[str, set[torch.dtype]] = {}

    def note(name, *tensors):
        seen.setdefault(name, set()).update(tensor.dtype for tensor in tensors)

    forward = ResidualAdapter.forward

    def noting(self, features, **options):
        out = forward(self, features, **options)
        if self.writes in out:  # finished adapters are passed by
            note("adapter", out[self.writes])
        return out

    monkeypatch.setattr(ResidualAdapter, "forward", noting)
    draw = AdaptiveDimensionSelection.draw
    monkeypatch.setattr(
        AdaptiveDimensionSelection,
        "draw",
        lambda self, *s, **k: draw(self, *s, **k) or note("selection", self.noise, self.logits),
    )
    loss = trainer.loss.forward
    trainer.loss.forward = lambda *a: note("loss", *(terms := loss(*a)).values()) or terms
    compare = trainer.loss._compare
    trainer.loss._compare = lambda left, right, *a: note("compared", left, right) or compare(left, right, *a)
    asked = []  # start, then trained: what is trained wins

    def guard(model, sizes):
        note("guard", model({"sentence_embedding": torch.eye(16)})["sentence_embedding"])
        asked.append(sizes)
        return np.full((20, len(sizes)), float(len(asked) % 2 == 0)) + np.arange(20)[:, None] / 100

    trainer.guard = guard
    trainer.train()
    assert torch.bfloat16 in seen["adapter"]  # the matrix products of training
    assert seen["loss"] == seen["selection"] == seen["compared"] == {torch.float32}
    assert seen["guard"] == {torch.float32}
    assert all(value.dtype == torch.float32 for name, value in weights(trainer).items() if "indices" not in name)
    out = trainer.model({"sentence_embedding": torch.eye(16)})["sentence_embedding"]
    assert out.dtype == torch.float32
    plain = make_trainer(tmp_path / "plain", **settings, guarded=False)
    plain.train()
    moved = [name for name, value in weights(trainer).items() if name.endswith("residual.weight")]
    for name in moved:
        assert torch.allclose(weights(trainer)[name], weights(plain)[name], atol=0.05)
        assert not torch.equal(weights(trainer)[name], weights(plain)[name])


def test_accumulated_steps_are_steps_of_their_mean_gradient(tmp_path):
    """Two batches a step: as plain SGD over the mean of the two batches' gradients, written out."""
    settings = {"optim": "sgd", "learning_rate": 0.5, "max_steps": 3, "lr_scheduler_type": "constant"}
    trainer = make_trainer(
        tmp_path,
        order="shrink",
        guarded=False,
        gradient_accumulation_steps=2,
        save_strategy="no",
        dims=[8],
        **settings,
    )
    by_hand = make_trainer(tmp_path / "hand", order="shrink", guarded=False, save_strategy="no", dims=[8], **settings)
    trainer.train()
    by_hand._begin_stage(by_hand.plan[0], tmp_path / "hand")
    adapter, selection = by_hand.last_pair()
    batches = iter(batch for epoch in range(3) for batch in _epoch(by_hand, epoch))
    by_hand.loss.train()
    rates = ((adapter.residual.weight, 0.5), (selection.logits, 0.05), (by_hand.loss.log_scale, 0.5))
    for step in range(3):
        by_hand.loss.begin_step(0, step)
        selection.draw(by_hand.args.seed, 0, step, tau=1.0 + (0.1 - 1.0) * step / 3)
        for parameter, _ in rates:
            parameter.grad = None
        for _ in range(2):
            features, labels = by_hand.collect_features(by_hand.data_collator(next(batches)))
            (sum(by_hand.loss(features, labels).values()) / 2).backward()
        with torch.no_grad():
            for parameter, rate in rates:
                parameter -= rate * parameter.grad
    selection.freeze()
    trained = weights(trainer)
    for name, value in weights(by_hand).items():
        assert torch.allclose(trained[name].float(), value.float(), atol=1e-6), name


def _epoch(trainer, epoch):
    sampler = trainer.get_batch_sampler(trainer.train_dataset, 16, drop_last=False)
    sampler.set_epoch(epoch)
    for batch in sampler:
        yield [trainer.train_dataset[row] for row in batch]


@pytest.mark.slow
def test_accumulating_run_resumes_to_the_bit(tmp_path):
    settings = {"gradient_accumulation_steps": 3, "order": "shrink"}
    whole = make_trainer(tmp_path / "whole", **settings)
    whole.train()
    cut = make_trainer(tmp_path / "cut", **settings)
    begin = cut.loss.begin_step

    def failing(stage, step):
        if (stage, step) == (1, 7):
            raise InterruptedError
        begin(stage, step)

    cut.loss.begin_step = failing
    with pytest.raises(InterruptedError):
        cut.train()
    resumed = make_trainer(tmp_path / "cut", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert_equal(weights(whole), weights(resumed))
