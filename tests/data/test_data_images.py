"""Collections of images by class, Products-10K and Fashion-200K, from small folders with their layout."""

import json

import numpy as np
import pytest
import transformers
from PIL import Image
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer

from counting import counted
from smec_st.cli import run
from smec_st.data import DataError, load_collection, unit_rows
from smec_st.data.embedding import embed_images, load_model
from smec_st.data.images import class_qrels
from smec_st.modules import EmbeddingInput

WIDTH = 8


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Return the path of a tiny untrained model for images and texts."""
    letters = [chr(code) for code in range(97, 123)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    tokenizer = transformers.CLIPTokenizer({word: row for row, word in enumerate(words)}, [], model_max_length=16)
    layer = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={
            **layer,
            "vocab_size": len(words),
            "max_position_embeddings": 16,
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
        vision_config={**layer, "image_size": 8, "patch_size": 4},
        projection_dim=WIDTH,
    )
    folder = tmp_path_factory.mktemp("models") / "clip"
    transformers.CLIPModel(config).save_pretrained(folder)
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    transformers.CLIPProcessor(images, tokenizer).save_pretrained(folder)
    SentenceTransformer(str(folder), prompts={"query": "find ", "document": ""}, device="cpu").save(str(folder))
    return str(folder)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SMEC_ST_CACHE", str(tmp_path / "cache"))


def save(path, rng, **rows):
    """Write random vectors and return them."""
    tables = {name: rng.normal(size=(count, WIDTH)).astype(np.float32) for name, count in rows.items()}
    save_file(tables, path)
    return tables


def paint(path, number):
    """Write a small image whose colour depends on ``number``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (37 * number % 256, 91 * number % 256, 151 * number % 256)).save(path)


def naive_pairs(queries, query_labels, corpus_labels, own=()):
    return [
        [query, document]
        for query in queries
        for document, label in enumerate(corpus_labels)
        if label == query_labels[query] and (query, document) not in own
    ]


# -- by class ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [1, 4, 30])
def test_class_qrels_equal_a_plain_loop(rng, classes):
    query_labels, corpus_labels = rng.integers(0, classes, 25), rng.integers(0, classes, 40)
    queries = np.sort(rng.permutation(25)[:15])
    qrels = class_qrels(queries, query_labels, corpus_labels)
    assert qrels.pairs.tolist() == naive_pairs(queries.tolist(), query_labels, corpus_labels)


def test_class_qrels_of_a_million_pairs_do_nothing_pair_by_pair(rng):
    labels = rng.integers(0, 9, 3000)
    qrels, calls = counted(lambda: class_qrels(np.arange(3000), labels, labels))
    assert len(qrels) > 950_000
    assert calls < 50_000, "something is done for each pair"


SPLIT_OF_IMAGES = ["train", "dev", "train", "train", "test", "validation"]
LABEL_OF_IMAGES = ["hat", "hat", "shoe", "hat", "shoe", "hat"]


