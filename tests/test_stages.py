"""Plans for any sizes, and a clear refusal of impossible ones."""

import json

import pytest

from smec_st.stages import Stage, StageReport, check_dims, default_dims, plan_stages


def steps(plan):
    return [(s.phase, s.in_dim, s.have, s.out_dim, s.candidates) for s in plan]


@pytest.mark.parametrize("dims", [(64, 32, 16), (16, 32, 64), [32, 64, 16]])
@pytest.mark.parametrize("adapt", [False, True])
def test_plan_stages_grows_all_sizes_in_one_pass(dims, adapt):
    plan = plan_stages(64, dims, "grow", adapt=adapt)
    assert [s.phase for s in plan] == (["adapt"] if adapt else []) + ["compress"]
    assert plan[-1].sizes == (16, 32, 64)
    assert {s.in_dim for s in plan} == {s.out_dim for s in plan} == {64}


@pytest.mark.parametrize(
    ("width", "dims", "ratio", "have", "expected"),
    [
        (33, (7, 20), 1.0, 0, [("compress", 0, 20, 20, (7, 20))]),
        (33, (7, 20), 1.5, 0, [("select", 0, 20, 30, (20,)), ("compress", 0, 20, 20, (7, 20))]),
        (33, (7, 20), 2.0, 0, [("select", 0, 20, 33, (20,)), ("compress", 0, 20, 20, (7, 20))]),
        (33, (9,), 1.5, 4, [("select", 4, 9, 8 + 4 - 4, (9,)), ("compress", 4, 9, 5, (9,))]),
        (33, (9,), 100, 4, [("select", 4, 9, 29, (9,)), ("compress", 4, 9, 5, (9,))]),
        (33, (33,), 2.0, 0, [("compress", 0, 33, 33, (33,))]),
        (32, (8, 16), 0.5, 0, [("compress", 0, 16, 16, (8, 16))]),
        (32, (16, 32), 2.0, 8, [("compress", 8, 32, 24, (16, 32))]),
        (1, (1,), 2.0, 0, [("compress", 0, 1, 1, (1,))]),
    ],
    ids=["plain", "select", "capped", "have", "all", "full width", "ratio below 1", "nothing left", "width 1"],
)
def test_plan_stages_grows(width, dims, ratio, have, expected):
    plan = plan_stages(width, dims, "grow", selection_ratio=ratio, have=have)
    assert [(s.phase, s.have, s.out_dim, s.candidates, s.sizes) for s in plan] == expected
    assert {s.in_dim for s in plan} == {width}
    assert {s.order for s in plan} == {"grow"}


@pytest.mark.parametrize(
    ("dims", "expected"),
    [
        ((33, 16, 5), [("joint", 33, 0, 16, 33), ("joint", 16, 0, 5, 16)]),
        ((16, 5), [("joint", 33, 0, 16, 33), ("joint", 16, 0, 5, 16)]),
        ((32,), [("joint", 33, 0, 32, 33)]),
    ],
)
def test_plan_stages_shrinks_from_the_full_width(dims, expected):
    assert steps(plan_stages(33, dims, "shrink")) == expected


@pytest.mark.parametrize("order", ["grow", "shrink"])
def test_plan_stages_are_numbered_and_their_names_sort(order):
    plan = plan_stages(4096, [4096 - 3 * i for i in range(12)], order)
    assert [s.index for s in plan] == list(range(len(plan)))
    assert sorted(s.name for s in plan) == [s.name for s in plan]


def test_stage_names_its_folder():
    stage = Stage(index=3, order="grow", phase="compress", in_dim=64, out_dim=16, have=8)
    assert stage.name == "stage-03-grow-16-compress"
    assert (stage.sizes, stage.candidates) == ((16,), 8)
    assert stage.new_dims == 8


@pytest.mark.parametrize(
    ("dims", "order", "have", "match"),
    [
        ([], "grow", 0, "`dims` must name at least one size"),
        ([0, 4], "grow", 0, "`dims` must be 1 or more, got 0"),
        ([-4], "shrink", 0, "`dims` must be 1 or more, got -4"),
        ([8, 33], "shrink", 0, "`dims` must not exceed the vectors' width 32, got 33"),
        ([8, 4, 8], "grow", 0, "`dims` must not repeat, got 8,4,8"),
        ([32], "shrink", 0, "The order `shrink` needs a size below the vectors' width 32"),
        ([8], "sideways", 0, "`order` must be grow or shrink, got 'sideways'"),
        ([8, 16], "grow", 8, "`dims` must be above the 8 columns that exist, got 8"),
    ],
)
def test_plan_stages_rejects_impossible_plans(dims, order, have, match):
    with pytest.raises(ValueError, match=match):
        plan_stages(32, dims, order, have=have)


@pytest.mark.parametrize(
    ("widths", "match"),
    [
        ({"out_dim": 9}, "0 <= have < sizes <= out_dim <= in_dim"),
        ({"have": 4}, "0 <= have < sizes <= out_dim <= in_dim"),
        ({"have": -1}, "0 <= have < sizes <= out_dim <= in_dim"),
        ({"candidates": 3}, r"`candidates` must be in \[4, 8\], got 3"),
        ({"sizes": (2, 3)}, "`sizes` must ascend and end with `out_dim`"),
        ({"sizes": (3, 2, 4)}, "`sizes` must ascend and end with `out_dim`"),
        ({"candidates": 9}, r"`candidates` must be in \[4, 8\], got 9"),
    ],
)
def test_stage_rejects_widths_that_do_not_fit(widths, match):
    fitting = {"in_dim": 8, "out_dim": 4, "have": 0, "candidates": 4}
    with pytest.raises(ValueError, match=match):
        Stage(index=0, order="grow", phase="compress", **(fitting | widths))


def test_check_dims_sorts_in_descending_order():
    assert check_dims([3, 32, 7], 32) == (32, 7, 3)


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (384, (384, 192, 96, 48, 24)),
        (1024, (1024, 512, 256, 128, 64)),
        (100, (100, 50, 25, 12)),
        (16, (16, 8)),
        (15, (15,)),
        (5, (5,)),
    ],
)
def test_default_dims_halve_down_to_a_sixteenth(width, expected):
    assert default_dims(width) == expected


def test_stage_report_is_json():
    report = StageReport(stage="s", dim=8, steps=3, seconds=0.5, loss=1.0, selected=[0, 2], decision={"chosen": "a"})
    assert StageReport(**json.loads(json.dumps(report.to_dict()))) == report
