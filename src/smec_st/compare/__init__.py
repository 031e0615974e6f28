"""Compare compression methods: run them on collections, score them on the same queries, write a report."""

from __future__ import annotations

from smec_st.compare.cells import Source
from smec_st.compare.comparison import Comparison, Plan, compare, plan
from smec_st.compare.ours import SMEC
from smec_st.compare.proxy import Calibration, Recommendation, calibrate, correlations, recommend_size, recommendations
from smec_st.compare.registry import METHODS, Factory, choose
from smec_st.compare.runner import Outcome, run_cells
from smec_st.compare.statistics import Interval, Lossless, lossless, paired_interval, sign_flip_p
from smec_st.compare.target import Choice, SizeTest, Target, choose_size

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