@pytest.fixture
def listed(tmp_path, rng):
    """Return a folder with ``images.jsonl``, and its vectors."""
    rows = enumerate(zip(SPLIT_OF_IMAGES, LABEL_OF_IMAGES, strict=True))
    records = [{"_id": f"i{row}", "split": split, "label": label} for row, (split, label) in rows]
    (tmp_path / "clothes").mkdir()
    (tmp_path / "clothes" / "images.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path / "clothes", save(tmp_path / "clothes" / "v.safetensors", rng, images=len(records))["images"]


def test_load_collection_reads_listed_images(listed):
    folder, images = listed
    collection = load_collection(folder, folder / "v.safetensors")
    assert collection.corpus_ids == ["i0", "i2", "i3"]
    assert collection.query_ids == [f"i{row}" for row in range(6)]
    np.testing.assert_array_equal(collection.corpus, images[[0, 2, 3]])
    np.testing.assert_array_equal(collection.queries, images)
    assert collection.own_document.tolist() == [0, -1, 1, 2, -1, -1]
    assert collection.qrels["train"].pairs.tolist() == [[0, 2], [3, 0]]  # never itself; there is only one shoe
    assert collection.qrels["dev"].pairs.tolist() == [[1, 0], [1, 2], [5, 0], [5, 2]]
    assert collection.qrels["test"].pairs.tolist() == [[4, 1]]


def test_load_collection_reads_listed_images_from_npy(listed):
    folder, images = listed
    np.save(folder / "images.npy", images)
    np.testing.assert_array_equal(load_collection(folder, folder).queries, images)


@pytest.mark.parametrize(
    ("record", "match"),
    [
        ({"_id": "x", "split": "train"}, "images.jsonl, record 7: lacks `label`"),
        ({"_id": "x", "label": "hat"}, "images.jsonl, record 7: lacks `split`"),
        ({"split": "train", "label": "hat"}, "images.jsonl, record 7: lacks `_id`"),
        ({"_id": "i2", "split": "train", "label": "hat"}, "images.jsonl repeats the id i2"),
        ({"_id": "x", "split": "train", "label": "hat"}, "6 image vectors for 7 ids in clothes"),
    ],
)
def test_load_collection_rejects_a_spoilt_list_of_images(listed, record, match):
    folder, _ = listed
    with (folder / "images.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    with pytest.raises(DataError, match=match):
        load_collection(folder, folder / "v.safetensors")


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ('"test"', '"hidden"', "clothes has an image of the split 'hidden'; use train, dev or test"),
        ('"train"', '"dev"', "clothes has no train images, which are the corpus"),
    ],
)
def test_load_collection_rejects_listed_images_of_wrong_splits(listed, old, new, match):
    folder, _ = listed
    (folder / "images.jsonl").write_text((folder / "images.jsonl").read_text().replace(old, new))
    with pytest.raises(DataError, match=match):
        load_collection(folder, folder / "v.safetensors")


def test_load_collection_rejects_a_model_for_listed_images(listed, clip):
    with pytest.raises(DataError, match="lists images without their files; give a file of vectors"):
        load_collection(listed[0], model=clip)


@pytest.fixture
def folders(tmp_path):
    """Return a folder with images in ``SPLIT/CLASS`` folders."""
    names = ["train/hat/b.jpg", "train/hat/a.JPEG", "train/shoe/a.png", "val/hat/a.jpg", "test/shoe/c.jpg"]
    for number, name in enumerate(names):
        paint(tmp_path / "photos" / name, number)
    (tmp_path / "photos" / "train" / "hat" / "notes.txt").write_text("not an image")
    return tmp_path / "photos"


SORTED = ["test/shoe/c.jpg", "train/hat/a.JPEG", "train/hat/b.jpg", "train/shoe/a.png", "val/hat/a.jpg"]


def test_load_collection_reads_class_folders(folders, rng):
    images = save(folders / "v.safetensors", rng, images=5)["images"]
    collection = load_collection(folders, folders / "v.safetensors")
    assert collection.query_ids == SORTED
    assert collection.corpus_ids == SORTED[1:4]
    np.testing.assert_array_equal(collection.corpus, images[1:4])
    assert {split: qrels.pairs.tolist() for split, qrels in collection.qrels.items()} == {
        "train": [[1, 1], [2, 0]],
        "dev": [[4, 0], [4, 1]],
        "test": [[0, 2]],
    }


def test_load_collection_embeds_class_folders_once(folders, clip, monkeypatch):
    collection = load_collection(folders, model=clip)
    model = load_model(clip)
    images = [Image.open(folders / name).convert("RGB") for name in SORTED]
    np.testing.assert_allclose(collection.queries, unit_rows(model.encode(images)), atol=1e-6)
    monkeypatch.setattr("smec_st.data.embedding.embed_images", None)
    np.testing.assert_array_equal(load_collection(folders, model=clip).queries, collection.queries)


def test_embed_images_gives_the_same_in_small_batches(folders, clip):
    model, paths = load_model(clip), [folders / name for name in SORTED]
    np.testing.assert_allclose(embed_images(model, paths, batch=2), embed_images(model, paths), atol=1e-6)


def test_embed_images_rejects_a_model_that_takes_none(folders):
    model = SentenceTransformer(modules=[EmbeddingInput(WIDTH)], device="cpu")
    with pytest.raises(DataError, match="this model does not take images"):
        embed_images(model, [folders / SORTED[0]])


def test_load_collection_rejects_a_broken_image(folders, clip):
    (folders / "train" / "hat" / "b.jpg").write_bytes(b"not a picture")
    with pytest.raises(DataError, match="b.jpg is not a readable image"):
        load_collection(folders, model=clip)


