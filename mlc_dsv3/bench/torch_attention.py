"""PyTorch's attention over the same latents: absorbed heads are the queries of one key and value head."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from mlc_dsv3.errors import UserError

if TYPE_CHECKING:
    import torch

    from relax_model.config import ModelConfig

_LEAST_SECONDS = 0.05  # of what is timed at once


def by_one_call(queries: torch.Tensor, latents: torch.Tensor, rank: int, scale: float) -> torch.Tensor:
    """Queries (batch, heads, latent) and latents (batch, depth, latent) → sums of the latents' first `rank` columns."""
    import torch

    keys = latents[:, None]
    attend = torch.nn.functional.scaled_dot_product_attention
    return attend(queries[:, None], keys, keys[..., :rank], scale=scale)[:, 0]


def by_products(queries: torch.Tensor, latents: torch.Tensor, rank: int, scale: float) -> torch.Tensor:
    """The same, step by step."""
    import torch

    weights = torch.softmax(queries @ latents.mT * scale, dim=-1)
    return weights @ latents[..., :rank]


_WAYS = {"scaled_dot_product_attention": by_one_call, "matmul and softmax": by_products}


class TorchAttention:
    """Random latents in one piece a sequence, in bfloat16 on the CPU and float16 on a GPU, by the faster way."""

    def __init__(self, config: ModelConfig, device: str, threads: int, batch: int, depth: int) -> None:
        import torch

        if device != "cpu" and not torch.cuda.is_available():
            raise UserError(
                f"PyTorch {torch.__version__} finds no GPU; install its build for CUDA, or leave --versus out"
            )
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self._device = device
        options = {"device": device, "dtype": torch.bfloat16 if device == "cpu" else torch.float16}
        latents = torch.randn(batch, depth, config.latent_width, **options)
        queries = torch.randn(batch, config.num_attention_heads, config.latent_width, **options)
        self._arguments = (queries, latents, config.kv_lora_rank, config.softmax_scale)
        with torch.inference_mode():
            seconds = {name: min(self._time(way) for _ in range(2)) for name, way in _WAYS.items()}
        self._name = min(seconds, key=lambda name: seconds[name])

    def engine(self) -> str:
        """Its version, and which way was the faster one."""
        import torch

        return f"PyTorch {torch.__version__} ({self._name})"

    def seconds(self) -> float:
        """Of one call, over long enough."""
        import torch

        with torch.inference_mode():
            return self._time(_WAYS[self._name])

    def _time(self, way: Callable[..., torch.Tensor]) -> float:
        import torch

        calls, taken = 0, 0.0
        way(*self._arguments)
        while taken < _LEAST_SECONDS:
            started = time.perf_counter()
            way(*self._arguments)
            if self._device != "cpu":
                torch.cuda.synchronize()
            taken += time.perf_counter() - started
            calls += 1
        return taken / calls
