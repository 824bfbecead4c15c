"""`LLM`: a model ready to use from Python, made on demand from a checkpoint, an artifact or the demo."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from mlc_dsv3.errors import DeviceError, UserError, note, to_raise
from mlc_dsv3.limits import Limits
from mlc_dsv3.runtime.capacity import Room, plan_cache
from mlc_dsv3.runtime.completion import Completion, TokenLogprob, Update, joined
from mlc_dsv3.runtime.engine import Engine
from mlc_dsv3.runtime.engine_stats import EngineStats, Occupancy
from mlc_dsv3.runtime.forking import belongs_here, refuse_after_fork
from mlc_dsv3.runtime.loop import EngineLoop, Outbox
from mlc_dsv3.runtime.messages import ChatOptions, Conversation
from mlc_dsv3.runtime.sampling import SamplingParams
from mlc_dsv3.runtime.sequence import Sequence as Request
from mlc_dsv3.runtime.speculation import speculation
from mlc_dsv3.weights.generation import read_sampling
from relax_model.fields import Fields

if TYPE_CHECKING:
    from mlc_dsv3.runtime.detokenizer import Detokenizer
    from mlc_dsv3.runtime.library import Library
    from mlc_dsv3.runtime.page_store import PageStore
    from mlc_dsv3.runtime.prepare import Prepared
    from mlc_dsv3.runtime.tokenizer import Tokenizer

Prompt = str | Sequence[int]
Inbox = SimpleQueue[Update]
DEFAULT_CACHE_DIR_BYTES = 16 << 30


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
    cache_dir: a folder for prefixes of at least 1,024 tokens that leave the latent cache, at the latest in `close`.
        They come back for prompts that begin with them, also in another process. cache_dir_bytes: its largest size.
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
        cache_dir: str | Path | None = None,
        cache_dir_bytes: int = DEFAULT_CACHE_DIR_BYTES,
        ignore_config_fields: Collection[str] = (),
        speculative: str | int = "auto",
        without_mtp: bool = False,
        check_tokenizer: Callable[[Tokenizer], None] | None = None,
    ) -> None:
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
        store = _store(cache_dir, cache_dir_bytes, prepared)
        self._loop = EngineLoop()
        self._reading = threading.Lock()  # two prompts at once may want more pages than there are
        self._engine: Engine | None = None
        weakref.finalize(self, self._loop.close)
        try:
            self._engine = self._loop.start(lambda: self._load(prepared, room, threads, speculative, store))
        except BaseException:
            self._loop.close()
            raise
        self.context_window = self._engine.context_window
        self.default_params = SamplingParams(**read_sampling(Fields(self.artifact.chat_config)))

    def _load(
        self,
        prepared: Prepared,
        room: Room,
        threads: int | None,
        speculative: str | int,
        store: PageStore | None,
    ) -> Engine:
        """The engine, with weights and cache."""
        from mlc_dsv3.runtime.grammar_compiler import GrammarCompiler
        from mlc_dsv3.runtime.model import CompiledModel

        compiled = CompiledModel.load(prepared.artifact, prepared.library, threads=threads)
        limits = compiled.metadata
        batch = room.batch(limits.max_rows)
        plan = plan_cache(
            room,
            compiled.memory_need(batch),
            compiled.available_memory(),
            longest=limits.context_window,
            max_batch=batch,
            preferred=_configured_window(prepared.artifact.chat_config),
        )
        if plan.remark:
            note(plan.remark)
        tokenizer = self._tokenizer
        return Engine(
            compiled,
            num_pages=plan.num_pages,
            max_batch=batch,
            context_window=plan.context_window,
            detokenizer=self._detokenizer() if tokenizer is not None else None,
            eos_token_ids=tokenizer.eos_token_ids if tokenizer is not None else (),
            speculation=speculation(speculative, has_mtp="draft" in limits.functions),
            store=store,
            grammars=GrammarCompiler(tokenizer, compiled.config.vocab_size) if tokenizer is not None else None,
        )

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

    @property
    def failure(self) -> DeviceError | None:
        """What the device failed with, after which every request fails; None while it works."""
        return self._loop.failure

    @property
    def max_batch(self) -> int:
        """How many requests run at once; more wait."""
        return self._open_engine().max_batch

    @property
    def occupancy(self) -> Occupancy:
        """How many requests run and wait, and how full the cache is."""
        return self._open_engine().occupancy

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Completion]:
        """Continue each prompt (text or token ids), all at once; the completions are in the prompts' order.

        Control tokens that a text spells out act as such. `params` are for all prompts or one for each; None is
        `default_params`, the checkpoint's own. A request that fails has `finish_reason` "error" and its `error`; where
        all of them fail, the first one's error is raised.
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

        The prompt is checked at once and submitted at the first read. Raises the request's error where it fails.
        """
        return self._stream(self.prepare(self.prompt_tokens(prompt, **options), params))

    def logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """Logits after each token of a prompt: float32 (len(token_ids), vocab_size)."""
        return self._loop.run(lambda: self._open_engine().logits(token_ids))

    def prompt_logprobs(self, token_ids: Sequence[int], alternatives: int = 0) -> list[TokenLogprob]:
        """The logprob of each token of a prompt but the first, with the likeliest alternatives. Requests run on between
        its steps."""
        engine = self._open_engine()
        engine.check(token_ids, SamplingParams())
        steps, found = engine.prompt_logprobs(token_ids, alternatives), []
        with self._reading:
            try:
                while (step := self._loop.run(lambda: next(steps, None))) is not None:
                    found += step
            finally:
                self._loop.run(steps.close)
        return found

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
        self._loop.run(lambda: self._open_engine().read(tokens, watching))
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
        """End open requests as cancelled and let go of the model and its cache; the object cannot be used afterwards.

        In a forked process it does nothing: they are another's.
        """
        if belongs_here():
            self._loop.close()
            self._engine = None

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
        requests = [self.prepare(tokens, own) for tokens, own in zip(prompts, each, strict=True)]
        inboxes: list[Inbox] = [SimpleQueue() for _ in prompts]
        with ExitStack() as stack:
            for request, inbox in zip(requests, inboxes, strict=True):
                stack.enter_context(self.running(request, inbox.put))
            return _answered([joined(list(_updates(inbox))) for inbox in inboxes])

    def _stream(self, request: Request) -> Iterator[Update]:
        inbox: Inbox = SimpleQueue()
        with self.running(request, inbox.put):
            for update in _updates(inbox):
                if update.error is not None:
                    raise to_raise(update.error)
                yield update

    def prepare(self, token_ids: Sequence[int], params: SamplingParams | None = None) -> Request:
        """A request to run with `running`. UserError for what the model cannot take.

        Takes a while for a long prompt or a new grammar: not for an event loop.
        """
        refuse_after_fork()
        return self._open_engine().prepare(token_ids, self.default_params if params is None else params)

    @contextmanager
    def running(self, request: Request, outbox: Outbox) -> Iterator[None]:
        """Run a request that `prepare` made while the `with` block lasts; one that is unfinished then is cancelled.

        `outbox` gets its updates, on the engine's thread.
        """
        try:
            self._loop.submit(request, outbox)
            yield
        finally:
            self._loop.cancel(request.request_id)

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


def _store(folder: str | Path | None, most_bytes: int, prepared: Prepared) -> PageStore | None:
    """Where prefixes of this model are saved; None without a folder."""
    from mlc_dsv3.runtime.page_store import PageStore

    Limits(0, whole=True).check("cache_dir_bytes", most_bytes)
    return PageStore(Path(folder), prepared.identity()[:20], most_bytes=most_bytes) if folder is not None else None


def _configured_window(chat_config: dict[str, Any]) -> int | None:
    """The window that an artifact states; mlc-llm writes -1 for none."""
    configured = chat_config.get("context_window_size")
    return configured if configured and configured > 0 else None


def _prompts(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    """A list of prompts, where one may have come by itself."""
    if isinstance(prompts, str) or (len(prompts) and isinstance(prompts[0], (int, np.integer))):
        return [prompts]
    return prompts


def _updates(inbox: Inbox) -> Iterator[Update]:
    """A request's updates to its end."""
    while True:
        refuse_after_fork()
        update = inbox.get()
        yield update
        if update.finish_reason is not None:
            return


def _answered(completions: list[Completion]) -> list[Completion]:
    """The completions; raises the first error where there is nothing else."""
    errors = [completion.error for completion in completions if completion.error is not None]
    if errors and len(errors) == len(completions):
        raise to_raise(errors[0])
    return completions


def _is_conversation(prompt: Prompt | Conversation) -> bool:
    return not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], dict)
