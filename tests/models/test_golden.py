"""Published constants of Z-Image-Turbo: sizes, positions, times and noise levels."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from zturbo.engine.sampling import sigmas, timesteps
from zturbo.models.attention import position_ids, rope_table
from zturbo.models.configs import TextEncoderConfig, TransformerConfig, VaeConfig
from zturbo.models.text_encoder import Qwen3
from zturbo.models.transformer import ZImageTransformer, timestep_embedding
from zturbo.models.vae import Decoder, Encoder
from zturbo.weights import published


def close(found: object, expected: list[float], tolerance: float = 6e-5) -> bool:
    return torch.allclose(torch.as_tensor(found), torch.tensor(expected, dtype=torch.float32), rtol=0, atol=tolerance)


def parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameters_of_the_published_model() -> None:
    with torch.device("meta"):
        transformer = ZImageTransformer(TransformerConfig.from_dict(published.TRANSFORMER, "published"))
        text_encoder = Qwen3(TextEncoderConfig.from_dict(published.TEXT_ENCODER, "published"))
        vae = VaeConfig.from_dict(published.VAE, "published")
        assert parameters(Decoder(vae)) == 49_545_475
        assert parameters(Encoder(vae)) == 34_274_208
    assert parameters(transformer) == 6_154_908_736
    assert parameters(transformer.layers) == 5_427_310_080
    assert parameters(transformer.context_refiner) == 353_925_632
    assert parameters(text_encoder) == 4_022_468_096
    assert parameters(text_encoder.model.layers[0]) == 100_930_816


def test_timestep_embedding() -> None:
    values = timestep_embedding(torch.tensor([0.3]), 1000.0)[0]
    found = values[[0, 1, 64, 127, 128, 129, 192, 255]]
    assert close(found, [-0.0221, -0.9089, -0.9900, 0.9995, -0.9998, 0.4170, 0.1411, 0.0322], 1e-4)


def test_rope() -> None:
    table = rope_table(torch.tensor([[129, 3, 5]]), (32, 48, 48), 256.0)[0]
    pairs = table[[0, 1, 16, 17, 40, 41]]
    assert close(pairs[:, 0], [-0.9811, -0.9939, -0.9900, -0.7245, 0.2837, -0.6772])
    assert close(pairs[:, 1], [-0.1935, -0.1104, 0.1411, 0.6893, -0.9589, -0.7358])


def test_rope_frequencies() -> None:
    table = rope_table(torch.ones(1, 3, dtype=torch.int64), (32, 48, 48), 256.0)[0]
    angles = torch.atan2(table[:, 1], table[:, 0])
    assert close(angles[[0, 1, 2, 3, 15]], [1, 0.70710678, 0.5, 0.35355339, 0.00552427], 1e-6)
    assert close(angles[[16, 17, 18, 19, 39]], [1, 0.79370053, 0.62996052, 0.5, 0.00492157], 1e-6)


def test_position_ids() -> None:
    """1280x720 in tokens of 16 pixels: 3600 image tokens and 16 pads; a caption in 64 slots."""
    ids = position_ids(45, 80, 64)
    assert ids.shape == (3616 + 64, 3)
    assert ids[0].tolist() == [65, 0, 0]
    assert ids[81].tolist() == [65, 1, 1]
    assert ids[3599].tolist() == [65, 44, 79]
    assert ids[3600:3616].abs().sum() == 0
    assert ids[3616].tolist() == [1, 0, 0]
    assert ids[-1].tolist() == [64, 0, 0]


def test_sigmas_of_eight_steps() -> None:
    levels = sigmas(8, 3.0)
    assert close(levels, [1, 0.9545455, 0.9, 0.8333333, 0.75, 0.6428571, 0.5, 0.3, 0], 1e-7)
    assert close(timesteps(levels, 1000) * 1000, [0, 45.4546, 100, 166.6667, 250, 357.1429, 500, 700], 1e-3)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(1, [1, 0]), (2, [1, 0.75, 0]), (4, [1, 0.9, 0.75, 0.5, 0]),
     (9, [1, 0.96, 0.913, 0.857, 0.789, 0.706, 0.6, 0.4615, 0.2727, 0])],
)  # fmt: skip
def test_sigmas_of_other_steps(steps: int, expected: list[float]) -> None:
    assert close(sigmas(steps, 3.0), expected, 6e-4)


@pytest.mark.parametrize("steps", range(1, 9))
def test_sigmas_are_the_references_to_the_bit(steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=False)
    scheduler.set_timesteps(sigmas=[float(s) for s in np.linspace(1.0, 1 / steps, steps)])
    levels = sigmas(steps, 3.0)
    assert torch.equal(levels, scheduler.sigmas)
    assert torch.equal(timesteps(levels, 1000), (1000 - scheduler.timesteps) / 1000)
