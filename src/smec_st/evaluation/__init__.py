"""Measure compressors: the evaluator that training uses, and the table a user reads."""

from __future__ import annotations

from smec_st.evaluation.dimension_sweep import DimensionSweepEvaluator
from smec_st.evaluation.evaluator import HeldOutEvaluator
from smec_st.evaluation.report import Row, plot_rows, print_rows, write_report
from smec_st.evaluation.sweep import sweep

__all__ = ["DimensionSweepEvaluator", "HeldOutEvaluator", "Row", "plot_rows", "print_rows", "sweep", "write_report"]
