"""What the encodings of text streams can hold."""

from __future__ import annotations

import codecs
from typing import TextIO


def takes_everything(stream: TextIO) -> bool:
    """Whether every character can be written to a stream; one without an encoding holds text itself."""
    return not stream.encoding or codecs.lookup(stream.encoding).name.startswith("utf")


def is_ascii(stream: TextIO) -> bool:
    """Whether a stream has no other characters than ASCII's."""
    return bool(stream.encoding) and codecs.lookup(stream.encoding).name == "ascii"
