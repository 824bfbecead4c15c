"""Files of checkpoints and artifacts: which there may be, where they lie, and their checksums."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path, PurePath

from mlc_dsv3.errors import UserError
from mlc_dsv3.regular_files import regular_size
from relax_model.fields import shown

# As `mlc_dsv3.progress.progress`: title and total → a context that yields the function which advances.
Progress = Callable[[str, float], AbstractContextManager[Callable[[float], None]]]

# Where transformers 5 writes the chat template that is used when there are tools.
TOOL_TEMPLATE = "additional_chat_templates/tool_use.jinja"
# What a tokenizer, a chat template and generation's defaults may be spread over; an artifact takes what is there.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tiktoken.model",
    "tokenizer.model",
    "chat_template.jinja",
    TOOL_TEMPLATE,
    "chat_template.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
GENERATION_CONFIG = "generation_config.json"


def inside(folder: Path, name: object, where: Path) -> Path:
    """The file `name` of `folder`; UserError where `name`, which the file `where` has, would lead out of the folder."""
    path = PurePath(name) if isinstance(name, str) and name and "\0" not in name else None
    if path is None or path.is_absolute() or ".." in path.parts or path == PurePath():
        raise UserError(f"{where} names the file {shown(name)}; it must name one inside its folder")
    return folder / name


def present(folder: Path, names: Iterable[str]) -> list[str]:
    """Those of `names` that `folder` has. UserError for one that is no regular file."""
    found = [name for name in names if (folder / name).exists()]
    for name in found:
        regular_size(folder / name)
    return found


def copy_files(source: Path, names: Iterable[str], folder: Path) -> None:
    """Copy those of `names` that `source` has into `folder`, under the same names."""
    for name in present(source, names):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, folder / name)


def md5(path: Path, advance: Callable[[float], None]) -> str:
    """Hex md5 of a file, read by pieces; `advance` is told the bytes of each."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb", buffering=0) as file:
        while piece := file.read(4 << 20):
            digest.update(piece)
            advance(len(piece))
    return digest.hexdigest()
