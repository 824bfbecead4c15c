"""Talking to a model: the terminal session, one-shot answers and JSON lines, all over `LLM.stream`."""