# -- Products-10K -----------------------------------------------------------------------------------------------------

TRAIN = [("0.jpg", 3), ("1.jpg", 8), ("2.jpg", 3), ("3.jpg", 8), ("4.jpg", 8)]
TEST = [("0.jpg", 8), ("1.jpg", 3), ("2.jpg", 5)]


@pytest.fixture
def products(tmp_path):
    """Return a folder with tables like those of Products-10K; as there, both archives contain the same file names."""
    folder = tmp_path / "products"
    folder.mkdir()
    (folder / "train.csv").write_text("name,class,group\n" + "".join(f"{name},{label},1\n" for name, label in TRAIN))
    (folder / "test_kaggletest.csv").write_text(
        "name,class,Usage\n" + "".join(f"{name},{label},Public\n" for name, label in TEST)
    )
    return folder


@pytest.mark.parametrize("test_table", ["test_kaggletest.csv", "test.csv"])
def test_load_collection_reads_products10k(products, rng, test_table):
    (products / "test_kaggletest.csv").rename(products / test_table)
    tables = save(products / "v.safetensors", rng, corpus=5, queries=3)
    collection = load_collection(products, products / "v.safetensors")
    assert collection.corpus_ids == [f"train/{row}.jpg" for row in range(5)]
    assert collection.query_ids == [*collection.corpus_ids, "test/0.jpg", "test/1.jpg", "test/2.jpg"]
    np.testing.assert_array_equal(collection.corpus, tables["corpus"])
    np.testing.assert_array_equal(collection.queries[5:], tables["queries"])
    assert sorted(collection.qrels) == ["test", "train"]
    labels = [label for _, label in TRAIN + TEST]
    assert collection.qrels["test"].pairs.tolist() == naive_pairs([5, 6, 7], labels, labels[:5])
    itself = {(row, row) for row in range(5)}
    assert collection.qrels["train"].pairs.tolist() == naive_pairs(range(5), labels, labels[:5], itself)


def test_products10k_with_two_test_tables_is_refused(products):
    (products / "test.csv").write_text((products / "test_kaggletest.csv").read_text())
    with pytest.raises(DataError, match=r"has both test_kaggletest.csv and test.csv; keep one"):
        load_collection(products, model="no-model-is-loaded")


def test_load_collection_embeds_products10k(products, clip):
    for number, (split, name) in enumerate([("train", n) for n, _ in TRAIN] + [("test", n) for n, _ in TEST]):
        paint(products / split / name, number)
    collection = load_collection(products, model=clip)
    expected = embed_images(load_model(clip), [products / name for name in collection.query_ids])
    np.testing.assert_allclose(collection.queries, expected, atol=1e-6)


def test_load_collection_names_an_absent_image(products, clip):
    with pytest.raises(DataError, match=r"no such file: .*0.jpg"):
        load_collection(products, model=clip)


@pytest.mark.parametrize(
    ("file", "text", "match"),
    [
        (
            "train.csv",
            "name,group\n0.jpg,1\n",
            r"train.csv: expected the columns name and class, got \['name', 'group'",
        ),
        ("test_kaggletest.csv", "", "test_kaggletest.csv: expected the columns name and class, got None"),
        ("test_kaggletest.csv", None, "no such file: .*test_kaggletest.csv"),
    ],
)
def test_load_collection_rejects_spoilt_tables_of_products10k(products, rng, file, text, match):
    save(products / "v.safetensors", rng, corpus=5, queries=3)
    (products / file).unlink()
    if text is not None:
        (products / file).write_text(text)
    with pytest.raises(DataError, match=match):
        load_collection(products, products / "v.safetensors")


# -- Fashion-200K -----------------------------------------------------------------------------------------------------

RED, BLUE, LONG = "red coat", "blue coat", "long gown"
JACKETS, DRESSES = "women/jackets/coats", "women/dresses/gowns"
LABELS = {  # as the label files sort: dress_test, dress_train, jacket_test, jacket_train
    "dress_test": [(f"{DRESSES}/1/1_0.jpeg", LONG)],
    "dress_train": [(f"{DRESSES}/2/2_0.jpeg", LONG), (f"{DRESSES}/2/2_0.jpeg", LONG)],
    "jacket_test": [(f"{JACKETS}/3/3_0.jpeg", RED), (f"{JACKETS}/3/3_1.jpeg", RED)],
    "jacket_train": [(f"{JACKETS}/4/4_0.jpeg", BLUE), (f"{JACKETS}/5/5_0.jpeg", BLUE)],
}
IMAGES = list(dict.fromkeys(image for lines in LABELS.values() for image, _ in lines))
TEXTS = [LONG, RED, BLUE]
PAIRS = {"test": [[0, 0], [0, 1], [1, 2], [1, 3]], "train": [[2, 4], [2, 5]]}  # (text, image)


