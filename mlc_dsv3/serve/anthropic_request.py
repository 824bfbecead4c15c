"""Anthropic's requests, and how they become conversations in OpenAI's form, which chat templates read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from mlc_dsv3.runtime.grammar import Grammar
from mlc_dsv3.runtime.messages import Message
from mlc_dsv3.runtime.sampling import SamplingParams
from mlc_dsv3.serve.answer_form import JsonSchema
from mlc_dsv3.serve.chat_prompt import ChatPrompt
from mlc_dsv3.serve.errors import ApiError
from mlc_dsv3.serve.formats import ToolChoice
from mlc_dsv3.serve.request import Items, Lenient, StopStrings, Strict, stated_params

# Claude Code's first system block is for Anthropic's own servers and differs from request to request: no prefix of such
# a prompt would ever be found in the cache.
_FOR_ANTHROPIC = "x-anthropic-billing-header:"


class TextBlock(Lenient):
    """Text."""

    type: Literal["text"]
    text: str


class ThinkingBlock(Lenient):
    """What the model thought. The signature of another server says nothing here."""

    type: Literal["thinking"]
    thinking: str


class RedactedThinkingBlock(Lenient):
    """What another server's model thought, encrypted: nobody here can read it."""

    type: Literal["redacted_thinking"]


class ToolUseBlock(Lenient):
    """A call of a tool."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


def _as_blocks(content: object) -> object:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


TextBlocks = Annotated[Items[TextBlock], BeforeValidator(_as_blocks)]


class ToolResultBlock(Lenient):
    """What a tool returned."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: TextBlocks = Field(default_factory=list)
    is_error: bool = False


AnyBlock = Annotated[
    TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")
]


class AnthropicMessage(Lenient):
    """A message of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[Items[AnyBlock], BeforeValidator(_as_blocks)]


class AnthropicTool(Lenient):
    """A function that the model may call. Tools that run on Anthropic's servers have other types."""

    type: Literal["custom"] | None = None
    name: str
    description: str | None = None
    input_schema: dict[str, Any]


class AnthropicToolChoice(Strict):
    """Whether the model may, must or must not call tools."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False

    def wanted(self) -> Literal["auto", "none"] | ToolChoice:
        """What it says."""
        if self.type == "tool" and self.name is None:
            raise ApiError(400, "tool_choice of the type tool must have a name", param="tool_choice")
        match self.type:
            case "any":
                return ToolChoice()
            case "tool":
                return ToolChoice(self.name)
            case choice:
                return choice


class Thinking(Lenient):
    """Whether to think. A budget of tokens has no effect: models of this family end their thought themselves."""

    type: Literal["enabled", "adaptive", "disabled"]


class OutputForm(JsonSchema):
    """The form of the answer."""

    type: Literal["json_schema"]


class OutputConfig(Strict):
    """How hard to think, and the form of the answer."""

    effort: str | None = None
    format: OutputForm | None = None


class CountRequest(Strict):
    """A conversation whose tokens are to be counted."""

    model: str | None = None
    messages: Items[AnthropicMessage] = Field(min_length=1)
    system: TextBlocks | None = None
    tools: Items[AnthropicTool] | None = None
    tool_choice: AnthropicToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    context_management: Any = Field(None, description="Without effect: the conversation is read as it is.")
    cache_control: Any = Field(None, description="Without effect: every prefix is cached.")

    def prompt(self, thinking_variables: Sequence[str]) -> ChatPrompt:
        """The conversation as the model reads it. `thinking_variables` are the chat template's."""
        if self.messages[-1].role == "assistant":
            raise ApiError(
                400,
                "the last message is the assistant's; an answer that is begun cannot be continued",
                param="messages",
            )
        thinks = {} if self.thinking is None else dict.fromkeys(thinking_variables, self.thinking.type != "disabled")
        return ChatPrompt(
            [*_system(self.system or []), *(each for message in self.messages for each in _messages(message))],
            tools=[_tool(tool) for tool in self.tools or []] or None,
            tool_choice=self.tool_choice.wanted() if self.tool_choice is not None else "auto",
            parallel=self.tool_choice is None or not self.tool_choice.disable_parallel_tool_use,
            variables={**thinks, **(self.chat_template_kwargs or {})},
            reasoning_effort=self.output_config.effort if self.output_config is not None else None,
        )


class MessagesRequest(CountRequest):
    """A conversation to answer."""

    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: StopStrings | None = None
    stream: bool = False
    metadata: Any = None
    service_tier: Any = None

    def params(self, defaults: SamplingParams) -> SamplingParams:
        """`defaults` with what the request states."""
        form = self.output_config.format if self.output_config is not None else None
        return stated_params(
            defaults,
            grammar=Grammar.json_schema(form.json_schema) if form is not None else None,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=self.stop_sequences,
        )


def _system(blocks: Sequence[TextBlock]) -> Iterator[Message]:
    texts = [block.text for block in blocks if not block.text.startswith(_FOR_ANTHROPIC)]
    if texts:
        yield {"role": "system", "content": "\n\n".join(texts)}


def _messages(message: AnthropicMessage) -> Iterator[Message]:
    if message.role == "assistant":
        yield _assistant(message.content)
        return
    texts: list[str] = []
    for block in message.content:
        match block:
            case TextBlock():
                texts.append(block.text)
            case ToolResultBlock():
                # Results answer the message before, and come first whatever their place.
                content = "".join(part.text for part in block.content)
                yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": content}
            case _:
                raise ApiError(400, f"a message of the {message.role} has a block of the type {block.type}")
    if texts:
        yield {"role": message.role, "content": "\n\n".join(texts)}


def _assistant(blocks: Sequence[AnyBlock]) -> Message:
    message: Message = {"role": "assistant", "content": ""}
    for block in blocks:
        match block:
            case TextBlock():
                message["content"] += block.text
            case ThinkingBlock():
                message["reasoning_content"] = message.get("reasoning_content", "") + block.thinking
            case ToolUseBlock():
                function = {"name": block.name, "arguments": json.dumps(block.input, ensure_ascii=False)}
                call = {"id": block.id, "type": "function", "function": function}
                message.setdefault("tool_calls", []).append(call)
            case ToolResultBlock():
                raise ApiError(400, "a message of the assistant has a block of the type tool_result")
    return message


def _tool(tool: AnthropicTool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema}
    return {"type": "function", "function": function}
