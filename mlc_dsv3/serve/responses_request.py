"""Requests of OpenAI's Responses API, and how their items become a conversation as chat templates read it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field

from mlc_dsv3.runtime.grammar import Grammar
from mlc_dsv3.runtime.messages import Message
from mlc_dsv3.runtime.sampling import MAX_LOGPROBS
from mlc_dsv3.serve.answer_form import FormType, JsonSchema, form_grammar
from mlc_dsv3.serve.chat_prompt import ChatPrompt, openai_tool_choice
from mlc_dsv3.serve.errors import ApiError
from mlc_dsv3.serve.request import Bookkeeping, Items, Sampling, Strict
from mlc_dsv3.serve.responses_tools import OfferedTool, ResponsesTool, custom_arguments, function_name, offered_tools

Item = dict[str, Any]
LOGPROBS = "message.output_text.logprobs"
_TEXT_PARTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")


class TextFormat(JsonSchema):
    """The form of the answer."""

    type: FormType
    json_schema: dict[str, Any] | None = Field(None, alias="schema")

    def grammar(self) -> Grammar | None:
        """The grammar that it comes to; None for text."""
        missing = ApiError(400, "text.format of the type json_schema needs a schema", param="text.format.schema")
        return form_grammar(self.type, self.json_schema, missing)


class TextConfig(Strict):
    """What the text of the answer is like."""

    format: TextFormat | None = None
    verbosity: Any = Field(None, description="Without effect: no model of this family knows it.")


class Reasoning(Strict):
    """How hard to think."""

    effort: str | None = None
    summary: Any = Field(None, description="Without effect: the reasoning itself is in the answer.")
    generate_summary: Any = None


class ResponsesStreamOptions(Strict):
    """Options of a stream."""

    include_obfuscation: Any = Field(None, description="Without effect: the server pads no events.")


class ResponsesRequest(Bookkeeping, Sampling):
    """The body of a request for a response."""

    model: str | None = None
    input: str | Items[Item]
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = Field(None, description="Whether the response can be gone on from later (true).")
    stream: bool | None = None
    stream_options: ResponsesStreamOptions | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    tools: Items[ResponsesTool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Any = Field(None, description="Without effect: it counts tools that run on the server.")
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    include: Items[str] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    background: Literal[False] | None = None
    truncation: Literal["disabled"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    client_metadata: Any = None

    def items(self) -> list[Item]:
        """The input as items."""
        if isinstance(self.input, str):
            return [{"type": "message", "role": "user", "content": self.input}]
        return self.input

    def prompt(self, history: list[Item]) -> ChatPrompt:
        """The conversation behind the items of earlier responses. ApiError for items that are not understood."""
        instructions = [{"role": "system", "content": self.instructions}] if self.instructions else []
        return ChatPrompt(
            [*instructions, *conversation([*history, *self.items()])],
            tools=[tool.for_chat() for tool in self.offered()] or None,
            tool_choice=openai_tool_choice(self.tool_choice),
            parallel=self.parallel_tool_calls is not False,
            variables=self.chat_template_kwargs,
            reasoning_effort=self.reasoning.effort if self.reasoning is not None else None,
        )

    def offered(self) -> list[OfferedTool]:
        """The tools that the model may call."""
        return offered_tools(self.tools or ())

    def grammar(self) -> Grammar | None:
        """What the answer must match."""
        return self.text.format.grammar() if self.text is not None and self.text.format is not None else None

    def alternatives(self) -> int | None:
        """How many alternatives to report with each token; None reports no logprobs."""
        wanted = self.top_logprobs is not None or LOGPROBS in (self.include or ())
        return (self.top_logprobs or 0) if wanted else None


def conversation(items: Iterable[Item]) -> list[Message]:
    """Messages from items: what an assistant thought, said and called in a row is one message."""
    messages: list[Message] = []
    for number, item in enumerate(items, 1):
        where = f"input item {number}"
        match item.get("type", "message"):
            case "message":
                role, text = _text(item, "role", where), _joined(item.get("content"), where)
                if role == "assistant":
                    own = _assistants(messages)
                    own["content"] += text
                else:
                    messages.append({"role": role, "content": text})
            case "reasoning":
                own = _assistants(messages)
                own["reasoning_content"] = own.get("reasoning_content", "") + _joined(item.get("content") or [], where)
            case "function_call":
                _assistants(messages).setdefault("tool_calls", []).append(
                    _call(item, _text(item, "arguments", where), where)
                )
            case "custom_tool_call":
                _assistants(messages).setdefault("tool_calls", []).append(
                    _call(item, custom_arguments(_text(item, "input", where)), where)
                )
            case "function_call_output" | "custom_tool_call_output":
                output = _joined(item.get("output"), where)
                messages.append({"role": "tool", "tool_call_id": _text(item, "call_id", where), "content": output})
            case kind:
                raise ApiError(400, f"{where} is of the type {str(kind)[:50]!r}, which is not supported", param="input")
    if not messages:
        raise ApiError(400, "input is empty; it needs at least one item", param="input")
    return messages


def _call(item: Item, arguments: str, where: str) -> dict[str, Any]:
    namespace = item.get("namespace")
    name = function_name(namespace if isinstance(namespace, str) else None, _text(item, "name", where))
    return {
        "id": _text(item, "call_id", where),
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _assistants(messages: list[Message]) -> Message:
    """The assistant's message at the end, a new one where another's is there."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _text(item: Item, name: str, where: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise ApiError(400, f"{where} has no {name}, which must be text", param="input")
    return value


def _joined(content: object, where: str) -> str:
    """The text of an item's content, a text or a list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ApiError(400, f"{where} has no content: text, or a list of parts", param="input")
    return "".join(_part(part, where) for part in content)


def _part(part: object, where: str) -> str:
    if not isinstance(part, Mapping) or part.get("type") not in _TEXT_PARTS or not isinstance(part.get("text"), str):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        raise ApiError(400, f"{where} has a part of the type {str(kind)[:50]!r}; only text is read", param="input")
    return part["text"]
