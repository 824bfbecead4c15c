"""`Service`: the model that a server serves, what it is called, and how many requests may be open at once."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request

from mlc_dsv3.errors import UserError
from mlc_dsv3.runtime.async_llm import AsyncLLM
from mlc_dsv3.runtime.llm import LLM
from mlc_dsv3.runtime.sampling import SamplingParams
from mlc_dsv3.serve.errors import ApiError
from mlc_dsv3.serve.expert_shares import ExpertShares
from mlc_dsv3.serve.formats import OutputFormat
from mlc_dsv3.serve.metrics import Metrics
from mlc_dsv3.serve.response_store import ResponseStore

_LONGEST_WAIT = 60  # seconds that a client is told to wait at most


@dataclass(frozen=True)
class ServedModel:
    """What clients are told of the model.

    names: what requests may call it, the first of them in answers. thinking_variables: see `Tokenizer`.
    """

    names: tuple[str, ...]
    created: int
    context_window: int
    thinking_variables: tuple[str, ...]

    @property
    def id(self) -> str:
        """The name in answers."""
        return self.names[0]


class Service:
    """One model behind one server. `defaults` are the sampling settings of requests that state none.

    output_format: how the model writes reasoning and calls of tools.
    max_waiting: answers that may wait for a place in the batch; more are refused.
    """

    def __init__(
        self,
        llm: LLM,
        names: Sequence[str],
        defaults: SamplingParams,
        *,
        output_format: OutputFormat,
        max_waiting: int,
    ) -> None:
        self.llm, self.engine = llm, AsyncLLM(llm)
        self.defaults, self.output_format = defaults, output_format
        self.model = ServedModel(tuple(names), int(time.time()), llm.context_window, _thinking_variables(llm))
        self.max_open = llm.max_batch + max_waiting
        self.responses = ResponseStore()
        self.sampled_calls = output_format.call_store()
        self.expert_shares = ExpertShares(llm)
        self.metrics = Metrics(llm, self.expert_shares)
        self.open = 0
        self._seconds = 1.0  # that a request takes, over the last ones

    def check_model(self, name: str | None) -> None:
        """404 for a request that names another model."""
        if name is not None and name not in self.model.names:
            served = ", ".join(self.model.names)
            raise ApiError(404, f"the model {name[:200]!r} is not served here; {served} is", code="model_not_found")

    def admit(self, answers: int) -> None:
        """Take places for this many answers. ApiError (429) where too few are left, DeviceError on a lost device."""
        if self.llm.failure is not None:
            raise self.llm.failure
        if answers > self.max_open:
            raise ApiError(400, f"the request asks for {answers} answers; the server takes {self.max_open} at once")
        if self.open + answers > self.max_open:
            wait = min(_LONGEST_WAIT, math.ceil(self._seconds))
            raise ApiError(
                429,
                f"{self.open} answers are running or waiting, and {self.max_open} may be; try again later",
                code="rate_limit_exceeded",
                retry_after=wait,
            )
        self.open += answers

    def release(self, answers: int, seconds: float) -> None:
        """Give the places of this many answers back. `seconds` is how long they took."""
        self.open -= answers
        self._seconds += 0.1 * (seconds - self._seconds)


def _thinking_variables(llm: LLM) -> tuple[str, ...]:
    try:
        return llm.tokenizer.thinking_variables
    except UserError:  # no tokenizer, or no chat template: completions alone are served
        return ()


def _service(request: Request) -> Any:
    return request.app.state.service


CurrentService = Annotated[Service, Depends(_service)]
