"""Fit maps to vectors: the settings, the candidates, and the stages of a fit."""
