"""`/tokenize`, `/detokenize`, `/apply-template`, and the refusal of embeddings."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from mlc_dsv3.serve.chat_prompt import ChatPrompt
from mlc_dsv3.serve.errors import ApiError
from mlc_dsv3.serve.json_response import JsonResponse
from mlc_dsv3.serve.request import Items, Strict
from mlc_dsv3.serve.service import CurrentService

router = APIRouter()


class Conversation(Strict):
    """A conversation as a chat request has it."""

    model: str | None = None
    messages: Items[dict[str, Any]] = Field(min_length=1)
    tools: Items[dict[str, Any]] | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    parse_control_tokens: bool = False
    add_generation_prompt: bool = True

    def prompt(self) -> ChatPrompt:
        """What a chat request would make of it."""
        return ChatPrompt(
            self.messages,
            tools=self.tools,
            variables=self.chat_template_kwargs,
            reasoning_effort=self.reasoning_effort,
            parse_control_tokens=self.parse_control_tokens,
            add_generation_prompt=self.add_generation_prompt,
        )


class PlainText(Strict):
    """A text as a request for completions has it."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool = True


class Tokens(Strict):
    """Token ids."""

    model: str | None = None
    tokens: Items[int]


@router.post("/tokenize")
async def tokenize(body: Conversation | PlainText, service: CurrentService) -> Response:
    """The token ids that the model reads for a text or a conversation."""
    service.check_model(body.model)
    if isinstance(body, Conversation):
        ids = await asyncio.to_thread(body.prompt().tokens, service)
    else:
        encode = service.llm.tokenizer.encode
        ids = await asyncio.to_thread(encode, body.prompt, add_special_tokens=body.add_special_tokens)
    return JsonResponse({"tokens": list(ids), "count": len(ids), "max_model_len": service.model.context_window})


@router.post("/detokenize")
async def detokenize(body: Tokens, service: CurrentService) -> Response:
    """The text of token ids, without special tokens."""
    service.check_model(body.model)
    tokenizer = service.llm.tokenizer
    for token in body.tokens:
        if not 0 <= token < tokenizer.vocab_size:
            raise ApiError(400, f"{token} is no token id; they go from 0 to {tokenizer.vocab_size - 1}", param="tokens")
    return JsonResponse({"prompt": await asyncio.to_thread(tokenizer.decode, body.tokens)})


@router.post("/apply-template")
async def apply_template(body: Conversation, service: CurrentService) -> Response:
    """The text that the chat template writes for a conversation."""
    service.check_model(body.model)
    return JsonResponse({"prompt": await asyncio.to_thread(body.prompt().text, service)})


@router.post("/v1/embeddings", status_code=501)
async def embeddings() -> Response:
    """Not offered."""
    raise ApiError(
        501,
        "this server makes no embeddings: models of this family are trained to predict the next token, and their "
        "hidden states are no measure of what texts have in common; use a model made for embeddings",
        code="not_supported",
    )
