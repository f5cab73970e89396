"""How a model is run on a machine: dtype, quantization, placement, each with its reason. Pure functions over facts.

Every plan is one line of a short list, fastest first; the first that fits the memory is taken:

    1. everything on the device in the working dtype
    2. the same, decoding large pictures in tiles
    3. the text encoder's layers stay on the host and stream through the device once per new prompt
    4. transformer weights in 8 bits, text encoder on the device
    5. transformer weights in 8 bits, text encoder streamed
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from zturbo.acceleration.quantize import QUANTIZED_LAYERS, Scheme
from zturbo.engine.machine import Machine
from zturbo.errors import DeviceError, DoesNotFit
from zturbo.models.configs import TextEncoderConfig, TransformerConfig, VaeConfig
from zturbo.models.text_encoder import Qwen3
from zturbo.models.transformer import ZImageTransformer
from zturbo.models.vae import Decoder

GIB = 2**30
LARGEST_SIDE = 2048
HEADROOM = 0.92
"""Share of the free memory that a plan may use; the rest is for the allocator and for others."""
TILE_PIXELS = 1024
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

Wish = Literal["auto", "none", "int8", "fp8"]


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Parameter counts of a model folder, and what the largest picture needs beside them."""

    quantizable: int
    """Weights of the transformer's wide products."""
    transformer_rest: int
    text_encoder: int
    text_layer: int
    vae_decoder: int
    activations: int
    """Values alive at once in one forward at 2048x2048 with a caption of 512 tokens."""
    decode_per_pixel: int
    """Values alive at once while decoding, per pixel of the picture or tile."""

    @classmethod
    def of(cls, transformer: TransformerConfig, text_encoder: TextEncoderConfig, vae: VaeConfig) -> "ModelSize":
        """Count on the meta device, which allocates nothing."""
        with torch.device("meta"):
            blocks, text, decoder = ZImageTransformer(transformer), Qwen3(text_encoder), Decoder(vae)
        linears = {n: m for n, m in blocks.named_modules() if isinstance(m, nn.Linear) and n.endswith(QUANTIZED_LAYERS)}
        quantizable = sum(linear.weight.numel() for linear in linears.values())
        side = LARGEST_SIDE // (vae.factor * transformer.patch_size)
        widest = 4 * transformer.dim + max(3 * transformer.dim, 3 * transformer.hidden_dim)
        return cls(
            quantizable=quantizable,
            transformer_rest=_count(blocks) - quantizable,
            text_encoder=_count(text),
            text_layer=_count(text.model.layers[0]),
            vae_decoder=_count(decoder),
            activations=(side * side + 512) * widest,
            decode_per_pixel=4 * max(vae.block_out_channels[: 2]),
        )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


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
    stream_text_encoder: bool
    tile: bool
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
    """The attention backend in words; PyTorch picks the kernel per shape."""
    kernels = {"cuda": "flash or cuDNN kernel", "mps": "Metal kernel", "cpu": "blocked CPU kernel"}
    return f"PyTorch SDPA ({kernels[machine.device]}; no masks are needed)"


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
    plans = list(_plans(machine, size, *choose_dtype(machine, dtype), quantization))
    budget = int(machine.device_free * HEADROOM)
    for plan in plans:
        if plan.device_bytes <= budget and (machine.device == "cpu" or plan.host_bytes <= machine.host_free * HEADROOM):
            return plan
    least = min(plans, key=lambda plan: plan.device_bytes)
    raise DoesNotFit(
        f"the model needs at least {least.device_bytes / GIB:.1f} GiB on {machine.name} "
        f"(and {least.host_bytes / GIB:.1f} GiB on the host); usable are {budget / GIB:.1f} GiB "
        f"of {machine.device_total / GIB:.1f} GiB (host: {machine.host_free / GIB:.1f} GiB free)",
        "close other programs that hold this memory, take quantization 'auto' or 'int8', or use the model 'nano'",
    )


def _plans(machine: Machine, size: ModelSize, dtype: str, reason: str, wish: Wish) -> list[Plan]:
    full: tuple[Scheme | None, str] = (None, "the weights fit as they are" if wish == "auto" else "as asked")
    eight: Scheme = "fp8" if machine.fp8 else "int8"
    small: tuple[Scheme | None, str] = (eight, "the weights do not fit otherwise")
    if wish in ("int8", "fp8"):
        schemes = [("int8" if wish == "int8" else "fp8", "as asked")]
    else:
        schemes = [full] if wish == "none" else [full, small]
    separate_host = machine.device == "cuda"  # elsewhere host and device share their memory: streaming frees nothing
    return [
        _plan(machine, size, (dtype, reason), scheme, stream, tile)
        for scheme in schemes
        for stream, tile in ((False, False), (False, True), *(((True, False), (True, True)) if separate_host else ()))
    ]


def _plan(
    machine: Machine, size: ModelSize, dtype: tuple[str, str], scheme: tuple[Scheme | None, str], stream: bool, tile: bool
) -> Plan:
    width = DTYPES[dtype[0]].itemsize
    # fp16 overflows in the VAE and the encoder of this model; neither is where the time goes
    text_dtype = vae_dtype = "float32" if dtype[0] == "float16" else dtype[0]
    text_width = DTYPES[text_dtype].itemsize
    wide = size.quantizable * (1 if scheme[0] else width)
    text = size.text_layer if stream else size.text_encoder
    pixels = (TILE_PIXELS if tile else LARGEST_SIDE) ** 2
    working = max(size.activations * width, pixels * size.decode_per_pixel * text_width)
    fixed = wide + size.transformer_rest * width + size.vae_decoder * text_width + text * text_width
    return Plan(
        device=machine.device,
        dtype=dtype[0],
        dtype_reason=dtype[1],
        text_encoder_dtype=text_dtype,
        vae_dtype=vae_dtype,
        quantization=scheme[0],
        quantization_reason=scheme[1],
        stream_text_encoder=stream,
        tile=tile,
        attention=attention_reason(machine),
        device_bytes=fixed + working,
        host_bytes=size.text_encoder * text_width if stream else 0,
    )
