"""The 4-bit rounding that the demo is trained to bear: mlc-llm's q4f16_1, groups of 32 along the input, symmetric."""

import torch

GROUP = 32


def round_to_4_bits(weight: torch.Tensor) -> torch.Tensor:
    """The values of `weight` (..., inputs) after quantization: scale = max|w|/7 in float16, codes 0 to 14 minus 7."""
    groups = weight.reshape(-1, GROUP)
    scale = (groups.abs().amax(dim=1, keepdim=True) / 7).half().float()
    codes = (groups / scale.clamp(min=1e-7)).round_().clamp_(-7, 7)
    return codes.mul_(scale).view_as(weight)


def fake_quantize(weight: torch.Tensor) -> torch.Tensor:
    """`round_to_4_bits` whose gradient is the identity (straight-through)."""
    with torch.no_grad():
        difference = round_to_4_bits(weight) - weight
    return weight + difference
