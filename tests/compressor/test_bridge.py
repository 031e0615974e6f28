"""A bridge: a new model's queries search an old model's documents; what it keeps, refuses and records."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer

from smec_st import Bridge, BridgedIndex, Compressor, DataError, FunnelIndex, VectorTable
from smec_st.cli import run
from smec_st.compressor.bridge import CONFIG_FILE, WEIGHTS_FILE
from smec_st.data import Qrels, unit_rows
from smec_st.fitting import bridge as fitting
from smec_st.fitting.bridge import Sample, fit_bridge
from smec_st.functional import NEVER, USUAL_SPREAD, alignment_kl, spread
from smec_st.losses.memory import SelectableCrossBatchMemory
from smec_st.losses.settings import LossSettings
from smec_st.losses.smec import SMECLoss, Target
from smec_st.modules import EmbeddingInput, ResidualAdapter
from smec_st.stages import Stage

DOCUMENTS, QUERIES, OLD, NEW = 240, 80, 16, 20


@pytest.fixture(scope="module", autouse=True)
def short():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fitting, "STEPS", 4)
        patched.setattr(fitting, "FOLDS", 2)
        yield


def two_models(seed=0, noise=0.2, old=OLD, new=NEW):
    """Documents and queries as two models see them, and which document each query is about."""
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(DOCUMENTS, 12))
    about = rng.integers(0, DOCUMENTS, QUERIES)
    asked = latent[about] + 0.3 * rng.normal(size=(QUERIES, 12))
    tables = []
    for width in (old, new):
        mix, lean = rng.normal(size=(12, width)), rng.normal(size=width)
        for rows, apart in ((latent, 3.0), (asked, 4.0)):  # a cone, in which queries lie apart from documents
            tables.append((rows @ mix + noise * rng.normal(size=(len(rows), width)) + apart * lean).astype(np.float32))
    return (*tables, np.stack([np.arange(QUERIES), about], axis=1))


# -- the loss and the trainer -----------------------------------------------------------------------------------------


def test_loss_with_a_target_is_the_teachers_neighbourhoods_and_maps_anchors_alone(rng):
    old, old_queries, new, new_queries, _ = two_models()
    table, space = VectorTable(new, new_queries), VectorTable(old, old_queries)
    teacher = VectorTable(new, new_queries)
    model = SentenceTransformer(modules=[EmbeddingInput(NEW)], device="cpu")
    adapter = ResidualAdapter(NEW, OLD, start=torch.from_numpy(rng.normal(size=(OLD, NEW)).astype(np.float32)))
    model.append(adapter)
    memory = SelectableCrossBatchMemory(OLD, DOCUMENTS)
    loss = SMECLoss(model, table, None, memory, LossSettings(), Target(space, teacher))
    stage = Stage(index=0, order="grow", phase="compress", in_dim=NEW, out_dim=OLD)
    loss.begin_stage(stage)
    loss.begin_step(0, 0)
    ids = torch.tensor([3, 7, DOCUMENTS + 2, DOCUMENTS + 5])
    terms = loss([{"sentence_embedding": table[ids]}], torch.stack([ids, torch.full_like(ids, -1)], dim=1))
    assert set(terms) == {"alignment"}
    pool = torch.arange(DOCUMENTS)
    cosine = torch.nn.functional.normalize(table[ids] @ adapter.linear_map().T, dim=1) @ space[pool].T
    stretch = USUAL_SPREAD / min(float(spread(teacher[pool])), USUAL_SPREAD)
    taught = teacher[ids] @ teacher[pool].T * stretch
    for row, document in ((0, 3), (1, 7)):  # a document is no neighbour of itself
        cosine, taught = (x.index_put((torch.tensor(row), torch.tensor(document)), torch.tensor(NEVER)) for x in
                          (cosine, taught))  # fmt: skip
    tau, narrow = LossSettings().alignment_tau, min(float(spread(space[pool])) / USUAL_SPREAD, 1)
    assert narrow < 0.9
    expected = LossSettings().alignment_weight * tau * narrow * alignment_kl(cosine / narrow, taught, tau)
    assert terms["alignment"].item() == pytest.approx(expected.item(), rel=1e-4)
    terms["alignment"].backward()
    assert adapter.residual.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("settings", [{"shadow_share": 0.5}, {"wide_weight": 1.0}])
def test_loss_refuses_settings_that_map_both_sides_beside_a_target(settings):
    old, old_queries, new, new_queries, _ = two_models()
    target = Target(VectorTable(old, old_queries), VectorTable(new, new_queries))
    model = SentenceTransformer(modules=[EmbeddingInput(NEW)], device="cpu")
    memory = SelectableCrossBatchMemory(OLD, 8)
    with pytest.raises(ValueError, match="`target`"):
        SMECLoss(model, VectorTable(new), None, memory, LossSettings(**settings), target)


# -- fitting ----------------------------------------------------------------------------------------------------------


def sample_of(share=1.0, **kwargs):
    old, old_queries, new, new_queries, pairs = two_models(**kwargs)
    size = old.shape[1]
    sides = (unit_rows(side) for side in (old, new, old_queries, new_queries))
    sample = Sample(*sides, (size, size // 2), share, np.full(len(old_queries), -1))
    return sample, Qrels(pairs[:, 0], pairs[:, 1], np.ones(len(pairs)))


@pytest.mark.slow
@pytest.mark.parametrize(("old", "new"), [(16, 20), (24, 12)])
def test_a_bridge_between_linear_views_keeps_nearly_all(old, new):
    sample, qrels = sample_of(old=old, new=new)
    fitted = fit_bridge(sample, qrels)
    assert fitted.kept.ratio > 0.85
    assert fitted.kept.queries == QUERIES
    mapped = fitting.apply(fitted.folded, 3 * sample.new_queries)
    assert mapped.shape == (QUERIES, old)
    np.testing.assert_allclose(np.linalg.norm(mapped, axis=1), 1, atol=1e-5)
    assert np.sum(mapped * sample.old_queries, axis=1).mean() > 0.9


@pytest.mark.slow
def test_training_that_makes_it_worse_is_not_taken(monkeypatch):
    monkeypatch.setattr(fitting, "RATE", 1.0)
    sample, qrels = sample_of()
    fitted = fit_bridge(sample, qrels)
    assert "trained" not in fitted.decision.chosen
    assert fitted.decision.means["ridge, trained"] < fitted.decision.means["ridge"]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_documents_that_held_out_queries_ask_for_leave_the_sample_unless_it_is_the_store(share):
    sample, qrels = sample_of(share)
    seen = []
    for part, held in fitting._folds(sample, qrels, 0):
        seen += held.query_rows.tolist()
        asked = np.unique(held.documents)
        assert len(part.new_corpus) == DOCUMENTS - (0 if share else len(asked))
        assert len(part.new_queries) == QUERIES - len(held.query_rows)
        is_there = (sample.new_corpus[asked, None] == part.new_corpus).all(axis=2).any(axis=1)
        assert is_there.all() if share else not is_there.any()
    assert sorted(seen) == list(range(QUERIES))


@pytest.mark.slow
def test_without_judgements_the_old_models_neighbours_are_relevant():
    sample, _ = sample_of()
    kept = fit_bridge(sample, None).kept
    assert not kept.judged
    assert kept.old[OLD] == pytest.approx(1)
    assert 0.5 < kept.bridged[OLD] < 1


# -- the class --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compressor():
    old = two_models()[0]
    return Compressor.fit(old, dims=(12, 6), method="pca", backbone={"model": "org/old", "revision": "1"})


@pytest.fixture(scope="module")
def bridge(compressor, short):
    return Bridge.fit(*two_models(), compressor=compressor, share=1.0, least=0.8, new={"model": "org/new"})


def test_three_lines_search_compressed_documents_and_a_saved_bridge_is_the_same(bridge, compressor, tmp_path):
    old, _, _, new_queries, pairs = two_models()
    bridge.save(tmp_path / "bridge")
    loaded = Bridge.load(tmp_path / "bridge")
    queries = loaded.transform(new_queries, 12)
    found = (queries @ compressor.transform(old, 12).T).argmax(axis=1)
    assert (found == pairs[:, 1]).mean() > 0.6
    np.testing.assert_array_equal(queries, bridge.transform(new_queries))
    np.testing.assert_allclose(loaded.transform(new_queries[0], 6), unit_rows(queries[:1, :6])[0], atol=1e-6)
    assert loaded.fingerprint == bridge.fingerprint
    assert loaded.space == compressor.fingerprint
    assert (loaded.info["old"]["model"], loaded.info["new"]["model"]) == ("org/old", "org/new")
    assert "keeps" in repr(loaded)
    loaded.check({"model": "org/new"}, "q")
    with pytest.raises(DataError, match="the model is 'org/old', but this bridge reads queries of 'org/new'"):
        loaded.check({"model": "org/old"}, "q")


@pytest.mark.parametrize("spoil", ["weights", "config", "format", "gone", "cut", "activation"])
def test_a_damaged_bridge_is_refused(bridge, tmp_path, spoil):
    folder = tmp_path / "bridge"
    bridge.save(folder)
    config, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    content = json.loads(config.read_text())
    if spoil == "weights":
        tensors = load_file(weights)
        save_file({**tensors, "0.weight": 2 * tensors["0.weight"]}, weights)
    elif spoil == "config":
        content["info"]["new"] = {"model": "another"}
    elif spoil == "format":
        content["format"] = 99
    elif spoil == "activation":
        content["activations"] = ["tanh"]
    elif spoil == "cut":
        weights.write_bytes(weights.read_bytes()[:-9])
    config.write_text("[" if spoil == "gone" else json.dumps(content))
    with pytest.raises(DataError):
        Bridge.load(folder)


def a_row_less(tables):
    tables[2] = tables[2][:-1]
    return "same texts in the same order"


def other_width(tables):
    tables[3] = tables[3][:, :-1]
    return "new queries are 19 wide and new documents 20"


def a_nan(tables):
    tables[1] = np.where(np.arange(QUERIES)[:, None] == 3, np.nan, tables[1])
    return "old query vectors hold NaN"


def few_queries(tables):
    tables[1], tables[3], tables[4] = tables[1][:9], tables[3][:9], tables[4][:9]
    return "20 at least, got 9"


def unrelated(tables):
    tables[2:4] = [np.random.default_rng(1).normal(size=each.shape).astype(np.float32) for each in tables[2:4]]
    return "would keep .* of the old model's ndcg@10"


@pytest.mark.parametrize("spoil", [a_row_less, other_width, a_nan, few_queries, unrelated])
def test_fit_refuses_what_does_not_pair_up_or_keeps_too_little(compressor, spoil):
    tables = list(two_models())
    message = spoil(tables)
    with pytest.raises(DataError, match=message):
        Bridge.fit(*tables, compressor=compressor)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"share": 1.5}, "`share`"), ({"old": {"model": "org/third"}}, "the model is 'org/third'")],
)
def test_fit_refuses_options_that_contradict(compressor, options, message):
    with pytest.raises(DataError, match=message):
        Bridge.fit(*two_models(), compressor=compressor, **options)


def test_transform_refuses_other_widths_and_sizes(bridge):
    with pytest.raises(DataError, match="20 wide"):
        bridge.transform(np.ones((2, 7), dtype=np.float32))
    with pytest.raises(DataError, match="`dim` must be one of 12, 6"):
        bridge.transform(np.ones((2, NEW), dtype=np.float32), 8)
    assert bridge.transform(np.ones((0, NEW), dtype=np.float32)).shape == (0, 12)


# -- search while documents move --------------------------------------------------------------------------------------


@pytest.fixture
def indexes(compressor, tmp_path):
    old, _, new, _, _ = two_models()
    fresh = Compressor.fit(new, dims=(16, 8), method="pca", backbone={"model": "org/new"})
    with (
        FunnelIndex.build(tmp_path / "old", compressor, old, originals=None) as before,
        FunnelIndex.create(tmp_path / "new", fresh) as after,
    ):
        yield before, after


def test_documents_move_part_by_part_while_search_goes_on(bridge, indexes):
    _, _, new, new_queries, pairs = two_models()
    both = BridgedIndex(*indexes, bridge)
    right = []
    for start in range(0, DOCUMENTS, 80):
        hits = both.search(new_queries, 5)
        assert hits.ids.shape == (QUERIES, 5)
        assert (np.diff(hits.scores, axis=1) <= 0).all()
        right.append((hits.ids == pairs[:, 1:]).any(axis=1).mean())
        both.move(new[start : start + 80], np.arange(start, start + 80))
    assert len(both.old) == 0
    assert len(both.new) == DOCUMENTS
    hits = both.search(new_queries, 5)
    np.testing.assert_array_equal(hits.ids, both.new.search(new_queries, 5).ids)
    assert min(right) > 0.8


def test_a_move_that_was_interrupted_counts_the_new_document_once(bridge, indexes, monkeypatch):
    _, _, new, new_queries, _ = two_models()
    both = BridgedIndex(*indexes, bridge)

    def cut_off(ids):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(both.old, "delete", cut_off)
        with pytest.raises(KeyboardInterrupt):
            both.move(new[:100], np.arange(100))
    found = both.search(new_queries, 10).ids
    assert all(len(set(row)) == 10 for row in found.tolist())
    both.move(new[:100], np.arange(100))
    assert (len(both.old), len(both.new)) == (DOCUMENTS - 100, 100)


def test_indexes_of_other_spaces_are_refused(bridge, indexes, tmp_path):
    old, _, new, _, _ = two_models()
    before, after = indexes
    other = Compressor.fit(old[:100], dims=(12, 6), method="pca")
    with FunnelIndex.build(tmp_path / "other", other, old) as wrong, pytest.raises(DataError, match="leads to the"):
        BridgedIndex(wrong, after, bridge)
    fresh = Compressor.fit(new, dims=(16, 8), method="pca", backbone={"model": "org/third"})
    with FunnelIndex.create(tmp_path / "third", fresh) as wrong, pytest.raises(DataError, match="'org/third'"):
        BridgedIndex(before, wrong, bridge)
    plain = Compressor.fit(new, dims=(16, 8), method="pca")
    with (
        FunnelIndex.create(tmp_path / "none", plain, originals=None) as wrong,
        pytest.raises(DataError, match="must hold originals"),
    ):
        BridgedIndex(before, wrong, bridge)


# -- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def desk(tmp_path, monkeypatch, compressor):
    """A sample in BEIR layout with the vectors of both models, the old index, and queries of the new model."""
    monkeypatch.chdir(tmp_path)
    old, old_queries, new, new_queries, pairs = two_models()
    (tmp_path / "sample" / "qrels").mkdir(parents=True)
    for side, letter, count in (("corpus", "d", DOCUMENTS), ("queries", "q", QUERIES)):
        lines = [json.dumps({"_id": f"{letter}{row}", "title": "", "text": f"{side} {row}"}) for row in range(count)]
        (tmp_path / "sample" / f"{side}.jsonl").write_text("\n".join(lines) + "\n")
    judged = "".join(f"q{query}\td{document}\t1\n" for query, document in pairs)
    (tmp_path / "sample" / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    save_file({"corpus": old, "queries": old_queries}, "old.safetensors", metadata={"model": "org/old"})
    save_file({"corpus": new, "queries": new_queries}, "new.safetensors", metadata={"model": "org/new"})
    compressor.save("small")
    FunnelIndex.build("index", compressor, old).close()
    np.save("asked.npy", new_queries)
    return tmp_path


FIT = ["bridge", "--data", "sample", "--vectors", "old.safetensors", "--new-vectors", "new.safetensors", "--out", "b"]


@pytest.mark.slow
def test_bridge_then_search_finds_documents_of_the_old_model(desk, capsys):
    assert run([*FIT, "--compressor", "small", "--share", "1", "--least", "0.8"]) == 0
    said = capsys.readouterr().out
    assert "held-out queries; the new model alone" in said
    assert Bridge.load("b").info["new"]["model"] == "org/new"
    assert run(["search", "index", "--queries", "asked.npy", "--bridge", "b", "--k", "1"]) == 0
    found = [int(line.split("\t")[2]) for line in capsys.readouterr().out.splitlines()]
    assert (np.array(found) == two_models()[4][:, 1]).mean() > 0.6
    (desk / "asked.npy.json").write_text('{"model": "org/old"}')
    assert run(["search", "index", "--queries", "asked.npy", "--bridge", "b"]) == 2
    assert "this bridge reads queries of 'org/new'" in capsys.readouterr().err


@pytest.mark.slow
def test_documents_move_part_by_part_on_the_command_line(desk, capsys):
    """A part that is moved a second time, as after an interruption, changes nothing."""
    _, _, new, _, pairs = two_models()
    Compressor.fit(new, dims=(16, 8), method="pca", backbone={"model": "org/new"}).save("fresh")
    for part, rows in enumerate(np.array_split(np.arange(DOCUMENTS), 2)):
        save_file({"corpus": new[rows]}, f"part-{part}.safetensors", metadata={"model": "org/new"})
        (desk / f"part-{part}.csv").write_text("id\n" + "".join(f"{row}\n" for row in rows))
    assert run([*FIT, "--compressor", "small", "--share", "1", "--least", "0.8"]) == 0
    find = ["search", "index", "--queries", "asked.npy", "--bridge", "b", "--new-index", "new", "--k", "1"]
    for part, more, left in ((0, [], 120), (0, ["--add"], 120), (1, ["--add"], 0)):
        files = ["--vectors", f"part-{part}.safetensors", "--rows", f"part-{part}.csv"]
        assert run(["index", "fresh", *files, "--out", "new", "--move-from", "index", *more]) == 0
        assert f"documents moved, {left} left" in capsys.readouterr().out
        if left:
            assert run(find) == 0
            found = [int(line.split("\t")[2]) for line in capsys.readouterr().out.splitlines()]
            assert (np.array(found) == pairs[:, 1]).mean() > 0.6
    with FunnelIndex.open("new") as index:
        assert len(index) == DOCUMENTS
    no_ids = ["--vectors", "part-0.safetensors", "--out", "other", "--move-from", "index"]
    assert run(["index", "fresh", *no_ids]) == 2
    assert "needs the documents' ids" in capsys.readouterr().err
    assert run([*find[:4], "--new-index", "new"]) == 2
    assert "give --bridge" in capsys.readouterr().err
    assert run(["index", "fresh", *files, "--out", "new", "--move-from", "./new", "--add"]) == 2
    assert "--move-from ./new is the new index itself" in capsys.readouterr().err
    assert run([*find[:6], "--new-index", f"{desk}/index"]) == 2
    assert "cannot be both the old index and the new one" in capsys.readouterr().err
    with FunnelIndex.open("new") as index:
        assert len(index) == DOCUMENTS


@pytest.mark.slow
def test_a_bridge_that_keeps_too_little_is_not_written(desk, capsys):
    assert run([*FIT, "--compressor", "small", "--least", "1.5"]) == 2
    assert "would keep" in capsys.readouterr().err
    assert not (desk / "b").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--new-vectors", "gone.safetensors"], "gone.safetensors"),
        (["--compressor", "sample"], "holds no compressor"),
        (["--out", "small"], "exists already"),
    ],
)
def test_bridge_says_in_one_line_what_is_wrong(desk, capsys, change, message):
    assert run([*FIT, *change]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
