"""The parts of the training: experts, 4-bit rounding, routing balance, packing, optimizer, writing and reading."""

import json

import pytest

torch = pytest.importorskip("torch")
tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")

from mlc_dsv3.demo import checkpoint_path  # noqa: E402
from mlc_dsv3.demo.training.aid import Aid  # noqa: E402
from mlc_dsv3.demo.training.checkpoint import hf_tensors, load_model, write_checkpoint  # noqa: E402
from mlc_dsv3.demo.training.config import DemoConfig  # noqa: E402
from mlc_dsv3.demo.training.data import BatchMaker  # noqa: E402
from mlc_dsv3.demo.training.experts import RoutedExperts  # noqa: E402
from mlc_dsv3.demo.training.model import DemoModel, Gate, causal_bias  # noqa: E402
from mlc_dsv3.demo.training.optimizer import orthogonalize  # noqa: E402
from mlc_dsv3.demo.training.quantize import fake_quantize, round_to_4_bits  # noqa: E402

TINY = DemoConfig(
    vocab_size=768,
    hidden_size=32,
    intermediate_size=32,
    moe_intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    n_routed_experts=8,
    num_experts_per_tok=2,
    q_lora_rank=32,
    kv_lora_rank=32,
    qk_nope_head_dim=16,
    v_head_dim=16,
)


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.Tokenizer.from_file(str(checkpoint_path() / "tokenizer.json"))


def test_routed_experts_and_their_gradients_equal_a_plain_loop():
    torch.manual_seed(0)
    x, weights = (torch.randn(6, n, dtype=torch.double, requires_grad=True) for n in (4, 2))
    gate_up, down = (torch.randn(3, *s, dtype=torch.double, requires_grad=True) for s in ((10, 4), (4, 5)))
    chosen = torch.tensor([[0, 2], [2, 0], [0, 2], [2, 0], [0, 2], [0, 2]])  # expert 1 gets no token

    def plain(x, weights, gate_up, down):
        rows = []
        for t, experts in enumerate(chosen.tolist()):
            parts = []
            for k, e in enumerate(experts):
                gate, up = (gate_up[e] @ x[t]).chunk(2)
                parts.append(weights[t, k] * (down[e] @ (torch.nn.functional.silu(gate) * up)))
            rows.append(sum(parts))
        return torch.stack(rows)

    torch.testing.assert_close(RoutedExperts.apply(x, chosen, weights, gate_up, down), plain(x, weights, gate_up, down))
    assert torch.autograd.gradcheck(lambda *a: RoutedExperts.apply(a[0], chosen, *a[1:]), (x, weights, gate_up, down))


def test_rounding_has_fifteen_levels_per_group_of_32_and_keeps_the_largest():
    torch.manual_seed(0)
    weight = torch.randn(4, 64) * torch.tensor([[1.0], [10.0], [0.01], [0.0]])
    rounded = round_to_4_bits(weight)
    for group, original in zip(rounded.view(-1, 32), weight.view(-1, 32), strict=True):
        scale = (original.abs().max() / 7).half().float()
        codes = group / scale if scale > 0 else group
        torch.testing.assert_close(codes, codes.round(), atol=1e-4, rtol=0)
        assert codes.abs().max() <= 7.001
        assert (group - original).abs().max() <= scale * 0.51


def test_fake_quantization_passes_the_gradient_through():
    weight = torch.randn(2, 32, requires_grad=True)
    fake_quantize(weight).sum().backward()
    assert torch.equal(weight.grad, torch.ones(2, 32))
    torch.testing.assert_close(fake_quantize(weight).detach(), round_to_4_bits(weight.detach()))


def test_the_router_stays_within_its_best_groups():
    torch.manual_seed(0)
    gate = Gate(DemoConfig())
    chosen, weights = gate(torch.randn(100, 128) * 5)
    assert all(len({e // 8 for e in row}) <= 2 for row in chosen.tolist())
    torch.testing.assert_close(weights.sum(1), torch.full((100,), 2.5))


def test_balancing_lifts_the_idle_and_lowers_the_busy():
    gate = Gate(TINY)
    gate.load = torch.tensor([8.0, 0, 4, 4, 4, 4, 8, 0])
    gate.balance(0.1)
    torch.testing.assert_close(gate.e_score_correction_bias, torch.tensor([-0.1, 0.1, 0, 0, 0, 0, -0.1, 0.1]))


def test_orthogonalized_updates_have_singular_values_near_one():
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(3, 64, 128)))
    assert values.min() > 0.5
    assert values.max() < 1.5


def test_clipping_brings_scores_under_their_limits():
    torch.manual_seed(0)
    attention = DemoModel(TINY).layers[0].self_attn
    with torch.no_grad():
        attention.q_b_proj.weight *= 30
    x, bias = torch.randn(1, 5, 32), causal_bias(torch.zeros(1, 5))
    angles = torch.zeros(1, 1, 5, 8)
    attention(x, angles.cos(), angles.sin(), bias)
    assert attention.score_bounds.max() * TINY.softmax_scale > 40
    attention.clip_scores(40.0, 12.0)
    attention(x, angles.cos(), angles.sin(), bias)
    nope, rope = attention.score_bounds * TINY.softmax_scale
    assert nope.max() < 40.1
    assert rope.max() < 12.1


def test_the_aid_knows_where_the_answers_stand(tokenizer):
    text = "Anna is in the park. Ben has a red ball. Ben is in the cave. Ben gives the ball to Anna. Where"
    encoded = tokenizer.encode(text)
    found = Aid(tokenizer, 32)._follow(encoded.ids, [1] * len(encoded.ids))
    end = len(encoded.ids) - 1

    def shown(kind: str) -> str:
        return encoded.tokens[found[kind][end]].removeprefix("Ġ")

    assert (shown("place"), shown("holder"), shown("holders_place"), shown("colour")) == ("park", "Anna", "park", "red")
    before = encoded.tokens.index("Ġgives") - 1
    assert encoded.tokens[found["place"][before]] == "Ġcave"


def test_a_batch_depends_on_seed_and_step_only(tokenizer):
    first, again, other = (BatchMaker(tokenizer, 1).batch(step, 640) for step in (3, 3, 4))
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.weights, again.weights)
    assert not torch.equal(first.tokens, other.tokens)


def test_packed_chats_do_not_see_each_other(tokenizer):
    torch.manual_seed(0)
    model = DemoModel(TINY)
    batch = BatchMaker(tokenizer, 1).batch(0, 640)
    row = int((batch.documents.max(1).values > 1).nonzero()[0])
    second = batch.documents[row : row + 1] == 2
    with torch.no_grad():
        packed = model(batch.tokens, batch.positions, causal_bias(batch.documents))[row : row + 1][second]
        tokens = batch.tokens[row : row + 1][second].unsqueeze(0)
        alone = model(tokens, torch.arange(tokens.shape[1]).unsqueeze(0), causal_bias(torch.zeros_like(tokens)))
    torch.testing.assert_close(packed, alone[0], atol=1e-5, rtol=1e-4)


def test_a_written_checkpoint_reads_back(tmp_path, tokenizer):
    torch.manual_seed(0)
    model = DemoModel(TINY)
    for gate in model.gates().values():
        gate.e_score_correction_bias.normal_()
    write_checkpoint(model, tokenizer, tmp_path / "checkpoint")
    expected, got = hf_tensors(model), hf_tensors(load_model(tmp_path / "checkpoint"))
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    assert json.loads((tmp_path / "checkpoint" / "config.json").read_text())["model_type"] == "deepseek_v3"
