"""Other libraries' embedders come out compressed: each wrapper with its real library, over a real model."""

from __future__ import annotations

import asyncio
import importlib
import pickle
import sys

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from smec_st import Compressor, DataError, FitConfig, FunnelIndex
from smec_st.data.embedding import embed
from tiny_models import tiny_bert

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

TEXTS = ["how to join two paths", "a cat sat on the mat", "sorting is stable", "delete directory tree"]
QUERY = "what text"
TRUSTED = ["smec_st.*", "test_integrations"]  # modules that Haystack may load a pipeline's parts from
WRONG = "made with the compressor 0123456789abcdef"


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """The folder of a backbone, the folder of its compressor, and the folder of one for another model."""
    folder = tmp_path_factory.mktemp("desk")
    tiny_bert(folder / "parts").save(str(folder / "backbone"))
    rows = np.random.default_rng(0).standard_normal((60, 32)).astype(np.float32)
    fitted = Compressor.fit(rows, dims=(16, 8), method="pca", backbone={"model": "org/backbone"})
    fitted.save(folder / "compressor")
    Compressor.fit(rows, dims=(16, 8), method="pca", backbone={"model": "org/other"}).save(folder / "other")
    return folder


@pytest.fixture(scope="module")
def model(desk):
    return SentenceTransformer(str(desk / "backbone"), device="cpu")


@pytest.fixture(scope="module")
def expected(desk, model):
    """Documents and a query, embedded as ever and compressed to 8 numbers."""
    compressor = Compressor.load(desk / "compressor")
    return tuple(
        compressor.transform(embed(model, t, side), 8) for t, side in ((TEXTS, "document"), ([QUERY], "query"))
    )


def same(vectors, rows):
    return np.asarray(vectors).shape == rows.shape and np.allclose(vectors, rows, atol=1e-5)


# -- LangChain --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def langchain_embedder(model):
    from langchain_core.embeddings import Embeddings

    class Embedder(Embeddings):
        model_name = "org/backbone"

        def embed_documents(self, texts):
            return embed(model, texts, "document").tolist()

        def embed_query(self, text):
            return embed(model, [text], "query")[0].tolist()

    return Embedder()


def test_langchain_embeddings(desk, langchain_embedder, expected):
    from langchain_core.vectorstores import InMemoryVectorStore

    from smec_st.integrations.langchain import CompressedEmbeddings

    small = CompressedEmbeddings(langchain_embedder, desk / "compressor", dim=8)
    assert same(small.embed_documents(TEXTS), expected[0])
    assert same([small.embed_query(QUERY)], expected[1])
    assert same(asyncio.run(small.aembed_documents(TEXTS)), expected[0])
    assert same([asyncio.run(small.aembed_query(QUERY))], expected[1])
    assert small.embed_documents([]) == []
    store = InMemoryVectorStore.from_texts(TEXTS, small)
    best = TEXTS[int((expected[0] @ expected[1][0]).argmax())]
    assert store.similarity_search(QUERY, k=1)[0].page_content == best
    again = CompressedEmbeddings(langchain_embedder, desk / "compressor", 8, fingerprint=small.fingerprint)
    assert again.dim == 8
    with pytest.raises(DataError, match=WRONG):
        CompressedEmbeddings(langchain_embedder, desk / "compressor", 8, fingerprint="0123456789abcdef")
    with pytest.raises(DataError, match="the model is 'org/backbone', but this compressor was fitted on 'org/other'"):
        CompressedEmbeddings(langchain_embedder, desk / "other")
    with pytest.raises(DataError, match="`dim` must be one of 16, 8, got 99"):
        CompressedEmbeddings(langchain_embedder, desk / "compressor", dim=99)


