"""A checkpoint's own Jinja chat template, rendered as Hugging Face renders it.

The text comes from chat_template.jinja or tokenizer_config.json; it is foreign code, so it runs in jinja2's sandbox.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mlc_dsv3.errors import ModelFileError, UserError, said
from mlc_dsv3.json_files import read_json
from mlc_dsv3.regular_files import regular_size
from mlc_dsv3.runtime.control_tokens import BREAK
from mlc_dsv3.runtime.messages import Message
from mlc_dsv3.weights.files import TOOL_TEMPLATE
from relax_model.fields import named, shown

_PART = "the chat template"  # of a model, as errors name it
_NAMED_FOR_TOOLS, _DEFAULT = "tool_use", "default"
_RESERVED = ("messages", "tools", "add_generation_prompt")


class ChatTemplate:
    """A checkpoint's chat template, or its several named ones, and the file that it came from."""

    def __init__(self, text: str | Mapping[str, str], origin: Path) -> None:
        """`text` is one template, or templates by their names."""
        self.origin = origin
        texts = {_DEFAULT: text} if isinstance(text, str) else text
        self.text = "\n".join(texts.values())
        environment = _environment()
        try:
            self._templates = {name: environment.from_string(text) for name, text in texts.items()}
            names = [node for text in texts.values() for node in environment.parse(text).find_all(jinja2.nodes.Name)]
        except jinja2.TemplateError as error:
            raise ModelFileError(_PART, origin, f"is not valid Jinja: {said(error)}") from error
        # Not jinja2.meta's undeclared variables: those leave out what the template gives a default.
        self.variables = frozenset(node.name for node in names if node.ctx == "load")

    @staticmethod
    def load(folder: Path, configured: Any) -> ChatTemplate:
        """The template of a checkpoint or artifact; `configured` is the chat_template of its tokenizer_config.json.

        A file of its own wins over tokenizer_config.json, as in transformers. Raises UserError where there is none.
        """
        path = folder / "chat_template.jinja"
        files = {_DEFAULT: path, _NAMED_FOR_TOOLS: folder / TOOL_TEMPLATE}
        texts = {name: _read_text(file) for name, file in files.items() if file.exists()}
        if texts:
            return ChatTemplate(texts, path)
        path = folder / "chat_template.json"
        if path.exists():
            return ChatTemplate(_texts(read_json(path).get("chat_template"), path), path)
        path = folder / "tokenizer_config.json"
        if configured:
            return ChatTemplate(_texts(configured, path), path)
        raise ModelFileError(
            "the model",
            folder,
            "has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json); "
            "for a base model, chat --raw sends the text as it is",
        )

    def refuse_unread(
        self, tools: Sequence[Mapping[str, Any]] | None = None, variables: Mapping[str, Any] | None = None
    ) -> None:
        """UserError for tools and variables that no template of these reads: they would be without effect."""
        if tools and "tools" not in self.variables and _NAMED_FOR_TOOLS not in self._templates:
            raise ModelFileError(_PART, self.origin, "does not read tools; leave them out")
        unknown = sorted((variables or {}).keys() - self.variables)
        if unknown:
            raise ModelFileError(_PART, self.origin, f"has no variable {unknown[0]} (template_kwargs)")

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as the model reads it; with `tools` by the template named tool_use, where there is one.

        Raises UserError with the template's words where it refuses.
        """
        for name in _RESERVED:
            if name in (variables or {}):
                raise UserError(f"the variable {name} of the chat template is set by the conversation itself")
        values = {"documents": None, **(variables or {}), "tools": tools or None}
        template = self._named(_NAMED_FOR_TOOLS if tools and _NAMED_FOR_TOOLS in self._templates else _DEFAULT)
        try:
            return template.render(messages=messages, add_generation_prompt=add_generation_prompt, **values)
        except Exception as error:  # a template can raise any error of Python's, and all of them are its own
            raise ModelFileError(_PART, self.origin, f"refuses the conversation: {said(error)}") from error

    def _named(self, name: str) -> jinja2.Template:
        if name not in self._templates:
            known = ", ".join(map(named, sorted(self._templates)))
            raise ModelFileError("the list of templates", self.origin, f"names no default chat template, only {known}")
        return self._templates[name]


def _read_text(path: Path) -> str:
    regular_size(path)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {said(error)}") from error


def _texts(template: Any, path: Path) -> str | dict[str, str]:
    """The single template or the named ones that a file holds."""
    texts = {}
    if isinstance(template, dict):
        texts = template
    elif isinstance(template, list) and all(isinstance(entry, dict) for entry in template):
        pairs = [(entry.get("name"), entry.get("template")) for entry in template]
        texts = dict(pair for pair in pairs if isinstance(pair[0], str))
        texts = texts if len(texts) == len(pairs) else {}
    if isinstance(template, str) or (texts and all(isinstance(text, str) for text in texts.values())):
        return texts or template
    raise UserError(f"{path}: chat_template is {shown(template)}; it must be text, or named texts")


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
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
    return _escape_non_ascii(text) if ensure_ascii else text


def _escape_non_ascii(text: str) -> str:
    """JSON with \\u escapes, except for the mark in control tokens that messages spell out."""
    return re.sub(rf"[^\0-\x7e{BREAK}]+", lambda run: json.dumps(run[0])[1:-1], text)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
