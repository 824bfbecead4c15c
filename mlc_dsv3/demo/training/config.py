"""The shape of the demo model, named as in the checkpoint's config.json, which is written from it."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """A DeepSeek-V3 with every part of the architecture, small enough to be trained on two CPU cores in an hour.

    Every matrix is a multiple of 32 wide at its input, the group size of 4-bit weights.
    """

    vocab_size: int = 768
    hidden_size: int = 128
    intermediate_size: int = 256
    moe_intermediate_size: int = 64
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    n_shared_experts: int = 1
    n_routed_experts: int = 32
    num_experts_per_tok: int = 4
    n_group: int = 4
    topk_group: int = 2
    routed_scaling_factor: float = 2.5
    q_lora_rank: int = 96
    kv_lora_rank: int = 64
    qk_nope_head_dim: int = 32
    qk_rope_head_dim: int = 16
    v_head_dim: int = 32
    first_k_dense_replace: int = 1
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_factor: float = 4.0
    original_max_position_embeddings: int = 512

    @property
    def max_position_embeddings(self) -> int:
        """The context that YaRN reaches."""
        return int(self.rope_factor * self.original_max_position_embeddings)

    @property
    def softmax_scale(self) -> float:
        """1/sqrt(head width), times the square of YaRN's mscale for mscale_all_dim = 1."""
        mscale = 0.1 * math.log(self.rope_factor) + 1.0
        return (self.qk_nope_head_dim + self.qk_rope_head_dim) ** -0.5 * mscale * mscale

    def inverse_frequencies(self) -> list[float]:
        """YaRN's rotation per position of each pair of rope dimensions (arXiv 2309.00071, equations 23 to 25).

        Its factor on cos and sin, mscale(mscale) / mscale(mscale_all_dim), is 1 here.
        """
        dim, base, length = self.qk_rope_head_dim, self.rope_theta, self.original_max_position_embeddings

        def correction(rotations: float) -> float:
            return dim * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(base))

        low = max(math.floor(correction(32)), 0)
        high = min(math.ceil(correction(1)), dim - 1)
        result = []
        for i in range(dim // 2):
            frequency = base ** (-2 * i / dim)
            interpolated = min(max((i - low) / max(high - low, 0.001), 0.0), 1.0)
            result.append(frequency / self.rope_factor * interpolated + frequency * (1 - interpolated))
        return result

    def to_json(self, bos: int, eos: int, pad: int) -> dict:
        """The config.json of the checkpoint, given the ids of the tokenizer's special tokens."""
        fields = dataclasses.asdict(self)
        theta, factor, original = (
            fields.pop(k) for k in ("rope_theta", "rope_factor", "original_max_position_embeddings")
        )
        return {
            "architectures": ["DeepseekV3ForCausalLM"],
            "model_type": "deepseek_v3",
            **fields,
            "num_key_value_heads": self.num_attention_heads,
            "num_nextn_predict_layers": 1,
            "moe_layer_freq": 1,
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "norm_topk_prob": True,
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "max_position_embeddings": self.max_position_embeddings,
            "rope_theta": theta,
            "rope_interleave": True,
            "rope_scaling": {
                "type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": original,
                "beta_fast": 32,
                "beta_slow": 1,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
            },
            "tie_word_embeddings": False,
            "initializer_range": 0.02,
            "use_cache": True,
            "torch_dtype": "bfloat16",
            "bos_token_id": bos,
            "eos_token_id": eos,
            "pad_token_id": pad,
        }
