"""Everything that wants a CUDA machine, in one command under ten minutes and without a network.

    python -m bench.gpu [--device cuda|cpu] [--small]

1. the parity tests in bf16 on the device (they need diffusers, perhaps from a wheel on PYTHONPATH)
2. the device's own matrix rate, which the other figures are a share of
3. the denoiser at the 6B's shapes with random weights: seconds of 8 forwards by size and weights, diffusers' beside it
4. text encoder and VAE at their published shapes
Writes bench/results/gpu.json. `--device cpu --small` runs the same code at a small size.
"""

import argparse
import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from bench.full_size import CAPTION_TOKENS, config, flop, measure, random_transformer
from bench.report import publish
from zturbo.acceleration.quantize import Scheme
from zturbo.engine.machine import Machine, detect
from zturbo.engine.plan import GIB
from zturbo.models.configs import TextEncoderConfig, TransformerConfig, VaeConfig
from zturbo.models.text_encoder import Qwen3
from zturbo.models.vae import Decoder
from zturbo.weights import published

SIZES = ((512, 512), (1024, 768), (1440, 512), (1024, 1024))
SMALL_SIZES = ((128, 128), (256, 128))
STEPS = 8
PARITY_TIMEOUT_S = 240
NEEDED_BY_TESTS = ("diffusers", "transformers", "pytest", "hypothesis")


def parity(*selection: str) -> tuple[str, bool]:
    """Run the tests that need a device; their closing line, and whether some ran and all of those passed.

    Args:
        selection: pytest's arguments that choose the tests; default: all that are marked `gpu`.
    """
    missing = [name for name in NEEDED_BY_TESTS if importlib.util.find_spec(name) is None]
    if missing:
        return f"not run: {', '.join(missing)} not installed (put the wheels on PYTHONPATH)", False
    chosen = selection or ("-m", "gpu", "tests")
    # A library's deprecation is not what is asked here, and versions differ on such machines: -W default.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", *chosen]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PARITY_TIMEOUT_S
    )
    if done.returncode:
        print(done.stdout[-4000:])
    line = done.stdout.strip().splitlines()[-1]
    return line, done.returncode == 0 and " passed" in line


