"""This engine beside diffusers: prompt to pixels after loading, same folder, same dtype, same noise, in one run.

    python -m bench.engine [--rounds 5] [--model FOLDER]

The two take turns (A B A B ...), each after one warm-up that is not counted, and both encode the prompt anew each time.
The rows give medians and the median of the pairwise ratios, which holds when the machine's speed drifts.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from diffusers import ZImagePipeline

from bench.report import publish
from tests import reference
from zturbo.engine.catalog import NANO, local_path
from zturbo.engine.engine import Engine, LoadOptions
from zturbo.engine.plan import DTYPES

PROMPT = "A T-Rex relaxing on a beach, lying on a sun lounger and wearing sunglasses."
SIZES = ((512, 512), (1024, 768))
STEPS = 8
SMALL: dict[str, Any] = {
    "dim": 384, "n_heads": 6, "n_kv_heads": 6, "n_layers": 10, "n_refiner_layers": 2, "cap_feat_dim": 256,
    "axes_dims": [16, 24, 24], "in_channels": 16,
}  # fmt: skip


def small_folder(folder: Path) -> Path:
    """A model of random weights in the embedded model's form: one token per 32x32 pixels, some 25 M parameters."""
    torch.manual_seed(0)
    pipe = reference.pipeline(
        transformer=reference.transformer(fresh=True, **SMALL),
        text_encoder=reference.text_encoder(hidden_size=256, intermediate_size=768, num_hidden_layers=6, head_dim=64),
        vae=reference.vae(block_out_channels=(24, 48, 96, 128, 192)),
    )
    return reference.save(pipe, folder)


def interleave(one: Callable[[], object], other: Callable[[], object], rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of each call, in turns, after one warm-up of each."""
    seconds: tuple[list[float], list[float]] = ([], [])
    one()
    other()
    for _ in range(rounds):
        for draw, kept in zip((one, other), seconds, strict=True):
            start = time.perf_counter()
            draw()
            kept.append(time.perf_counter() - start)
    return seconds


def compare(folder: Path, dtype: str, size: tuple[int, int], rounds: int) -> dict[str, Any]:
    """One row: both engines at one dtype and size."""
    width, height = size
    pipeline = Engine.load(str(folder), LoadOptions(device="cpu", dtype=dtype)).pipeline
    theirs = ZImagePipeline.from_pretrained(folder, dtype=DTYPES[dtype])
    theirs.set_progress_bar_config(disable=True)

    def draw() -> np.ndarray[Any, Any]:
        pipeline.forget_captions()
        *_, last = pipeline.denoise(pipeline.caption(PROMPT), width, height, STEPS, 7)
        return pipeline.decode(last.latents)

    def draw_theirs() -> np.ndarray[Any, Any]:
        generator = torch.Generator("cpu").manual_seed(7)
        result = theirs(
            PROMPT, width=width, height=height, num_inference_steps=STEPS, guidance_scale=0.0, generator=generator
        )
        return np.asarray(result.images[0])

    difference = float(np.abs(draw().astype(int) - draw_theirs().astype(int)).mean())
    ours, their = interleave(draw, draw_theirs, rounds)
    ratios = [b / a for a, b in zip(ours, their, strict=True)]
    return {
        "size": f"{width}x{height}", "dtype": dtype, "zturbo s": median(ours), "diffusers s": median(their),
        "times faster": median(ratios), "mean difference (levels)": difference,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", type=Path, help="a diffusers folder; default: nano, else random weights of its form")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.model or local_path(NANO) or small_folder(Path(scratch))
        rows = []
        for dtype in ("float32", "bfloat16"):
            for size in SIZES:
                rows.append(compare(folder, dtype, size, arguments.rounds))
                print(rows[-1], flush=True)
        machine = Engine.load(str(folder), LoadOptions(device="cpu")).machine
    note = f"prompt to pixels after loading, {STEPS} forwards, batch 1, median of {arguments.rounds} rounds in turns"
    publish("engine-cpu", machine, rows, note)


if __name__ == "__main__":
    main()
