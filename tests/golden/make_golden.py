"""Make the goldens beside this file: transformers runs the tiny checkpoints in float32, and its outputs are stored.

    PYTHONPATH=tests python -m golden.make_golden [--seeds N] [NAME ...]

Arrays: `logits` after each token of the prompt and its `greedy` continuation; with an MTP layer `draft_logits` after
each token of the prompt, `draft_tokens` and `draft_chain_logits` of the drafts after its end; `long_logits` after the
last tokens of a long prompt; and scalars: how far the goldens are from flipping, how much of the router they use.

Needs the extra `[reference]` (torch, transformers). `--seeds N` tries N seeds and prints the first that is healthy.
Where transformers has no multi-token prediction (glm4_moe_lite, and every draft after the first), the reference in
float64 NumPy makes it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

from golden import checkpoints
from golden.checkpoints import GREEDY_LENGTH, LONG_KEPT, LONG_LENGTH
from golden.families import CHECKPOINTS
from golden.reference import ReferenceModel

FOLDER = Path(__file__).parent
DRAFT_STEPS = 3

# A golden is only of use if float32 rounding can flip neither a greedy token nor a choice of experts.
LEAST_GREEDY_MARGIN = 0.02
LEAST_ROUTING_MARGIN = 2e-5
LEAST_LONG_ROUTING_MARGIN = 5e-6  # of thousands of choices, the closest
LEAST_SHARE_OF_CHANGED_CHOICES = 0.2


class Unhealthy(Exception):
    """This seed makes goldens that rounding could flip, or that leave a part of the router unused."""


def make(name: str) -> dict[str, np.ndarray]:
    """The goldens of one checkpoint by array name; raises Unhealthy where the seed makes poor ones."""
    checkpoint = CHECKPOINTS[name]
    with tempfile.TemporaryDirectory() as folder:
        model = load(name, Path(folder))
        golden = {"weights_digest": np.array(checkpoints.digest(name)), **_main_golden(name, model)}
        reference = ReferenceModel(checkpoint.config, checkpoints.tensors(name))
        golden |= _routing_golden(name, reference, golden)
        if checkpoint.mtp_layers:
            golden |= _draft_golden(name, model, reference, golden)
        if checkpoint.long:
            golden |= _long_golden(name, model, reference)
    return golden


def load(name: str, folder: Path) -> transformers.PreTrainedModel:
    """A checkpoint through transformers' from_pretrained: float32, eager attention, fp8 dequantized beforehand."""
    checkpoint = CHECKPOINTS[name]
    config = {field: value for field, value in checkpoint.config.items() if field != "quantization_config"}
    config["model_type"] = checkpoint.oracle or config["model_type"]
    if "quantization_config" in checkpoint.config:
        checkpoints.write_folder(folder, config, checkpoints.tensors(name))
    else:
        checkpoints.write(name, folder)
        (folder / "config.json").write_text(json.dumps(config))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
        output_loading_info=True,
    )
    # transformers fills what it misses at random, with a warning only.
    assert not loading["missing_keys"], loading["missing_keys"]
    mtp_layer = f"model.layers.{model.config.num_hidden_layers}."
    assert all(tensor.startswith(mtp_layer) for tensor in loading["unexpected_keys"]), loading["unexpected_keys"]
    model.generation_config.eos_token_id = None
    return model.eval()


@torch.no_grad()
def _main_golden(name: str, model: transformers.PreTrainedModel) -> dict[str, np.ndarray]:
    prompt = torch.from_numpy(checkpoints.prompt(name).astype(np.int64))[None]
    logits = model(prompt).logits[0].numpy()
    generated = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=GREEDY_LENGTH,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    greedy = generated.sequences[0, prompt.shape[1] :].numpy().astype(np.int32)
    assert len(greedy) == GREEDY_LENGTH
    top = np.sort(np.concatenate([step.numpy() for step in generated.logits]), axis=-1)
    margin = float((top[:, -1] - top[:, -2]).min())
    if margin < LEAST_GREEDY_MARGIN:
        raise Unhealthy(f"greedy margin {margin:.4f}")
    if not 2.5 < logits.std() < 6:
        raise Unhealthy(f"standard deviation of the logits {logits.std():.2f}")
    if len(set(greedy.tolist())) < GREEDY_LENGTH // 2:
        raise Unhealthy("the greedy text repeats itself")
    return {"logits": logits, "greedy": greedy, "greedy_margin": np.float32(margin)}


