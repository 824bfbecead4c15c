"""How models mark their reasoning, the same in all formats but for what ends it."""

from enum import Enum

from mlc_dsv3.runtime.control_tokens import END_OF_THINK, THINK

__all__ = ["END_OF_THINK", "THINK", "ReasoningTags"]


class ReasoningTags(Enum):
    """Whether a model reasons between <think> and </think>."""

    NONE = "none"
    CLOSED = "closed"
    CLOSED_BY_CALLS = "closed by calls"  # the model may call tools before it has written </think>
