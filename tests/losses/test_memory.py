"""S-XBM against a first-in-first-out list and a brute-force search."""

import numpy as np
import pytest
import torch

from smec_st.losses.memory import EMPTY, SelectableCrossBatchMemory


def rows_of(ids):
    """A vector that names its id, so that a slot shows whose vector it holds."""
    ids = torch.as_tensor(ids, dtype=torch.int64)
    return torch.stack([ids.float(), -ids.float()], dim=1), ids


def filled(capacity, *pushes):
    memory = SelectableCrossBatchMemory(width=2, capacity=capacity)
    for ids in pushes:
        memory.push(*rows_of(ids))
    return memory


def held(memory):
    """Row ids in the memory, after checking that each is there once and with its own vector."""
    full = memory.row_ids != EMPTY
    ids = memory.row_ids[full].tolist()
    assert len(set(ids)) == len(ids) == len(memory)
    assert torch.equal(memory.vectors[full], rows_of(ids)[0])
    return set(ids)


def last_distinct(pushes, capacity):
    """The last ``capacity`` distinct ids that were pushed: what a first-in-first-out memory holds."""
    queue = []
    for row in (row for ids in pushes for row in ids):
        queue = [other for other in queue if other != row] + [row]
    return set(queue[-capacity:])


@pytest.mark.parametrize(
    ("pushes", "expected"),
    [
        ([], []),
        ([[]], []),
        ([[7, 3]], [7, 3]),
        ([[0, 1], [2, 3]], [0, 1, 2, 3]),
        ([[0, 1, 2], [3, 4, 5]], [2, 3, 4, 5]),
        ([[0, 1, 2], [], [3, 4, 5], [6]], [3, 4, 5, 6]),
        ([[0, 1, 2, 3, 4, 5, 6, 7, 8]], [5, 6, 7, 8]),
        ([[20], [0, 1, 2, 3, 4, 5, 6, 7, 8], [9]], [6, 7, 8, 9]),
    ],
    ids=["new", "empty push", "part-full", "full", "wrapped", "wrapped, empty", "over-full", "over-full, one"],
)
def test_push_keeps_the_last_rows(pushes, expected):
    assert held(filled(4, *pushes)) == set(expected)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("repeats", [True, False])
def test_push_equals_first_in_first_out_oracle(seed, repeats):
    rng = np.random.default_rng(seed)
    capacity = int(rng.integers(1, 9))
    fresh = iter(rng.permutation(1000).tolist())
    sizes = rng.integers(0, 2 * capacity, 40)
    pushes = [rng.integers(0, 12, n).tolist() if repeats else [next(fresh) for _ in range(n)] for n in sizes]
    memory = filled(capacity)
    for count, ids in enumerate(pushes, start=1):
        memory.push(*rows_of(ids))
        assert held(memory) == last_distinct(pushes[:count], capacity)


def test_push_moves_a_repeated_row_to_the_front():
    memory = filled(3, [0, 1, 2], [0])
    memory.push(*rows_of([3, 4]))
    assert held(memory) == {0, 3, 4}


def test_push_keeps_the_last_vector_of_a_row_given_twice():
    memory = SelectableCrossBatchMemory(width=1, capacity=4)
    memory.push(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([5, 6, 5]))
    memory.push(torch.tensor([[4.0]]), torch.tensor([6]))
    ids = memory.row_ids.tolist()
    assert [memory.vectors[ids.index(row)].item() for row in (5, 6)] == [3.0, 4.0]
    assert len(memory) == 2


def test_push_converts_to_the_type_of_the_memory():
    memory = SelectableCrossBatchMemory(width=2, capacity=3)
    memory.push(torch.ones(1, 2, dtype=torch.float64), torch.tensor([1], dtype=torch.int32))
    assert memory.vectors.dtype == torch.float32
    assert memory.row_ids.dtype == torch.int64


def test_clear_forgets_everything_and_starts_afresh():
    memory = filled(3, [0, 1, 2, 3])
    memory.clear()
    assert len(memory) == 0
    memory.push(*rows_of([8, 9]))
    assert torch.equal(memory.row_ids, filled(3, [8, 9]).row_ids)


@pytest.mark.parametrize("pushes", [[[0]], [[0, 1, 2], [3, 4]], [[0, 1, 2, 3], [1], [5, 6]]])
def test_state_dict_restores_rows_and_position(pushes):
    memory, restored = filled(4, *pushes), filled(4, [50, 51, 52])
    restored.load_state_dict(memory.state_dict())
    for row in (10, 11, 12):
        assert torch.equal(restored.row_ids, memory.row_ids)
        assert torch.equal(restored.vectors, memory.vectors)
        memory.push(*rows_of([row]))
        restored.push(*rows_of([row]))


@pytest.mark.parametrize(
    "pushes", [[], [[0, 1, 2]], [[0, 1, 2, 3, 4, 5, 6], [7, 8, 2]]], ids=["empty", "part", "full"]
)
@pytest.mark.parametrize("k", [0, 1, 3, 8, 20])
@pytest.mark.parametrize("ban", [0.0, 0.3, 1.0])
def test_mine_equals_brute_force(rng, pushes, k, ban):
    memory = filled(8, *pushes)
    similarity = rng.normal(size=(4, 8)).astype(np.float32)
    banned = rng.random((4, 8)) < ban
    expected = np.zeros((4, 8), dtype=bool)
    for row in range(4):
        allowed = [slot for slot in range(8) if memory.row_ids[slot] != EMPTY and not banned[row, slot]]
        expected[row, sorted(allowed, key=lambda slot: -similarity[row, slot])[:k]] = True
    chosen = memory.mine(torch.from_numpy(similarity), k, torch.from_numpy(banned))
    np.testing.assert_array_equal(chosen.numpy(), expected)


def test_mine_bans_nothing_by_default():
    memory = filled(4, [0, 1, 2])
    chosen = memory.mine(torch.tensor([[0.1, 0.9, 0.5, 2.0], [0.3, 0.2, 0.1, 2.0]]), k=2)
    assert chosen.tolist() == [[False, True, True, False], [True, True, False, False]]


def test_memory_rejects_capacity_below_one():
    with pytest.raises(ValueError, match="`capacity` must be at least 1, got 0"):
        SelectableCrossBatchMemory(width=2, capacity=0)


@pytest.mark.parametrize(
    ("shape", "ids", "match"),
    [
        ((2, 3), [0, 1], r"`vectors` must be \(2, 2\) for 2 row ids, got \(2, 3\)"),
        ((3, 2), [0, 1], r"`vectors` must be \(2, 2\) for 2 row ids, got \(3, 2\)"),
        ((2, 2), [0, -1], "`row_ids` must be 0 or more"),
    ],
)
def test_push_rejects_what_does_not_fit(shape, ids, match):
    memory = filled(4, [7])
    with pytest.raises(ValueError, match=match):
        memory.push(torch.ones(shape), torch.tensor(ids))
    assert held(memory) == {7}