def _routing_golden(name: str, reference: ReferenceModel, golden: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    config = CHECKPOINTS[name].config
    if not config.get("n_routed_experts"):
        return {}
    routing = reference.forward(np.concatenate([checkpoints.prompt(name), golden["greedy"]])).routing
    margin = float(routing.margin().min())
    if margin < LEAST_ROUTING_MARGIN:
        raise Unhealthy(f"routing margin {margin:.1e}")
    shares = {"routing_margin": np.float32(margin)}
    if config["topk_method"] == "noaux_tc":
        shares["bias_changes"] = np.float32(np.mean(routing.bias_changes))
    if config["topk_method"] != "greedy" and config["n_group"] > config["topk_group"]:
        shares["groups_bite"] = np.float32(np.mean(routing.groups_bite))
    for share in ("bias_changes", "groups_bite"):
        if shares.get(share, 1) < LEAST_SHARE_OF_CHANGED_CHOICES:
            raise Unhealthy(f"{share} {shares[share]:.2f}")
    return shares


@torch.no_grad()
def _draft_golden(
    name: str,
    model: transformers.PreTrainedModel,
    reference: ReferenceModel,
    golden: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Draft logits after each token of the prompt, and a chain of drafts after its end."""
    checkpoint = CHECKPOINTS[name]
    prompt = checkpoints.prompt(name)
    next_tokens = np.append(prompt[1:], golden["greedy"][0])
    hidden = reference.forward(prompt).hidden
    drafts, chain = reference.draft_chain(next_tokens, hidden, DRAFT_STEPS)
    output = reference.draft(next_tokens, hidden)
    margins = output.routing.margin().min(), np.diff(np.sort(chain, axis=-1)[:, -2:]).min()
    if margins[0] < LEAST_ROUTING_MARGIN or margins[1] < LEAST_GREEDY_MARGIN:
        raise Unhealthy(f"draft margins {margins[0]:.1e} {margins[1]:.3f}")
    logits = output.logits
    if checkpoint.config["model_type"] != "glm4_moe_lite":
        logits = _transformers_draft(model, prompt, next_tokens)
        assert np.abs(logits - output.logits).max() < 1e-4, "the reference's draft differs from transformers'"
        assert logits[-1].argmax() == drafts[0]
    return {
        "draft_logits": logits.astype(np.float32),
        "draft_tokens": drafts.astype(np.int32),
        "draft_chain_logits": chain.astype(np.float32),
    }


def _transformers_draft(model: transformers.PreTrainedModel, prompt: np.ndarray, next_tokens: np.ndarray) -> np.ndarray:
    """Logits (tokens, vocab_size) of the MTP layer that `generate(use_mtp=True)` drafts with."""
    mtp = mtp_model(model)
    inputs = torch.from_numpy(prompt.astype(np.int64))[None]
    hidden = model.model(inputs).last_hidden_state
    positions = torch.arange(1, len(prompt) + 1)[None]
    shifted = torch.from_numpy(next_tokens.astype(np.int64))[None]
    output = mtp.forward_layer(0, hidden, positions, None, input_ids=shifted)
    return mtp._project_to_logits(output)[0].numpy()


def mtp_model(model: transformers.PreTrainedModel) -> torch.nn.Module:
    """transformers' MTP layers for a loaded model."""
    from transformers.modeling_layers import MtpModel

    expect_mtp_layers(model)
    return MtpModel.from_pretrained(model, device_map={"": torch.device("cpu")}).eval()


def expect_mtp_layers(model: transformers.PreTrainedModel) -> None:
    """Let transformers find the MTP tensors: it looks for DeepSeek-V3's own layer number, 61, and no other."""
    model._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.{model.config.num_hidden_layers}.*"]


@torch.no_grad()
def _long_golden(name: str, model: transformers.PreTrainedModel, reference: ReferenceModel) -> dict[str, np.ndarray]:
    prompt = checkpoints.prompt(name, LONG_LENGTH)
    margin = float(reference.forward(prompt).routing.margin().min())
    if margin < LEAST_LONG_ROUTING_MARGIN:
        raise Unhealthy(f"routing margin {margin:.1e} in the long prompt")
    inputs = torch.from_numpy(prompt.astype(np.int64))[None]
    return {"long_logits": model(inputs, logits_to_keep=LONG_KEPT).logits[0].numpy()}


def _try_seeds(name: str, count: int) -> None:
    original = CHECKPOINTS[name]
    for seed in range(count):
        CHECKPOINTS[name] = dataclasses.replace(original, seed=seed)
        checkpoints.stored_tensors.cache_clear()
        try:
            golden = make(name)
        except Unhealthy as problem:
            print(f"{name} seed {seed}: {problem}", flush=True)
            continue
        print(f"{name} seed {seed}: healthy, {_summary(golden)}", flush=True)
        return


def _summary(golden: dict[str, np.ndarray]) -> str:
    scalars = " ".join(
        f"{key} {float(value):.2g}" for key, value in golden.items() if value.dtype == np.float32 and value.ndim == 0
    )
    return f"std {golden['logits'].std():.2f} {scalars}"


def main() -> None:
    """Write the .npz of each named checkpoint, or of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--seeds", type=int)
    arguments = parser.parse_args()
    for name in arguments.names or CHECKPOINTS:
        if arguments.seeds:
            _try_seeds(name, arguments.seeds)
            continue
        golden = make(name)
        np.savez_compressed(FOLDER / f"{name}.npz", **golden)
        print(f"{name}: {_summary(golden)}", flush=True)


if __name__ == "__main__":
    main()
