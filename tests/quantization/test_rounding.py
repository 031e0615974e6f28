"""Rounding in training: what it gives, the gradient that passes it, and centroids that follow a moving map."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from smec_st.data import unit_rows
from smec_st.quantization.choice import start_of_rounding
from smec_st.quantization.codecs import Binary
from smec_st.quantization.rounding import Rounding
from smec_st.quantization.starts import balanced_rotation, calibrate_int8, product_codes, random_rotation

pytest.importorskip("faiss")


@pytest.fixture
def rows(rng):
    return unit_rows(rng.normal(size=(400, 8)).astype(np.float32) * np.linspace(1, 0.3, 8, dtype=np.float32))


def roundings(rows):
    turned = balanced_rotation(rows, 4)
    return {
        "int8": (None, calibrate_int8(rows, outside=0)),
        "binary": (random_rotation(8, 0), Binary(None, 8)),
        "pq": (None, product_codes(rows, 4, 0)),
        "turned pq": (turned, product_codes(rows @ turned, 4, 0)),
    }


@pytest.mark.parametrize("name", ["int8", "binary", "pq", "turned pq"])
def test_rounding_is_what_the_codec_stores_and_leaves_the_gradient_as_it_is(rows, name):
    rotation, codec = roundings(rows)[name]
    turned = rows if rotation is None else rows @ rotation
    stored = codec.decode(codec.encode(turned))
    given = torch.from_numpy(rows).requires_grad_()
    decoded = Rounding(codec).decoded(torch.from_numpy(turned))
    np.testing.assert_allclose(unit_rows(decoded.detach().numpy()), stored, atol=1e-5)
    out = Rounding(codec, rotation).requires_grad_(False).eval()(given)
    wanted = torch.from_numpy(np.random.default_rng(1).normal(size=rows.shape).astype(np.float32))
    out.backward(wanted)
    along = (wanted * given.detach()).sum(dim=1, keepdim=True) * given.detach()  # lengths are scaled to 1 before
    np.testing.assert_allclose(given.grad, wanted - along, atol=1e-4)


def test_only_the_stored_numbers_are_read(rows):
    rounding = Rounding(calibrate_int8(rows)).requires_grad_(False).eval()
    wide = torch.cat([torch.from_numpy(rows), torch.ones(len(rows), 3)], dim=1)
    assert torch.equal(rounding(wide), rounding(wide[:, :8]))


@pytest.mark.parametrize("name", ["int8", "pq", "turned pq"])
def test_ranges_and_centroids_follow_rows_that_move(rows, rng, name):
    rotation, codec = roundings(rows)[name]
    moved = torch.from_numpy(rows @ random_rotation(8, 7))
    rounding = Rounding(codec, rotation).requires_grad_(False)

    def error():
        return (rounding.eval()(moved) - moved).square().sum(dim=1).mean().item()

    before = error()
    rounding.train()
    for _ in range(100):
        rounding(moved[torch.from_numpy(rng.permutation(400)[:200])])
    assert error() < 0.7 * before
    assert all(tensor.isfinite().all() for tensor in rounding.state_dict().values())


def test_centroids_follow_as_means_of_the_rows_that_chose_them(rows):
    codec = product_codes(rows[:40], 4, 0)
    rounding = Rounding(codec).requires_grad_(False)
    shares, start = rounding.shares.numpy().copy(), codec.centroids.copy()
    rounding(torch.from_numpy(rows))
    codes = codec.encode(rows)
    for group in range(4):
        for number in range(start.shape[1]):
            chosen = rows[codes[:, group] == number, 2 * group : 2 * group + 2]
            past, now = 0.95 * shares[group, number], 0.05 * len(chosen) / len(rows)
            mean = chosen.mean(axis=0) if len(chosen) else 0
            wanted = (past * start[group, number] + now * mean) / (past + now)
            np.testing.assert_allclose(rounding.trained["centroids"][group, number], wanted, atol=1e-5)


def test_parameters_that_an_optimizer_trains_do_not_follow(rows):
    rounding = Rounding(product_codes(rows, 4, 0))
    before = rounding.trained["centroids"].detach().clone()
    rounding(torch.from_numpy(rows[:50]))
    assert torch.equal(rounding.trained["centroids"], before)


def test_the_codes_that_keep_most_neighbours_are_trained_through(rows):
    rotation, codec = start_of_rounding(rows, (8,), 8, 0)
    assert (codec.precision, codec.dim, rotation) == ("int8", 8, None)
    wide = unit_rows(np.concatenate([rows, 0.5 * rows[:, ::-1] ** 2], axis=1))  # half of it would be lost as int8
    rotation, codec = start_of_rounding(wide, (8, 16), 8, 0)
    assert (codec.precision, codec.dim, rotation.shape) == ("pq", 16, (16, 16))
    assert start_of_rounding(rows, (8,), 5, 0) is None
    assert start_of_rounding(rows, (8,), 16, 0) is None  # float16 needs no training through its rounding
    assert start_of_rounding(rows, (8,), 1, 0)[1].bytes == 1
