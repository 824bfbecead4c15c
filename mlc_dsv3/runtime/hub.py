"""A model's name to a folder: a local one as it is, `org/name` through the Hugging Face Hub's cache."""

from __future__ import annotations

import re
from pathlib import Path

from mlc_dsv3.errors import UserError

# What conversion and the tokenizer read; the rest of a repository (other formats, pictures) is left there.
PATTERNS = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tiktoken.model",
    "chat_template.*",
    "mlc-chat-config.json",
    "tensor-cache.json",
    "params_shard_*.bin",
)


def model_folder(model: str | Path) -> Path:
    """The local folder of `model`, downloaded first where it is the name of a repository.

    Raises UserError where it is neither, or cannot be had.
    """
    path = Path(model).expanduser()
    if path.exists():
        return path
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", str(model)):
        raise UserError(f"{model} does not exist (a folder, or a name on the Hugging Face Hub as org/name)")
    return _download(str(model))


def model_name(model: str | Path) -> str:
    """What a model goes by: the last part of its folder's or repository's name, without an artifact's endings."""
    path = Path(model).expanduser()
    name = path.resolve().name if path.exists() else path.name
    return name.removesuffix("-MLC").rpartition("-")[0] if name.endswith("-MLC") and "-" in name[:-4] else name


def _download(repository: str) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        # Repositories keep copies in other formats in folders of their own.
        folder = huggingface_hub.snapshot_download(repository, allow_patterns=list(PATTERNS), ignore_patterns=["*/*"])
    except errors.GatedRepoError as error:
        raise UserError(
            f"{repository} asks for its licence to be accepted: https://huggingface.co/{repository}, then hf auth login"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{repository} is no folder here and no public repository on the Hugging Face Hub (private: hf auth login)"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise UserError(
            f"{repository} is no folder here, and the Hugging Face Hub cannot be reached to download it"
        ) from error
    except (errors.HfHubHTTPError, errors.HFValidationError) as error:
        raise UserError(f"{repository} cannot be downloaded: {' '.join(str(error).split())}") from error
    return Path(folder)
