"""What OpenAI's chat and completions share: options of a stream, usage, and how a stream ends."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from mlc_dsv3.serve.errors import ApiError, error_body
from mlc_dsv3.serve.generation import Usage
from mlc_dsv3.serve.request import Strict
from mlc_dsv3.serve.sse import event

MOST_CHOICES = 128
DONE = b"data: [DONE]\n\n"


class StreamOptions(Strict):
    """What a stream has beside the answer."""

    include_usage: bool = False
    include_obfuscation: bool = Field(False, description="Without effect: the server pads no chunks.")


def usage_object(usage: Usage) -> dict[str, Any]:
    """`usage` of an answer."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def whole_object(head: dict[str, Any], choices: list[dict[str, Any]], usage: Usage) -> dict[str, Any]:
    """An answer that is not streamed."""
    return {**head, "choices": choices, "usage": usage_object(usage), "timings": usage.timings()}


def chunk(head: dict[str, Any], choice: dict[str, Any], options: StreamOptions | None) -> bytes:
    """A piece of a stream."""
    # With usage at the end, every chunk before has the field too.
    without = {"usage": None} if options is not None and options.include_usage else {}
    return event({**head, "choices": [choice], **without})


def stream_end(head: dict[str, Any], usage: Usage, options: StreamOptions | None) -> bytes:
    """The end of a stream: usage, where it is wanted, and the mark that all is said."""
    if options is None or not options.include_usage:
        return DONE
    return event(whole_object(head, [], usage)) + DONE


def error_frames(error: ApiError) -> bytes:
    """The end of a stream that fails."""
    return event(error_body(error, "")) + DONE
