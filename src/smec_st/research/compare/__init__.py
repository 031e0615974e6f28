"""Compare compression methods: run them on collections, score them on the same queries, write a report."""

from __future__ import annotations

from smec_st.evaluation.statistics import Interval, Lossless, lossless, paired_interval, sign_flip_p
from smec_st.evaluation.target import Choice, SizeTest, Target, choose_size
from smec_st.research.compare.cells import Source
from smec_st.research.compare.comparison import Comparison, Plan, compare, plan
from smec_st.research.compare.ours import SMEC
from smec_st.research.compare.proxy import (
    Calibration,
    Recommendation,
    calibrate,
    correlations,
    recommend_size,
    recommendations,
)
from smec_st.research.compare.registry import METHODS, Factory, choose
from smec_st.research.compare.runner import Outcome, run_cells

__all__ = [
    "METHODS",
    "SMEC",
    "Calibration",
    "Choice",
    "Comparison",
    "Factory",
    "Interval",
    "Lossless",
    "Outcome",
    "Plan",
    "Recommendation",
    "SizeTest",
    "Source",
    "Target",
    "calibrate",
    "choose",
    "choose_size",
    "compare",
    "correlations",
    "lossless",
    "paired_interval",
    "plan",
    "recommend_size",
    "recommendations",
    "run_cells",
    "sign_flip_p",
]
