"""`SamplingParams`: what a request asks for, checked once here; `sampler` and `engine` take the values as valid."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from mlc_dsv3.errors import UserError

MAX_LOGPROBS = 20


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens and when to stop. Names and meanings are OpenAI's and vLLM's.

    Applied in this order: `logit_bias`; `repetition_penalty` (over prompt and output); `frequency_penalty` and
    `presence_penalty` (over the output); then, if `temperature` is 0, the likeliest token, the lowest id among equals;
    otherwise `temperature`, `min_p`, `top_k`, `top_p` (over what is left after the ones before) and a draw.

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
    logprobs: int | None = None

    def __post_init__(self) -> None:
        _number("temperature", self.temperature, 0, None)
        _number("top_p", self.top_p, 0, 1, above=True)
        _integer("top_k", self.top_k, -1, None)
        _number("min_p", self.min_p, 0, 1)
        _number("repetition_penalty", self.repetition_penalty, 0, None, above=True)
        _number("presence_penalty", self.presence_penalty, -2, 2)
        _number("frequency_penalty", self.frequency_penalty, -2, 2)
        if not isinstance(self.logit_bias, Mapping):
            raise UserError(f"logit_bias is {self.logit_bias!r}; it must map token ids to numbers")
        for token, bias in self.logit_bias.items():
            _integer("a token id of logit_bias", token, 0, None)
            _number(f"logit_bias of token {token}", bias, None, None)
        if self.seed is not None:
            _integer("seed", self.seed, 0, 2**64 - 1)
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 1, None)
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        for text in stop:
            if not isinstance(text, str) or not text:
                raise UserError(f"stop has {text!r}; a stop string is text of at least one character")
        stop_token_ids = frozenset(self.stop_token_ids)
        for token in stop_token_ids:
            _integer("a token id of stop_token_ids", token, 0, None)
        if self.logprobs is not None:
            _integer("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", stop_token_ids)
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))

    @property
    def penalises(self) -> bool:
        """Whether the tokens so far change the choice of the next."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @property
    def needs_logits(self) -> bool:
        """Whether the host has to see the logits: to change them, or to report them."""
        return self.penalises or bool(self.logit_bias) or self.logprobs is not None


def _number(name: str, value: object, least: float | None, most: float | None, *, above: bool = False) -> None:
    """`least` itself is out of range where `above` is set."""
    valid = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if valid and least is not None:
        valid = value > least if above else value >= least
    if valid and most is not None:
        valid = value <= most
    if not valid:
        raise UserError(f"{name} is {value!r}; it must be a number{_range(least, most, above)}")


def _integer(name: str, value: object, least: int, most: int | None) -> None:
    valid = isinstance(value, int) and not isinstance(value, bool) and value >= least
    if not valid or (most is not None and value > most):
        raise UserError(f"{name} is {value!r}; it must be a whole number{_range(least, most, False)}")


def _range(least: float | None, most: float | None, above: bool) -> str:
    if least is None:
        return ""
    lower = f" above {least}" if above else f" of at least {least}"
    return lower if most is None else f"{lower} and at most {most}"
