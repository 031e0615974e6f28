"""Measure models and compressors: retrieval metrics, evaluators for training, and tables of quality by size."""
