"""Muon (Jordan et al. 2024) for processors and for several processes.

`torch.optim.Muon` orthogonalises in bf16, which a processor without native bf16 emulates at a tenth of its speed, and
in every process anew. Here the arithmetic has the working dtype, matrices of one shape are done together, and each
process does its share of them.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from nano import parallel

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, as Jordan et al. chose them
ITERATIONS = 5
EPS = 1e-7
TOGETHER = 4  # matrices in one product, at most: what a process takes at once


def orthogonalized(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest matrices with singular values about 1, by Newton-Schulz iterations: (N,A,B) -> (N,A,B)."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(EPS)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Steps of equal size in all directions of a matrix, with Nesterov momentum and no weight decay.

    Args:
        params: matrices.
        lr: step size, times sqrt(rows / columns) for tall matrices.
        momentum: share of the old direction.
        dtype: of the orthogonalisation.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float, dtype: torch.dtype) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of all matrices that have a gradient; every process must have the same gradients."""
        assert closure is None, "gradients are there already"
        for group in self.param_groups:
            matrices = [parameter for parameter in group["params"] if parameter.grad is not None]
            wanted = {parameter: self._direction(parameter, group["momentum"]) for parameter in matrices}
            bundles = bundled(matrices)
            stacks = [torch.stack([wanted[parameter] for parameter in bundle]) for bundle in bundles]
            for index in parallel.share(len(stacks)):
                stacks[index] = orthogonalized(stacks[index], self.dtype)
            parallel.exchange(stacks)
            for bundle, stack in zip(bundles, stacks, strict=True):
                rows, columns = bundle[0].shape
                torch._foreach_add_(
                    [parameter.detach() for parameter in bundle],
                    list(stack),
                    alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5,
                )

    def _direction(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """The gradient, led by its running mean (Nesterov)."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(state["momentum_buffer"], momentum)


def bundled(matrices: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Matrices of one shape in groups of at most `TOGETHER`, the costliest groups first."""
    by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
    for matrix in matrices:
        by_shape[matrix.shape].append(matrix)
    groups = [same[i : i + TOGETHER] for same in by_shape.values() for i in range(0, len(same), TOGETHER)]
    return sorted(groups, key=lambda group: -len(group) * group[0].numel() * min(group[0].shape))
