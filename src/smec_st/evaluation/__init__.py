"""Measure models and compressors: evaluators for training, and tables of quality by size."""

from __future__ import annotations

from smec_st.evaluation.dimension_sweep import DimensionSweepEvaluator
from smec_st.evaluation.evaluator import HeldOutEvaluator
from smec_st.evaluation.report import Row, plot_rows, print_rows, write_report
from smec_st.evaluation.sweep import sweep

__all__ = ["DimensionSweepEvaluator", "HeldOutEvaluator", "Row", "plot_rows", "print_rows", "sweep", "write_report"]
