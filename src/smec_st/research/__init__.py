"""Rival methods, their comparison with ours, and the analyses of the paper. Needs the extra `research`."""
