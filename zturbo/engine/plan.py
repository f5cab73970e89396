"""How a model is run on a machine: dtype, quantization, placement, each with its reason. Pure functions over facts.

The candidates stand in one list, the fastest and most exact first; the first that fits the memory is taken:

    everything on the device in the working dtype, decoding whole pictures, or large ones in tiles
    (CUDA) the text encoder's layers stay on the host and stream through the device once per new prompt
    transformer weights in 8 bits, text encoder on the device, or streamed (CUDA), or in 8 bits too (elsewhere)
    the last of these, for pictures of up to one megapixel
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from zturbo.acceleration.quantize import ROWS_AT_ONCE, TEXT_ENCODER_LAYERS, TRANSFORMER_LAYERS, Scheme
from zturbo.engine.machine import Machine
from zturbo.errors import DeviceError, DoesNotFit
from zturbo.models.configs import TextEncoderConfig, TransformerConfig, VaeConfig
from zturbo.models.text_encoder import Qwen3
from zturbo.models.transformer import ZImageTransformer
from zturbo.models.vae import Decoder

GIB = 2**30
LARGEST_PICTURE = 2048 * 2048
SMALL_PICTURE = 1024 * 1024
CAPTION_TOKENS = 512
HEADROOM = {"cuda": 0.92, "mps": 0.85, "cpu": 0.85}
"""Share of the free memory that a plan may use; the rest is for the allocator, and on the host for others."""
TILES = (1024, 512)
"""Sides of a decoded tile, in pixels."""
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

Wish = Literal["auto", "none", "int8", "fp8"]
Placement = Literal["resident", "streamed", "quantized"]
Weights = tuple[Scheme | None, str]
"""Quantization scheme and the reason for it."""


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Parameter counts of a model folder, and what the largest picture needs beside them."""

    transformer: int
    transformer_wide: int
    """Of these, the weights of the wide products, which can be quantized."""
    text_encoder: int
    text_encoder_wide: int
    text_layer: int
    text_layers: int
    vae_decoder: int
    pixels_per_token: int
    values_per_token: int
    """Values alive at once in one forward, per token."""
    widest_product: int
    heads: int
    values_per_pixel: int
    """Values alive at once while decoding, per pixel of the picture or tile."""

    @classmethod
    def of(cls, transformer: TransformerConfig, text_encoder: TextEncoderConfig, vae: VaeConfig) -> "ModelSize":
        """Count on the meta device, which allocates nothing."""
        with torch.device("meta"):
            blocks, text, decoder = ZImageTransformer(transformer), Qwen3(text_encoder), Decoder(vae)
        return cls(
            transformer=_count(blocks),
            transformer_wide=_count_layers(blocks, TRANSFORMER_LAYERS),
            text_encoder=_count(text),
            text_encoder_wide=_count_layers(text, TEXT_ENCODER_LAYERS),
            text_layer=_count(text.model.layers[0]),
            text_layers=len(text.model.layers),
            vae_decoder=_count(decoder),
            pixels_per_token=(vae.factor * transformer.patch_size) ** 2,
            values_per_token=4 * transformer.dim + 3 * max(transformer.dim, transformer.hidden_dim),
            widest_product=2 * transformer.hidden_dim,
            heads=transformer.n_heads,
            values_per_pixel=values_per_pixel(vae),
        )


def values_per_pixel(vae: VaeConfig) -> int:
    """`ModelSize.values_per_pixel` of a VAE."""
    return 4 * max(vae.block_out_channels[:2])


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _count_layers(module: nn.Module, names: tuple[str, ...]) -> int:
    linears = (layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear) and name.endswith(names))
    return sum(linear.weight.numel() for linear in linears)


@dataclass(frozen=True, slots=True)
class Plan:
    """How a model is run; `device_bytes` is the most it needs on the device, `host_bytes` on the host beside that."""

    device: str
    dtype: str
    dtype_reason: str
    text_encoder_dtype: str
    vae_dtype: str
    quantization: Scheme | None
    quantization_reason: str
    text_encoder_placement: Placement
    tile: int | None
    """Side of a decoded tile in pixels; None decodes whole pictures."""
    max_pixels: int
    """Largest picture that surely fits, width times height."""
    attention: str
    device_bytes: int
    host_bytes: int

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]


def choose_dtype(machine: Machine, wish: str = "auto") -> tuple[str, str]:
    """Working dtype and the reason for it.

    Raises:
        DeviceError: a name that is none of the three dtypes.
    """
    if wish != "auto":
        if wish not in DTYPES:
            raise DeviceError(f"unknown dtype {wish!r}", f"one of auto, {', '.join(DTYPES)}")
        return wish, "as asked"
    if machine.bf16:
        return "bfloat16", "multiplied natively here, and the range of fp32"
    if machine.device == "cpu":
        return "float32", "this processor has no bf16 products"
    return "float16", "no bf16 products here; hidden values are scaled to fit the range"


def attention_reason(machine: Machine) -> str:
    """The attention backend in words, before a model is loaded; loading on CUDA tries what is there, and says it."""
    kernels = {
        "cuda": "or a faster kernel that passes its trial at load",
        "mps": "Metal kernel",
        "cpu": "blocked CPU kernel",
    }
    return f"PyTorch SDPA ({kernels[machine.device]}; there are no masks)"


