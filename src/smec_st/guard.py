"""How far to go from start to result, by held-out queries or by cross-validation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from smec_st.stages import StageReport

STRENGTHS = (1.0, 0.75, 0.5, 0.25, 0.0)
SURE = 1.0  # standard errors


@dataclass(frozen=True)
class Choice:
    """How far a stage goes, and why.

    Attributes:
        strength: From start (0) to result (1).
        scores: Of the held-out queries by strength, ``(q,)`` each; empty where none were asked.
    """

    strength: float
    scores: Mapping[float, np.ndarray]


def best_strength(scores: Mapping[float, np.ndarray], proven: bool = False) -> float:
    """The strength with the best smoothed mean, the greatest of equals; 0 where its gain over 0 may be chance.

    Quality changes smoothly from start to result, while a mean over few held-out queries does not: each mean is
    averaged with a parabola fitted through all of them, so that no single lucky point decides. And the start is the
    safe choice, for this size and for the larger ones, which begin with it: a gain over it of less than :data:`SURE`
    standard errors does not count, unless training has proven itself at a size before.

    Args:
        scores: Scores of the held-out queries by strength, ``(q,)`` each, in one order; 0 and two others at least.
        proven: Whether a size before left its start.
    """
    strengths = sorted(scores, reverse=True)
    measured = np.array([scores[strength].mean() for strength in strengths])
    fitted = np.polyval(np.polyfit(strengths, measured, 2), strengths)
    smoothed = np.round((measured + fitted) / 2, 9)  # equal scores stay equal
    best = strengths[int(smoothed.argmax())]
    return best if proven or is_sure(scores[best] - scores[0.0]) else 0.0


def is_sure(gain: np.ndarray, errors: float = SURE) -> bool:
    """Whether the mean of these differences, ``(q,)``, is so many standard errors and more, and not below 0."""
    error = gain.std(ddof=1) / math.sqrt(len(gain)) if len(gain) > 1 else 0.0
    return bool(gain.mean() >= errors * error)


def choose_by_folds(folds: Sequence[Sequence[StageReport]], held_out: Sequence[np.ndarray]) -> dict[int, Choice]:
    """What the held-out queries of all folds choose together, size by size; their scores by rising query row.

    Args:
        folds: Reports of the same stages, from fits that each held other queries out.
        held_out: Query rows of each fold, rising.
    """
    order = np.argsort(np.concatenate(held_out))
    choices: dict[int, Choice] = {}
    for reports in zip(*folds, strict=True):
        names = reports[0].scores
        if names:
            scores = {float(name): np.concatenate([each.scores[name] for each in reports])[order] for name in names}
            is_proven = any(choice.strength > 0 for choice in choices.values())
            choices[reports[0].dim] = Choice(best_strength(scores, is_proven), scores)
    return choices


def better_without_labels(reports: Sequence[StageReport], choices: Mapping[int, Choice]) -> int:
    """The largest size up to which training without labels surely ranks held-out queries better; 0 for none.

    Args:
        reports: Of a fit without labels, whose strengths the same queries chose; sizes rise.
        choices: Of training with labels.
    """
    have = 0
    for report in reports:
        if report.scores:
            choice = choices[report.dim]
            if not is_sure(np.array(report.scores[f"{report.strength:g}"]) - choice.scores[choice.strength]):
                break
            have = report.dim
    return have
