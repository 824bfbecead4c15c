"""Muon for the matrices inside the model and AdamW for all else, both with one learning-rate factor."""

import torch
from torch import nn


def orthogonalize(update: torch.Tensor, steps: int = 4) -> torch.Tensor:
    """Brings the singular values of each matrix of (..., rows, columns) near 1 by Newton-Schulz steps.

    The coefficients are those of Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = update.shape[-2] <= update.shape[-1]
    x = update if wide else update.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised per matrix (per expert for stacked experts).

    Experts move every second step and twice as far, as orthogonalising them costs as much as a third of their gradient.
    """

    def __init__(
        self, params: list[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """Updates every parameter from its gradient."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if "calls" not in state:
                    state |= {"momentum": torch.zeros_like(param), "calls": 0}
                state["calls"] += 1
                buffer = state["momentum"].lerp_(param.grad, 1 - group["momentum"])
                interval = 2 if param.ndim == 3 else 1
                if state["calls"] % interval:
                    continue
                rows, columns = param.shape[-2] // getattr(param, "stacked", 1), param.shape[-1]
                direction = param.grad.lerp(buffer, group["momentum"]).view(-1, rows, columns)
                direction = orthogonalize(direction).view_as(param)
                lr = group["lr"] * interval
                param.mul_(1 - lr * group["weight_decay"])
                param.add_(direction, alpha=-lr * max(1.0, rows / columns) ** 0.5)


def make_optimizers(model: nn.Module, muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for projections and experts; AdamW for embedding, head, routers and norms."""
    matrices, others = [], []
    for name, param in model.named_parameters():
        inside = param.ndim >= 2 and not any(part in name for part in ("embed_tokens", "lm_head", "mlp.gate.weight"))
        (matrices if inside else others).append(param)
    return [
        Muon(matrices, lr=muon_lr),
        torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.98), eps=1e-10, weight_decay=0.0, fused=True),
    ]
