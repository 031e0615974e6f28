"""Make training queries from the documents, for collections of texts with few or no judgements.

A document is cut in two: its title, first sentence or first half becomes a query, and the remaining text is added to
the corpus as the relevant document. The whole document contains the query word for word, so it becomes the query's
own document and counts neither as relevant nor as irrelevant. (Inverse cloze task: Lee et al., ACL 2019; titles as
queries: MacAvaney et al., SIGIR 2017.)
"""

from __future__ import annotations

import dataclasses
import re
from typing import Literal, get_args

import numpy as np

from smec_st.data.collection import Collection
from smec_st.data.embedding import embed_tables
from smec_st.data.qrels import Qrels
from smec_st.data.vectors import check_vectors, check_widths
from smec_st.system.errors import DataError

Cut = Literal["auto", "title", "sentence", "halves"]
CUTS: tuple[str, ...] = get_args(Cut)

QUERY_WORDS, REST_WORDS = 3, 8  # fewest words of a query and of the remaining text
SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+")


def cut_document(title: str, text: str, how: Cut = "auto") -> tuple[str, str] | None:
    """Cut a document into a query and the remaining text; return None if either would be too short.

    Args:
        title: Title of the document, may be empty.
        text: Text of the document without its title.
        how: What becomes the query: the ``title``, the first ``sentence``, or the first of two ``halves`` by words.
            ``auto`` takes the first of these that gives two parts of sufficient length.

    Example:
        >>> cut_document("", "Cells divide twice a day. " + "The rest is told here at some length, word by word.")
        ('Cells divide twice a day.', 'The rest is told here at some length, word by word.')
    """
    if how == "auto":
        kinds: tuple[Cut, ...] = ("title", "sentence", "halves")
        return next((parts for kind in kinds if (parts := cut_document(title, text, kind))), None)
    if how == "title":
        parts = title.strip(), text.strip()
    elif how == "sentence":
        first, *rest = SENTENCE_END.split(text.strip(), maxsplit=1)
        parts = first, "".join(rest)
    else:
        words = text.split()
        parts = " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])
    is_long_enough = len(parts[0].split()) >= QUERY_WORDS and len(parts[1].split()) >= REST_WORDS
    return parts if is_long_enough else None


def add_synthetic_queries(
    collection: Collection, model: str, how: Cut = "auto", most: int = 10_000, seed: int = 0
) -> Collection:
    """Append synthetic queries and their relevant documents to a collection; the pairs join the ``train`` split.

    Args:
        collection: A collection with texts, as :func:`~smec_st.data.load_collection` reads it with a model.
        model: Sentence-transformers model (id or path) that made the collection's vectors; results are cached.
        how: See :func:`cut_document`.
        most: Largest number of documents that are cut; they are drawn at random.
        seed: Random seed.

    Raises:
        DataError: If there are no texts, or no document can be cut.
    """
    if how not in CUTS:
        raise DataError(f"documents can be cut by {', '.join(CUTS)}, got {how!r}.")
    if not collection.texts:
        raise DataError(
            f"{collection.name} comes without texts to make queries from; give the model that embeds them."
        )
    cuts = (cut_document(*parts, how) for parts in zip(collection.titles, collection.texts, strict=True))
    found = {row: cut for row, cut in enumerate(cuts) if cut is not None}
    if not found:
        raise DataError(f"no document of {collection.name} is long enough to be cut into a query and an answer.")
    rows = np.sort(np.random.default_rng(seed).permutation(list(found))[:most])
    chosen = [found[row] for row in rows.tolist()]
    texts = {"queries": [query for query, _ in chosen], "corpus": [rest for _, rest in chosen]}
    new_queries, new_documents = embed_tables(texts, model)
    check_vectors(new_queries, "query")
    check_widths(collection.corpus, new_queries)
    queries = len(collection.queries) + np.arange(len(rows))
    documents = len(collection.corpus) + np.arange(len(rows))
    train = collection.qrels.get("train")
    new_train = Qrels(queries, documents, np.ones(len(rows)))
    return dataclasses.replace(
        collection,
        corpus=np.concatenate([collection.corpus, new_documents]),
        queries=np.concatenate([collection.queries, new_queries]),
        corpus_ids=[*collection.corpus_ids, *(f"{collection.corpus_ids[row]}#rest" for row in rows)],
        query_ids=[*collection.query_ids, *(f"{collection.corpus_ids[row]}#query" for row in rows)],
        qrels={**collection.qrels, "train": new_train if train is None else Qrels.joined([train, new_train])},
        own_document=np.concatenate([collection.own_document, rows]),
        titles=[*collection.titles, *([""] * len(rows))],
        texts=[*collection.texts, *texts["corpus"]],
    )