def test_langchain_retriever(desk, langchain_embedder, tmp_path):
    from langchain_core.documents import Document
    from langchain_core.stores import InMemoryStore

    from smec_st.integrations.langchain import CompressedEmbeddings, FunnelRetriever

    compressor = Compressor.load(desk / "compressor")
    vectors = np.asarray(langchain_embedder.embed_documents(TEXTS), dtype=np.float32)
    documents = InMemoryStore()
    documents.mset([(str(i), Document(text)) for i, text in enumerate(TEXTS)])
    best = [TEXTS[i] for i in np.argsort(-vectors @ langchain_embedder.embed_query(QUERY))]
    with FunnelIndex.build(tmp_path / "index", compressor, vectors, head="flat") as index:
        retriever = FunnelRetriever(index=index, embeddings=langchain_embedder, documents=documents, k=2)
        assert [document.page_content for document in retriever.invoke(QUERY)] == best[:2]
        assert len(asyncio.run(retriever.ainvoke(QUERY))) == 2
        everything = FunnelRetriever(index=index, embeddings=langchain_embedder, documents=documents, k=9)
        assert len(everything.invoke(QUERY)) == len(TEXTS)
        small = CompressedEmbeddings(langchain_embedder, compressor, dim=8)
        assert len(FunnelRetriever(index=index, embeddings=small, documents=documents, k=2).invoke(QUERY)) == 2
        documents.mdelete(["0", "1", "2", "3"])
        with pytest.raises(DataError, match="documents that the store lacks"):
            retriever.invoke(QUERY)
        rows = np.random.default_rng(1).standard_normal((60, 32)).astype(np.float32)
        stranger = CompressedEmbeddings(langchain_embedder, Compressor.fit(rows, dims=(8,), method="pca"))
        with pytest.raises(ValueError, match="cannot be mixed"):
            FunnelRetriever(index=index, embeddings=stranger, documents=documents)


# -- LlamaIndex -------------------------------------------------------------------------------------------------------


def test_llama_index_embedding(desk, model, expected):
    from llama_index.core import Document, VectorStoreIndex
    from llama_index.core.base.embeddings.base import BaseEmbedding

    from smec_st.integrations.llama_index import CompressedEmbedding

    class Embedder(BaseEmbedding):
        def _get_query_embedding(self, query):
            return embed(model, [query], "query")[0].tolist()

        async def _aget_query_embedding(self, query):
            return self._get_query_embedding(query)

        def _get_text_embedding(self, text):
            return embed(model, [text], "document")[0].tolist()

    embedder = Embedder(model_name="org/backbone", embed_batch_size=3)
    small = CompressedEmbedding(embedder, desk / "compressor", dim=8)
    assert small.embed_batch_size == 3
    assert same(small.get_text_embedding_batch(TEXTS), expected[0])
    assert same([small.get_text_embedding(text) for text in TEXTS], expected[0])
    assert same([small.get_query_embedding(QUERY)], expected[1])
    assert same([asyncio.run(small.aget_query_embedding(QUERY))], expected[1])
    assert same(asyncio.run(small.aget_text_embedding_batch(TEXTS)), expected[0])
    wide = CompressedEmbedding(embedder, desk / "compressor")
    assert small.to_dict() != wide.to_dict()  # caches of ingestion pipelines are keyed by this
    assert small.to_dict()["fingerprint"] == small.fingerprint
    index = VectorStoreIndex.from_documents([Document(text=text) for text in TEXTS], embed_model=small)
    best = TEXTS[int((expected[0] @ expected[1][0]).argmax())]
    assert index.as_retriever(similarity_top_k=1).retrieve(QUERY)[0].text == best
    with pytest.raises(DataError, match=WRONG):
        CompressedEmbedding(embedder, desk / "compressor", fingerprint="0123456789abcdef")
    with pytest.raises(DataError, match="another embedding space"):
        CompressedEmbedding(embedder, desk / "other")


# -- Haystack ---------------------------------------------------------------------------------------------------------


def haystack_vector(text: str) -> list[float]:
    """What the mock embedders of Haystack call; its name is in a pipeline's file."""
    return np.random.default_rng(len(text)).standard_normal(32).tolist()


