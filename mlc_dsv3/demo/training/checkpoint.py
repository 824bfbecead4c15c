"""Writes and reads the demo model as a Hugging Face checkpoint folder.

Embedding and head of the MTP layer are the main model's, so `layers.N.embed_tokens` and `layers.N.shared_head.head` are
not written a second time.
"""

import json
import os
import pathlib
import shutil

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from mlc_dsv3.demo.training.config import DemoConfig
from mlc_dsv3.demo.training.model import DemoModel
from mlc_dsv3.demo.training.tokenizer import BOS, EOS, PAD, save_tokenizer


def hf_tensors(model: DemoModel) -> dict[str, torch.Tensor]:
    """The tensors of `model` under their names in a DeepSeek-V3 checkpoint: bfloat16, routing biases float32."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach()
        if name == "embed_tokens":
            tensors["model.embed_tokens.weight"] = tensor
        elif name == "lm_head.weight":
            tensors[name] = tensor
        elif name.endswith("mlp.gate_up"):
            for e, (gate, up) in enumerate(t.chunk(2) for t in tensor):
                tensors[f"model.{name.removesuffix('gate_up')}experts.{e}.gate_proj.weight"] = gate
                tensors[f"model.{name.removesuffix('gate_up')}experts.{e}.up_proj.weight"] = up
        elif name.endswith("mlp.down"):
            for e, down in enumerate(tensor):
                tensors[f"model.{name.removesuffix('down')}experts.{e}.down_proj.weight"] = down
        else:
            tensors[f"model.{name}"] = tensor
    dtypes = {True: torch.float32, False: torch.bfloat16}
    return {n: t.to(dtypes[n.endswith("e_score_correction_bias")]).contiguous() for n, t in sorted(tensors.items())}


def load_model(folder: pathlib.Path) -> DemoModel:
    """The model of a checkpoint folder, in float32."""
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    scaling = saved["rope_scaling"]
    fields = {name: saved[name] for name in DemoConfig.__dataclass_fields__ if name in saved}
    fields["rope_factor"] = scaling["factor"]
    fields["original_max_position_embeddings"] = scaling["original_max_position_embeddings"]
    config = DemoConfig(**fields)
    model = DemoModel(config)
    tensors = {name.removeprefix("model."): t.float() for name, t in load_file(folder / "model.safetensors").items()}
    tensors["embed_tokens"] = tensors.pop("embed_tokens.weight")
    for layer in model.gates():
        stem = f"layers.{layer}.mlp."

        def stack(part: str, stem: str = stem) -> torch.Tensor:
            return torch.stack(
                [tensors.pop(f"{stem}experts.{e}.{part}.weight") for e in range(config.n_routed_experts)]
            )

        tensors[f"{stem}gate_up"] = torch.cat((stack("gate_proj"), stack("up_proj")), dim=1)
        tensors[f"{stem}down"] = stack("down_proj")
    model.load_state_dict(tensors)
    return model


def write_checkpoint(model: DemoModel, tokenizer: Tokenizer, folder: pathlib.Path) -> None:
    """Writes the checkpoint into a temporary folder beside `folder` and then takes its place."""
    temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    ids = {name: tokenizer.token_to_id(token) for name, token in (("bos", BOS), ("eos", EOS), ("pad", PAD))}
    save_file(hf_tensors(model), temporary / "model.safetensors", metadata={"format": "pt"})
    save_tokenizer(tokenizer, temporary, model.c.max_position_embeddings)
    generation = {
        "bos_token_id": ids["bos"],
        "eos_token_id": ids["eos"],
        "pad_token_id": ids["pad"],
        "do_sample": False,
    }
    for name, content in (("config.json", model.c.to_json(**ids)), ("generation_config.json", generation)):
        (temporary / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for file in temporary.iterdir():
        file.chmod(0o644)  # safetensors writes for the owner only
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
