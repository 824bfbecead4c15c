"""A model's name to a folder: a local one as it is, `org/name` through the Hugging Face Hub's cache."""

from __future__ import annotations

import re
from pathlib import Path

from mlc_dsv3.errors import UserError, said
from mlc_dsv3.folders import expanded
from mlc_dsv3.weights.files import TOOL_TEMPLATE

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
    TOOL_TEMPLATE,
    "mlc-chat-config.json",
    "tensor-cache.json",
    "params_shard_*.bin",
)


_REPOSITORY = re.compile(
    r"(?:(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/)?"
    r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:/tree/(?P<revision>[^/]+))?/?"
)


def model_folder(model: str | Path) -> Path:
    """The local folder of `model`, downloaded first where it is the name or the address of a repository.

    Raises UserError where it is neither, or cannot be had.
    """
    if not str(model):
        raise UserError("the model's name is empty; it is a folder, or a name on the Hugging Face Hub as org/name")
    path = expanded(model)
    path.absolute()  # FileNotFoundError where the current folder has been removed, which still "exists" as `.`
    if path.exists():
        return path
    found = _REPOSITORY.fullmatch(str(model))
    if found is None:
        raise UserError(f"{model} does not exist (a folder, or a name on the Hugging Face Hub as org/name)")
    return _download(found["name"], found["revision"])


def model_title(model: str | Path) -> str:
    """What a model is called to its user: `org/name` for what comes from the Hub, else as `model_name`."""
    return _repository(model) or model_name(model)


def model_name(model: str | Path) -> str:
    """What a model's files are called after: the last part of its folder's or repository's name, without an artifact's
    endings."""
    path = expanded(model)
    name = Path(_repository(model) or (path.resolve() if path.exists() else path)).name
    return name.removesuffix("-MLC").rpartition("-")[0] if name.endswith("-MLC") and "-" in name[:-4] else name


def _repository(model: str | Path) -> str | None:
    """The repository that `model` names, or whose snapshot it is in the Hub's cache
    (`models--org--name/snapshots/<revision>`); None for other folders."""
    path = expanded(model)
    if not path.exists():
        found = _REPOSITORY.fullmatch(str(model))
        return found["name"] if found else None
    snapshots = path.resolve().parent
    kind, *parts = snapshots.parent.name.split("--")
    return "/".join(parts) if snapshots.name == "snapshots" and kind == "models" and parts else None


def _download(repository: str, revision: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        # Repositories keep copies in other formats in folders of their own, and a pattern's * takes in folders too.
        folder = huggingface_hub.snapshot_download(
            repository,
            revision=revision,
            allow_patterns=list(PATTERNS),
            ignore_patterns=[f"*/{pattern}" for pattern in PATTERNS],
        )
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
        raise UserError(f"{repository} cannot be downloaded: {said(error)}") from error
    return Path(folder)
