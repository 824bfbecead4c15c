"""What cannot be compiled for Vulkan, or not run on it."""

from __future__ import annotations


class Unsupported(NotImplementedError):
    """Something that TVM lowers and no shader can express here; the text names it."""
