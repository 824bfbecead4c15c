"""Measuring on this machine which tiles suit a model's kernels best."""
