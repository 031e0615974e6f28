"""Fit maps to vectors: the settings, the stages of a fit, and the rule that chooses between candidates."""
