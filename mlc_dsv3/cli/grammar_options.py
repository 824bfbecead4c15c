"""--json-schema, --regex and --grammar: what answers must match."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mlc_dsv3.cli.text import read_text
from mlc_dsv3.errors import UserError

if TYPE_CHECKING:
    from mlc_dsv3.runtime.grammar import Grammar

_OPTIONS = ("json_schema", "regex", "grammar")


def add_grammar(parser: argparse.ArgumentParser) -> None:
    """The three options; at most one may be given."""
    group = parser.add_argument_group("structured output", "What each whole answer must match; at most one of these.")
    group.add_argument(
        "--json-schema", metavar="SCHEMA", help="JSON that is valid by this schema: a file, or the text ({…}) itself"
    )
    group.add_argument("--regex", metavar="PATTERN", help="this regular expression")
    group.add_argument("--grammar", metavar="FILE", help="the Lark grammar in this file (-: standard input)")


def chosen_grammar(parsed: argparse.Namespace) -> Grammar | None:
    """What the command line gives. UserError for more than one, or for no text of its kind."""
    from mlc_dsv3.runtime.grammar import Grammar

    given = [name for name in _OPTIONS if getattr(parsed, name) is not None]
    if len(given) > 1:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UserError(f"{options} do not go together: an answer has one grammar")
    if parsed.json_schema is not None:
        return Grammar.json_schema(_schema_text(parsed.json_schema))
    if parsed.regex is not None:
        return Grammar.regex(parsed.regex)
    return Grammar.lark(read_text(parsed.grammar, "--grammar")) if parsed.grammar is not None else None


def _schema_text(argument: str) -> str:
    return argument if argument.lstrip().startswith("{") else read_text(argument, "--json-schema")