def test_haystack_components(desk, monkeypatch):
    monkeypatch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")
    from haystack import Document, Pipeline
    from haystack.components.embedders import MockDocumentEmbedder, MockTextEmbedder
    from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
    from haystack.document_stores.in_memory import InMemoryDocumentStore

    from smec_st.integrations.haystack import CompressedDocumentEmbedder, CompressedTextEmbedder

    compressor = Compressor.load(desk / "compressor")
    rows = compressor.transform(np.float32([haystack_vector(text) for text in TEXTS]), 8)
    embedder = MockDocumentEmbedder(embedding_fn=haystack_vector, model="org/backbone")
    whole = CompressedDocumentEmbedder(embedder, str(desk / "compressor"), dim=8)
    documents = whole.run(documents=[Document(content=text) for text in TEXTS])["documents"]
    assert same([document.embedding for document in documents], rows)
    assert whole.run(documents=[])["documents"] == []
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    store.write_documents(documents)
    asking = MockTextEmbedder(embedding_fn=haystack_vector, model="org/backbone")
    pipeline = Pipeline()
    pipeline.add_component("embed", CompressedTextEmbedder(asking, str(desk / "compressor"), dim=8))
    pipeline.add_component("find", InMemoryEmbeddingRetriever(store, top_k=1))
    pipeline.connect("embed.embedding", "find.query_embedding")
    assert pipeline.run({"embed": {"text": TEXTS[2]}})["find"]["documents"][0].content == TEXTS[2]
    again = Pipeline.loads(pipeline.dumps(), allowed_modules=TRUSTED).get_component("embed")
    assert same([again.run(text=text)["embedding"] for text in TEXTS], rows)
    with pytest.raises(Exception, match=WRONG):
        Pipeline.loads(pipeline.dumps().replace(again.fingerprint, "0123456789abcdef"), allowed_modules=TRUSTED)
    with pytest.raises(DataError, match="given as a folder or id on the Hub"):
        CompressedTextEmbedder(asking, compressor).to_dict()
    with pytest.raises(DataError, match="another embedding space"):
        CompressedTextEmbedder(asking, str(desk / "other"))


def test_haystack_embedder_of_an_api(desk, model, monkeypatch):
    monkeypatch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")
    from haystack import Document
    from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
    from haystack.utils import Secret

    from server_thread import serving
    from smec_st.integrations.haystack import CompressedDocumentEmbedder, CompressedTextEmbedder

    compressor = Compressor.load(desk / "compressor")
    rows = compressor.transform(model.encode([*TEXTS, QUERY], show_progress_bar=False), 8)
    with serving(desk / "backbone") as url:
        api = {"api_key": Secret.from_token("unused"), "model": "backbone", "api_base_url": f"{url}/v1"}
        writing = CompressedDocumentEmbedder(OpenAIDocumentEmbedder(**api, progress_bar=False), compressor, dim=8)
        documents = writing.run(documents=[Document(content=text) for text in TEXTS])["documents"]
        assert same([document.embedding for document in documents], rows[:-1])
        asking = CompressedTextEmbedder(OpenAITextEmbedder(**api), compressor, dim=8)
        asking.warm_up()
        assert same([asking.run(text=QUERY)["embedding"]], rows[-1:])


# -- Chroma -----------------------------------------------------------------------------------------------------------


def test_chroma_embedding_function(desk, model, tmp_path):
    import chromadb
    from chromadb.utils.embedding_functions import SentenceTransformerEmbeddingFunction

    from smec_st.integrations.chroma import CompressedEmbeddingFunction

    compressor = Compressor.load(desk / "compressor")
    rows = compressor.transform(model.encode([*TEXTS, QUERY], show_progress_bar=False), 8)
    embedder = SentenceTransformerEmbeddingFunction(str(desk / "backbone"), device="cpu")
    small = CompressedEmbeddingFunction(embedder, str(desk / "compressor"), dim=8)
    assert same(small(TEXTS), rows[:-1])
    assert same(small.embed_query([QUERY]), rows[-1:])
    settings = chromadb.Settings(anonymized_telemetry=False)
    client = chromadb.PersistentClient(str(tmp_path / "chroma"), settings)
    client.create_collection("texts", embedding_function=small).add(ids=list("abcd"), documents=TEXTS)
    collection = client.get_collection("texts")  # the embedding function is built from what the collection stores
    assert same(collection.get(include=["embeddings"])["embeddings"], rows[:-1])
    assert (
        collection.query(query_texts=[QUERY], n_results=1)["documents"][0][0] == TEXTS[(rows[:-1] @ rows[-1]).argmax()]
    )
    config = small.get_config()
    with pytest.raises(DataError, match=WRONG):
        CompressedEmbeddingFunction.build_from_config({**config, "fingerprint": "0123456789abcdef"})
    with pytest.raises(ValueError, match="it cannot become 16"):
        collection.modify(
            configuration={"embedding_function": CompressedEmbeddingFunction(embedder, str(desk / "compressor"))}
        )
    with pytest.raises(DataError, match="given as a folder or id on the Hub"):
        CompressedEmbeddingFunction(embedder, compressor).get_config()