def seconds(call: Callable[[], object], device: torch.device, rounds: int = 10) -> float:
    """Median seconds of a call after two warm-ups."""
    taken = []
    for _ in range(rounds + 2):
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        taken.append(time.perf_counter() - start)
    return median(taken[2:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(device: torch.device, side: int) -> float:
    """Floating-point operations a second of a bf16 product of two random square matrices."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / seconds(lambda: a @ b, device)


def denoiser_rows(device: torch.device, small: bool, schemes: tuple[str, ...], rate: float) -> list[dict[str, Any]]:
    """Eight forwards at each size, for each form of the weights."""
    shape, rows = config(small), []
    for scheme in schemes:
        quantization: Scheme | None = None if scheme == "bf16" else scheme  # type: ignore[assignment]
        model = random_transformer(shape, quantization, device)
        for width, height in SMALL_SIZES if small else SIZES:
            _forget(device)
            taken = median(measure(model, width, height, STEPS, rounds=3))
            achieved = STEPS * flop(shape, width, height) / taken
            rows.append(_row("zturbo", scheme, f"{width}x{height}", taken, achieved / rate, device))
            print(rows[-1], flush=True)
        del model
        _forget(device)
    return rows


def diffusers_rows(device: torch.device, small: bool, rate: float) -> list[dict[str, Any]]:
    """The same forwards through diffusers' own transformer, eager, where it is installed."""
    if importlib.util.find_spec("diffusers") is None:
        return []
    from diffusers import ZImageTransformer2DModel

    shape, rows = config(small), []
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = ZImageTransformer2DModel(**_diffusers_config(shape)).eval().requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    for width, height in SMALL_SIZES if small else SIZES:
        latents = torch.randn(shape.in_channels, 1, height // 8, width // 8, device=device, dtype=torch.bfloat16)
        caption = torch.randn(CAPTION_TOKENS, shape.cap_feat_dim, device=device, dtype=torch.bfloat16)
        time_now = torch.tensor([0.3], device=device)

        @torch.inference_mode()
        def forward(image: torch.Tensor = latents, text: torch.Tensor = caption, t: torch.Tensor = time_now) -> None:
            model([image], t, [text], return_dict=False)

        taken = STEPS * seconds(forward, device, rounds=5)
        achieved = STEPS * flop(shape, width, height) / taken
        rows.append(_row("diffusers", "bf16", f"{width}x{height}", taken, achieved / rate, device))
        print(rows[-1], flush=True)
    return rows


def _diffusers_config(shape: TransformerConfig) -> dict[str, Any]:
    changed = {"dim": shape.dim, "n_heads": shape.n_heads, "n_kv_heads": shape.n_heads, "n_layers": shape.n_layers}
    members = {name: value for name, value in published.TRANSFORMER.items() if not name.startswith("_")}
    return members | changed | {"cap_feat_dim": shape.cap_feat_dim}


def companion_rows(device: torch.device, small: bool) -> list[dict[str, Any]]:
    """Text encoder (100 tokens) and VAE decoder (1024x1024) of the published shapes, random weights."""
    encoder_config = dict(published.TEXT_ENCODER) | ({"num_hidden_layers": 3, "vocab_size": 1000} if small else {})
    decoder_config = VaeConfig.from_dict(published.VAE, "published")
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        encoder = Qwen3(TextEncoderConfig.from_dict(encoder_config, "published")).eval().requires_grad_(False)
        decoder = Decoder(decoder_config).eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.set_default_dtype(torch.float32)
    side = 16 if small else 128
    ids = torch.randint(0, 1000, (1, CAPTION_TOKENS), device=device)
    latents = torch.randn(1, decoder_config.latent_channels, side, side, device=device, dtype=torch.bfloat16)
    with torch.inference_mode():
        text = seconds(lambda: encoder.encode(ids), device, rounds=5)
        picture = seconds(lambda: decoder(latents.contiguous(memory_format=torch.channels_last)), device, rounds=5)
    rows = [
        _row("text encoder", "bf16", f"{CAPTION_TOKENS} tokens", text, None, device),
        _row("vae decoder", "bf16", f"{8 * side}x{8 * side}", picture, None, device),
    ]
    print(*rows, sep="\n", flush=True)
    return rows


def _row(what: str, weights: str, size: str, taken: float, share: float | None, device: torch.device) -> dict[str, Any]:
    peak = torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else 0.0
    return {
        "what": what, "weights": weights, "size": size, "seconds": taken,
        "share of matrix rate": "" if share is None else f"{share:.0%}", "peak GiB": peak,
    }  # fmt: skip


def _forget(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def schemes(machine: Machine) -> tuple[str, ...]:
    """Forms of the weights that this device has products for."""
    return ("bf16", "fp8", "int8") if machine.fp8 else ("bf16", "int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    machine = detect(arguments.device)
    device = torch.device(arguments.device)
    line, passed = parity()
    print(f"parity: {line}", flush=True)
    rate = matrix_rate(device, 256 if arguments.small else 8192)
    print(f"matrix rate: {rate / 1e12:.1f} TFLOP/s", flush=True)
    note = f"{STEPS} forwards, batch 1, random weights; matrix rate {rate / 1e12:.1f} TFLOP/s; parity tests: {line}"
    name, rows = "gpu-small" if arguments.small else "gpu", list[dict[str, Any]]()
    parts: list[Callable[[], list[dict[str, Any]]]] = [
        lambda: denoiser_rows(device, arguments.small, schemes(machine), rate),
        lambda: companion_rows(device, arguments.small),
        lambda: diffusers_rows(device, arguments.small, rate),
    ]
    for part in parts:
        _forget(device)
        rows += part()
        publish(name, machine, rows, note)  # each time anew: what was measured is kept should the next part fail
    if not passed:
        sys.exit(1)


if __name__ == "__main__":
    main()
