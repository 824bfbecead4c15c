"""Compiles a grammar in a process of its own first: a hostile one takes for ever or overflows the stack.

Both happen inside llguidance, in spite of its limits: multiples of a large number are counted out, and a long chain of
references recurses. The one cannot be stopped in a thread, and the other ends the process. This file is also what the
process runs; there it imports nothing of mlc_dsv3.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

_SECONDS = 2  # of the processor
_LONGEST_WAIT = 20  # seconds, on a machine that is busy with other things
_MEMORY = 2 << 30
_STACK = 1 << 20  # bytes; threads elsewhere have more, so that what passes here passes there


def excess(grammar: str, vocab_size: int, hidden_tokens: Mapping[int, str]) -> str | None:
    """What compiling a grammar takes too much of; None where llguidance gets to an end, be it an error.

    `hidden_tokens` are those that a grammar can name. RuntimeError where the process cannot run.
    """
    request = json.dumps({"grammar": grammar, "vocab_size": vocab_size, "hidden_tokens": [*hidden_tokens.items()]})
    try:
        done = subprocess.run(
            [sys.executable, "-P", __file__],
            input=request.encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_LONGEST_WAIT,
        )
    except subprocess.TimeoutExpired:
        return "it takes too long to compile"
    if done.returncode == 0:
        return None
    if done.returncode > 0:
        raise RuntimeError(f"a grammar cannot be tried in a process of its own: {done.stderr.decode(errors='replace')}")
    if done.returncode in (-signal.SIGKILL, -signal.SIGXCPU):
        return f"it takes more than {_SECONDS} s to compile"
    return "it refers from rule to rule too deeply, or takes too much memory"


class _Bytes:
    """A tokenizer in llguidance's terms, with a token for each byte and the tokens that a grammar can name."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    eos_token_id = 0

    def __init__(self, vocab_size: int, hidden_tokens: Mapping[int, str]) -> None:
        self.tokens = [b""] * vocab_size
        for token, name in hidden_tokens.items():
            self.tokens[token] = name.encode()
        self.special_token_ids = [*hidden_tokens]
        self._id = {}
        for byte in range(256):
            token = next((i for i in range(1 + byte, len(self.tokens)) if not self.tokens[i]), len(self.tokens))
            self.tokens[token : token + 1] = [bytes([byte])]
            self._id[byte] = token

    def __call__(self, text: str) -> list[int]:
        return [self._id[byte] for byte in text.encode()]


def _compile(grammar: str, vocab_size: int, hidden_tokens: list[Any], ended: threading.Event) -> None:
    from llguidance import LLMatcher, LLTokenizer

    matcher = LLMatcher(LLTokenizer(_Bytes(vocab_size, dict(hidden_tokens))), grammar, log_level=0)
    if not matcher.is_error():
        matcher.compute_bitmask()
    ended.set()


def _main() -> None:
    try:
        import resource
    except ImportError:  # Windows, where the time alone is limited
        pass
    else:
        for kind, most in ((resource.RLIMIT_CPU, _SECONDS), (resource.RLIMIT_AS, _MEMORY), (resource.RLIMIT_CORE, 0)):
            with suppress(ValueError):  # macOS refuses some
                resource.setrlimit(kind, (most, most))
    threading.stack_size(_STACK)
    ended = threading.Event()
    thread = threading.Thread(target=_compile, kwargs={**json.load(sys.stdin), "ended": ended})
    thread.start()
    thread.join()
    sys.exit(0 if ended.is_set() else "it has raised")


if __name__ == "__main__":
    _main()
