"""Our transformer against diffusers' ZImageTransformer2DModel, forward by forward."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor

from tests import reference
from zturbo.models.configs import TransformerConfig
from zturbo.models.transformer import ZImageTransformer
from zturbo.weights.load import load_weights
from zturbo.weights.names import transformer_names

FP32_LIMIT = 1e-5
BF16_LIMIT = 1e-2


def ours(theirs: ZImageTransformer2DModel) -> ZImageTransformer:
    """Our network with the reference's weights, through the loader that real checkpoints take."""
    config = TransformerConfig.from_dict(json.loads(json.dumps(dict(theirs.config))), "reference")
    with torch.device("meta"):
        model = ZImageTransformer(config).eval()
    table = transformer_names(config, "diffusers")
    state = theirs.state_dict()
    load_weights(
        model, state.items(), table.placements, source=Path("reference"), dtype=theirs.dtype, device=theirs.device
    )
    return model


@torch.no_grad()
def their_velocity(
    model: ZImageTransformer2DModel, latents: Tensor, times: Tensor, captions: Sequence[Tensor]
) -> Tensor:
    images = [image[:, None] for image in latents]
    patch = model.config.all_patch_size[0]
    return torch.stack(model(images, times, list(captions), patch_size=patch, return_dict=False)[0]).squeeze(2)


@torch.no_grad()
def our_velocity(model: ZImageTransformer, latents: Tensor, times: Tensor, captions: Sequence[Tensor]) -> Tensor:
    """One image after another, as the engine draws them."""
    rows = zip(latents.split(1), times.split(1), captions, strict=True)
    return torch.cat(
        [model(image, model.embed_caption(text[None]), model.modulation(time)) for image, time, text in rows]
    )


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def inputs(
    model: ZImageTransformer2DModel, size: tuple[int, int], lengths: Sequence[int]
) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(sum(size) + sum(lengths))
    latents = torch.randn(len(lengths), model.config.in_channels, *size, generator=generator)
    captions = [torch.randn(length, model.config.cap_feat_dim, generator=generator) for length in lengths]
    return latents.to(model.device, model.dtype), [caption.to(model.device, model.dtype) for caption in captions]


def compare(
    theirs: ZImageTransformer2DModel, size: tuple[int, int], lengths: Sequence[int], times: Sequence[float]
) -> float:
    latents, captions = inputs(theirs, size, lengths)
    t = torch.tensor(times, device=latents.device)
    expected = their_velocity(theirs, latents, t, captions)
    return relative_error(our_velocity(ours(theirs), latents, t, captions), expected)


SIZES = [(16, 16), (24, 36), (30, 14), (8, 64), (46, 2)]
"""Latents (rows, columns): with 0, 8, 23, 0 and 9 image pads."""


@pytest.mark.parametrize("length", [1, 31, 32, 33, 512])
@pytest.mark.parametrize("size", SIZES)
def test_one_image_fp32(size: tuple[int, int], length: int) -> None:
    assert compare(reference.transformer(), size, [length], [0.357]) <= FP32_LIMIT


@pytest.mark.parametrize("time", [0.0, 0.0454546, 0.5, 0.7, 1.0])
def test_every_time_fp32(time: float) -> None:
    assert compare(reference.transformer(), (16, 24), [20], [time]) <= FP32_LIMIT


def test_batch_of_unequal_captions_and_times_fp32() -> None:
    """The reference masks what it adds to equalise the lengths; we draw each alone: the pictures must be the same."""
    assert compare(reference.transformer(), (30, 14), [5, 33, 64, 100], [0.1, 0.3, 0.5, 0.9]) <= FP32_LIMIT


@torch.no_grad()
def test_a_batch_of_equal_captions_equals_its_members() -> None:
    model = ours(reference.transformer())
    latents, captions = inputs(reference.transformer(), (16, 24), [20, 20, 20])
    times = torch.tensor([0.1, 0.5, 0.9])
    together = model(latents, model.embed_caption(torch.stack(captions)), model.modulation(times))
    assert relative_error(together, our_velocity(model, latents, times, captions)) <= FP32_LIMIT


@pytest.mark.parametrize(
    "changes",
    [
        {"in_channels": 8},
        {"all_patch_size": (4,)},
        {"n_refiner_layers": 0},
        {"n_refiner_layers": 1, "n_layers": 1},
        {"dim": 384, "n_heads": 6, "n_kv_heads": 6},
        {"rope_theta": 10000.0, "axes_dims": [32, 16, 16], "t_scale": 500.0},
        {"cap_feat_dim": 100, "norm_eps": 1e-3},
    ],
    ids=str,
)
def test_any_config_of_the_family_fp32(changes: dict[str, Any]) -> None:
    assert compare(reference.transformer(**changes), (16, 24), [20], [0.5]) <= FP32_LIMIT


@pytest.mark.parametrize("length", [1, 31, 32, 33, 512])
@pytest.mark.parametrize("layers", [3, 8])
def test_one_image_bf16(layers: int, length: int) -> None:
    """With the weights that the reference itself starts from."""
    model = reference.transformer(fresh=True, n_layers=layers).to(torch.bfloat16)
    assert compare(model, (30, 14), [length], [0.357]) <= BF16_LIMIT


@pytest.mark.parametrize("layers", [3, 30])
def test_bf16_is_no_further_from_fp32_than_the_reference(layers: int) -> None:
    """With loud weights in every path, where bf16 itself is off by more than a percent: who rounds less?"""
    theirs = reference.transformer(n_layers=layers).to(torch.bfloat16)
    latents, captions = inputs(theirs, (30, 14), [100])
    time = torch.tensor([0.357])
    exact = their_velocity(
        copy.deepcopy(theirs).float(), latents.float(), time, [caption.float() for caption in captions]
    )
    our_error = relative_error(our_velocity(ours(theirs), latents, time, captions), exact)
    assert our_error <= relative_error(their_velocity(theirs, latents, time, captions), exact)


@torch.no_grad()
def test_the_pad_slots_matter() -> None:
    """A check that the comparison above can fail: other pad tokens give another picture."""
    theirs = reference.transformer()
    latents, captions = inputs(theirs, (30, 14), [20])
    model, time = ours(theirs), torch.tensor([0.5])
    before = our_velocity(model, latents, time, captions)
    for name in ("x_pad_token", "cap_pad_token"):
        changed = ours(theirs)
        changed.get_parameter(name).mul_(-1)
        assert relative_error(our_velocity(changed, latents, time, captions), before) > 100 * FP32_LIMIT, name


@pytest.mark.gpu
@pytest.mark.parametrize("length", [1, 31, 32, 33, 512])
@pytest.mark.parametrize("size", SIZES)
def test_one_image_bf16_on_cuda(size: tuple[int, int], length: int) -> None:
    model = reference.transformer(fresh=True).to("cuda", torch.bfloat16)
    assert compare(model, size, [length], [0.357]) <= BF16_LIMIT
