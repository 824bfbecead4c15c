"""The embedded checkpoint: small enough, complete, and the same model to transformers as to the training."""

import json
import struct

import pytest

from mlc_dsv3.demo import checkpoint_path

MAX_BYTES = 16_000_000


def header() -> dict:
    with (checkpoint_path() / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length))


def config() -> dict:
    return json.loads((checkpoint_path() / "config.json").read_text(encoding="utf-8"))


def test_it_is_small_and_complete():
    sizes = {path.name: path.stat().st_size for path in checkpoint_path().iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    } == set(sizes)
    assert sum(sizes.values()) <= MAX_BYTES


def test_it_has_every_part_of_the_architecture():
    fields = config()
    assert fields["model_type"] == "deepseek_v3"
    assert fields["topk_method"] == "noaux_tc"
    assert fields["topk_group"] < fields["n_group"]
    assert fields["num_nextn_predict_layers"] == 1
    assert fields["rope_scaling"]["type"] == "yarn"
    names = header()
    for name in ("enorm", "hnorm", "eh_proj", "shared_head.norm", "mlp.gate", "mlp.shared_experts.up_proj"):
        assert f"model.layers.{fields['num_hidden_layers']}.{name}.weight" in names
    assert "lm_head.weight" in names


def test_matrices_are_whole_groups_wide():
    for name, entry in header().items():
        if name != "__metadata__" and len(entry["shape"]) == 2:
            assert entry["shape"][1] % 32 == 0, name


def test_the_routing_biases_were_learned():
    torch = pytest.importorskip("torch")
    tensors = pytest.importorskip("safetensors.torch").load_file(checkpoint_path() / "model.safetensors")
    biases = [tensor for name, tensor in tensors.items() if name.endswith("e_score_correction_bias")]
    assert len(biases) == config()["num_hidden_layers"] - config()["first_k_dense_replace"] + 1
    assert all(bias.dtype == torch.float32 and bias.std() > 0 for bias in biases)


@pytest.fixture(scope="module")
def pair():
    """The checkpoint in transformers and in the training's module, some tokens, and the training's inputs for them."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from mlc_dsv3.demo.training.checkpoint import load_model
    from mlc_dsv3.demo.training.model import causal_bias

    reference = transformers.DeepseekV3ForCausalLM.from_pretrained(checkpoint_path(), dtype=torch.float32).eval()
    torch.manual_seed(0)
    tokens = torch.randint(6, 700, (2, 40))
    inputs = (torch.arange(40).expand(2, 40), causal_bias(torch.zeros_like(tokens)))
    return reference, load_model(checkpoint_path()), tokens, inputs


def test_transformers_computes_the_same_logits(pair):
    import torch

    reference, model, tokens, inputs = pair
    with torch.no_grad():
        expected = reference(tokens).logits
        got = model.lm_head(model(tokens, *inputs))
    assert (expected - got).abs().max() < 1e-4 * max(1.0, expected.std().item())


def test_transformers_computes_the_same_drafts(pair):
    import torch

    layers = pytest.importorskip("transformers.modeling_layers")
    if not hasattr(layers, "MtpModel"):
        pytest.skip("this transformers has no MTP")
    reference, model, tokens, (positions, bias) = pair
    # transformers looks for the MTP layer by this pattern, which names DeepSeek-V3's own layer 61
    reference._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.{reference.config.num_hidden_layers}.*"]
    mtp = layers.MtpModel.from_pretrained(reference)
    with torch.no_grad():
        hidden = model(tokens, positions, bias)[:, :-1]
        expected = reference.lm_head(mtp.forward_layer(0, hidden, positions[:, 1:], None, input_ids=tokens[:, 1:]))
        got = model.lm_head(model.draft(hidden, tokens[:, 1:], positions[:, :-1], bias[:, :, :-1, :-1]))
    assert (expected - got).abs().max() < 1e-4 * max(1.0, expected.std().item())
