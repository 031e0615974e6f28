"""One rule for every choice: the safest candidate that no bolder one surely beats."""

import json

import numpy as np
import pytest
from scipy.stats import ttest_rel

from smec_st.evaluation.choice import HOPELESS, LEVEL, Decision, first_unbeaten, still_in_question


def wave(queries, errors):
    """Differences whose mean is this many of their standard errors above 0."""
    noise = np.where(np.arange(queries) % 2, 1.0, -1.0)
    noise -= noise.mean()
    return 0.01 * (noise + errors * noise.std(ddof=1) / queries**0.5)


def chosen(**scores):
    return first_unbeaten({name: np.asarray(values, dtype=float) for name, values in scores.items()}).chosen


def test_choices_are_those_of_pairwise_tests_one_by_one(rng):
    """Against a loop over scipy's paired t test, on scores of which about half differ."""
    seen = set()
    for _ in range(200):
        queries = int(rng.integers(2, 40))
        common = rng.random(queries)
        scores = {
            name: common + rng.normal(0.05 * rng.integers(0, 3), 0.15, queries) for name in ("safe", "middle", "bold")
        }
        names, expected = list(scores), None
        for place, name in enumerate(names):
            later = names[place + 1 :]
            values = [ttest_rel(scores[other], scores[name], alternative="greater").pvalue for other in later]
            if all(value >= LEVEL for value in values):
                expected = name
                break
        assert first_unbeaten(scores).chosen == expected
        seen.add(expected)
    assert seen == {"safe", "middle", "bold"}


def test_safer_candidates_win_unless_a_bolder_one_is_better():
    base, better = np.linspace(0, 1, 50), np.linspace(0, 1, 50) + 0.1
    assert chosen(safe=base, bold=better) == "bold"
    assert chosen(safe=better, bold=base) == "safe"
    assert chosen(safe=base, middle=better, bold=base) == "middle"
    assert chosen(safe=base, middle=base, bold=better) == "bold"


def test_of_equals_the_safest_wins():
    values = np.linspace(0, 1, 30)
    assert chosen(a=values, b=values, c=values) == "a"
    assert chosen(a=values - 0.1, b=values, c=values) == "b"
    assert chosen(a=values) == "a"


def test_a_candidate_that_none_beats_wins_though_it_beats_none():
    """The second is no better than the first; but the first is beaten by the third, and the second is not."""
    first, third = np.zeros(20), wave(20, 1.5)
    second = 0.5 * third + 0.05 * np.where(np.arange(20) % 4 < 2, 1.0, -1.0)
    assert chosen(first=first, second=second) == "first"
    assert chosen(second=second, third=third) == "second"
    assert chosen(first=first, second=second, third=third) == "second"


@pytest.mark.parametrize(("queries", "threshold"), [(2, 3.078), (4, 1.638), (10, 1.383), (400, 1.284)])
def test_few_queries_must_gain_more_standard_errors(queries, threshold):
    """The thresholds are quantiles of the t distribution at 0.1, from a table."""
    for errors, expected in ((threshold - 0.02, "safe"), (threshold + 0.02, "bold")):
        assert chosen(safe=np.zeros(queries), bold=wave(queries, errors)) == expected


def test_only_what_is_beaten_beyond_doubt_leaves_the_race():
    best = wave(50, 8.0)
    scores = {"safest": np.zeros(50), "hopeless": np.zeros(50), "close": best - wave(50, 2.0), "best": best}
    assert ttest_rel(best, scores["hopeless"], alternative="greater").pvalue < HOPELESS
    assert ttest_rel(best, scores["close"], alternative="greater").pvalue > HOPELESS
    assert still_in_question(scores) == ["safest", "close", "best"]


def test_the_level_can_be_set():
    scores = {"safe": np.zeros(20), "bold": wave(20, 0.5)}
    assert first_unbeaten(scores).chosen == "safe"
    assert first_unbeaten(scores, level=0.49).chosen == "bold"
    assert first_unbeaten({"safe": np.zeros(20), "bold": wave(20, 2.0)}, level=0.001).chosen == "safe"


def test_a_gain_that_all_queries_share_is_sure_and_that_of_one_query_is_not():
    assert chosen(safe=np.zeros(2), bold=np.full(2, 0.5)) == "bold"
    assert chosen(safe=[0.0], bold=[1.0]) == "safe"
    none = first_unbeaten({"safe": np.zeros(0), "bold": np.zeros(0)})
    assert (none.chosen, none.queries, none.gain, none.error, none.means) == ("safe", 0, 0.0, 0.0, {})


def test_a_decision_says_what_was_gained_over_the_safest(rng):
    scores = {name: rng.random(25) + gain for name, gain in (("start", 0.0), ("ranked", 0.8), ("bold", 0.3))}
    decision = first_unbeaten(scores, "what to train")
    gain = scores["ranked"] - scores["start"]
    assert (decision.what, decision.chosen, decision.instead_of) == ("what to train", "ranked", "start")
    assert decision.gain == pytest.approx(gain.mean())
    assert decision.error == pytest.approx(gain.std(ddof=1) / 5)
    assert decision.queries == 25
    assert decision.means == pytest.approx({name: values.mean() for name, values in scores.items()})
    assert list(decision.means) == list(scores)


def test_a_decision_is_json_and_text():
    means = {"start": 0.25, "ranked": 0.5}
    decision = Decision("what to train", "ranked", "start", gain=0.25, error=0.01, queries=40, means=means)
    assert Decision(**json.loads(json.dumps(decision.to_dict()))) == decision
    assert str(decision) == (
        "what to train: ranked (+0.250 ± 0.010), by 40 held-out queries: start 0.250, ranked 0.500"
    )
    kept = Decision("what to train", "start", "start", queries=40, means=means)
    assert str(kept) == "what to train: start, by 40 held-out queries: start 0.250, ranked 0.500"
    assert str(Decision("what to train", "start", "start")) == "what to train: start, the safest choice"
