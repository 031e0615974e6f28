"""How far to go from start to result, by held-out queries or by cross-validation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from smec_st.stages import StageReport

STRENGTHS = (1.0, 0.75, 0.5, 0.25, 0.0)
SURE = 1.0  # standard errors


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
    gain = scores[best] - scores[0.0]
    error = gain.std(ddof=1) / math.sqrt(len(gain)) if len(gain) > 1 else 0.0
    return best if proven or gain.mean() >= SURE * error else 0.0


def scores_of_folds(folds: Sequence[Sequence[StageReport]]) -> dict[str, dict[float, np.ndarray]]:
    """What the held-out queries of all folds score by stage and strength, ``(q,)`` each, in one order.

    Args:
        folds: Reports of the same stages, from fits that each held other queries out.
    """
    found: dict[str, dict[float, np.ndarray]] = {}
    for reports in zip(*folds, strict=True):
        if reports[0].scores:
            scores = {name: np.concatenate([report.scores[name] for report in reports]) for name in reports[0].scores}
            found[reports[0].stage] = {float(strength): values for strength, values in scores.items()}
    return found
