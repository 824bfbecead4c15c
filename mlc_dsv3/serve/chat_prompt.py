"""A conversation as every dialect hands it over, made into the tokens that the model reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlc_dsv3.runtime.messages import Message
from mlc_dsv3.runtime.sampling import SamplingParams
from mlc_dsv3.serve.generation import Job
from mlc_dsv3.serve.plain import Reader
from mlc_dsv3.serve.service import Service

_EFFORT = "reasoning_effort"


@dataclass(frozen=True)
class ChatPrompt:
    """Messages in OpenAI's form with what shapes the prompt besides. `variables` are the chat template's.

    reasoning_effort: for templates that read it; "none" switches thinking off where the template has a switch.
    """

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = None
    variables: Mapping[str, Any] | None = None
    reasoning_effort: str | None = None
    parse_control_tokens: bool = False
    add_generation_prompt: bool = True

    def tokens(self, service: Service) -> Sequence[int]:
        """What the model reads. UserError for what is no conversation."""
        return service.llm.tokenizer.chat_prompt(self._messages(), **self._checked(service))

    def text(self, service: Service) -> str:
        """The same as text."""
        return service.llm.tokenizer.chat_text(self._messages(), **self._checked(service))

    def _messages(self) -> list[Message]:
        return [_with_known_role(message) for message in self.messages]

    def _checked(self, service: Service) -> dict[str, Any]:
        """Options of the template, all of which it reads."""
        variables = {**self._effort(service), **(self.variables or {})}
        service.llm.tokenizer.chat_template.refuse_unread(self.tools, variables)
        return {
            "tools": self.tools,
            "template_kwargs": variables,
            "parse_control_tokens": self.parse_control_tokens,
            "add_generation_prompt": self.add_generation_prompt,
        }

    def _effort(self, service: Service) -> dict[str, Any]:
        if self.reasoning_effort is None:
            return {}
        if _EFFORT in service.llm.tokenizer.chat_template.variables:
            return {_EFFORT: self.reasoning_effort}
        return dict.fromkeys(service.model.thinking_variables, self.reasoning_effort != "none")


def chat_job(service: Service, prompt: ChatPrompt, params: SamplingParams, choices: int) -> Job:
    """The job of a conversation. Takes a while for a long one: not for the event loop."""
    return Job([prompt.tokens(service)], params, choices, Reader)


def _with_known_role(message: Message) -> Message:
    # OpenAI's newer name for the system prompt, which no template of this family knows.
    return {**message, "role": "system"} if message.get("role") == "developer" else message