@pytest.fixture
def fashion(tmp_path):
    """Return a folder with label files like those of Fashion-200K; as there, an image may be listed twice."""
    folder = tmp_path / "fashion"
    (folder / "labels").mkdir(parents=True)
    for name, lines in LABELS.items():
        text = "".join(f"{image}\t-1.500000\t{caption}\n" for image, caption in lines)
        (folder / "labels" / f"{name}_detect_all.txt").write_text(text)
    return folder


@pytest.mark.parametrize("task", [None, "text-to-image"])
def test_load_collection_reads_fashion200k_from_text_to_image(fashion, rng, task):
    tables = save(fashion / "v.safetensors", rng, corpus=6, queries=3)
    collection = load_collection(fashion, fashion / "v.safetensors", task=task)
    assert (collection.query_ids, collection.corpus_ids) == (TEXTS, IMAGES)
    np.testing.assert_array_equal(collection.corpus, tables["corpus"])
    assert {split: qrels.pairs.tolist() for split, qrels in collection.qrels.items()} == PAIRS


def test_load_collection_reads_fashion200k_from_image_to_text(fashion, rng):
    save(fashion / "v.safetensors", rng, corpus=3, queries=6)
    collection = load_collection(fashion, fashion / "v.safetensors", task="image-to-text")
    assert (collection.query_ids, collection.corpus_ids) == (IMAGES, TEXTS)
    assert collection.qrels["test"].pairs.tolist() == [[0, 0], [2, 1], [3, 1]]
    assert collection.qrels["train"].pairs.tolist() == [[1, 0], [4, 2], [5, 2]]


def test_commands_take_the_task(fashion, rng, tmp_path, capsys):
    save(fashion / "v.safetensors", rng, corpus=3, queries=6)
    arguments = ["compare", "--data", str(fashion), "--vectors", str(fashion / "v.safetensors"), "--dims", "2"]
    assert run([*arguments, "--methods", "pca", "--task", "image-to-text", "--out", str(tmp_path / "out")]) == 0
    assert run([*arguments, "--methods", "pca", "--out", str(tmp_path / "other")]) == 2
    assert "3 corpus vectors for 6 ids" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["text-to-image", "image-to-text"])
def test_load_collection_embeds_fashion200k(fashion, clip, task):
    for number, name in enumerate(IMAGES):
        paint(fashion / name, number)
    collection, model = load_collection(fashion, model=clip, task=task), load_model(clip)
    images = embed_images(model, [fashion / name for name in IMAGES])
    texts = unit_rows(model.encode_query(TEXTS) if task == "text-to-image" else model.encode_document(TEXTS))
    corpus, queries = (images, texts) if task == "text-to-image" else (texts, images)
    np.testing.assert_allclose(collection.corpus, corpus, atol=1e-6)
    np.testing.assert_allclose(collection.queries, queries, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "task", "match"),
    [
        ("a.jpeg\tred coat\n", None, "top_test_detect_all.txt, line 1: expected image path, score and description"),
        ("", "text", "Fashion-200K has the tasks text-to-image and image-to-text, got 'text'"),
    ],
)
def test_load_collection_rejects_spoilt_fashion200k(fashion, text, task, match):
    (fashion / "labels" / "top_test_detect_all.txt").write_text(text)
    (fashion / "v.safetensors").touch()  # the labels are read before the vectors
    with pytest.raises(DataError, match=match):
        load_collection(fashion, fashion / "v.safetensors", task=task)


def test_load_collection_rejects_empty_labels_of_fashion200k(fashion):
    for path in (fashion / "labels").iterdir():
        path.write_text("")
    (fashion / "v.safetensors").touch()
    with pytest.raises(DataError, match="the label files of .*fashion are empty"):
        load_collection(fashion, fashion / "v.safetensors")
