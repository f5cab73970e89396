"""Linear layers with 8-bit weights, against exact ones."""

import pytest
import torch
from torch import nn

from tests import reference
from tests.parity.test_transformer import inputs, our_velocity, ours, relative_error
from zturbo.acceleration.fp16 import fit_half_precision
from zturbo.acceleration.quantize import (
    LIMITS,
    TRANSFORMER_LAYERS,
    QuantizedLinear,
    Scheme,
    quantize_layers,
    quantize_rows,
)  # fmt: skip
from zturbo.models.transformer import FeedForward, ZImageTransformer

SCHEMES: tuple[Scheme, ...] = ("int8", "fp8")


def filled(scheme: Scheme, weight: torch.Tensor) -> QuantizedLinear:
    layer = QuantizedLinear(weight.shape[1], weight.shape[0], scheme, "cpu")
    half = weight.shape[0] // 2
    layer.load_rows(half, weight[half:])  # in blocks and out of order, as checkpoints come
    layer.load_rows(0, weight[:half])
    return layer


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rows_keep_their_own_scale(scheme: Scheme) -> None:
    torch.manual_seed(0)
    rows = torch.randn(6, 64) * torch.tensor([1e-4, 1e-2, 1, 1e2, 1e4, 0])[:, None]
    quantized, scale = quantize_rows(rows, scheme)
    step = 1 / 127 if scheme == "int8" else 1 / 16  # of the largest value; of each value
    if scheme == "fp8":  # whose smallest steps are 2^-9
        assert ((quantized.float() * scale - rows).abs() <= step * rows.abs() + scale * 2**-10).all()
    error = (quantized.float() * scale - rows).abs().amax(dim=1)
    assert (error <= rows.abs().amax(dim=1) * step).all()
    assert quantized.float().abs().amax(dim=1)[:5].allclose(torch.tensor(LIMITS[scheme]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("scheme", "limit"), [("int8", 0.015), ("fp8", 0.04)])
def test_a_product_is_close(scheme: Scheme, limit: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(96, 128), torch.randn(2, 40, 128)
    found = filled(scheme, weight)(x.to(dtype))
    assert found.dtype == dtype
    assert found.shape == (2, 40, 96)
    assert relative_error(found, x @ weight.T) < limit


def test_a_processor_without_integer_products_multiplies_in_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's other way there takes value by value, many times as long."""
    torch.manual_seed(0)
    weight, x = torch.randn(96, 128), torch.randn(2, 40, 128)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    monkeypatch.setattr(torch, "_int_mm", None)
    assert relative_error(filled("int8", weight)(x), x @ weight.T) < 0.01


@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_loud_token_does_not_drown_the_others(scheme: Scheme) -> None:
    """Hidden values of the real model reach 6.6e4 in few tokens: one scale for all would round the others to zero."""
    torch.manual_seed(0)
    weight, x = torch.randn(96, 128), torch.randn(40, 128)
    x[3] *= 6.6e4
    found = filled(scheme, weight)(x)
    quiet = torch.arange(40) != 3
    assert relative_error(found[quiet], (x @ weight.T)[quiet]) < 0.04


@pytest.mark.parametrize("scheme", SCHEMES)
def test_only_the_wide_layers_of_blocks_are_replaced(scheme: Scheme) -> None:
    config = ours(reference.transformer()).config
    with torch.device("meta"):
        model = ZImageTransformer(config)
    before = {name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    quantize_layers(model, TRANSFORMER_LAYERS, scheme, "cpu")
    replaced = {name for name, layer in model.named_modules() if isinstance(layer, QuantizedLinear)}
    assert len(replaced) == 4 * (3 + 2 + 2)
    assert replaced == {name for name in before if name.endswith(TRANSFORMER_LAYERS)}


@torch.no_grad()
def test_half_precision_survives_huge_hidden_values() -> None:
    """Without the scale the product passes 65504 and the picture is lost; with it the result is the exact one."""
    theirs = reference.transformer()
    for block in theirs.layers:
        block.feed_forward.w1.weight.mul_(300)
        block.feed_forward.w3.weight.mul_(300)
    latents, captions = inputs(theirs, (16, 16), [20])
    time = torch.tensor([0.5])
    exact = our_velocity(ours(theirs), latents, time, captions)
    half = ours(theirs).half()
    halved = latents.half(), time, [caption.half() for caption in captions]
    assert not our_velocity(half, *halved).isfinite().all()
    fit_half_precision(half)
    assert relative_error(our_velocity(half, *halved), exact) < 1e-2


@torch.no_grad()
def test_the_scale_itself_changes_nothing() -> None:
    theirs = reference.transformer()
    latents, captions = inputs(theirs, (16, 16), [20])
    plain, scaled = ours(theirs), ours(theirs)
    fit_half_precision(scaled)
    assert any(isinstance(layer, FeedForward) and layer.hidden_scale != 1 for layer in scaled.modules())
    time = torch.tensor([0.5])
    assert (
        relative_error(our_velocity(scaled, latents, time, captions), our_velocity(plain, latents, time, captions))
        < 1e-5
    )