def choose_plan(machine: Machine, size: ModelSize, dtype: str = "auto", quantization: Wish = "auto") -> Plan:
    """The fastest plan that fits.

    Args:
        machine: of `detect`.
        size: of the model.
        dtype: "auto", "bfloat16", "float16" or "float32".
        quantization: "auto" quantizes where nothing else fits; "none", "int8" and "fp8" insist.

    Raises:
        DoesNotFit: no plan fits; the message says how much the smallest one needs.
        DeviceError: unknown dtype or quantization.
    """
    if quantization not in ("auto", "none", "int8", "fp8"):
        raise DeviceError(f"unknown quantization {quantization!r}", "one of auto, none, int8, fp8")
    if quantization == "fp8" and machine.device == "mps":
        raise DeviceError("fp8 weights are not available on MPS", "take quantization 'int8'")
    plans = _plans(machine, size, choose_dtype(machine, dtype), quantization)
    budget, host_budget = (int(free * HEADROOM[machine.device]) for free in (machine.device_free, machine.host_free))
    for plan in plans:
        if plan.device_bytes <= budget and plan.host_bytes <= host_budget:
            return plan
    least = plans[-1]
    raise DoesNotFit(
        f"the model needs at least {least.device_bytes / GIB:.1f} GiB on {machine.name}"
        + (f" and {least.host_bytes / GIB:.1f} GiB on the host" if least.host_bytes else "")
        + f"; usable are {budget / GIB:.1f} GiB of {machine.device_total / GIB:.1f} GiB"
        + (f" and {host_budget / GIB:.1f} GiB on the host" if least.host_bytes else ""),
        "close other programs that hold this memory, let quantization be 'auto', or use the model 'nano'",
    )


def _plans(machine: Machine, size: ModelSize, dtype: tuple[str, str], wish: Wish) -> list[Plan]:
    """All candidates, the best first and the smallest last."""
    full: Weights = (None, "the weights fit as they are" if wish == "auto" else "as asked")
    small: Weights = ("fp8" if machine.fp8 else "int8", "the weights do not fit otherwise")
    if wish == "int8" or wish == "fp8":
        choices: list[Weights] = [(wish, "as asked")]
    else:
        choices = [full] if wish == "none" else [full, small]
    # Only a CUDA device has memory of its own: elsewhere streaming frees nothing, and 8 bits must do.
    last: Placement = "streamed" if machine.device == "cuda" else "quantized"
    plans = []
    for weights in choices:
        placements: list[Placement] = ["resident"] if last == "quantized" and weights[0] is None else ["resident", last]
        for placement in placements:
            plans += [_plan(machine, size, dtype, weights, placement, tile, LARGEST_PICTURE) for tile in (None, *TILES)]
    return [*plans, _plan(machine, size, dtype, choices[-1], placements[-1], TILES[-1], SMALL_PICTURE)]


def _plan(
    machine: Machine,
    size: ModelSize,
    dtype: tuple[str, str],
    weights: Weights,
    placement: Placement,
    tile: int | None,
    max_pixels: int,
) -> Plan:
    # fp16 overflows in the VAE and the text encoder of this model; neither is where the time goes
    side_dtype = "float32" if dtype[0] == "float16" else dtype[0]
    width, side_width = DTYPES[dtype[0]].itemsize, DTYPES[side_dtype].itemsize
    transformer = _bytes(size.transformer, size.transformer_wide if weights[0] else 0, width)
    text = _bytes(size.text_encoder, size.text_encoder_wide if placement == "quantized" else 0, side_width)
    tokens = max_pixels // size.pixels_per_token + CAPTION_TOKENS
    forward = tokens * size.values_per_token * width
    if weights[0] == "int8":
        forward += min(tokens, ROWS_AT_ONCE) * size.widest_product * 2 * 4  # sums before they are rounded
    if machine.device == "mps":
        forward += size.heads * tokens**2 * width  # its attention holds all scores of a head at once
    decode = min(tile**2 if tile else max_pixels, max_pixels) * size.values_per_pixel * side_width
    on_device = size.text_layer * side_width if placement == "streamed" else text
    return Plan(
        device=machine.device,
        dtype=dtype[0],
        dtype_reason=dtype[1],
        text_encoder_dtype=side_dtype,
        vae_dtype=side_dtype,
        quantization=weights[0],
        quantization_reason=weights[1],
        text_encoder_placement=placement,
        tile=tile,
        max_pixels=max_pixels,
        attention=attention_reason(machine),
        device_bytes=transformer + on_device + size.vae_decoder * side_width + max(forward, decode),
        host_bytes=_streamed_bytes(size, side_width) if placement == "streamed" else 0,
    )


def _bytes(parameters: int, quantized: int, width: int) -> int:
    """Bytes of weights of which some are quantized to one byte each."""
    return quantized + (parameters - quantized) * width


def _streamed_bytes(size: ModelSize, width: int) -> int:
    """Host memory of a text encoder that is streamed: each layer lies in a pinned block, a power of two (`offload`)."""
    layer = size.text_layer * width
    block = 1 << (layer - 1).bit_length()
    return size.text_layers * block + (size.text_encoder - size.text_layers * size.text_layer) * width
