"""Training queries made from the documents themselves, for collections with texts and few judgements, or none.

A document is cut in two: its title, its first sentence or its first half asks, and what is left of it answers. The
whole document, which holds its query word for word, is taken for the query itself: it counts neither as relevant nor
as irrelevant. (Inverse cloze task: Lee et al., ACL 2019; titles as queries: MacAvaney et al., SIGIR 2017.)
"""

from __future__ import annotations

import dataclasses
import re
from typing import Literal, get_args

import numpy as np

from smec_st.data.collection import Collection
from smec_st.data.embedding import embed_tables
from smec_st.data.errors import DataError
from smec_st.data.qrels import Qrels
from smec_st.data.vectors import check_vectors, check_widths

Cut = Literal["auto", "title", "sentence", "halves"]
CUTS: tuple[str, ...] = get_args(Cut)

QUERY_WORDS, REST_WORDS = 3, 8  # a shorter part says too little
SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+")


def cut_document(title: str, text: str, how: Cut = "auto") -> tuple[str, str] | None:
    """What asks and what answers; None where a part would be too short.

    Args:
        title: May be empty.
        text: The document without its title.
        how: ``title`` against text, first ``sentence`` against the rest, two ``halves`` by words; ``auto`` takes the
            first of these that gives both parts.

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
    enough = len(parts[0].split()) >= QUERY_WORDS and len(parts[1].split()) >= REST_WORDS
    return parts if enough else None


def add_synthetic_queries(
    collection: Collection, model: str, how: Cut = "auto", most: int = 10_000, seed: int = 0
) -> Collection:
    """The collection with made queries, and what answers them, behind its own; they join the ``train`` split.

    Args:
        collection: With texts, as :func:`~smec_st.data.load_collection` reads it when a model is given.
        model: Sentence-transformers model, id or path, whose vectors the collection has; results are cached.
        how: See :func:`cut_document`.
        most: Documents cut, drawn at random.
        seed: Of the draw.

    Raises:
        DataError: If there are no texts, or none can be cut.
    """
    if how not in CUTS:
        raise DataError(f"documents are cut by {', '.join(CUTS)}, got {how!r}.")
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
    made, answers = embed_tables({"queries": [q for q, _ in chosen], "corpus": [rest for _, rest in chosen]}, model)
    check_vectors(made, "query")
    check_widths(collection.corpus, made)
    queries = len(collection.queries) + np.arange(len(rows))
    documents = len(collection.corpus) + np.arange(len(rows))
    train = collection.qrels.get("train")
    asked = Qrels(queries, documents, np.ones(len(rows)))
    judged = asked if train is None else Qrels.joined([train, asked])
    return dataclasses.replace(
        collection,
        corpus=np.concatenate([collection.corpus, answers]),
        queries=np.concatenate([collection.queries, made]),
        corpus_ids=[*collection.corpus_ids, *(f"{collection.corpus_ids[row]}#rest" for row in rows)],
        query_ids=[*collection.query_ids, *(f"{collection.corpus_ids[row]}#query" for row in rows)],
        qrels={**collection.qrels, "train": judged},
        own_document=np.concatenate([collection.own_document, rows]),
        titles=[*collection.titles, *([""] * len(rows))],
        texts=[*collection.texts, *(rest for _, rest in chosen)],
    )
