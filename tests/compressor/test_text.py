"""Texts and images in the loop: a frozen backbone, one that trains, LoRA, prompts, Router, image-text, resume."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from smec_st import Compressor, DataError
from smec_st.compressor.text import trained_compressor
from smec_st.data import EncodedTable, number_pairs
from smec_st.evaluation.metrics import evaluate_retrieval
from smec_st.modules import EmbeddingInput
from smec_st.quantization.choice import CodesWanted
from text_world import make_pairs, make_trainer
from tiny_models import tiny_clip, tiny_model, tiny_router, tiny_static


def state(backbone):
    return {name: value.clone() for name, value in backbone.state_dict().items()}


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


# -- frozen -----------------------------------------------------------------------------------------------------------


def test_frozen_backbone_encodes_each_item_once_and_serves_what_was_trained(tmp_path, monkeypatch):
    backbone = tiny_model(tmp_path / "bert")
    before, seen = state(backbone), []
    encode = type(backbone).encode

    def counting(self, inputs, *args, **kwargs):
        if self is backbone:
            seen.extend(inputs)
        return encode(self, inputs, *args, **kwargs)

    monkeypatch.setattr(type(backbone), "encode", counting)
    trainer = make_trainer(backbone, tmp_path / "out")
    trainer.train()
    assert sorted(seen) == sorted(set(seen))
    assert changed(before, state(backbone)) == set()
    compressor = trained_compressor(trainer, backbone)
    assert compressor.dims == (8, 4)
    assert compressor.is_nested
    small = compressor.attach(backbone).encode(["w1 w2"], truncate_dim=4, normalize_embeddings=True)
    expected = compressor.transform(backbone.encode(["w1 w2"]), dim=4)
    assert small == pytest.approx(expected, abs=1e-5)


def test_frozen_items_are_encoded_only_when_needed(tmp_path):
    backbone = tiny_model(tmp_path / "bert")
    table = EncodedTable(backbone, [f"w{i}" for i in range(30)], ["w1 w2"])
    assert table.is_encoded.sum() == 0
    first = table[torch.tensor([3, 30, 3])]
    assert np.flatnonzero(table.is_encoded).tolist() == [3, 30]
    assert first[0].equal(first[2])
    assert first[1].numpy() == pytest.approx(backbone.encode_query("w1 w2"), abs=1e-6)


def test_queries_and_documents_have_their_own_prompts_in_and_out_of_training(tmp_path):
    backbone = tiny_model(tmp_path / "bert", prompts={"query": "query : ", "passage": "document : "})
    del backbone.prompts["document"]
    table = EncodedTable(backbone, ["w1 w2"], ["w1 w2"])
    document, query = table[torch.tensor([0, 1])]
    assert not document.allclose(query)
    assert document.numpy() == pytest.approx(backbone.encode("document : w1 w2"), abs=1e-6)
    backbone.eval()
    for row, side, vector in ((0, "document", document), (1, "query", query)):
        live = backbone(table.inputs(torch.tensor([row]), side))["sentence_embedding"][0]
        assert live.detach().numpy() == pytest.approx(vector.numpy(), abs=1e-6)


# -- trained ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "order"), [("bert", "grow"), ("qwen2", "shrink")])
def test_backbone_trains_with_the_first_stage_and_is_frozen_with_it(tmp_path, kind, order):
    backbone = tiny_model(tmp_path / kind, kind)
    trainer = make_trainer(
        backbone, tmp_path / "out", order=order, train_backbone=True, backbone_learning_rate=1e-3, memory=32
    )
    start, after = state(backbone), []
    end = trainer._end_stage

    def recording(*arguments):
        report = end(*arguments)
        after.append(state(backbone))
        return report

    trainer._end_stage = recording
    trainer.train()
    assert any("layers.0" in name or "layer.0" in name for name in changed(start, after[0]))
    assert all(changed(after[0], later) == set() for later in after[1:])
    assert isinstance(trainer.model[0], EmbeddingInput)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert len(trainer.loss.memory) > 0
    rows = torch.arange(5)
    assert trainer.table[rows].numpy() == pytest.approx(backbone.encode(trainer.table.items(rows.numpy())), abs=1e-5)
    assert trained_compressor(trainer, backbone).info["trained_backbone"]


def test_gradients_of_a_training_backbone_are_those_of_a_plain_computation(tmp_path):
    """Against InfoNCE written out, at full width and at both sizes, over the batch's own documents.

    The loss of 8 dims does not see that it could change the first 4.
    """
    backbone = tiny_model(tmp_path / "bert")
    settings = {"alignment_weight": 0.0, "source_weight": 0.5}
    trainer = make_trainer(backbone, tmp_path / "out", train_backbone=True, memory=0, loss=settings)
    trainer._begin_stage(trainer.plan[0], tmp_path)
    backbone.eval()
    rows = [trainer.train_dataset[i] for i in range(2, 8)]  # no query twice
    batch = trainer.data_collator(rows)
    features, labels = trainer.collect_features(batch)
    terms = trainer.loss(features, labels)
    sum(terms.values()).backward()
    learned = {n: p.grad.clone() for n, p in backbone.named_parameters() if p.grad is not None}
    assert set(terms) == {"rank", "source_rank"}
    backbone.zero_grad()
    anchors, documents = (backbone(trainer.table.inputs(labels[:, side], name))["sentence_embedding"]
                          for side, name in ((0, "query"), (1, "document")))  # fmt: skip
    weight = trainer.model[1].start.detach()
    target = torch.arange(len(rows))
    small = [rows @ weight.T for rows in (anchors, documents)]

    def infonce(product, length, other):
        cosine = product / length.sqrt()[:, None] / other.sqrt()
        return torch.nn.functional.cross_entropy(cosine / trainer.loss.settings.tau, target)

    def parts(a, d):
        return a @ d.T, a.square().sum(dim=1), d.square().sum(dim=1)

    first, rest = (parts(*(rows[:, columns] for rows in small)) for columns in (slice(4), slice(4, 8)))
    total = infonce(*first) + infonce(*(x.detach() + y for x, y in zip(first, rest, strict=True)))
    total = total + 0.5 * infonce(*parts(anchors, documents))
    assert sum(terms.values()).item() == pytest.approx(total.item(), rel=1e-4)
    total.backward()
    for name, gradient in learned.items():
        expected = dict(backbone.named_parameters())[name].grad
        assert torch.allclose(gradient, expected, atol=1e-5), name


def test_lora_trains_the_adapters_alone(tmp_path):
    from peft import LoraConfig

    backbone = tiny_model(tmp_path / "qwen2", "qwen2")
    backbone.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="FEATURE_EXTRACTION"))
    before = state(backbone)
    trainer = make_trainer(backbone, tmp_path / "out", train_backbone=True, backbone_learning_rate=1e-2)
    trainer.train()
    moved = changed(before, state(backbone))
    assert moved
    assert all("lora_" in name for name in moved)
    assert all("lora_" in name for name in trainer.backbone.state() if "rotary" not in name and "position" not in name)


def test_router_trains_both_sides(tmp_path):
    backbone = tiny_router(tmp_path / "router")
    before = state(backbone)
    make_trainer(backbone, tmp_path / "out", train_backbone=True, backbone_learning_rate=1e-2).train()
    moved = changed(before, state(backbone))
    assert any(".query." in name for name in moved)
    assert any(".document." in name for name in moved)


@pytest.mark.parametrize("train_backbone", [False, True])
def test_image_text_pairs_train_through_the_same_parts(tmp_path, train_backbone):
    backbone = tiny_clip(tmp_path / "clip")
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)) for _ in range(24)]
    pairs = Dataset.from_dict({"caption": [f"w{i}" for i in range(24)], "image": images})
    before = state(backbone)
    trainer = make_trainer(
        backbone, tmp_path / "out", pairs, train_backbone=train_backbone, backbone_learning_rate=1e-3
    )
    trainer.train()
    moved = changed(before, state(backbone))
    assert any("vision" in name for name in moved) == train_backbone
    assert any("text" in name for name in moved) == train_backbone
    small = trained_compressor(trainer, backbone).attach(backbone, dim=4)
    assert small.encode(images[:2]).shape == small.encode(["w1", "w2"]).shape == (2, 4)


def test_the_sweep_sees_a_training_backbone_as_it_is(tmp_path):
    from smec_st.evaluation.dimension_sweep import DimensionSweepEvaluator

    prompts = {"query": "query : ", "document": "document : "}
    backbone = tiny_model(tmp_path / "bert", prompts=prompts)
    trainer = make_trainer(backbone, tmp_path / "out", train_backbone=True, backbone_learning_rate=1e-2)
    pairs = number_pairs(make_pairs())
    evaluator = DimensionSweepEvaluator.from_table(trainer.table, pairs.qrels, [8, 4], metrics=("ndcg@10",))
    trainer.evaluator, live = evaluator, []
    end = trainer.backbone.finish
    trainer.backbone.finish = lambda: live.append(evaluator(trainer.model)) or end()
    trainer.train()
    texts = DimensionSweepEvaluator(pairs.corpus, pairs.queries, pairs.qrels, [8, 4], metrics=("ndcg@10",))
    served = texts(trained_compressor(trainer, backbone).attach(backbone))
    assert live[0] == pytest.approx(served, abs=1e-3)
    assert evaluator(trainer.model) == pytest.approx(served, abs=1e-3)


# -- through the rounding ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_training_through_the_rounding_is_no_worse_at_that_many_bytes_and_the_codes_are_saved(tmp_path):
    pairs, backbone = make_pairs(200), tiny_static()
    qrels, scores = number_pairs(pairs).qrels, {}
    settings = {"dims": [16, 8], "max_steps": 60, "per_device_train_batch_size": 32, "memory": 200}
    settings |= {"train_backbone": True, "backbone_learning_rate": 0.03, "loss": {"random_rows": 128}}
    for bytes in (None, 1):
        backbone = tiny_static()
        trainer = make_trainer(backbone, tmp_path / "out", pairs, bytes=bytes, **settings)
        trainer.train()
        trainer.codes = CodesWanted(1, trainer.table, qrels)  # also for what was trained on floats alone
        compressor = trained_compressor(trainer, backbone)
        head, rows = compressor.head(bytes=1), trainer.table[torch.arange(len(trainer.table))].numpy()
        codes, queries = head.encode(rows[:200]), head.queries(rows[200:])
        scores[bytes] = evaluate_retrieval(head.decode(codes), queries, qrels, ("ndcg@10",))["ndcg@10"].mean()
    assert min(scores.values()) > 0.6  # 0.722 and 0.729
    assert scores[1] > scores[None] - 0.005
    compressor.save(tmp_path / "saved")
    saved = Compressor.load(tmp_path / "saved").head(bytes=1)
    assert np.array_equal(saved.encode(backbone.encode_document(trainer.table.items(np.arange(200)))), codes)
    assert saved.scores(queries, codes).shape == (len(queries), 200)
    assert [stage["rounding"]["bytes"] for stage in compressor.info["stages"]] == [1]
    assert compressor.head(8, "float32").dim == 8  # floats are there as before


@pytest.mark.parametrize("order", ["grow", "shrink"])
def test_every_stage_that_can_be_stored_so_trains_through_the_rounding(tmp_path, order):
    trainer = make_trainer(tiny_model(tmp_path / "bert"), tmp_path / "out", order=order, bytes=4)
    reports = trainer.train()
    named = [None if report.rounding is None else report.rounding["bytes"] for report in reports]
    assert named == ([None, 4] if order == "grow" else [4, 4])  # the adapt stage has none


@pytest.mark.slow
def test_without_bytes_nothing_changes(tmp_path):
    runs = []
    for bytes in (None, None, 2):
        trainer = make_trainer(tiny_model(tmp_path / "bert"), tmp_path / "out", bytes=bytes)
        trainer.train()
        assert (trainer.loss.rounding is None) == (bytes is None)
        runs.append(state(trainer.model))
    assert changed(runs[0], runs[1]) == set()
    assert changed(runs[0], runs[2])


def test_bytes_that_fit_no_size_are_refused_before_training(tmp_path):
    with pytest.raises(DataError, match=r"no size of this compressor \(8, 4\) can be stored in 64 bytes"):
        make_trainer(tiny_model(tmp_path / "bert"), tmp_path / "out", bytes=64)
    trainer = make_trainer(tiny_model(tmp_path / "bert"), tmp_path / "out", bytes=np.int64(4))
    assert type(trainer.codes.bytes) is int  # FAISS takes no number of numpy


# -- resume -----------------------------------------------------------------------------------------------------------


class CutOff(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("order", "stage", "step", "bytes"),
    [("grow", 0, 4, None), ("grow", 0, 4, 2), ("shrink", 0, 4, None), ("shrink", 1, 2, None), ("shrink", 1, 2, 2)],
)
def test_resume_with_a_training_backbone_ends_bit_identical(tmp_path, order, stage, step, bytes):
    runs = {}
    for name in ("whole", "cut"):
        settings = {"train_backbone": True, "backbone_learning_rate": 1e-3, "memory": 32, "held_out_share": 0.5}
        settings |= {"save_strategy": "steps", "save_steps": 2, "order": order, "bytes": bytes}
        backbone = tiny_model(tmp_path / name)
        trainer = make_trainer(backbone, tmp_path / f"{name}-out", **settings)
        if name == "cut":
            begin = trainer.loss.begin_step

            def failing(at_stage, at_step, begin=begin):
                if (at_stage, at_step) == (stage, step):
                    raise CutOff
                begin(at_stage, at_step)

            trainer.loss.begin_step = failing
            with pytest.raises(CutOff):
                trainer.train()
            backbone = tiny_model(tmp_path / name)
            trainer = make_trainer(backbone, tmp_path / f"{name}-out", **settings)
            trainer.train(resume_from_checkpoint=True)
        else:
            trainer.train()
        runs[name] = {**state(backbone), **state(trainer.model)}
    assert changed(runs["whole"], runs["cut"]) == set()


# -- pairs ------------------------------------------------------------------------------------------------------------


def test_pairs_are_numbered_by_item():
    columns = {"q": ["a", "b", "a"], "d": ["x", "x", "y"], "n": ["z", "y", "a"], "score": [0.4, 2.0, 0.0]}
    pairs = number_pairs(Dataset.from_dict(columns))
    assert pairs.queries == ["a", "b"]
    assert pairs.corpus == ["x", "y", "z", "a"]
    assert pairs.qrels.pairs.tolist() == [[0, 0], [1, 0]]
    assert pairs.qrels.grades.tolist() == [1, 0, 2]  # y for a: judged, not relevant
    assert pairs.own_document.tolist() == [3, -1]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"q": ["a"]}, "two columns"),
        ({"q": [], "d": []}, "0 rows"),
        ({"q": ["a", " "], "d": ["x", "y"]}, "column q is empty in row 1"),
        ({"q": ["a"], "d": ["x"], "label": [0]}, "nowhere above 0"),
        ({"q": ["a"], "d": ["x"], "label": [1], "score": [0.5]}, "label and score may grade the pairs"),
    ],
)
def test_unusable_pairs_are_refused_in_one_line(columns, message):
    with pytest.raises(DataError, match=message):
        number_pairs(Dataset.from_dict(columns))


def test_a_backbone_that_gives_no_direction_is_named(tmp_path):
    backbone = tiny_model(tmp_path / "bert")
    with torch.no_grad():
        backbone[0].model.embeddings.LayerNorm.weight.fill_(float("nan"))
    table = EncodedTable(backbone, ["w1"], ["w2"])
    with pytest.raises(DataError, match="query 0 a vector of zeros, NaN"):
        table[torch.tensor([1])]


def test_a_training_backbone_needs_its_texts(tmp_path):
    trainer = make_trainer(tiny_model(tmp_path / "bert"), tmp_path / "out", train_backbone=True)
    from smec_st import SequentialTrainer, VectorTable

    table = VectorTable(np.eye(16, dtype=np.float32))
    with pytest.raises(ValueError, match="must be an EncodedTable"):
        SequentialTrainer(trainer.model, trainer.args, table=table, loss=trainer.loss)