# -- LanceDB ----------------------------------------------------------------------------------------------------------


def test_lancedb_embedding_function(desk, model, tmp_path):
    import lancedb
    from lancedb.embeddings import get_registry
    from lancedb.pydantic import LanceModel, Vector

    import smec_st.integrations.lancedb  # noqa: F401

    compressor = Compressor.load(desk / "compressor")
    rows = compressor.transform(model.encode([*TEXTS, QUERY], show_progress_bar=False), 8)
    options = {"name": str(desk / "backbone"), "device": "cpu"}
    given = {"embedder": "sentence-transformers", "options": options, "compressor": str(desk / "compressor"), "dim": 8}
    small = get_registry().get("smec-st").create(**given)

    class Row(LanceModel):
        text: str = small.SourceField()
        vector: Vector(small.ndims()) = small.VectorField()

    database = lancedb.connect(str(tmp_path / "lance"))
    database.create_table("texts", schema=Row).add([{"text": text} for text in TEXTS])
    table = lancedb.connect(str(tmp_path / "lance")).open_table("texts")
    assert same(np.stack(table.to_arrow()["vector"].to_numpy()), rows[:-1])
    assert table.search(QUERY).limit(1).to_list()[0]["text"] == TEXTS[(rows[:-1] @ rows[-1]).argmax()]
    stored = next(iter(table.embedding_functions.values())).function.safe_model_dump()
    assert stored == {**given, "fingerprint": compressor.fingerprint}
    with pytest.raises(DataError, match=WRONG):
        get_registry().get("smec-st").create(**{**stored, "fingerprint": "0123456789abcdef"})


# -- scikit-learn -----------------------------------------------------------------------------------------------------


def test_sklearn_transformer_in_a_pipeline_and_a_grid_search(desk, rng):
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline

    from smec_st.integrations.sklearn import CompressorTransformer

    rows = rng.standard_normal((60, 32))
    labels = (rows[:, 0] > 0).astype(int)
    pipeline = make_pipeline(CompressorTransformer(method="pca"), LogisticRegression())
    search = GridSearchCV(pipeline, {"compressortransformer__n_components": [4, 8]}, cv=2).fit(rows, labels)
    assert search.best_params_["compressortransformer__n_components"] in (4, 8)
    fitted = CompressorTransformer(compressor=desk / "compressor", n_components=8, precision="int8").fit(rows)
    assert fitted.transform(rows).dtype == np.int8
    assert fitted.fingerprint_ == Compressor.load(desk / "compressor").fingerprint
    assert list(fitted.get_feature_names_out()[:1]) == ["compressortransformer0"]
    assert (pickle.loads(pickle.dumps(fitted)).transform(rows) == fitted.transform(rows)).all()
    assert CompressorTransformer(method="pca").fit_transform(rows).shape == (60, 16)
    assert CompressorTransformer(8, config=FitConfig(steps=2)).fit_transform(rows).shape == (60, 8)
    with pytest.raises(DataError, match="31 wide; the compressor reads 32"):
        CompressorTransformer(compressor=desk / "compressor").fit(rows[:, 1:])


@pytest.mark.filterwarnings("ignore")
def test_sklearn_transformer_passes_the_checks_of_sklearn():
    from sklearn.utils.estimator_checks import check_estimator

    from smec_st.integrations.sklearn import CompressorTransformer

    expected = {"check_estimators_dtypes": "a row of its integers is zero, and such a row has no direction"}
    transformer = CompressorTransformer(1, method="pca")
    results = check_estimator(transformer, on_fail=None, on_skip=None, expected_failed_checks=expected)
    failed = {r["check_name"]: repr(r["exception"]) for r in results if r["status"] == "failed"}
    assert failed == {}


# -- without the libraries --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("langchain", "langchain_core", "langchain"),
        ("llama_index", "llama_index.core", "llama-index"),
        ("haystack", "haystack", "haystack"),
        ("chroma", "chromadb", "chroma"),
        ("lancedb", "lancedb", "lancedb"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(module, package, extra, monkeypatch):
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"smec_st.integrations.{module}", raising=False)
    with pytest.raises(ImportError, match=rf'pip install "smec-st\[{extra}\]"'):
        importlib.import_module(f"smec_st.integrations.{module}")
