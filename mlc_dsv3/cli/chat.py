"""`mlc_dsv3 chat`: a session at the terminal, one answer, or one JSON line for each line of input."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlc_dsv3.cli.arguments import (
    add_cache_dtype,
    add_context_window,
    add_ignore_config_field,
    add_no_mtp,
    add_quantization,
    add_sampling,
    add_speculative,
    sampling_params,
)
from mlc_dsv3.cli.grammar_options import add_grammar, chosen_grammar
from mlc_dsv3.errors import UserError, warn

if TYPE_CHECKING:
    from mlc_dsv3.chat.reply import Prompt
    from mlc_dsv3.runtime.grammar import Grammar
    from mlc_dsv3.runtime.llm import LLM
    from mlc_dsv3.runtime.messages import ChatOptions, Message
    from mlc_dsv3.runtime.tokenizer import Tokenizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this verb's arguments."""
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="folder of a checkpoint or an artifact, or org/name (the demo model)"
    )
    add_quantization(parser, default="4 bits")
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="where to run; `mlc_dsv3 devices` lists devices (auto: cpu)"
    )
    parser.add_argument("--model-lib", type=Path, metavar="LIB", help="use this compiled library as it is")
    parser.add_argument("--prompt", metavar="TEXT", help="print one answer and leave (-: the prompt is standard input)")
    parser.add_argument(
        "--json",
        action="store_true",
        help="answer in JSON: one object for --prompt, else one a line of input, with error where it is refused",
    )
    parser.add_argument("--system", metavar="TEXT", help="system prompt")
    parser.add_argument("--raw", action="store_true", help="send text as it is, without a chat template (base models)")
    parser.add_argument(
        "--template-kwargs",
        type=_json_object,
        metavar="JSON",
        help="variables of the model's chat template, such as '{\"enable_thinking\": false}'",
    )
    parser.add_argument(
        "--parse-control-tokens",
        action="store_true",
        help="let control tokens in messages act as such; by default they are text (--raw always parses them)",
    )
    parser.add_argument(
        "--on-overflow",
        choices=("refuse", "drop"),
        default="refuse",
        help="a question that does not fit in the context window is refused, or the oldest turns are dropped (refuse)",
    )
    add_context_window(parser, help="tokens of a conversation, answers included (as many as fit in memory)")
    add_cache_dtype(parser)
    add_speculative(parser)
    add_sampling(parser)
    add_grammar(parser)
    add_no_mtp(parser)
    add_ignore_config_field(parser)


def run(parsed: argparse.Namespace) -> None:
    """Load the model and talk."""
    # Everything that can be wrong in the command line is said before minutes of conversion.
    sampling_params(parsed)
    for option, given in (("--system", parsed.system), ("--template-kwargs", parsed.template_kwargs)):
        if parsed.raw and given:
            raise UserError(f"--raw uses no chat template; leave out {option}")
    grammar = chosen_grammar(parsed)
    prompt = _prompt(parsed)
    model = _load(parsed, prompt, grammar)
    params = replace(sampling_params(parsed, model.default_params), grammar=grammar)
    about = {"model": _model_name(parsed), "quantization": model.artifact.quantization, "device": model.device}
    options = _options(parsed)
    if prompt is not None:
        from mlc_dsv3.chat.oneshot import answer_once

        answer_once(model, prompt, params, sys.stdout, options=options, json_about=about if parsed.json else None)
    elif parsed.json:
        from mlc_dsv3.chat.oneshot import answer_lines

        answer_lines(
            model,
            sys.stdin,
            params,
            sys.stdout,
            system=parsed.system,
            raw=parsed.raw,
            about=about,
            options=options,
            drops=parsed.on_overflow == "drop",
        )
    else:
        from mlc_dsv3.chat.oneshot import refuse_unanswered
        from mlc_dsv3.chat.session import Session
        from mlc_dsv3.chat.terminal import message_reader
        from mlc_dsv3.experts.load import recent_load

        session = Session(
            model,
            message_reader(),
            params=params,
            system=parsed.system,
            raw=parsed.raw,
            options=options,
            thinking=() if parsed.raw else model.tokenizer.thinking_variables,
            drops=parsed.on_overflow == "drop",
            expert_load=partial(recent_load, model),
        )
        session.run(*_header(parsed, about))
        if not sys.stdin.isatty():
            refuse_unanswered(session.unanswered, session.messages)


def _prompt(parsed: argparse.Namespace) -> Prompt | None:
    if parsed.prompt is None:
        return None
    text = sys.stdin.read() if parsed.prompt == "-" else parsed.prompt
    if not text.strip():
        raise UserError("standard input has no prompt" if parsed.prompt == "-" else "--prompt is empty")
    return text if parsed.raw else _messages(parsed, text.strip())


def _messages(parsed: argparse.Namespace, text: str) -> list[Message]:
    system = [{"role": "system", "content": parsed.system}] if parsed.system else []
    return [*system, {"role": "user", "content": text}]


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is not a JSON object, such as {{"thinking": true}}')
    return value


def _options(parsed: argparse.Namespace) -> ChatOptions:
    if parsed.raw:
        return {}
    return {"template_kwargs": parsed.template_kwargs or {}, "parse_control_tokens": parsed.parse_control_tokens}


def _check_tokenizer(
    parsed: argparse.Namespace, prompt: Prompt | None, grammar: Grammar | None, tokenizer: Tokenizer
) -> None:
    """UserError for what a conversation, or this prompt, would fail on: said before minutes of conversion.

    Warns where no token ends an answer.
    """
    if grammar is not None:
        from mlc_dsv3.runtime.grammar_compiler import GrammarCompiler

        GrammarCompiler(tokenizer, tokenizer.vocab_size).matcher(grammar)
    if parsed.raw:
        return
    tokenizer.chat_template.refuse_unread(variables=parsed.template_kwargs)
    tokenizer.chat_prompt(prompt or _messages(parsed, "Hello"), **_options(parsed))
    if not tokenizer.eos_token_ids:
        warn(
            f"no file in {tokenizer.folder} says which token ends an answer (eos_token_id in generation_config.json or "
            "config.json, eos_token in tokenizer_config.json); answers end at --max-tokens or with the context window"
        )


def _load(parsed: argparse.Namespace, prompt: Prompt | None, grammar: Grammar | None) -> LLM:
    from mlc_dsv3.runtime.llm import LLM

    return LLM(
        parsed.model,
        quantization=parsed.quantization,
        device=parsed.device,
        model_lib=parsed.model_lib,
        cache_dtype=parsed.cache_dtype,
        context_window=parsed.context_window,
        ignore_config_fields=parsed.ignore_config_field,
        without_mtp=parsed.no_mtp,
        speculative=parsed.speculative,
        check_tokenizer=partial(_check_tokenizer, parsed, prompt, grammar),
    )


def _model_name(parsed: argparse.Namespace) -> str:
    from mlc_dsv3.runtime.hub import model_title

    return "demo" if parsed.model is None else model_title(parsed.model)


def _header(parsed: argparse.Namespace, about: dict[str, str]) -> list[str]:
    lines = [" · ".join(about.values()) + "  (/help lists the commands)"]
    if parsed.model is None:
        from mlc_dsv3.demo import HINT

        lines.append(HINT)
    return lines
