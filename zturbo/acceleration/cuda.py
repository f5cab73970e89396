"""What the passes for CUDA do, and when they pay: fused kernels, products in 8 bits, graphs.

`levels` lists them. Each `..._unfit` says in words why a pipeline does without, or None: the device is another, Triton
is not there or its kernels fail their trial on the first block, or 8-bit products, measured here, gain too little.
"""

import copy
import importlib.util
import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn

from zturbo.acceleration import graphs
from zturbo.acceleration.quantize import TRANSFORMER_LAYERS, QuantizedLinear, Scheme, has_product, quantize_loaded
from zturbo.acceleration.verdicts import judged_once
from zturbo.engine.pipeline import Pipeline
from zturbo.models.transformer import Block

TRIAL_SLOTS = (4, 8, 32)
"""Rows, columns and caption slots of the kernels' trial: 64 slots."""
TRIAL_LIMITS = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Relative error of one block on the fused kernels against the eager one."""
TIMED_TOKENS = 4096 + 128
"""Of a 1024x1024 picture with a caption of up to 128 tokens."""
CALLS = 10
"""Timed in one stretch: the device works on one while the host launches the next, as it does in a forward."""
LEAST_GAIN = 1.15
"""Products in 8 bits must be so many times as fast as in the working dtype; else their loss buys nothing."""

Clock = Callable[[Callable[[], Tensor]], float]
"""Work on the device -> its seconds."""


@judged_once
def fused_unfit(pipeline: Pipeline) -> str | None:
    """Why the fused kernels are not used."""
    if pipeline.device.type != "cuda":
        return "they are for CUDA"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if torch.cuda.get_device_capability(pipeline.device) < (8, 0):
        return "they want compute capability 8.0"
    return kernel_trial(pipeline)


@torch.inference_mode()
def kernel_trial(pipeline: Pipeline) -> str | None:
    """Why the kernels cannot be trusted here, or None: the model's first modulated block, fused beside eager."""
    transformer, device, dtype = pipeline.transformer, pipeline.device, pipeline.dtype
    block = transformer.layers[0]
    assert isinstance(block, Block)
    rope = transformer.rope(*TRIAL_SLOTS, device)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, rope.shape[0], transformer.config.dim, generator=generator).to(device, dtype)
    modulation = transformer.modulation(torch.tensor([0.5], device=device)).blocks[-1]
    expected = block(x, rope, modulation)
    try:
        from zturbo.acceleration.fused import FusedBlock

        fused = copy.copy(block)  # the same weights
        fused.__class__ = FusedBlock
        found = fused(x, rope, modulation)
    except Exception as error:  # whatever a compiler may do: a model that draws slowly beats none
        return _failing(error)
    off = float((found - expected).float().norm() / expected.float().norm())
    return None if off < TRIAL_LIMITS[dtype] else f"their result is off by {off:.1g}"


def _failing(error: Exception) -> str:
    return f"they fail ({type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''})"


def fuse_blocks(pipeline: Pipeline) -> None:
    """Put a fork's blocks on the fused kernels."""
    from zturbo.acceleration.fused import fuse

    fuse(pipeline.transformer)


def graphs_unfit(pipeline: Pipeline) -> str | None:
    """Why forwards are not recorded."""
    return None if pipeline.device.type == "cuda" else "they are for CUDA"


def graph_bytes(pipeline: Pipeline) -> int:
    """Most device memory that a level's graphs take."""
    return graphs.memory(pipeline.transformer.config, pipeline.dtype.itemsize)


def record_forwards(pipeline: Pipeline) -> None:
    """Record and replay a fork's forwards; the last of a level's passes, because a graph keeps what it was made of."""
    graphs.replay(pipeline.transformer, graphs.CudaRecorder(pipeline.device))


@judged_once
def fp8_unfit(pipeline: Pipeline) -> str | None:
    """Why products are not done in fp8."""
    if pipeline.device.type == "cuda" and torch.cuda.get_device_capability(pipeline.device) < (8, 9):
        return "they want compute capability 8.9"
    return fused_unfit(pipeline) or products_unfit(pipeline, "fp8")


@judged_once
def int8_unfit(pipeline: Pipeline) -> str | None:
    """Why products are not done in int8."""
    return fused_unfit(pipeline) or products_unfit(pipeline, "int8")


def products_unfit(pipeline: Pipeline, scheme: Scheme, clock: Clock | None = None) -> str | None:
    """Why a block's four wide products stay in the working dtype: measured here, with the model's own shapes."""
    block = pipeline.transformer.layers[0]
    layers = [block.get_submodule(name) for name in TRANSFORMER_LAYERS]
    if any(isinstance(layer, QuantizedLinear) for layer in layers):
        return "the weights are in 8 bits already"
    try:
        small = [_in_8_bits(layer, scheme) for layer in layers]
        if not all(has_product(layer) for layer in small):
            return "this device has none of their sizes"
        times = gain(layers, small, TIMED_TOKENS, clock or device_seconds)
    except Exception as error:  # fp8 with a scale per row is not on every card; a compiler may do anything
        return _failing(error)
    return None if times >= LEAST_GAIN else f"they are {times:.2f} times as fast here, and must be {LEAST_GAIN}"


@torch.inference_mode()
def _in_8_bits(layer: nn.Module, scheme: Scheme) -> QuantizedLinear:
    """A copy of a linear layer."""
    weight = layer.get_parameter("weight")
    quantized = QuantizedLinear(weight.shape[1], weight.shape[0], scheme, weight.device)
    quantized.load_rows(0, weight)
    return quantized


@torch.inference_mode()
def gain(layers: list[nn.Module], small: list[QuantizedLinear], tokens: int, clock: Clock) -> float:
    """How many times as fast linear layers are in 8 bits, the rows quantized already as fused kernels do.

    Args:
        layers: in the working dtype.
        small: the same in 8 bits.
        tokens: rows of each product.
        clock: measures one product.
    """
    from zturbo.acceleration.fused import product, quantize

    working = eight = 0.0
    for layer, quantized in zip(layers, small, strict=True):
        weight = layer.get_parameter("weight")
        # A device draws less power, and so runs faster, where all values are the same.
        rows = torch.randn(1, tokens, weight.shape[1], dtype=weight.dtype, device=weight.device)
        short = quantize(rows, quantized.scheme)
        working += clock(lambda layer=layer, rows=rows: layer(rows))  # type: ignore[misc]
        eight += clock(lambda layer=quantized, rows=short: product(layer, rows))  # type: ignore[misc]
    return working / eight


def device_seconds(work: Callable[[], Tensor], rounds: int = 7) -> float:
    """Median seconds of some work on the device, launched one right after the other; after two warm-ups."""
    taken = []
    for _ in range(rounds + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(CALLS):
            work()
        end.record()
        end.synchronize()
        taken.append(begin.elapsed_time(end) / 1000 / CALLS)
    return statistics.median(taken[2:])


def quantized_bytes(pipeline: Pipeline) -> int:
    """Device memory of the wide products' weights in 8 bits, beside the ones of the working dtype."""
    named = pipeline.transformer.named_parameters()
    return sum(one.numel() for name, one in named if name.removesuffix(".weight").endswith(TRANSFORMER_LAYERS))


def to_fp8(pipeline: Pipeline) -> None:
    """Give a fork its wide products in fp8."""
    quantize_loaded(pipeline.transformer, TRANSFORMER_LAYERS, "fp8")


def to_int8(pipeline: Pipeline) -> None:
    """Give a fork its wide products in int8."""
    quantize_loaded(pipeline.transformer, TRANSFORMER_LAYERS, "int8")
