"""The flow-matching Euler sampler of Z-Image-Turbo, as pure functions.

A sample goes from noise (sigma 1) to picture (sigma 0) along dx/dsigma = -velocity, without guidance. One forward of
the network per step. Sources: FlowMatchEulerDiscreteScheduler and ZImagePipeline of diffusers 0.42.1; Lipman et al.
2023 (arXiv 2210.02747); the static shift of Esser et al. 2024 (arXiv 2403.03206).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from zturbo.params import SEED_LIMIT


def sigmas(steps: int, shift: float) -> Tensor:
    """Noise levels of a schedule.

    Args:
        steps: number of forwards, at least 1.
        shift: static shift: sigma = shift * s / (1 + (shift - 1) * s) over s = 1, ..., 1/steps.

    Returns:
        (steps + 1,) fp32, falling from 1 to 0.
    """
    uniform = torch.linspace(1.0, 1.0 / steps, steps, dtype=torch.float64).float()
    return torch.cat((shift * uniform / (1 + (shift - 1) * uniform), torch.zeros(1)))


def timesteps(levels: Tensor, num_train_timesteps: int) -> Tensor:
    """The model's time 1 - sigma of each forward, (steps,) fp32, rounded as the reference rounds it."""
    return (num_train_timesteps - levels[:-1] * num_train_timesteps) / num_train_timesteps


def noise(seed: int, channels: int, height: int, width: int) -> Tensor:
    """The first latents of a seed: what diffusers draws with a CPU generator, on every device.

    Args:
        seed: any integer from 0; from 2**63 on it is folded: seed modulo 2**63.
        channels, height, width: shape of the latents.

    Returns:
        (1, channels, height, width) fp32 on the CPU.
    """
    generator = torch.Generator("cpu").manual_seed(seed % SEED_LIMIT)
    return torch.randn((1, channels, height, width), generator=generator, dtype=torch.float32)


def euler_step(latents: Tensor, velocity: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """One step in fp32: x + (sigma - sigma_next) * velocity, with velocity towards the data."""
    return latents + (sigma - sigma_next) * velocity.float()


def guessed_steps(steps: int) -> frozenset[int]:
    """Which forwards (from 0) a fast schedule replaces by `extrapolate`; none of fewer than six.

    Every second one from the third on, never the last: between two guesses the network is asked, because guesses from
    guesses cost ten times the error (docs/log.md).
    """
    return frozenset(range(2, steps - 1, 2)) if steps >= 6 else frozenset()


def extrapolate(earlier: tuple[Tensor, Tensor], later: tuple[Tensor, Tensor], sigma: Tensor) -> Tensor:
    """The velocity at a noise level, on the straight line through two before it (TaylorSeer, Liu et al. 2025, order 1).

    Args:
        earlier, later: noise level (scalar) and velocity (B,C,h,w) of two different forwards.
        sigma: the level that is asked for, scalar.

    Returns:
        (B,C,h,w) in the velocities' dtype.
    """
    (sigma_0, velocity_0), (sigma_1, velocity_1) = earlier, later
    slope = (sigma - sigma_1) / (sigma_1 - sigma_0)
    return velocity_1 + (velocity_1 - velocity_0) * slope.to(velocity_1.dtype)


@dataclass(frozen=True, slots=True)
class Step:
    """State after one step of `denoise`."""

    index: int
    """Steps done, from 1."""
    steps: int
    latents: Tensor
    """(B, C, H, W) fp32."""
    velocity: Tensor
    sigma: Tensor
    """Noise level of `latents`, a scalar tensor; 0 after the last step."""

    def clean_latents(self) -> Tensor:
        """The picture that the network expects at this point (B, C, H, W) fp32: what a preview shows."""
        return self.latents + self.sigma * self.velocity.float()


def denoise(predict: Callable[[Tensor, int], Tensor], latents: Tensor, levels: Tensor) -> Iterator[Step]:
    """Walk down the noise levels, yielding after each step: progress, cancel and preview are the caller's.

    Args:
        predict: (latents fp32, step index from 0) -> velocity of the same shape, any float dtype.
        latents: (B, C, H, W) fp32 noise.
        levels: (steps + 1,) fp32 of `sigmas`, on the latents' device.
    """
    steps = len(levels) - 1
    for index in range(steps):
        velocity = predict(latents, index)
        latents = euler_step(latents, velocity, levels[index], levels[index + 1])
        yield Step(index + 1, steps, latents, velocity, levels[index + 1])
