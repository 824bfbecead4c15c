"""`AsyncLLM`: an `LLM` for asyncio. Many requests are served at once, and none keeps the event loop waiting."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from functools import partial
from typing import Any, Unpack

from mlc_dsv3.errors import to_raise
from mlc_dsv3.runtime.completion import Completion, Update, joined
from mlc_dsv3.runtime.llm import LLM, Prompt
from mlc_dsv3.runtime.messages import ChatOptions, Conversation
from mlc_dsv3.runtime.sampling import SamplingParams
from mlc_dsv3.runtime.sequence import Sequence as Request


class AsyncLLM:
    """Serves requests of an event loop; `llm` is the model, which other threads may use at the same time.

    Takes what `LLM` takes, or an LLM that is loaded already. Loading blocks: do it before the event loop runs.
    """

    def __init__(self, llm: LLM | None = None, **options: Any) -> None:
        self.llm = llm or LLM(**options)
        self._mailbox: _Mailbox | None = None

    async def stream(
        self, prompt: Prompt | Conversation, params: SamplingParams | None = None, **options: Unpack[ChatOptions]
    ) -> AsyncIterator[Update]:
        """Updates of one prompt or one conversation as they come; closing the iterator cancels the request.

        Raises UserError for a prompt that the model cannot take, and the request's error where it fails.
        """
        tokens = await asyncio.to_thread(self.llm.prompt_tokens, prompt, **options)
        async with aclosing(self.run(tokens, params)) as updates:
            async for update in updates:
                yield update

    async def run(self, tokens: Any, params: SamplingParams | None = None) -> AsyncIterator[Update]:
        """`stream` of token ids."""
        request = await asyncio.to_thread(self.llm.prepare, tokens, params)
        async with aclosing(self.follow(request)) as updates:
            async for update in updates:
                yield update

    async def follow(self, request: Request) -> AsyncIterator[Update]:
        """`stream` of a request that `LLM.prepare` made."""
        if self._mailbox is None or not self._mailbox.is_of_this_loop():
            self._mailbox = _Mailbox()
        inbox: asyncio.Queue[Update] = asyncio.Queue()
        with self.llm.running(request, partial(self._mailbox.put, inbox)):
            while True:
                update = await inbox.get()
                if update.error is not None:
                    raise to_raise(update.error)
                yield update
                if update.finish_reason is not None:
                    return

    async def complete(
        self, prompt: Prompt | Conversation, params: SamplingParams | None = None, **options: Unpack[ChatOptions]
    ) -> Completion:
        """The whole answer to one prompt or one conversation. Raises as `stream` does."""
        async with aclosing(self.stream(prompt, params, **options)) as updates:
            return joined([update async for update in updates])

    async def close(self) -> None:
        """`LLM.close`, without blocking the event loop."""
        await asyncio.to_thread(self.llm.close)

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()


class _Mailbox:
    """Brings updates from the engine's thread into the event loop: all that a step made with one wake-up."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._waiting: list[tuple[asyncio.Queue[Update], Update]] = []

    def is_of_this_loop(self) -> bool:
        """Whether the event loop that runs now is the one that this brings updates into."""
        return self._loop is asyncio.get_running_loop()

    def put(self, inbox: asyncio.Queue[Update], update: Update) -> None:
        """Called on the engine's thread."""
        with self._lock:
            self._waiting.append((inbox, update))
            first = len(self._waiting) == 1
        if first:
            with suppress(RuntimeError):  # the event loop is closed, and nobody waits
                self._loop.call_soon_threadsafe(self._hand_out)

    def _hand_out(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for inbox, update in waiting:
            inbox.put_nowait(update)
