"""The command `mlc_dsv3`: finds the verb, runs it, and turns what went wrong into an exit code.

Exit codes: 0 done, 2 a user's mistake or a machine's failure (one line on standard error), 130 interrupted; a traceback
is a bug of ours.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from mlc_dsv3 import __version__
from mlc_dsv3.cli.streams import discard_output, output_fails, prepare_streams
from mlc_dsv3.errors import MACHINE_ERRORS, USER_ERRORS, UserError, one_line
from mlc_dsv3.folders import variable_of

# Each is a module of this package with `add_arguments(parser)` and `run(args)`, imported only when it is the verb.
VERBS = {
    "chat": "talk to a model; converts and compiles it first where needed (no model: the built-in demo)",
    "serve": "serve a model over HTTP: the APIs of OpenAI and Anthropic, and a page to chat on",
    "convert_weight": "quantize a checkpoint's weights into an artifact folder",
    "gen_config": "write an artifact's mlc-chat-config.json and tokenizer files",
    "compile": "compile a model into a native library",
    "tune": "measure which kernels' tiles are fastest on this machine, for `compile` to use",
    "devices": "say what this machine can compile for and run on, and why not",
    "inspect": "show what an artifact or a library holds",
    "rebalance": "learn the routers' correction biases anew on a text, for an even load of the experts",
    "bench": "measure speed beside the memory's limit, and the demo's quality in each quantization",
    "bench serve": "measure a server under load: many clients, a shared beginning, memory over many requests",
}
# The environment's trouble and not ours; anything else that the operating system refuses is shown as a bug.
_ENVIRONMENT_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.EMFILE),
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
    *(errno.EEXIST, errno.EBUSY, errno.ELOOP),
}


# Text, of which they say themselves what it must be.
_MAY_BE_EMPTY = ("--prompt", "--stop", "--system")


class _Parser(argparse.ArgumentParser):
    """Says a wrong command line in one line, through the same door as every other mistake."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        sys.stdout.flush()  # while what goes wrong with the help can still be said
        super().exit(status, message)


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(f"mlc_dsv3 {__version__}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (without the program's name; None: this process's) and return its exit code."""
    arguments = _with_whole_verb(list(sys.argv[1:] if argv is None else argv))
    try:
        prepare_streams()
        parsed = _parse(arguments)
        code = parsed.run(parsed) or 0
        sys.stdout.flush()
        return code
    except (*USER_ERRORS, *MACHINE_ERRORS) as error:
        return _complain(f"{str(error) or 'out of memory'}{_elsewhere(error.__cause__)}")
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        discard_output()  # the reader has left
        return 141
    except OSError as error:
        if error.errno == errno.ENOENT and _current_folder_is_gone():
            return _complain("the current folder has been removed; change to another")
        if error.errno not in _ENVIRONMENT_ERRORS:
            raise
        place = error.filename or ("standard output" if output_fails() else None)
        return _complain(f"{error.strerror}{f': {place}' if place else ''}{_elsewhere(error)}")


def _elsewhere(error: BaseException | None) -> str:
    """How to choose another place, where the system refuses what we keep in a folder of our own."""
    refused = error.filename if isinstance(error, OSError) else None
    variable = variable_of(refused) if isinstance(refused, str) else None
    return f"; set {variable} to a folder that can be written" if variable else ""


def _current_folder_is_gone() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _complain(text: str) -> int:
    with suppress(OSError):
        print(f"mlc_dsv3: error: {one_line(text)}", file=sys.stderr)
    return 2


def _parse(arguments: list[str]) -> argparse.Namespace:
    """The command line. UserError for a wrong one, which points to the help of its verb."""
    parser = _parser(arguments)
    _refuse_empty(arguments)
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:
        verb = _verb(arguments)
        of_verb = f" {verb}" if arguments.index(unknown[0]) > arguments.index(verb) else ""
        raise UserError(f"unrecognized arguments: {' '.join(unknown)} (see {parser.prog}{of_verb} --help)")
    return parsed


def _refuse_empty(arguments: list[str]) -> None:
    """UserError for an argument without a character, as an unset variable of the shell makes it: most options would
    take it for nothing, and a path for the folder that one is in."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        option, is_option, value = argument.partition("=")
        if not argument and before not in _MAY_BE_EMPTY:
            raise UserError(f"the argument after {before or 'mlc_dsv3'} is empty; give a value, or leave it out")
        if option.startswith("--") and is_option and not value and option not in _MAY_BE_EMPTY:
            raise UserError(f"{option} is empty; give a value, or leave it out")


def module_of(verb: str) -> str:
    """The name of a verb's module."""
    return f"mlc_dsv3.cli.{verb.replace(' ', '_')}"


def _with_whole_verb(arguments: list[str]) -> list[str]:
    """The arguments with a verb of two words as one of them."""
    verb = " ".join(arguments[:2])
    return [verb, *arguments[2:]] if verb in VERBS and len(arguments) > 1 else arguments


def _verb(arguments: list[str]) -> str | None:
    """The first argument that is no option: none of the options before it takes a value."""
    return next((argument for argument in arguments if not argument.startswith("-")), None)


def _parser(arguments: list[str]) -> _Parser:
    parser = _Parser(
        prog="mlc_dsv3",
        description="Compile and run models of the DeepSeek-V3 architecture.",
        epilog="mlc_dsv3 VERB --help explains a verb. MODEL is a folder or a name on the Hugging Face Hub (org/name).",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and leave")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    wanted = _verb(arguments)
    for name, summary in VERBS.items():
        verb = verbs.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False
        )
        if name == wanted:
            module = importlib.import_module(module_of(name))
            module.add_arguments(verb)
            verb.set_defaults(run=module.run)
    return parser
