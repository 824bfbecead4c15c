"""A conversation as every dialect hands it over, made into a job: tokens to read, and a reader of what comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from mlc_dsv3.errors import UserError
from mlc_dsv3.runtime.control_tokens import END_OF_THINK, THINK
from mlc_dsv3.runtime.grammar import Grammar
from mlc_dsv3.runtime.messages import Message
from mlc_dsv3.runtime.sampling import SamplingParams
from mlc_dsv3.serve.formats import OutputFormat, Tool, ToolChoice, openai_tools
from mlc_dsv3.serve.generation import Job
from mlc_dsv3.serve.service import Service

_EFFORT = "reasoning_effort"


@dataclass(frozen=True)
class ChatPrompt:
    """Messages and tools in OpenAI's form, with what shapes the prompt besides. `variables` are the chat template's.

    tool_choice: "auto", "none", or that tools must be called.
    parallel: whether an answer may call several tools.
    reasoning_effort: for templates that read it; "none" switches thinking off where the template has a switch.
    """

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = None
    tool_choice: Literal["auto", "none"] | ToolChoice = "auto"
    parallel: bool = True
    variables: Mapping[str, Any] | None = None
    reasoning_effort: str | None = None
    parse_control_tokens: bool = False
    add_generation_prompt: bool = True

    def tokens(self, service: Service) -> Sequence[int]:
        """What the model reads. UserError for what is no conversation."""
        return service.llm.tokenizer.chat_prompt(
            self._messages(), add_generation_prompt=self.add_generation_prompt, **self._options(service)
        )

    def text(self, service: Service) -> str:
        """The same as text."""
        return service.llm.tokenizer.chat_text(
            self._messages(), add_generation_prompt=self.add_generation_prompt, **self._options(service)
        )

    def opening(self, service: Service) -> str:
        """What the template has said already for the model at the answer's beginning."""
        return service.llm.tokenizer.answer_opening(self._messages(), **self._options(service))

    def callable_tools(self) -> list[Tool]:
        """The tools that the answer may call. UserError for what is none."""
        return [] if self.tool_choice == "none" else openai_tools(self.tools or ())

    def _messages(self) -> list[Message]:
        return [_with_known_role(message) for message in self.messages]

    def _options(self, service: Service) -> dict[str, Any]:
        """Options of the template, all of which it reads."""
        tools = None if self.tool_choice == "none" else self.tools
        variables = {**self._effort(service), **(self.variables or {})}
        service.llm.tokenizer.chat_template.refuse_unread(tools, variables)
        return {
            "tools": tools,
            "template_kwargs": variables,
            "parse_control_tokens": self.parse_control_tokens,
            "sampled_calls": service.sampled_calls,
        }

    def _effort(self, service: Service) -> dict[str, Any]:
        if self.reasoning_effort is None:
            return {}
        if _EFFORT in service.llm.tokenizer.chat_template.variables:
            return {_EFFORT: self.reasoning_effort}
        return dict.fromkeys(service.model.thinking_variables, self.reasoning_effort != "none")


def chat_job(service: Service, prompt: ChatPrompt, params: SamplingParams, choices: int) -> Job:
    """The job of a conversation; the grammar of `params` is for the answer alone. UserError for what is none.

    Takes a while for a long one: not for the event loop.
    """
    tools = prompt.callable_tools()
    opening = prompt.opening(service)
    return Job(
        [prompt.tokens(service)],
        replace(params, grammar=_grammar(prompt, tools, params.grammar, opening, service.output_format)),
        choices,
        lambda: service.sampled_calls.remembering(service.output_format.reader(opening=opening, tools=tools)),
        most_calls=None if prompt.parallel else 1,
    )


def _grammar(
    prompt: ChatPrompt, tools: Sequence[Tool], answer: Grammar | None, opening: str, output_format: OutputFormat
) -> Grammar | None:
    """What the whole output must match: calls that are required, or an answer that matches `answer`, or calls in its
    place. Reasoning before them is free."""
    if isinstance(prompt.tool_choice, ToolChoice):
        return Grammar.lark(
            output_format.tool_grammar(tools, prompt.tool_choice, parallel=prompt.parallel, opening=opening)
        )
    if answer is not None and tools:
        no_reasoning = END_OF_THINK  # which is free before either
        answer = answer.or_lark(
            output_format.tool_grammar(tools, ToolChoice(), parallel=prompt.parallel, opening=no_reasoning)
        )
    if answer is None or output_format.reasoning_parser == "none" or END_OF_THINK in opening:
        return answer
    return answer.behind_reasoning(begun=THINK in opening)


def openai_tool_choice(choice: str | Mapping[str, Any] | None) -> Literal["auto", "none"] | ToolChoice:
    """What OpenAI's `tool_choice` says. UserError for anything else."""
    match choice:
        case None | "auto":
            return "auto"
        case "none":
            return "none"
        case "required":
            return ToolChoice()
        case {"type": "function", "function": {"name": str(name)}} | {"type": "function", "name": str(name)}:
            return ToolChoice(name)
    raise UserError('tool_choice must be "none", "auto", "required" or {"type": "function", "function": {"name": …}}')


def _with_known_role(message: Message) -> Message:
    # OpenAI's newer name for the system prompt, which no template of this family knows.
    return {**message, "role": "system"} if message.get("role") == "developer" else message
