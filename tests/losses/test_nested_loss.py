"""All sizes in one pass: values and gradients against autograd over the plain formulas, size by size."""

import pytest
import torch

from smec_st.functional import NEVER, alignment_kl, contrastive_loss, nested_cosines, unit
from smec_st.losses.nested import Comparison, nested_loss

SIZES, WIDTH = (3, 5, 8), 12
QUERIES, SHADOWS, DOCUMENTS, POOL = 6, 2, 4, 20


@pytest.fixture
def world():
    """Rows and candidates in float64, what they should find, and the same as plain tensors."""
    g = torch.Generator().manual_seed(0)
    rows = QUERIES + SHADOWS + DOCUMENTS
    left, right = (torch.randn(n, SIZES[-1], generator=g, dtype=torch.float64) for n in (rows, POOL))
    teacher = torch.rand(rows, POOL, generator=g, dtype=torch.float64)
    grades = torch.zeros(QUERIES + SHADOWS, POOL, dtype=torch.float64)
    grades[torch.arange(8), torch.arange(8)] = 2.0
    grades[0, 9] = 1.0
    same = torch.tensor([1, 8, 9]), torch.tensor([12, 3, 4])
    return left, right, teacher, grades, same


def want_of(world, prefix_gradient=0.0, ranks=True, aligns=True, tau=0.1, taus=(0.05, 0.05, 0.2)):
    left, _, teacher, grades, same = world
    rows, columns = grades.nonzero(as_tuple=True)
    weights = torch.linspace(0.5, 2, len(left), dtype=torch.float64)
    targets, entropies = [], []
    for each in taus:
        logs = (teacher / each).index_put(same, torch.tensor(NEVER, dtype=torch.float64)).log_softmax(1)
        targets.append(logs.exp() * weights[:, None])
        entropies.append((targets[-1] * logs).sum())
    return Comparison(
        sizes=SIZES,
        tau=tau,
        ranked=len(grades),
        pairs=(rows, columns) if ranks else (rows[:0], rows[:0]),
        pair_weights=(grades[rows, columns] / grades.sum(1)[rows] / len(grades)) if ranks else weights[:0],
        taus=taus if aligns else (),
        targets=targets if aligns else [],
        entropies=entropies if aligns else [],
        row_weights=weights,
        same=same,
        prefix_gradient=prefix_gradient,
    )


def plain(world, left, right, scale, want):
    """The sum of both terms over all sizes, by the formulas of the package and autograd."""
    _, _, teacher, grades, same = world
    rank = alignment = 0.0
    mask = torch.ones_like(teacher, dtype=torch.bool)
    mask[same] = False
    for number, cosine in enumerate(nested_cosines(left, right, want.sizes, want.prefix_gradient)):
        if len(want.pair_weights):
            possible = cosine.masked_fill(~mask, NEVER)[: want.ranked]
            rank = rank + contrastive_loss(possible, grades, want.tau * scale[number].exp())
        if want.targets:
            tau = want.taus[number]
            for row in range(len(left)):
                here = slice(row, row + 1)
                drift = alignment_kl(cosine[here], teacher[here], tau, mask[here])
                alignment = alignment + want.row_weights[row] * tau * drift
    return rank, alignment


@pytest.mark.parametrize("prefix_gradient", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("ranks", "aligns"), [(True, True), (True, False), (False, True)])
def test_closed_form_equals_autograd(world, prefix_gradient, ranks, aligns):
    want = want_of(world, prefix_gradient, ranks, aligns)
    found = []
    for fused in (True, False):
        inputs = [x.clone().requires_grad_(True) for x in (*world[:2], torch.tensor([0.0, 0.4, -0.3]).double())]
        if fused:
            total, rank, alignment = nested_loss(*inputs, want)
        else:
            rank, alignment = plain(world, *inputs, want)
            total = rank + alignment
        (3 * total).backward()
        values = [torch.as_tensor(x, dtype=torch.float64).detach() for x in (total, rank, alignment)]
        found.append([*values, *(x.grad for x in inputs)])
    for one, other in zip(*found, strict=True):
        if other is None:  # the plain form does not even touch the temperature
            other = torch.zeros_like(one)
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_smaller_sizes_are_frozen_for_larger_ones(world):
    """SMRL: leaving a larger size out changes no gradient of a smaller one's columns."""
    grads = []
    for sizes in (SIZES, SIZES[:2]):
        want = want_of(world)
        want = Comparison(**{**vars(want), "sizes": sizes})
        left, right = (x.clone().requires_grad_(True) for x in world[:2])
        nested_loss(left, right, torch.zeros(3, dtype=torch.float64), want)[0].backward()
        grads.append((left.grad[:, : SIZES[1]], right.grad[:, : SIZES[1]]))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_nested_cosines_are_those_of_prefixes(world):
    left, right = world[:2]
    for size, cosine in zip(SIZES, nested_cosines(left, right, SIZES), strict=True):
        torch.testing.assert_close(cosine, unit(left[:, :size]) @ unit(right[:, :size]).T)


def test_small_temperatures_and_rows_without_candidates_stay_finite(world):
    left, right, teacher, _, _ = world
    everything = torch.arange(POOL)
    same = torch.zeros(POOL, dtype=torch.int64), everything
    want = want_of((left, right, teacher, world[3], same), tau=1e-3, taus=(1e-3,) * 3)
    left, right = (x.float().requires_grad_(True) for x in (left, right))
    want = Comparison(
        **{
            **vars(want),
            "pair_weights": want.pair_weights.float(),
            "row_weights": want.row_weights.float(),
            "targets": [x.float() for x in want.targets],
        }
    )
    total, _, _ = nested_loss(left, right, torch.zeros(3), want)
    total.backward()
    assert left.grad[1:].isfinite().all()
    assert right.grad.isfinite().all()
