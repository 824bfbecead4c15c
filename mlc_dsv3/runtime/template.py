"""A checkpoint's own Jinja chat template, rendered as Hugging Face renders it.

The text comes from chat_template.jinja or tokenizer_config.json; it is foreign code, so it runs in jinja2's sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mlc_dsv3.errors import UserError
from mlc_dsv3.weights.files import read_json

Message = dict[str, Any]  # OpenAI-style: at least "role" and "content"


class ChatTemplate:
    """A compiled chat template and the file that it came from."""

    def __init__(self, text: str, origin: Path) -> None:
        self.origin = origin
        try:
            self._template = _environment().from_string(text)
        except jinja2.TemplateError as error:
            raise UserError(f"the chat template in {origin} is not valid Jinja: {_one_line(error)}") from error

    @staticmethod
    def load(folder: Path, tokenizer_config: dict[str, Any]) -> ChatTemplate:
        """The template of a checkpoint or artifact.

        A file of its own wins over tokenizer_config.json, as in transformers. Raises UserError where there is none.
        """
        path = folder / "chat_template.jinja"
        if path.exists():
            return ChatTemplate(path.read_text(encoding="utf-8"), path)
        path = folder / "chat_template.json"
        if path.exists():
            return ChatTemplate(_chosen(read_json(path).get("chat_template"), path), path)
        path = folder / "tokenizer_config.json"
        if tokenizer_config.get("chat_template"):
            return ChatTemplate(_chosen(tokenizer_config["chat_template"], path), path)
        raise UserError(
            f"{folder} has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json); "
            "for a base model, chat --raw sends the text as it is"
        )

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **variables: object) -> str:
        """The conversation as the model reads it. Raises UserError with the template's words where it refuses."""
        plain = [{key: value for key, value in message.items() if value is not None} for message in messages]
        variables = {"tools": None, "documents": None, **variables}
        try:
            return self._template.render(messages=plain, add_generation_prompt=add_generation_prompt, **variables)
        except Exception as error:  # a template can raise any error of Python's, and all of them are its own
            raise UserError(
                f"the chat template in {self.origin} refuses the conversation: {_one_line(error)}"
            ) from error


def _chosen(template: Any, path: Path) -> str:
    """One template of the single or named ones that a file may hold."""
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}
    if isinstance(template, dict):
        if "default" not in template:
            raise UserError(f"{path} names no default chat template, only {', '.join(sorted(template))}")
        template = template["default"]
    if not isinstance(template, str):
        raise UserError(f"{path}: chat_template is no text but {template!r}")
    return template


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}`: marks the assistant's words for training and is without effect here."""

    tags = frozenset({"generation"})

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A scope of its own, as in transformers: what is set inside stays inside.
        return jinja2.nodes.Scope(body, lineno=line)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes HTML, which a prompt must not have.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
