"""The published 6B shapes with random weights: does one forward run here, in how many seconds and how much memory?

    python -m bench.full_size [--scheme none|int8|fp8] [--size 512x512] [--rounds 1] [--small]

Each scheme is measured in a process of its own, because peak memory is the process's. Without --scheme all that the
device has products for are measured, one that fails is left out, and the table is written to
bench/results/full-size-DEVICE.json, or full-size-DEVICE-small.json.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bench.report import publish
from zturbo.acceleration.quantize import TRANSFORMER_LAYERS, QuantizedLinear, Scheme, quantize_layers
from zturbo.engine.machine import detect
from zturbo.engine.plan import GIB
from zturbo.engine.sampling import denoise, noise, sigmas, timesteps
from zturbo.models.attention import round_up
from zturbo.models.configs import TransformerConfig
from zturbo.models.transformer import ZImageTransformer
from zturbo.weights import published

CAPTION_TOKENS = 100
PIXELS_PER_TOKEN = 16
SCHEMES = ("none", "int8", "fp8")


def config(small: bool) -> TransformerConfig:
    """The published shape, or one of 100 M parameters that shows the same code working."""
    full = TransformerConfig.from_dict(published.TRANSFORMER, "published")
    if not small:
        return full
    return replace(full, dim=512, n_heads=4, n_layers=8, cap_feat_dim=256)


def random_transformer(
    shape: TransformerConfig, scheme: Scheme | None, device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> ZImageTransformer:
    """A transformer of random weights, filled tensor by tensor as a checkpoint fills it."""
    with torch.device("meta"):
        model = ZImageTransformer(shape).eval().requires_grad_(False)
    if scheme is not None:
        quantize_layers(model, TRANSFORMER_LAYERS, scheme, device)
    generator = torch.Generator(device).manual_seed(0)
    for module in list(model.modules()):
        if isinstance(module, QuantizedLinear):
            rows = torch.empty(module.out_features, module.in_features, dtype=dtype, device=device)
            module.load_rows(0, rows.normal_(0, module.in_features**-0.5, generator=generator))
            continue
        for name, parameter in module.named_parameters(recurse=False):
            values = torch.empty(parameter.shape, dtype=dtype, device=device)
            values.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
            if parameter.ndim == 1 and name == "weight":
                values += 1
            setattr(module, name, torch.nn.Parameter(values, requires_grad=False))
    return model


def flop(shape: TransformerConfig, width: int, height: int) -> float:
    """Floating-point operations of one forward, 2 per multiply-add, without the caption's own refiners."""
    tokens = (width // PIXELS_PER_TOKEN) * (height // PIXELS_PER_TOKEN)
    image, caption = round_up(tokens), round_up(CAPTION_TOKENS)
    weights = 4 * shape.dim**2 + 3 * shape.dim * shape.hidden_dim
    unified = image + caption
    linear = 2 * weights * (shape.n_layers * unified + shape.n_refiner_layers * image)
    return linear + 4 * shape.dim * (shape.n_layers * unified**2 + shape.n_refiner_layers * image**2)


@torch.inference_mode()
def measure(model: ZImageTransformer, width: int, height: int, steps: int, rounds: int) -> list[float]:
    """Seconds of `steps` forwards with the sampler round them, `rounds` times after one warm-up."""
    device, dtype = model.x_pad_token.device, model.x_pad_token.dtype
    levels = sigmas(steps, 3.0)
    modulation = model.modulation(timesteps(levels, 1000).to(device))
    caption = model.embed_caption(torch.randn(1, CAPTION_TOKENS, model.config.cap_feat_dim).to(device, dtype))
    first = noise(1, model.config.in_channels, height // 8, width // 8).to(device)
    levels = levels.to(device)

    def predict(latents: Tensor, index: int) -> Tensor:
        return model(latents.to(dtype), caption, modulation[index])

    seconds = []
    for _ in range(rounds + 1):
        _wait(device)
        start = time.perf_counter()
        *_, last = denoise(predict, first, levels)
        _wait(device)
        seconds.append(time.perf_counter() - start)
        assert last.latents.isfinite().all(), "the forward gave infinities"
    return seconds[1:] if rounds else seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(device: torch.device) -> int:
    """Most memory this process has had: on the device, or of the process where the device is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def run(scheme: str, width: int, height: int, rounds: int, small: bool) -> dict[str, Any]:
    """One row: a scheme in this process."""
    device, shape = torch.device(detect().device), config(small)
    start = time.perf_counter()
    model = random_transformer(shape, None if scheme == "none" else scheme, device)  # type: ignore[arg-type]
    filled = time.perf_counter() - start
    seconds = measure(model, width, height, steps=1, rounds=rounds)
    return {
        "weights": "bf16" if scheme == "none" else scheme,
        "size": f"{width}x{height}",
        "seconds a forward": median(seconds),
        "TFLOP/s": flop(shape, width, height) / median(seconds) / 1e12,
        "peak GiB": peak_bytes(device) / GIB,
        "seconds to fill": filled,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scheme", choices=SCHEMES)
    parser.add_argument("--size", default="512x512")
    parser.add_argument("--rounds", type=int, default=1, help="forwards counted after one warm-up; 0 counts the first")
    parser.add_argument("--small", action="store_true", help="a small shape instead of the 6B's")
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))
    if arguments.scheme:
        print(json.dumps(run(arguments.scheme, width, height, arguments.rounds, arguments.small)))
        return
    machine = detect()
    rows, left_out = [], []
    for scheme in SCHEMES if machine.fp8 else SCHEMES[:2]:
        command = [sys.executable, "-m", "bench.full_size", *sys.argv[1:], "--scheme", scheme]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            print(f"{scheme}: left out, its process ended with {done.returncode}", flush=True)
            left_out.append(scheme)
            continue
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    if not rows:
        sys.exit("no scheme could be measured")
    shape, small = ("small", "-small") if arguments.small else ("6B", "")
    note = f"one forward at the {shape} shapes, random weights"
    note += f"; left out, as its process failed: {', '.join(left_out)}" if left_out else ""
    publish(f"full-size-{machine.device}{small}", machine, rows, note)
    sys.exit(bool(left_out))


if __name__ == "__main__":
    main()
