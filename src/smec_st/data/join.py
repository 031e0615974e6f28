"""Join several collections into one, to fit a compressor that serves more than one domain."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, combinations

import numpy as np

from smec_st.data.collection import SPLITS, Collection
from smec_st.data.qrels import Qrels
from smec_st.data.space import check_backbone
from smec_st.system.errors import DataError


def join_collections(collections: Sequence[Collection], name: str | None = None) -> Collection:
    """Join collections. In the result, the documents of one collection are negatives for the queries of the others.

    Every id is prefixed with the name of its collection, so that ``d1`` of two collections stays two documents.

    Args:
        collections: Collections of one backbone and width, with distinct names.
        name: Name of the result; by default the names joined by ``+``.

    Raises:
        DataError: If two collections share a name, or have vectors of different widths, models, revisions or prompts.
    """
    names = [collection.name for collection in collections]
    if not collections or len(set(names)) != len(names):
        raise DataError(f"collections to be joined need names that differ, got {', '.join(names) or 'none'}.")
    widths = {collection.name: collection.corpus.shape[1] for collection in collections}
    if len(set(widths.values())) > 1:
        listed = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise DataError(f"collections of one width can be joined; these are wide: {listed}.")
    for one, other in combinations(collections, 2):
        check_backbone(one.backbone, other.backbone, other.name, f"that of {one.name} is")
    documents = [0, *accumulate(len(collection.corpus) for collection in collections)]
    queries = [0, *accumulate(len(collection.queries) for collection in collections)]
    qrels = {}
    for split in SPLITS:
        parts = [
            Qrels(each.qrels[split].queries + q, each.qrels[split].documents + d, each.qrels[split].grades)
            for each, q, d in zip(collections, queries, documents, strict=False)
            if split in each.qrels
        ]
        if parts:
            qrels[split] = Qrels.joined(parts)
    own = [
        np.where(each.own_document >= 0, each.own_document + start, -1)
        for each, start in zip(collections, documents, strict=False)
    ]
    with_texts = all(each.texts for each in collections)
    return Collection(
        name or "+".join(names),
        np.concatenate([each.corpus for each in collections]),
        np.concatenate([each.queries for each in collections]),
        [f"{each.name}/{identifier}" for each in collections for identifier in each.corpus_ids],
        [f"{each.name}/{identifier}" for each in collections for identifier in each.query_ids],
        qrels,
        np.concatenate(own),
        next((each.backbone for each in collections if each.backbone), {}),
        [title for each in collections for title in each.titles] if with_texts else [],
        [text for each in collections for text in each.texts] if with_texts else [],
    )
