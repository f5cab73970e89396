"""The sampler's properties, for every number of steps, seed and shape."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zturbo.engine.sampling import denoise, euler_step, extrapolate, guessed_steps, noise, sigmas, timesteps

SEEDS = st.integers(min_value=0, max_value=2**70)


@given(steps=st.integers(1, 100), shift=st.floats(0.1, 20))
def test_sigmas_fall_from_one_to_zero(steps: int, shift: float) -> None:
    levels = sigmas(steps, shift)
    assert levels.shape == (steps + 1,)
    assert levels.dtype == torch.float32
    assert levels[0] == pytest.approx(1)
    assert levels[-1] == 0
    assert (levels.diff() < 0).all()
    times = timesteps(levels, 1000)
    assert times.shape == (steps,)
    assert (times.diff() > 0).all() or steps == 1


@given(seed=SEEDS)
def test_noise_is_what_a_cpu_generator_draws(seed: int) -> None:
    expected = torch.randn((1, 3, 4, 5), generator=torch.Generator("cpu").manual_seed(seed % 2**63))
    assert torch.equal(noise(seed, 3, 4, 5), expected)


@given(seed=st.integers(0, 2**62))
def test_neighbouring_seeds_differ_and_large_ones_fold(seed: int) -> None:
    assert not torch.equal(noise(seed, 4, 8, 8), noise(seed + 1, 4, 8, 8))
    assert torch.equal(noise(seed, 4, 8, 8), noise(seed + 2**63, 4, 8, 8))


@given(steps=st.integers(1, 8), shift=st.floats(0.5, 10))
def test_a_straight_path_arrives_exactly(steps: int, shift: float) -> None:
    """The true velocity of a straight path from noise to picture is constant, so any number of steps lands on it."""
    picture, first = torch.full((1, 2, 3, 3), 0.25), noise(1, 2, 3, 3)
    seen = [step.clean_latents() for step in denoise(lambda _x, _i: picture - first, first, sigmas(steps, shift))]
    assert len(seen) == steps
    assert all(torch.allclose(clean, picture, atol=1e-5) for clean in seen)


def test_denoise_is_lazy_and_counts() -> None:
    """Progress and cancel are the caller's: nothing runs that nobody asked for."""
    calls: list[int] = []

    def predict(latents: Tensor, index: int) -> Tensor:
        calls.append(index)
        return torch.zeros_like(latents)

    walk = denoise(predict, noise(1, 1, 2, 2), sigmas(8, 3.0))
    assert calls == []
    first = next(walk)
    assert (first.index, first.steps, calls) == (1, 8, [0])
    next(walk)
    walk.close()  # type: ignore[attr-defined]
    assert calls == [0, 1]


def test_euler_keeps_fp32_whatever_the_network_says() -> None:
    latents, velocity = noise(1, 1, 4, 4), noise(2, 1, 4, 4).to(torch.bfloat16)
    stepped = euler_step(latents, velocity, torch.tensor(0.5), torch.tensor(0.3))
    assert stepped.dtype == torch.float32
    assert torch.equal(stepped, latents + (torch.tensor(0.5) - torch.tensor(0.3)) * velocity.float())


def test_guesses_lie_between_forwards_and_never_last() -> None:
    for steps in range(1, 51):
        guessed = guessed_steps(steps)
        assert guessed <= set(range(2, steps - 1))
        assert all(index + 1 not in guessed for index in guessed)
        assert bool(guessed) == (steps >= 6)
    assert [sorted(guessed_steps(steps)) for steps in (6, 8)] == [[2, 4], [2, 4, 6]], "every second from the third on"


def test_a_guess_is_exact_where_the_velocity_is_a_line() -> None:
    def velocity(sigma: float) -> torch.Tensor:
        return torch.arange(6.0) * sigma - 2

    known = [(torch.tensor(sigma), velocity(sigma)) for sigma in (0.9, 0.8)]
    assert torch.allclose(extrapolate(known[0], known[1], torch.tensor(0.55)), velocity(0.55), atol=1e-5)
