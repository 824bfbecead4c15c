"""`mlc_dsv3 serve`: an HTTP server with the APIs of OpenAI and Anthropic, and a page to chat on."""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

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
from mlc_dsv3.errors import UserError, note, warn_once

if TYPE_CHECKING:
    import socket

    from mlc_dsv3.runtime.llm import LLM
    from mlc_dsv3.runtime.tokenizer import Tokenizer
    from mlc_dsv3.serve.formats import OutputFormat

KEY_VARIABLE = "MLC_DSV3_API_KEY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this verb's arguments."""
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="folder of a checkpoint or an artifact, or org/name (the demo model)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine alone)")
    parser.add_argument("--port", type=_port, default=8000, metavar="N", help="port to listen on (8000)")
    parser.add_argument(
        "--model-name",
        action="append",
        metavar="NAME",
        help="what requests call the model; may be repeated (the name of its folder or repository)",
    )
    add_quantization(parser, default="4 bits")
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="where to run; `mlc_dsv3 devices` lists devices (auto: cpu)"
    )
    parser.add_argument("--model-lib", type=Path, metavar="LIB", help="use this compiled library as it is")
    add_context_window(parser, help="tokens of a conversation, answers included (as many as fit in memory)")
    add_cache_dtype(parser)
    add_speculative(parser)
    access = parser.add_argument_group("access")
    access.add_argument(
        "--api-key",
        action="append",
        metavar="KEY",
        help=f"key that requests must have; may be repeated (the value of {KEY_VARIABLE})",
    )
    access.add_argument(
        "--insecure", action="store_true", help="allow a --host that others can reach without an API key"
    )
    access.add_argument(
        "--cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let pages of this site use the server, such as https://example.org; may be repeated (none)",
    )
    formats = parser.add_argument_group("formats", "How the model writes; its chat template says it by default.")
    formats.add_argument("--reasoning-parser", metavar="NAME", help="how it marks reasoning")
    formats.add_argument("--tool-parser", metavar="NAME", help="how it calls tools")
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-batch", type=_count, metavar="N", help="answers generated at once; others wait")
    limits.add_argument(
        "--max-waiting", type=_count, default=256, metavar="N", help="answers that may wait; more get status 429 (256)"
    )
    limits.add_argument(
        "--max-body", type=_count, default=16, metavar="MIB", help="largest body of a request, in MiB (16)"
    )
    saved = parser.add_argument_group("saved prefixes")
    saved.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="keep beginnings of prompts of at least 1,024 tokens in this folder, for prompts to come (none)",
    )
    saved.add_argument(
        "--cache-dir-size", type=_count, default=16, metavar="GIB", help="largest size of that folder, in GiB (16)"
    )
    add_sampling(parser)
    add_no_mtp(parser)
    add_ignore_config_field(parser)


def run(parsed: argparse.Namespace) -> None:
    """Load the model and serve until a signal ends it."""
    # Everything that can be wrong in the command line is said before minutes of conversion.
    sampling_params(parsed)
    keys = _keys(parsed)
    _require_extra()
    from mlc_dsv3.serve import server
    from mlc_dsv3.serve.access import LOOPBACK_NAMES, AccessRules
    from mlc_dsv3.serve.app import create_app
    from mlc_dsv3.serve.service import Service

    listener = server.bind(parsed.host, parsed.port)
    is_public = not server.is_loopback(listener)
    if is_public and not keys and not parsed.insecure:
        raise UserError(
            f"{parsed.host} can be reached from other machines: give a key (--api-key or {KEY_VARIABLE}), or let "
            "everybody in with --insecure"
        )
    with listener, _load(parsed) as llm:
        service = Service(
            llm,
            _names(parsed),
            sampling_params(parsed, llm.default_params),
            output_format=_output_format(parsed, llm.tokenizer),
            max_waiting=parsed.max_waiting,
        )
        hosts = None if keys or is_public else LOOPBACK_NAMES | {parsed.host.lower()}
        rules = AccessRules(keys, hosts, max_body=parsed.max_body * 2**20)
        serving = f"serving {service.model.id} on {llm.device}: {_address(listener)} (Ctrl-C ends it)"
        app = create_app(service, rules, parsed.cors_origin)
        server.serve(app, listener, started=lambda: note(serving), end_answers=llm.close)


def _require_extra() -> None:
    """UserError where what the server is made of is not installed."""
    try:
        import mlc_dsv3.serve.app
        import mlc_dsv3.serve.server  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"serve needs {error.name}: pip install 'mlc-dsv3[serve]'") from error


def _load(parsed: argparse.Namespace) -> LLM:
    from mlc_dsv3.runtime.llm import LLM

    return LLM(
        parsed.model,
        quantization=parsed.quantization,
        device=parsed.device,
        model_lib=parsed.model_lib,
        cache_dtype=parsed.cache_dtype,
        context_window=parsed.context_window,
        max_batch=parsed.max_batch,
        ignore_config_fields=parsed.ignore_config_field,
        without_mtp=parsed.no_mtp,
        speculative=parsed.speculative,
        cache_dir=parsed.cache_dir,
        cache_dir_bytes=parsed.cache_dir_size << 30,
        check_tokenizer=partial(_output_format, parsed),
    )


def _output_format(parsed: argparse.Namespace, tokenizer: Tokenizer) -> OutputFormat:
    """How the model writes. UserError for a parser that there is not."""
    from mlc_dsv3.serve.formats import OutputFormat, output_format

    try:
        template = tokenizer.chat_template
    except UserError as error:
        warn_once(f"{error}. Requests that chat are refused, and completions are served")
        return OutputFormat("none", "none")
    return output_format(template, reasoning_parser=parsed.reasoning_parser, tool_parser=parsed.tool_parser)


def _keys(parsed: argparse.Namespace) -> tuple[str, ...]:
    keys = parsed.api_key or ([os.environ[KEY_VARIABLE]] if KEY_VARIABLE in os.environ else [])
    for key in keys:
        if not key.isascii() or not key.isprintable() or key != key.strip() or not key:
            raise UserError("an API key must be printable ASCII without spaces around it")
    return tuple(keys)


def _names(parsed: argparse.Namespace) -> list[str]:
    from mlc_dsv3.runtime.hub import model_title

    return parsed.model_name or ["mlc_dsv3-demo" if parsed.model is None else model_title(parsed.model)]


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _port(text: str) -> int:
    return _whole(text, 0, 65535)


def _count(text: str) -> int:
    return _whole(text, 1, 2**20)


def _whole(text: str, least: int, most: int) -> int:
    if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text[:50]!r} is not a whole number from {least} to {most}")
    return int(text)
