"""Our autoencoder against diffusers' AutoencoderKL."""

import json
from itertools import pairwise
from typing import Any

import pytest
import torch

from tests import reference
from zturbo.engine.tiling import decode_tiled, tile_starts
from zturbo.models.configs import VaeConfig
from zturbo.models.vae import AutoencoderKL, to_pixels

CONFIGS: dict[str, dict[str, Any]] = {
    "four levels": {},
    "five levels": {"block_out_channels": (8, 8, 16, 32, 32), "latent_channels": 6},
    "two layers a block, no attention": {"layers_per_block": 2, "mid_block_add_attention": False},
}


def ours(theirs: Any) -> AutoencoderKL:
    model = AutoencoderKL(VaeConfig.from_dict(json.loads(json.dumps(dict(theirs.config))), "reference")).eval()
    model.load_state_dict(theirs.state_dict())
    return model


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS.keys())
@torch.no_grad()
def test_decode_and_encode(changes: dict[str, Any]) -> None:
    theirs = reference.vae(**changes)
    model = ours(theirs)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, model.config.latent_channels, 6, 10, generator=generator)
    images = theirs.decode(latents).sample
    assert torch.allclose(model.decode(latents), images, rtol=1e-4, atol=1e-4)
    mean, logvar = model.encode(images.clamp(-1, 1))
    expected = theirs.encode(images.clamp(-1, 1)).latent_dist
    assert torch.allclose(mean, expected.mean, rtol=1e-4, atol=1e-4)
    assert torch.allclose(logvar, expected.logvar, rtol=1e-4, atol=1e-4)


def test_pixels_round_and_clamp() -> None:
    values = torch.tensor([-9.0, -1.0, 0.0, 0.003, 1.0, 9.0]).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    assert to_pixels(values)[0, 0, :, 0].tolist() == [0, 0, 128, 128, 255, 255]


@pytest.mark.parametrize("length", [1, 8, 9, 13, 14, 40])
def test_tiles_cover_everything_and_overlap(length: int) -> None:
    starts = tile_starts(length, 8)
    assert starts[0] == 0
    assert max(starts) + 8 >= length
    assert all(0 <= b - a <= 6 for a, b in pairwise(starts))
    assert length <= 8 or starts[-1] == length - 8


@torch.no_grad()
def test_a_tiled_picture_has_no_seams() -> None:
    """Without norms over the whole picture tiles would be equal to it; the blend must at least be seamless."""
    model = ours(reference.vae(mid_block_add_attention=False))
    latents = torch.randn(1, 16, 20, 28, generator=torch.Generator().manual_seed(0)) * 0.3
    whole, tiled = model.decode(latents), decode_tiled(model, latents, 16)
    assert tiled.shape == whole.shape
    steps = (tiled[..., 1:] - tiled[..., :-1]).abs().mean(dim=(0, 1, 2))  # a seam is a column of large steps
    assert steps.max() < 3 * steps.median()
    assert (tiled - whole).abs().mean() < 0.5 * (whole - whole.mean()).abs().mean()


@torch.no_grad()
def test_a_picture_of_one_tile_is_the_whole() -> None:
    model = ours(reference.vae())
    latents = torch.randn(1, 16, 6, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(decode_tiled(model, latents, 8), model.decode(latents))
