"""Vectors, relevance judgements and collections. Unusable input raises :class:`DataError` with a one-line message."""

from __future__ import annotations

from smec_st.data.collection import SPLITS, Collection
from smec_st.data.encoded_table import EncodedTable
from smec_st.data.join import join_collections
from smec_st.data.jsonl import read_jsonl
from smec_st.data.load import load_collection
from smec_st.data.pairs import NumberedPairs, number_pairs
from smec_st.data.qrels import Qrels, as_qrels, places_among
from smec_st.data.safetensors import read_safetensors
from smec_st.data.sources import Batch, VectorSource, load_vectors, open_vectors
from smec_st.data.synthetic import add_synthetic_queries
from smec_st.data.table import Table, VectorTable
from smec_st.data.vectors import as_numpy, check_vectors, unit_rows
from smec_st.system.errors import DataError

__all__ = [
    "SPLITS",
    "Batch",
    "Collection",
    "DataError",
    "EncodedTable",
    "NumberedPairs",
    "Qrels",
    "Table",
    "VectorSource",
    "VectorTable",
    "add_synthetic_queries",
    "as_numpy",
    "as_qrels",
    "check_vectors",
    "join_collections",
    "load_collection",
    "load_vectors",
    "number_pairs",
    "open_vectors",
    "places_among",
    "read_jsonl",
    "read_safetensors",
    "unit_rows",
]
