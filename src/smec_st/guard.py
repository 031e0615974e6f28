"""How far to go from start to result, by held-out queries."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

STRENGTHS = (1.0, 0.75, 0.5, 0.25, 0.0)


def best_strength(scores: Mapping[float, float]) -> float:
    """The strength with the best smoothed score; the greatest of equals.

    Quality changes smoothly from start to result, while a score on few held-out queries does not: each score is
    averaged with a parabola fitted through all of them, so that no single lucky point decides.

    Args:
        scores: Mean held-out score by strength, at least three.
    """
    strengths = sorted(scores, reverse=True)
    measured = np.array([scores[strength] for strength in strengths])
    fitted = np.polyval(np.polyfit(strengths, measured, 2), strengths)
    smoothed = np.round((measured + fitted) / 2, 9)  # equal scores stay equal
    return strengths[int(smoothed.argmax())]
