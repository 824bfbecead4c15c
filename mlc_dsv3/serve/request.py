"""What the requests of all dialects share: strictness, fields without effect here, and the sampling settings."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mlc_dsv3.runtime.sampling import SamplingParams
from mlc_dsv3.serve.errors import ApiError

T = TypeVar("T")
# Only the first wrong item is looked for: a body of millions of them would keep the server busy for minutes.
Items = Annotated[list[T], Field(fail_fast=True)]
_MOST_FIELDS = 200
# Both take the engine's time at every token, which all requests share.
_MOST_STOPS = 64
_MOST_BIASES = 4096
StopStrings = Annotated[Items[str], Field(max_length=_MOST_STOPS)]


class Strict(BaseModel):
    """An object whose fields have exactly their types, and which has no others."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _has_few_fields(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > _MOST_FIELDS:  # each unknown one is an error of its own
            raise ValueError(f"there are {len(value)} fields; no object here has more than {_MOST_FIELDS}")
        return value


class Lenient(BaseModel):
    """An object that may have other fields, which change nothing that is read of it."""

    model_config = ConfigDict(extra="ignore", strict=True)


class Bookkeeping(Strict):
    """Fields that say nothing about the answer: accepted, and without effect."""

    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    prediction: Any = Field(None, description="A guess at the answer, which would change its speed alone.")


class Sampling(Strict):
    """Sampling settings by OpenAI's names and vLLM's. What is null or left out is the checkpoint's own default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, Any] | None = Field(
        None, max_length=_MOST_BIASES, description="Token id → number added to its logit."
    )
    seed: int | None = None
    stop: str | StopStrings | None = None
    stop_token_ids: Items[int] | None = None
    ignore_eos: bool | None = None

    def params(self, defaults: SamplingParams, **given: Any) -> SamplingParams:
        """`defaults` with what the request states, and with what is `given` and not None. UserError as
        `SamplingParams`."""
        stated = {name: getattr(self, name) for name in Sampling.model_fields}
        if self.logit_bias is not None:
            stated["logit_bias"] = {_token_id(key): bias for key, bias in self.logit_bias.items()}
        stated.update(given)
        return stated_params(defaults, **stated)


def stated_params(defaults: SamplingParams, **stated: Any) -> SamplingParams:
    """`defaults` with what is stated and not None. UserError as `SamplingParams`."""
    return replace(defaults, **{name: value for name, value in stated.items() if value is not None})


def _token_id(key: str) -> int:
    if not key.isascii() or not key.isdigit() or len(key) > 10:
        raise ApiError(400, f"logit_bias has the key {key[:50]!r}; it must be a token id", param="logit_bias")
    return int(key)
