"""`LLM`: a model ready to use from Python, made on demand from a checkpoint, an artifact or the demo."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from mlc_dsv3.errors import UserError, note
from mlc_dsv3.runtime.capacity import Room, plan_cache
from mlc_dsv3.runtime.completion import Completion, Update
from mlc_dsv3.runtime.engine import Engine, EngineStats
from mlc_dsv3.runtime.forking import belongs_here, refuse_after_fork
from mlc_dsv3.runtime.interrupts import deferred_interrupts
from mlc_dsv3.runtime.messages import ChatOptions, Conversation
from mlc_dsv3.runtime.sampling import SamplingParams
from mlc_dsv3.runtime.speculation import speculation
from mlc_dsv3.weights.generation import read_sampling
from relax_model.fields import Fields

if TYPE_CHECKING:
    from mlc_dsv3.runtime.detokenizer import Detokenizer
    from mlc_dsv3.runtime.library import Library
    from mlc_dsv3.runtime.tokenizer import Tokenizer

Prompt = str | Sequence[int]


class LLM:
    """A compiled model with its cache and tokenizer.

    model: a checkpoint's or an artifact's folder or name; None is the demo. What is missing is converted and compiled.
    quantization: None is the device's default. device: "auto", "cpu", … model_lib: a compiled library to use as it is.
    cache_dtype: the latent cache's, "float32", "float16" or "int8"; None is what suits the quantization.
    threads: None is one for each core.
    context_window: tokens of prompt and output together; None is the artifact's or what fits in the device's memory,
        which a line on standard error tells.
    max_batch: requests that run at once; more may wait.
    cache_tokens: size of the latent cache; by default as `capacity.plan_cache` says.
    speculative: tokens that the MTP layer drafts for each step: a number up to 4, "auto" (what pays) or "off". The
        answers are the same, token for token.
    ignore_config_fields: fields of config.json to go on without, such as those that are not understood.
    without_mtp: leave out the checkpoint's MTP layers.
    check_tokenizer: called with the tokenizer before anything is converted or compiled. Then a model without one is an
        error; otherwise its prompts are token ids.

    May be used from several threads, and not in processes forked after it was made (ForkError). Raises UserError for
    whatever a user can get wrong.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        quantization: str | None = None,
        device: str = "auto",
        model_lib: str | Path | None = None,
        cache_dtype: str | None = None,
        threads: int | None = None,
        context_window: int | None = None,
        max_batch: int | None = None,
        cache_tokens: int | None = None,
        ignore_config_fields: Collection[str] = (),
        speculative: str | int = "auto",
        without_mtp: bool = False,
        check_tokenizer: Callable[[Tokenizer], None] | None = None,
    ) -> None:
        from mlc_dsv3.runtime.model import CompiledModel
        from mlc_dsv3.runtime.prepare import prepare

        refuse_after_fork()
        library = None if model_lib is None else Path(model_lib)
        room = Room(context_window, max_batch, cache_tokens)
        prepared = prepare(
            model,
            quantization,
            device,
            library,
            cache_dtype=cache_dtype,
            ignore_config_fields=ignore_config_fields,
            room=room,
            without_mtp=without_mtp,
            before_making=lambda folder: self._read_tokenizer(folder, check_tokenizer),
        )
        self.artifact, self.device = prepared.artifact, prepared.device
        compiled = CompiledModel.load(self.artifact, prepared.library, threads=threads)
        limits = compiled.metadata
        batch = room.batch(limits.max_rows)
        plan = plan_cache(
            room,
            compiled.memory_need(batch),
            compiled.available_memory(),
            longest=limits.context_window,
            max_batch=batch,
            preferred=_configured_window(self.artifact.chat_config),
        )
        if plan.remark:
            note(plan.remark)
        self._engine: Engine | None = Engine(
            compiled,
            num_pages=plan.num_pages,
            max_batch=batch,
            context_window=plan.context_window,
            detokenizer=self._detokenizer() if self._tokenizer is not None else None,
            eos_token_ids=self._tokenizer.eos_token_ids if self._tokenizer is not None else (),
            speculation=speculation(speculative, has_mtp="draft" in limits.functions),
        )
        self.context_window = plan.context_window
        self.default_params = SamplingParams(**read_sampling(Fields(self.artifact.chat_config)))
        self._lock = threading.Lock()
        self._updates: dict[int, deque[Update]] = {}

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; UserError where it has none, and then prompts are token ids and texts are empty."""
        if self._tokenizer is None:
            raise self._tokenizer_error
        return self._tokenizer

    @property
    def stats(self) -> EngineStats:
        """Tokens and seconds since the start, of prefill and decode, and tokens reused."""
        return self._open_engine().stats

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Completion]:
        """Continue each prompt (text or token ids), all at once; the completions are in the prompts' order.

        Control tokens that a text spells out act as such. `params` are for all prompts or one for each; None is
        `default_params`, the checkpoint's own.
        """
        return self._complete([self._prompt_ids(prompt) for prompt in _prompts(prompts)], params)

    def chat(
        self,
        conversations: Conversation | Sequence[Conversation],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        **options: Unpack[ChatOptions],
    ) -> list[Completion]:
        """Answer one conversation of OpenAI-style messages, or each of a list of them; returns as many completions.

        `options` are tools, template_kwargs and parse_control_tokens, as `ChatOptions` explains them.
        """
        if not len(conversations):
            raise UserError("there is no conversation; it needs at least one message")
        several = [conversations] if isinstance(conversations[0], dict) else conversations
        return self._complete([self._chat_ids(conversation, options) for conversation in several], params)

    def stream(
        self, prompt: Prompt | Conversation, params: SamplingParams | None = None, **options: Unpack[ChatOptions]
    ) -> Iterator[Update]:
        """Updates of one prompt or one conversation as they come; closing the iterator cancels the request.

        The prompt is checked at once and submitted at the first read. Several streams may be read in turns: reading one
        moves all of them.
        """
        tokens = self.prompt_tokens(prompt, **options)
        params = self.default_params if params is None else params
        self._open_engine().check(tokens, params)
        return self._stream(tokens, params)

    def logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """Logits after each token of a prompt: float32 (len(token_ids), vocab_size)."""
        with self._alone():
            return self._open_engine().logits(token_ids)

    def read(
        self,
        prompt: Prompt | Conversation,
        watching: Callable[[Library], AbstractContextManager[None]],
        *,
        last: int | None = None,
        **options: Unpack[ChatOptions],
    ) -> int:
        """Read a prompt or a conversation, or its `last` tokens, while `watching(library)` watches the model; returns
        how many tokens that were."""
        tokens = self.prompt_tokens(prompt, **options)
        tokens = tokens[-min(last or len(tokens), self.context_window) :]
        with self._alone():
            self._open_engine().read(tokens, watching)
        return len(tokens)

    def prompt_tokens(self, prompt: Prompt | Conversation, **options: Unpack[ChatOptions]) -> Sequence[int]:
        """The token ids that the model reads for a prompt or a conversation."""
        if _is_conversation(prompt):
            return self._chat_ids(prompt, options)
        if any(options.values()):
            raise UserError(f"{' and '.join(options)} are for conversations; this prompt has no chat template")
        return self._prompt_ids(prompt)

    def answer_opening(self, prompt: Prompt | Conversation, **options: Unpack[ChatOptions]) -> str:
        """What the chat template says for the model at the answer's beginning (`<think>`), which is no part of it."""
        return self.tokenizer.answer_opening(prompt, **options) if _is_conversation(prompt) else ""

    def close(self) -> None:
        """Let go of the model and its cache; the object cannot be used afterwards. In a forked process it does nothing:
        they are another's."""
        if belongs_here():
            with self._lock:
                self._engine = None
                self._updates.clear()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _complete(
        self, prompts: list[Sequence[int]], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[Completion]:
        params = self.default_params if params is None else params
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise UserError(f"{len(prompts)} prompts came with {len(each)} sampling parameters; give one or as many")
        request_ids: list[int] = []
        collected: dict[int, list[Update]] = {}
        try:
            for tokens, own in zip(prompts, each, strict=True):
                self._submit(tokens, own, request_ids)
            for request_id in request_ids:
                collected[request_id] = list(self._follow(request_id))
        finally:
            for request_id in request_ids:
                self._drop(request_id)
        return [_completion(collected[request_id]) for request_id in request_ids]

    def _stream(self, tokens: Sequence[int], params: SamplingParams) -> Iterator[Update]:
        request_ids: list[int] = []
        try:
            self._submit(tokens, params, request_ids)
            yield from self._follow(request_ids[0])
        finally:
            for request_id in request_ids:
                self._drop(request_id)

    def _submit(self, tokens: Sequence[int], params: SamplingParams, request_ids: list[int]) -> None:
        """Submit a request and put its id into `request_ids`: an interrupt afterwards must find it there."""
        with self._alone():
            request_id = self._open_engine().submit(tokens, params)
            self._updates[request_id] = deque()
            request_ids.append(request_id)

    def _follow(self, request_id: int) -> Iterator[Update]:
        """A request's updates to its end, stepping the engine (and so all other requests) whenever there is none."""
        while True:
            with self._alone():
                engine = self._open_engine()
                own = self._updates[request_id]
                if not own:
                    for update in engine.step():
                        if update.request_id in self._updates:
                            self._updates[update.request_id].append(update)
                update = own.popleft() if own else None
            if update is not None:
                yield update
                if update.finish_reason is not None:
                    return

    def _drop(self, request_id: int) -> None:
        """Forget a request, cancelling it where it is unfinished."""
        if not belongs_here():
            return
        with self._alone():
            if self._updates.pop(request_id, None) is not None and self._engine is not None:
                self._engine.cancel(request_id)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let no other thread and no Ctrl-C in. ForkError in a forked process, where the lock might stay locked."""
        refuse_after_fork()
        with self._lock, deferred_interrupts():
            yield

    def _open_engine(self) -> Engine:
        if self._engine is None:
            raise UserError("this LLM is closed")
        return self._engine

    def _prompt_ids(self, prompt: Prompt) -> Sequence[int]:
        if not len(prompt):
            raise UserError("the prompt is empty; it needs at least one token")
        return self.tokenizer.encode(prompt, add_special_tokens=True) if isinstance(prompt, str) else prompt

    def _chat_ids(self, conversation: Conversation, options: ChatOptions) -> Sequence[int]:
        if not len(conversation):
            raise UserError("the conversation is empty; it needs at least one message")
        tools, variables = options.get("tools"), options.get("template_kwargs")
        if tools or variables:
            self.tokenizer.chat_template.refuse_unread(tools, variables)
        return self.tokenizer.chat_prompt(conversation, **options)

    def _read_tokenizer(self, folder: Path, check: Callable[[Tokenizer], None] | None) -> None:
        self._tokenizer, self._tokenizer_error = _load_tokenizer(folder)
        if check is not None:
            check(self.tokenizer)

    def _detokenizer(self) -> Callable[[], Detokenizer]:
        from mlc_dsv3.runtime.detokenizer import Detokenizer

        tokenizer = self._tokenizer
        return lambda: Detokenizer(tokenizer)


def _load_tokenizer(folder: Path) -> tuple[Tokenizer | None, UserError | None]:
    from mlc_dsv3.runtime.tokenizer import Tokenizer

    try:
        return Tokenizer.load(folder), None
    except UserError as error:
        return None, error


def _configured_window(chat_config: dict[str, Any]) -> int | None:
    """The window that an artifact states; mlc-llm writes -1 for none."""
    configured = chat_config.get("context_window_size")
    return configured if configured and configured > 0 else None


def _prompts(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    """A list of prompts, where one may have come by itself."""
    if isinstance(prompts, str) or (len(prompts) and isinstance(prompts[0], (int, np.integer))):
        return [prompts]
    return prompts


def _is_conversation(prompt: Prompt | Conversation) -> bool:
    return not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], dict)


def _completion(updates: list[Update]) -> Completion:
    last = updates[-1]
    with_logprobs = last.logprobs is not None
    return Completion(
        text="".join(update.text for update in updates),
        token_ids=[token for update in updates for token in update.token_ids],
        finish_reason=last.finish_reason,
        logprobs=[entry for update in updates for entry in update.logprobs] if with_logprobs else None,
        prompt_tokens=last.prompt_tokens,
        reused_tokens=last.reused_tokens,
    )
