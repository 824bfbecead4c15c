"""Attention's kernels for GPUs."""

from __future__ import annotations

from relax_model.kernels.attention import gpu_absorbed, gpu_append, gpu_expanded, gpu_queries

__all__ = ["gpu_absorbed", "gpu_append", "gpu_expanded", "gpu_queries"]
