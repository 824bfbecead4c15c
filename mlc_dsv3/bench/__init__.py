"""Measurements: speed beside the limit of the memory, and quality beside the unquantized model."""
