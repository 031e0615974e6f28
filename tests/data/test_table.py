"""A table moved by a linear map, and the documents that queries are themselves."""

import numpy as np
import pytest
import torch

from smec_st.data import EncodedTable, VectorTable, unit_rows
from smec_st.training.moments import corpus_moments
from tiny_models import tiny_bert

WIDTH, DOCUMENTS, QUERIES = 6, 20, 7


@pytest.fixture
def sides(rng):
    return rng.normal(size=(DOCUMENTS, WIDTH)), rng.normal(size=(QUERIES, WIDTH))


@pytest.mark.parametrize("in_memory_bytes", [1 << 20, 0])
@pytest.mark.parametrize("outputs", [WIDTH, 3, 9])
def test_a_moved_table_holds_the_mapped_rows_normalised_again(rng, sides, in_memory_bytes, outputs):
    own = np.array([3, -1, -1, 5, -1, -1, 0])
    table = VectorTable(*sides, own, in_memory_bytes=in_memory_bytes)
    weight = rng.normal(size=(outputs, WIDTH)).astype(np.float32)
    moved = table.moved(torch.from_numpy(weight))
    rows = torch.tensor([0, 19, 26, 20, 0])
    expected = unit_rows(unit_rows(np.concatenate(sides)) @ weight.T)
    np.testing.assert_allclose(moved[rows].numpy(), expected[rows.numpy()], atol=1e-5)
    assert (moved.width, moved.corpus_size, moved.query_size) == (outputs, DOCUMENTS, QUERIES)
    assert len(moved) == DOCUMENTS + QUERIES
    everything = torch.arange(len(table))
    assert torch.equal(moved.own(everything), table.own(everything))
    np.testing.assert_allclose(table[everything].numpy(), unit_rows(np.concatenate(sides)), atol=1e-6)
    assert table.width == WIDTH, "the table itself stays as it is"


@pytest.mark.parametrize("in_memory_bytes", [1 << 20, 0])
def test_moves_follow_one_another_and_the_identity_changes_nothing(rng, sides, in_memory_bytes):
    table = VectorTable(*sides, in_memory_bytes=in_memory_bytes)
    rows = torch.arange(len(table))
    torch.testing.assert_close(table.moved(torch.eye(WIDTH))[rows], table[rows])
    first, second = (torch.from_numpy(rng.normal(size=shape)).float() for shape in ((4, WIDTH), (5, 4)))
    twice, once = table.moved(first).moved(second), table.moved(second @ first)
    torch.testing.assert_close(twice[rows], once[rows], atol=1e-5, rtol=0)
    mean, moment = corpus_moments(twice)
    documents = twice[torch.arange(DOCUMENTS)].double()
    torch.testing.assert_close(mean.double(), documents.mean(dim=0), atol=1e-6, rtol=0)
    torch.testing.assert_close(moment, documents.T @ documents / DOCUMENTS, atol=1e-6, rtol=0)


def test_a_moved_table_in_memory_gives_its_documents_moved(rng, sides):
    weight = torch.from_numpy(rng.normal(size=(3, WIDTH))).float()
    moved = VectorTable(*sides).moved(weight)
    np.testing.assert_array_equal(moved.documents(), moved[torch.arange(DOCUMENTS)].numpy())


@pytest.mark.parametrize("in_memory_bytes", [1 << 20, 0])
@pytest.mark.parametrize(("shape", "got"), [((WIDTH, 3), r"\(6, 3\)"), ((WIDTH,), r"\(6,\)")])
def test_a_map_of_another_width_is_refused(sides, shape, got, in_memory_bytes):
    with pytest.raises(ValueError, match=rf"`weight` must be \(k, 6\), got {got}"):
        VectorTable(*sides, in_memory_bytes=in_memory_bytes).moved(torch.ones(shape))


def test_texts_that_a_backbone_embeds_move_too(tmp_path):
    table = EncodedTable(tiny_bert(tmp_path), ["a", "b", "c"], ["b", "d"], np.array([1, -1]))
    weight = torch.eye(4, table.width)
    moved = table.moved(weight)
    rows = torch.tensor([4, 0, 1])
    torch.testing.assert_close(moved[rows], torch.nn.functional.normalize(table[rows][:, :4], dim=1))
    assert moved.own_documents(np.array([0, 1])).tolist() == [1]


@pytest.mark.parametrize("is_moved", [False, True])
def test_own_documents_are_those_of_these_queries_each_once(sides, is_moved):
    table = VectorTable(*sides, np.array([3, -1, 5, 3, -1, 0, 19]))
    table = table.moved(torch.eye(WIDTH)) if is_moved else table
    assert table.own_documents(np.arange(QUERIES)).tolist() == [0, 3, 5, 19]
    assert table.own_documents(np.array([3, 0, 1])).tolist() == [3]
    assert table.own_documents(np.array([4])).tolist() == []
    assert table.own_documents(np.array([], dtype=np.int64)).tolist() == []
    assert VectorTable(*sides).own_documents(np.arange(QUERIES)).tolist() == []
