"""Running a compiled model: the paged latent cache, scheduling, sampling and the `LLM` class."""
