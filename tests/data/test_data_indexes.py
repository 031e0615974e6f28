"""FAISS indexes and Milvus collections as they come: every row with its id, or a refusal and nothing written."""

from __future__ import annotations

import numpy as np
import pytest

from smec_st import Compressor
from smec_st.cli import run
from smec_st.data import DataError, open_vectors
from smec_st.data.sources import read_all
from smec_st.system.errors import tell

faiss = pytest.importorskip("faiss")
ROWS, WIDTH = 300, 16
RAW = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)


def migrate(*arguments):
    return run(["migrate", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("c") / "compressor"
    Compressor.fit(RAW, method="pca", dims=(8, 4)).save(path)
    return path


def trained(description, ids=None):
    index = faiss.index_factory(WIDTH, description)
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is not None:
        ivf.cp.min_points_per_centroid = 1
    index.train(RAW)
    if ids is None:
        index.add(RAW)
    else:
        index.add_with_ids(RAW, ids)
    return index


def written(index, tmp_path):
    faiss.write_index(index, str(tmp_path / "v.faiss"))
    return tmp_path / "v.faiss"


OWN = np.random.default_rng(1).permutation(ROWS).astype(np.int64) * 10**12 - 5


@pytest.mark.parametrize(
    "description",
    ["IVF4,Flat", "IDMap,Flat", "IDMap2,IVF4,Flat", "OPQ4,IVF4,Flat", "IDMap,OPQ4,IVF4,Flat", "PCAR16,IVF4,Flat"],
)
def test_own_ids_come_with_their_rows(description, tmp_path):
    source = open_vectors(written(trained(description, OWN), tmp_path))
    rows, ids = read_all(source)
    order = {str(key): row for row, key in enumerate(OWN.tolist())}
    np.testing.assert_allclose(rows, RAW[[order[key] for key in ids]], atol=1e-4)
    assert sorted(ids) == sorted(order)


@pytest.mark.parametrize("description", ["IVF4,Flat", "OPQ4,IVF4,Flat"])
def test_removed_rows_leave_no_holes(description, tmp_path):
    index = trained(description)
    index.remove_ids(np.arange(0, ROWS, 3))
    rows, ids = read_all(open_vectors(written(index, tmp_path)))
    left = [row for row in range(ROWS) if row % 3]
    assert ids == list(map(str, left))
    np.testing.assert_allclose(rows, RAW[left], atol=1e-4)


def test_rows_of_an_id_twice_are_two_rows(tmp_path):
    index = trained("IVF4,Flat", np.arange(ROWS) // 2)
    rows, ids = read_all(open_vectors(written(index, tmp_path)))
    assert ids == [str(row // 2) for row in range(ROWS)]
    np.testing.assert_allclose(np.sort(rows, axis=None), np.sort(RAW, axis=None))


@pytest.mark.parametrize(
    "description", ["IVF4,PQ4x4", "OPQ4,IVF4,PQ4x4", "OPQ4_8,IVF4,PQ4x4", "PQ4x4", "HNSW8,Flat", "IVF4,SQ8", "SQ4"]
)
def test_codes_are_decoded_as_faiss_decodes_them(description, tmp_path):
    index = trained(description)
    rows, ids = read_all(open_vectors(written(index, tmp_path)))
    assert ids is None
    np.testing.assert_allclose(rows, index.reconstruct_n(0, ROWS), atol=1e-6)


@pytest.mark.parametrize(
    ("description", "is_told"),
    [
        ("Flat", False),
        ("HNSW8", False),
        ("IDMap2,IVF4,Flat", False),
        ("RR16,Flat", False),
        ("SQ8", True),
        ("HNSW8,SQ8", True),
        ("PCA8,Flat", True),
        ("IVF4,SQfp16", True),
    ],
)
def test_an_index_that_compresses_says_so(description, is_told, tmp_path, caplog):
    tell.cache_clear()
    index = trained(description, OWN if "IDMap" in description else None)
    next(open_vectors(written(index, tmp_path)).batches())
    assert any("holds compressed vectors" in record.getMessage() for record in caplog.records) == is_told


def removed_behind_its_map():
    index = trained("IDMap,IVF4,Flat", np.arange(ROWS))
    index.remove_ids(np.arange(10))
    return index


REFUSED = {
    "whitened": (lambda: trained("PCAW8,Flat"), "does not give its vectors back"),
    "fast scan": (lambda: trained("IVF4,PQ4x4fs"), "fast-scan codes"),
    "removed behind its map": (removed_behind_its_map, "the ids of the rows are lost"),
    "empty": (lambda: faiss.IndexFlatIP(WIDTH), "is an empty index"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_faiss_cannot_give_back_is_refused(case, tmp_path):
    make, match = REFUSED[case]
    with pytest.raises(DataError, match=match):
        open_vectors(written(make(), tmp_path))


def test_packed_bits_are_refused(tmp_path):
    index = faiss.IndexBinaryFlat(64)
    index.add(np.zeros((3, 8), dtype=np.uint8))
    faiss.write_index_binary(index, str(tmp_path / "v.faiss"))
    with pytest.raises(DataError, match="index of packed bits"):
        open_vectors(tmp_path / "v.faiss")


@pytest.mark.parametrize("metric", [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT])
def test_a_migrated_index_keeps_ids_and_metric(metric, folder, tmp_path):
    index = faiss.IndexIDMap(faiss.index_factory(WIDTH, "Flat", metric))
    index.add_with_ids(RAW, OWN)
    assert migrate(folder, written(index, tmp_path), "--dim", 8, "--in-place") == 0
    small = faiss.read_index(str(tmp_path / "v.faiss"))
    assert small.metric_type == metric
    queries = Compressor.load(folder).transform(RAW[:5], 8)
    distances, found = small.search(queries, 1)
    assert found[:, 0].tolist() == OWN[:5].tolist()
    np.testing.assert_allclose(distances[:, 0], 0 if metric == faiss.METRIC_L2 else 1, atol=1e-5)


def test_another_metric_is_refused_and_nothing_is_written(folder, tmp_path, capsys):
    index = faiss.IndexFlat(WIDTH, faiss.METRIC_L1)
    index.add(RAW)
    path = written(index, tmp_path)
    before = path.read_bytes()
    assert migrate(folder, path, "--dim", 8, "--in-place") == 2
    assert "neither inner product nor L2" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["v.faiss"]


# -- Milvus -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def client(tmp_path):
    pymilvus = pytest.importorskip("pymilvus")
    pytest.importorskip("milvus_lite")
    opened = pymilvus.MilvusClient(str(tmp_path / "s.db"))
    yield opened
    opened.close()


def rich_schema(client, auto_id=False, partition_key=False):
    from pymilvus import DataType

    schema = client.create_schema(enable_dynamic_field=True, auto_id=auto_id)
    schema.add_field("key", DataType.INT64, is_primary=True)
    schema.add_field("tenant", DataType.VARCHAR, max_length=20, is_partition_key=partition_key)
    schema.add_field("text", DataType.VARCHAR, max_length=20, nullable=True)
    schema.add_field("n", DataType.INT32, default_value=7)
    schema.add_field(
        "tags", DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=5, max_length=10, nullable=True
    )
    schema.add_field("meta", DataType.JSON, nullable=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=WIDTH)
    return schema


def entity(i, auto_id=False):
    row = {"tenant": f"t{i % 3}", "vector": RAW[i].tolist(), "meta": {"a": i}, "extra": i}
    row |= {"text": "a"} if i % 2 else {}
    row |= {"n": i} if i % 3 else {}
    row |= {"tags": ["x", "y"]} if i % 5 else {}
    return row if auto_id else {"key": i + 1, **row}


def everything(client, name, partition=None):
    more = {"partition_names": [partition]} if partition else {}
    rows = client.query(name, filter="key >= 0", output_fields=["*"], limit=ROWS, **more)
    return {row["key"]: {k: v for k, v in row.items() if k != "vector"} for row in rows}


@pytest.mark.parametrize(("auto_id", "partition_key"), [(False, False), (True, True)])
def test_everything_of_a_collection_is_copied(client, folder, tmp_path, auto_id, partition_key):
    indexes = client.prepare_index_params()
    indexes.add_index("vector", index_type="HNSW", metric_type="L2", params={"M": 8, "efConstruction": 40})
    indexes.add_index("n", index_type="INVERTED")
    client.create_collection("docs", schema=rich_schema(client, auto_id, partition_key), index_params=indexes,
                             properties={"collection.ttl.seconds": 100000})  # fmt: skip
    if partition_key:
        client.insert("docs", [entity(i, auto_id) for i in range(40)])
    else:
        client.create_partition("docs", "new")
        client.insert("docs", [entity(i) for i in range(20)])
        client.insert("docs", [entity(i) for i in range(20, 40)], partition_name="new")
    client.flush("docs")
    client.create_alias("docs", "prod")
    before, was = client.describe_collection("docs"), everything(client, "docs")
    parts = {name: set(everything(client, "docs", name)) for name in client.list_partitions("docs")}
    assert migrate(folder, f"{tmp_path / 's.db'}#prod", "--dim", 8, "--in-place") == 0
    after = client.describe_collection("docs")
    assert everything(client, "docs") == was
    assert {name: set(everything(client, "docs", name)) for name in client.list_partitions("docs")} == parts
    assert client.list_aliases("docs")["aliases"] == ["prod"]
    assert after["properties"]["collection.ttl.seconds"] == "100000"
    old, new = ({f["name"]: str(f) for f in d["fields"] if f["name"] != "vector"} for d in (before, after))
    assert {**old, "tags": ""} == {**new, "tags": ""}
    assert sorted(client.list_indexes("docs")) == ["n", "vector"]
    assert client.describe_index("docs", "vector")["metric_type"] == "L2"
    client.insert("docs", [{**entity(41, auto_id), "vector": [1.0] * 8, "tags": ["longer"]}])
    assert len(everything(client, "docs")) == 41
    hits = client.search("docs", data=[Compressor.load(folder).transform(RAW[7], 8).tolist()], limit=1)
    assert hits[0][0]["key"] == 8


def test_what_cannot_be_copied_leaves_the_database_as_it_was(client, folder, tmp_path, capsys):
    store = f"{tmp_path / 's.db'}#docs"
    client.create_collection("docs", schema=rich_schema(client, auto_id=True))
    client.insert("docs", [entity(i, True) for i in range(20)])
    client.delete("docs", ids=[3])
    client.flush("docs")
    assert migrate(folder, store, "--dim", 8, "--out", "small") == 2
    assert "automatic ids with gaps" in capsys.readouterr().err
    assert migrate(folder, store, "--dim", 8, "--precision", "binary", "--out", "small") == 2
    assert client.list_collections() == ["docs"]


def test_a_copy_that_fails_half_way_is_removed(client, folder, tmp_path, capsys, monkeypatch):
    import pymilvus

    client.create_collection("docs", schema=rich_schema(client))
    client.insert("docs", [entity(i) for i in range(20)])
    client.flush("docs")

    def fails(*_, **__):
        raise pymilvus.MilvusException(message="the disk is full")

    monkeypatch.setattr(pymilvus.MilvusClient, "insert", fails)
    for where in (["--in-place"], ["--out", "small"]):
        assert migrate(folder, f"{tmp_path / 's.db'}#docs", "--dim", 8, *where) == 2
        assert "the disk is full" in capsys.readouterr().err
        assert client.list_collections() == ["docs"]
