"""Token ids to text, one at a time, for streaming: nothing is taken back, no character comes in halves."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlc_dsv3.runtime.tokenizer import Tokenizer


class Detokenizer:
    """Incremental `Tokenizer.decode`: the pushed pieces and `finish()` together are the decoded whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = tokenizer.strips_leading_space

    def push(self, token: int) -> str:
        """The text that `token` completes; "" while a character still lacks bytes."""
        return self._emit(self._decoder.decode(self._tokenizer.token_bytes(token)))

    def finish(self) -> str:
        """What is left: U+FFFD for a character that never became whole."""
        return self._emit(self._decoder.decode(b"", final=True))

    def _emit(self, text: str) -> str:
        if self._at_start and text:
            self._at_start = False
            return text.removeprefix(" ")
        return text
