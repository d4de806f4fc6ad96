"""Muon for matrices and convolutions, Adam for the rest, and an average of the weights.

Muon (Jordan et al., 2024) replaces a matrix's momentum by its nearest semi-orthogonal matrix; on
this autoencoder it reaches in a tenth of the steps what Adam reaches. ``torch.optim.Muon`` takes
2-D parameters only, so this one flattens convolutions to [out, in * kernel]. Updates are scaled to
Adam's size (Moonlight, arXiv 2502.16982), so that one learning rate serves both.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn


def orthogonalise(matrix: Tensor, *, steps: int = 5) -> Tensor:
    """Return the matrix with its singular values pushed to about 1 (Newton-Schulz, quintic)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.T


class MuonWithAdam(torch.optim.Optimizer):
    """Steps matrices by Muon and everything else by Adam, at one learning rate.

    Args:
        model: its linear and convolution weights are stepped by Muon.
        lr: learning rate in Adam's units.
        weight_decay: decoupled decay, on Muon's weights only.
    """

    def __init__(self, model: nn.Module, *, lr: float, weight_decay: float = 0.0) -> None:
        kinds = (nn.Linear, nn.Conv2d, nn.Conv3d)
        weights = {id(m.weight) for m in model.modules() if isinstance(m, kinds)}
        matrices, others = [], []
        for parameter in model.parameters():
            (matrices if id(parameter) in weights else others).append(parameter)
        groups: list[dict[str, Any]] = [
            {"params": matrices, "muon": True, "weight_decay": weight_decay},
            {"params": others, "muon": False, "weight_decay": 0.0},
        ]
        super().__init__(groups, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no loss is returned
        """Apply one update from the gradients at hand."""
        del closure
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if group["muon"]:
                    self._step_matrix(parameter, group)
                else:
                    self._step_adam(parameter, group)

    def _step_matrix(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        momentum = state.setdefault("momentum", torch.zeros_like(parameter))
        gradient = parameter.grad
        assert gradient is not None  # the caller skips those without
        momentum.lerp_(gradient, 0.05)
        blended = gradient.lerp(momentum, 0.95).reshape(parameter.shape[0], -1)
        update = orthogonalise(blended) * (0.2 * max(blended.shape) ** 0.5)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update.view_as(parameter), alpha=-group["lr"])

    def _step_adam(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["mean"] = torch.zeros_like(parameter)
            state["square"] = torch.zeros_like(parameter)
        state["step"] += 1
        gradient = parameter.grad
        assert gradient is not None  # the caller skips those without
        state["mean"].lerp_(gradient, 0.1)
        state["square"].lerp_(gradient * gradient, 0.01)
        mean = state["mean"] / (1 - 0.9 ** state["step"])
        root = (state["square"] / (1 - 0.99 ** state["step"])).sqrt_().add_(1e-8)
        parameter.addcdiv_(mean, root, value=-group["lr"])


class AveragedWeights:
    """Keeps an exponential moving average of a model's weights, short at first.

    Attributes:
        model: a copy of the model that holds the average.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(requires_grad=False)
        self._decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after ``step`` steps."""
        weight = 1 - min(self._decay, (1 + step) / (10 + step))
        for mean, new in zip(self.model.parameters(), model.parameters(), strict=True):
            mean.lerp_(new, weight)


def scheduled_rate(step: int, total: int, *, warmup: int = 50, decay_share: float = 0.3) -> float:
    """Return the share of the peak learning rate at a step: warm up, hold, fall linearly."""
    if step < warmup:
        return (step + 1) / warmup
    falling = total * decay_share
    return min(1.0, max(0.0, (total - step) / max(1.0, falling)))
