"""A model that says what it is told to, in the shape of `LLM` that a conversation needs."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from mlc_dsv3.errors import ContextWindowError, UserError
from mlc_dsv3.runtime.engine_stats import EngineStats


@dataclass
class ScriptedModel:
    """Echoes the last message word by word and counts as the engine does; some words make something happen.

    "interrupt" sends this process Ctrl-C, "slowly" waits between words, "fail" is refused. A message has ten tokens.
    """

    context_window: int = 1000
    opening: str = ""
    options: list[Any] = field(default_factory=list)

    prompts: list[Any] = field(default_factory=list)
    params: list[Any] = field(default_factory=list)
    streams: list[Any] = field(default_factory=list)  # kept, so that only closing ends them
    closed: int = 0
    stats: EngineStats = field(default_factory=EngineStats)

    def prompt_tokens(self, prompt: Any, **options: Any) -> list[int]:
        return [0] * (10 if isinstance(prompt, str) else 10 * len(prompt))

    def answer_opening(self, prompt: Any, **options: Any) -> str:
        return "" if isinstance(prompt, str) else self.opening

    def stream(self, prompt: Any, params: Any, **options: Any) -> Generator[SimpleNamespace]:
        count = len(self.prompt_tokens(prompt))
        if count >= self.context_window:
            raise ContextWindowError(f"the prompt has {count} tokens")
        self.prompts.append(prompt)
        self.params.append(params)
        self.options.append(options)
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        if "fail" in text:
            raise UserError("the prompt has 9 tokens;\nthe context window of 8 has no room")
        self.streams.append(self._updates(f"You said: {text}", count))
        return self.streams[-1]

    def _updates(self, text: str, prompt_tokens: int) -> Generator[SimpleNamespace]:
        self.stats.prefill_tokens += 10
        self.stats.prefill_seconds += 0.1
        self.stats.reused_tokens += prompt_tokens - 10
        words = text.split(" ")
        try:
            for i, word in enumerate(words):
                last = i == len(words) - 1
                self.stats.decode_tokens += i > 0
                self.stats.decode_steps += i > 0
                self.stats.decode_seconds += 0.02 * (i > 0)
                yield SimpleNamespace(
                    text=word if i == 0 else f" {word}",
                    token_ids=(100 + i,),
                    finish_reason="stop" if last else None,
                    prompt_tokens=prompt_tokens,
                )
                if word == "interrupt":
                    os.kill(os.getpid(), signal.SIGINT)
                if "slowly" in words:
                    time.sleep(0.2)
        finally:
            self.closed += 1


def main() -> None:
    """A session with this model at standard input, as `mlc_dsv3 chat` holds it."""
    from mlc_dsv3.chat.session import Session
    from mlc_dsv3.chat.terminal import message_reader

    model = ScriptedModel()
    Session(model, message_reader()).run("scripted · q0f32 · cpu")
    print(f"{len(model.prompts)} prompts", file=sys.stderr)


if __name__ == "__main__":
    main()
