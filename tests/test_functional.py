"""Each formula against a naive loop in float64, and against what it must become at its limits."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from smec_st import functional
from smec_st.functional import (
    alignment_kl,
    alignment_l1,
    contrastive_loss,
    gumbel_noise,
    leftover_axes,
    linear_link,
    rank_loss,
    reconstruction_l1,
    second_moment,
    spread,
    straight_through_top_k,
    top_k_indices,
    unit,
)


@pytest.fixture
def similarity(rng):
    return torch.from_numpy(rng.uniform(-1, 1, (5, 9)))


@pytest.fixture
def grades():
    """Several graded positives, one positive, none, all, and none again."""
    rows = [
        [0, 3, 0, 1, 0, 2, 0, 0, 0],
        [0, 0, 0, 0, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 2, 1, 3, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.fixture
def data(rng):
    """Rows whose variance differs by direction, mixed; off the origin."""
    mix = np.linalg.qr(rng.normal(size=(10, 10)))[0]
    return torch.from_numpy((rng.normal(size=(200, 10)) * np.linspace(3, 0.5, 10) + 0.5) @ mix)


def naive_contrastive(similarity, grades, tau):
    losses = []
    for s, y in zip(similarity.tolist(), grades.tolist(), strict=True):
        if sum(y) == 0:
            continue
        loss = 0.0
        for j, grade in enumerate(y):
            against = sum(math.exp((s[k] - s[j]) / tau) for k in range(len(s)) if y[k] == 0)
            loss += grade / sum(y) * math.log1p(against)
        losses.append(loss)
    return sum(losses) / len(losses)


def naive_rank(similarity, grades):
    terms = []
    for s, y in zip(similarity.tolist(), grades.tolist(), strict=True):
        for j in range(len(s)):
            terms += [(y[j] - y[k]) * math.log1p(math.exp(s[k] - s[j])) for k in range(len(s)) if y[j] > y[k]]
    return sum(terms) / len(terms)


def naive_kl(student, teacher, mask, tau):
    total = 0.0
    for s, t, m in zip(student.tolist(), teacher.tolist(), mask.tolist(), strict=True):
        kept = [j for j in range(len(s)) if m[j]]
        s_sum = sum(math.exp(s[j] / tau) for j in kept)
        t_sum = sum(math.exp(t[j] / tau) for j in kept)
        for j in kept:
            p, q = math.exp(t[j] / tau) / t_sum, math.exp(s[j] / tau) / s_sum
            total += p * math.log(p / q)
    return total / len(student)


def test_unit_scales_rows_to_length_one_and_keeps_a_zero_row(rng):
    x = torch.from_numpy(rng.normal(size=(3, 4)))
    x[1] = 0
    torch.testing.assert_close(unit(x).norm(dim=1), torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(unit(x) * x.norm(dim=1, keepdim=True), x)


@pytest.mark.parametrize("tau", [0.05, 0.5, 2.0])
def test_contrastive_loss_equals_naive_loop(similarity, grades, tau):
    assert contrastive_loss(similarity, grades, tau).item() == pytest.approx(
        naive_contrastive(similarity, grades, tau), rel=1e-10
    )


def test_contrastive_loss_in_float32_is_close_to_float64(similarity, grades):
    wide = contrastive_loss(similarity, grades, 0.05)
    assert contrastive_loss(similarity.float(), grades.float(), 0.05).item() == pytest.approx(wide.item(), rel=1e-5)


def test_contrastive_loss_is_cross_entropy_when_each_query_has_one_document(similarity):
    right = torch.tensor([3, 0, 8, 3, 5])
    expected = F.cross_entropy(similarity / 0.2, right)
    torch.testing.assert_close(contrastive_loss(similarity, 2.0 * F.one_hot(right, 9).double(), 0.2), expected)


def test_contrastive_loss_takes_a_learned_temperature(similarity, grades):
    tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    contrastive_loss(similarity, grades, tau).backward()
    above, below = naive_contrastive(similarity, grades, 0.3 + 1e-6), naive_contrastive(similarity, grades, 0.3 - 1e-6)
    assert tau.grad.item() == pytest.approx((above - below) / 2e-6, rel=1e-5)


def test_contrastive_loss_never_sets_relevant_documents_against_each_other(similarity, grades):
    similarity.requires_grad_()
    contrastive_loss(similarity, grades, 0.1).backward()
    everything_relevant, nothing_relevant = similarity.grad[3], similarity.grad[2]
    assert everything_relevant.abs().max() == 0
    assert nothing_relevant.abs().max() == 0
    assert (similarity.grad[0][grades[0] > 0] < 0).all()


@pytest.mark.parametrize("loss", [lambda s, y: contrastive_loss(s, y, 0.1), rank_loss], ids=["contrastive", "rank"])
def test_ranking_losses_are_zero_with_a_gradient_when_nothing_is_relevant(similarity, loss):
    similarity.requires_grad_()
    value = loss(similarity, torch.zeros(5, 9, dtype=torch.float64))
    value.backward()
    assert value.item() == 0
    assert similarity.grad.abs().max() == 0


def test_rank_loss_equals_naive_loop(similarity, grades):
    assert rank_loss(similarity, grades).item() == pytest.approx(naive_rank(similarity, grades), rel=1e-10)


def test_rank_loss_is_zero_when_all_grades_are_equal(similarity):
    assert rank_loss(similarity, torch.ones(5, 9, dtype=torch.float64)).item() == 0


def test_alignment_l1_equals_naive_loop(rng, similarity):
    teacher = torch.from_numpy(rng.uniform(-1, 1, (5, 9)))
    mask = torch.from_numpy(rng.random((5, 9)) < 0.4)
    mask[2] = False
    chosen = [
        abs(similarity[i, j].item() - teacher[i, j].item()) for i in range(5) for j in range(9) if mask[i, j].item()
    ]
    assert alignment_l1(similarity, teacher, mask).item() == pytest.approx(sum(chosen) / len(chosen), rel=1e-12)


@pytest.mark.parametrize("tau", [0.05, 1.0])
def test_alignment_kl_equals_naive_loop_with_an_empty_row(rng, similarity, tau):
    teacher = torch.from_numpy(rng.uniform(-1, 1, (5, 9)))
    mask = torch.from_numpy(rng.random((5, 9)) < 0.5)
    mask[2] = False
    expected = naive_kl(similarity, teacher, mask, tau)
    assert alignment_kl(similarity, teacher, tau, mask).item() == pytest.approx(expected, rel=1e-9)


def test_alignment_kl_gradient_is_finite_and_only_reaches_chosen_pairs_of_the_student(rng, similarity):
    teacher = torch.from_numpy(rng.uniform(-1, 1, (5, 9))).requires_grad_()
    mask = torch.from_numpy(rng.random((5, 9)) < 0.5)
    mask[2] = False
    similarity.requires_grad_()
    alignment_kl(similarity, teacher, 0.05, mask).backward()
    assert teacher.grad is None
    assert similarity.grad.isfinite().all()
    assert similarity.grad[~mask].abs().max() == 0
    assert similarity.grad[mask].abs().max() > 0


@pytest.mark.parametrize("count", [2, 3, 40])
def test_spread_is_one_less_the_mean_cosine_of_two_rows(rng, count):
    rows = unit(torch.from_numpy(rng.normal(size=(count, 6)) + 1))
    cosines = [(rows[i] @ rows[j]).item() for i in range(count) for j in range(count) if i != j]
    assert spread(rows).item() == pytest.approx(1 - sum(cosines) / len(cosines), rel=1e-9)


def test_spread_of_rows_that_say_nothing_of_it(rng):
    rows = unit(torch.from_numpy(rng.normal(size=(1, 6))))
    assert spread(rows).item() == spread(rows[:0]).item() == 1
    assert spread(rows.expand(5, 6)).item() == 0.01  # all the same: nothing is divided by zero


def test_in_a_cone_similarities_differ_by_its_spread_times_as_much(rng):
    """Moved towards one direction, a neighbourhood in units of the spread is what it was."""
    rows = unit(torch.from_numpy(rng.normal(size=(50, 6))))
    rows = unit(torch.cat([rows, -rows]))  # no direction of their own
    moved = torch.cat([rows / 2, torch.full((100, 1), math.sqrt(0.75), dtype=rows.dtype)], dim=1)
    narrow, plain = moved @ moved.T / spread(moved), rows @ rows.T / spread(rows)
    assert spread(moved) == pytest.approx(spread(rows).item() / 4, rel=1e-9)
    assert torch.allclose(narrow.softmax(dim=1), plain.softmax(dim=1))


@pytest.mark.parametrize("loss", [lambda s, t, mask: alignment_kl(s, t, 0.1, mask), alignment_l1], ids=["kl", "l1"])
def test_alignment_is_zero_when_nothing_changed_or_nothing_is_chosen(similarity, loss):
    assert loss(similarity, similarity.clone(), torch.ones(5, 9, dtype=torch.bool)).item() == pytest.approx(
        0, abs=1e-12
    )
    assert loss(similarity, -similarity, torch.zeros(5, 9, dtype=torch.bool)).item() == 0


def test_reconstruction_l1_equals_naive_loop(rng):
    start, result = torch.from_numpy(rng.normal(size=(4, 3))), torch.from_numpy(rng.normal(size=(4, 3)))
    changes = [abs(b - a) for a, b in zip(start.flatten().tolist(), result.flatten().tolist(), strict=True)]
    assert reconstruction_l1(start, result).item() == pytest.approx(sum(changes) / 12, rel=1e-12)


# -- selection --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "keep", "expected"),
    [
        ([0.0, 0.0, 0.0, 0.0], 2, [0, 1]),
        ([1.0, 2.0, 1.0, 3.0, 1.0], 3, [0, 1, 3]),
        ([5.0, -1.0, 5.0], 1, [0]),
        ([1.0, 2.0], 2, [0, 1]),
        ([0.0] * 500 + [1.0] + [0.0] * 500, 4, [0, 1, 2, 500]),
    ],
)
def test_top_k_indices_rise_and_ties_go_to_the_lower_index(scores, keep, expected):
    assert top_k_indices(torch.tensor(scores), keep).tolist() == expected


def test_straight_through_top_k_selects_hard_going_forward(rng):
    logits, noise = torch.from_numpy(rng.normal(size=12)), gumbel_noise(12, 1)
    indices, gate = straight_through_top_k(logits, noise, 5, 0.5)
    expected = sorted(np.argsort(-(logits.float() + noise).numpy())[:5].tolist())
    assert indices.tolist() == expected
    torch.testing.assert_close(gate, torch.ones(5), rtol=0, atol=1e-6)


@pytest.mark.parametrize("tau", [0.2, 1.0])
def test_straight_through_top_k_has_the_gradient_of_a_softmax(rng, tau):
    logits = torch.from_numpy(rng.normal(size=12)).float().requires_grad_()
    noise, weights = gumbel_noise(12, 1), torch.from_numpy(rng.normal(size=5)).float()
    indices, gate = straight_through_top_k(logits, noise, 5, tau)
    (got,) = torch.autograd.grad((weights * gate).sum(), logits)
    p = ((logits.detach() + noise) / tau).softmax(dim=0).double().numpy()
    jacobian = (np.diag(p) - np.outer(p, p))[indices.numpy()] / tau * 12 / 5
    np.testing.assert_allclose(got.numpy(), weights.numpy() @ jacobian, rtol=1e-4, atol=1e-7)
    assert got.abs().min() > 0  # dropped dimensions learn too


def test_gumbel_noise_depends_on_the_seed_alone():
    torch.manual_seed(1)
    first = gumbel_noise(50, 0, 3, 7)
    torch.manual_seed(2)
    assert torch.equal(gumbel_noise(50, 0, 3, 7), first)
    assert not torch.equal(gumbel_noise(50, 0, 7, 3), first)
    assert not torch.equal(gumbel_noise(50, 0, 3, 8), first)


def test_gumbel_noise_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    gumbel_noise(50, 0)
    assert torch.equal(torch.rand(3), expected)


def test_gumbel_noise_is_finite_with_the_right_moments():
    noise = gumbel_noise(200_000, 5)
    assert noise.dtype == torch.float32
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.015)
    assert noise.std().item() == pytest.approx(math.pi / math.sqrt(6), abs=0.015)


def test_gumbel_noise_is_finite_where_the_uniform_draw_is_zero():
    assert gumbel_noise(500_000, 36).isfinite().all()  # one of these draws is 0


# -- axes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 7, 200, 1000])
def test_second_moment_in_chunks_equals_plain(data, chunk):
    torch.testing.assert_close(second_moment(data, chunk=chunk), data.T @ data / 200)


def test_second_moment_accumulates_in_float64(data):
    assert second_moment(data.half()).dtype == torch.float64


def test_leftover_axes_equal_plain_pca_with_nothing_taken(data):
    axes = leftover_axes(second_moment(data), torch.zeros(0, 10), 10)
    expected = np.linalg.svd(data.numpy(), full_matrices=False)[2]
    cosines = np.sum(axes.numpy() * expected, axis=1)
    np.testing.assert_allclose(np.abs(cosines), 1, atol=1e-5)


@pytest.mark.parametrize("taken_rank", [1, 3, 9])
def test_leftover_axes_are_orthonormal_orthogonal_to_taken_and_span_the_rest(rng, data, taken_rank):
    taken = torch.from_numpy(rng.normal(size=(taken_rank, 10))).float()
    axes = leftover_axes(second_moment(data), taken, 10 - taken_rank)
    torch.testing.assert_close(axes @ axes.T, torch.eye(10 - taken_rank), rtol=0, atol=1e-5)
    torch.testing.assert_close(axes @ taken.T, torch.zeros(10 - taken_rank, taken_rank), rtol=0, atol=1e-5)
    assert torch.linalg.matrix_rank(torch.cat([taken, axes])) == 10


def test_leftover_axes_come_by_falling_variance_of_what_is_left(rng, data):
    taken = torch.from_numpy(rng.normal(size=(2, 10)))
    axes = leftover_axes(second_moment(data), taken, 8)
    variance = (data.float() @ axes.T).square().mean(dim=0)
    assert (variance.diff() <= 1e-5).all()
    onto = torch.eye(10, dtype=torch.float64) - torch.linalg.pinv(taken) @ taken
    largest = torch.linalg.eigvalsh(onto @ second_moment(data) @ onto)[-1]
    assert variance[0].item() == pytest.approx(largest.item(), rel=1e-5)


def test_leftover_axes_count_a_direction_given_twice_once(data):
    axis = torch.eye(10)[:1]
    taken = torch.cat([axis, 2 * axis])
    assert leftover_axes(second_moment(data), taken, 9).shape == (9, 10)


@pytest.mark.parametrize("taken", [0, 5])
@pytest.mark.parametrize("last", [False, True])
def test_a_few_axes_of_wide_vectors_are_those_of_all(rng, monkeypatch, taken, last):
    data = torch.from_numpy(rng.normal(size=(400, 96)) * np.linspace(3, 0.1, 96) + 0.5)
    given = second_moment(data), torch.from_numpy(rng.normal(size=(taken, 96))).float()
    mean = data.mean(dim=0) if last else None
    expected = leftover_axes(*given, 6, mean)
    monkeypatch.setattr(functional, "WIDE", 96)
    monkeypatch.setattr(torch.linalg, "eigh", None)  # which would find all of them
    found = leftover_axes(*given, 6, mean)
    assert torch.allclose(found, expected, atol=1e-6)


def test_leftover_axes_have_a_fixed_sign(data):
    axes = leftover_axes(second_moment(data), torch.zeros(0, 10), 10)
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    assert (largest > 0).all()


def test_leftover_axes_reject_more_than_are_left(data):
    with pytest.raises(ValueError, match=r"`count` must be at most 7, the directions left over, got 8"):
        leftover_axes(second_moment(data), torch.eye(10)[:3], 8)


# -- how queries follow from documents --------------------------------------------------------------------------------


def test_linear_link_is_a_regression_on_rows_that_pull_towards_one_factor(rng):
    x, y = rng.normal(size=(30, 6)), rng.normal(size=(30, 6))
    factor = (x * y).sum() / (x * x).sum()
    ridge = (x * x).sum() / 30**2
    pull = math.sqrt(30 * ridge) * np.eye(6)
    expected = np.linalg.lstsq(np.vstack([x, pull]), np.vstack([y, factor * pull]), rcond=None)[0].T
    assert np.allclose(linear_link(torch.from_numpy(x), torch.from_numpy(y)).numpy(), expected, atol=1e-5)


def test_linear_link_finds_what_is_carried_along_and_what_is_not(rng):
    x = torch.from_numpy(rng.normal(size=(5000, 4)))
    carried = torch.diag(torch.tensor([1.0, 1.0, 0.0, -0.5], dtype=torch.float64))
    found = linear_link(x, x @ carried.T + 0.1 * torch.from_numpy(rng.normal(size=(5000, 4))))
    assert torch.allclose(found, carried.float(), atol=0.02)


def test_linear_link_of_one_pair_is_about_one_factor_where_the_pair_says_nothing():
    x, y = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.5, 0.0, 0.0]])
    assert torch.allclose(linear_link(x, y), 0.5 * torch.eye(3), atol=1e-6)
