"""`SamplingParams`: what a request asks for, checked once here; `sampler` and `engine` take the values as valid."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mlc_dsv3.errors import UserError
from mlc_dsv3.limits import MOST_TOKEN_ID, SAMPLING_LIMITS, Limits
from mlc_dsv3.runtime.grammar import Grammar

MAX_LOGPROBS = 20
_TOKEN_ID = Limits(0, MOST_TOKEN_ID, whole=True)
_BIAS = Limits(-1e30, 1e30)  # a logit with it stays a float32


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens and when to stop. Names and meanings are OpenAI's and vLLM's.

    Applied in this order: `logit_bias`; `repetition_penalty` (over prompt and output); `frequency_penalty` and
    `presence_penalty` (over the output); `grammar`; then, if `temperature` is 0, the likeliest token, the lowest id
    among equals; otherwise `temperature`, `min_p`, `top_k`, `top_p` (over what is left after the ones before) and a
    draw.

    temperature: 0 is greedy.
    top_p: keep the fewest likeliest tokens that have this much probability together; 1 keeps all.
    top_k: keep this many likeliest tokens, the lower ids among equals; 0 or -1 keeps all.
    min_p: keep tokens at least this probable relative to the likeliest; 0 keeps all.
    repetition_penalty: divides the positive logits of tokens seen and multiplies the negative ones; 1 is none.
    logit_bias: token id → number added to its logit.
    seed: makes the draws reproducible, alone or in a batch; None takes a new one each time.
    max_tokens: None goes on to the end of the context window.
    stop: strings that end the text, which does not include them.
    stop_token_ids: tokens that end it, beside the model's own, which `ignore_eos` ignores.
    grammar: what the whole answer must match. It ends where it can only end, and may end before only where it matches:
        `ignore_eos` makes it go on for as long as the grammar allows.
    logprobs: None, or how many likeliest alternatives to report with each token's log-probability.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    stop_token_ids: Collection[int] = ()
    ignore_eos: bool = False
    grammar: Grammar | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        for name, limits in SAMPLING_LIMITS.items():
            limits.check(name, getattr(self, name))
        if not isinstance(self.logit_bias, Mapping):
            raise UserError(f"logit_bias is {self.logit_bias!r}; it must map token ids to numbers")
        for token, bias in self.logit_bias.items():
            _TOKEN_ID.check("a token id of logit_bias", token)
            _BIAS.check(f"logit_bias of token {token}", bias)
        if self.seed is not None:
            Limits(0, 2**64 - 1, whole=True).check("seed", self.seed)
        if self.max_tokens is not None:
            Limits(1, whole=True).check("max_tokens", self.max_tokens)
        for name, kind in (("stop", "strings"), ("stop_token_ids", "token ids")):
            if not isinstance(getattr(self, name), Iterable):
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be a list of {kind}")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        for text in stop:
            if not isinstance(text, str) or not text:
                raise UserError(f"stop has {text!r}; a stop string is text of at least one character")
        stop_token_ids = tuple(self.stop_token_ids)
        for token in stop_token_ids:
            _TOKEN_ID.check("a token id of stop_token_ids", token)
        if not isinstance(self.grammar, Grammar | None):
            raise UserError(f"grammar is {self.grammar!r}; it must be a Grammar, such as Grammar.json_object()")
        if self.logprobs is not None:
            Limits(0, MAX_LOGPROBS, whole=True).check("logprobs", self.logprobs)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", frozenset(stop_token_ids))
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))

    @property
    def penalises(self) -> bool:
        """Whether the tokens so far change the choice of the next."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @property
    def needs_logits(self) -> bool:
        """Whether the host has to see the logits: to change them, or to report them."""
        return self.penalises or bool(self.logit_bias) or self.logprobs is not None
