"""This engine at all levels beside diffusers: prompt to pixels after loading, same folder, same noise, in one run.

    python -m bench.engine [--rounds 5] [--model FOLDER] [--dtype auto] [--size 512x512 ...]
    python -m bench.engine --markdown        the tables of the last run, for the README

Diffusers runs in the dtype in which it is fastest here, which is tried first; the engine in the one it would choose
here. All take turns (A B C A B C ...), each after one warm-up that is not counted, and encode the prompt anew each
time. Rows give medians and the median of the ratios round by round, which holds when the machine's speed drifts. A
level that draws as a lower one is not measured twice. Then the waterfall: the passes of the levels one on top of the
other, in turns as well. Written: bench/results/engine-cpu.json and waterfall-cpu.json.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from diffusers import ZImagePipeline

from bench import report
from bench.distance import Pixels, decibels, psnr
from bench.turns import spread, take_turns, times_as_fast
from bench.waterfall import climb, rungs_of
from tests import reference
from zturbo.engine.catalog import NANO, local_path
from zturbo.engine.engine import Engine, LoadOptions
from zturbo.engine.pipeline import Pipeline
from zturbo.engine.plan import DTYPES
from zturbo.params import ACCELERATIONS

PROMPT = "A T-Rex relaxing on a beach, lying on a sun lounger and wearing sunglasses."
SIZES = ((512, 512), (1024, 768))
STEPS = 8
SEED = 7
DISTANCE_SEEDS = (7, 8, 9, 10)
SURELY_SLOWER = 4
"""A dtype whose first picture takes so many times as long as the other's second is not given another."""
MIB = 2**20
SMALL: dict[str, Any] = {
    "dim": 384, "n_heads": 6, "n_kv_heads": 6, "n_layers": 10, "n_refiner_layers": 2, "cap_feat_dim": 256,
    "axes_dims": [16, 24, 24], "in_channels": 16,
}  # fmt: skip
Size = tuple[int, int]
Row = dict[str, Any]


def small_folder(folder: Path) -> Path:
    """A model of random weights in the embedded model's form: one token per 32x32 pixels, some 25 M parameters."""
    torch.manual_seed(0)
    pipe = reference.pipeline(
        transformer=reference.transformer(fresh=True, **SMALL),
        text_encoder=reference.text_encoder(hidden_size=256, intermediate_size=768, num_hidden_layers=6, head_dim=64),
        vae=reference.vae(block_out_channels=(24, 48, 96, 128, 192)),
    )
    return reference.save(pipe, folder)


def load(model: str, dtype: str = "auto") -> Engine:
    """An engine on the CPU that has all its levels ready; prompts are drawn as they are."""
    engine = Engine.load(
        model, LoadOptions(device="cpu", dtype=dtype, acceleration="none", build=True, expansion=False)
    )
    for level in ACCELERATIONS:
        print(f"level {level}: {engine.levels[level]}", flush=True)
    return engine


def draw(pipeline: Pipeline, prompt: str, size: Size, seed: int, steps: int = STEPS) -> Pixels:
    """Prompt to pixels, the caption encoded anew."""
    pipeline.forget_captions()
    *_, last = pipeline.denoise(pipeline.caption(prompt), *size, steps, seed)
    return pipeline.decode(last.latents)


class Diffusers:
    """Its pipeline over a folder, in one dtype."""

    def __init__(self, folder: Path, dtype: str) -> None:
        self.dtype = dtype
        self._pipe = ZImagePipeline.from_pretrained(folder, dtype=DTYPES[dtype])
        self._pipe.set_progress_bar_config(disable=True)

    def draw(self, size: Size, steps: int = STEPS) -> Pixels:
        """The same picture, from the same noise."""
        generator = torch.Generator("cpu").manual_seed(SEED)
        result = self._pipe(
            PROMPT, width=size[0], height=size[1], num_inference_steps=steps, guidance_scale=0.0, generator=generator
        )
        return np.asarray(result.images[0])


def fastest(folder: Path, size: Size) -> tuple[Diffusers, dict[str, float]]:
    """Diffusers in the dtype in which it is fastest here, and the seconds of one step, prompt to pixels, in each."""
    best, tried = Diffusers(folder, "float32"), {}
    best.draw(size, 1)
    tried[best.dtype] = _seconds(best, size)
    other = Diffusers(folder, "bfloat16")
    tried[other.dtype] = _seconds(other, size)
    if tried[other.dtype] < SURELY_SLOWER * tried[best.dtype]:  # that was its first picture
        tried[other.dtype] = _seconds(other, size)
    return (other if tried[other.dtype] < tried[best.dtype] else best), tried


def _seconds(theirs: Diffusers, size: Size) -> float:
    start = time.perf_counter()
    theirs.draw(size, 1)
    return time.perf_counter() - start


def compare(engine: Engine, theirs: Diffusers, size: Size, rounds: int) -> list[Row]:
    """Diffusers and every level at one size, in turns."""
    drawn = {name: engine.levels[name].drawn for name in ACCELERATIONS}
    pipelines = {name: engine.levels[name].pipeline for name in dict.fromkeys(drawn.values())}
    seconds = take_turns(
        {"diffusers": lambda: theirs.draw(size)}
        | {name: lambda one=one: draw(one, PROMPT, size, SEED) for name, one in pipelines.items()},  # type: ignore[misc]
        rounds,
    )
    pictures = {name: draw(one, PROMPT, size, SEED) for name, one in pipelines.items()}
    expected = theirs.draw(size)
    rows = [_row(size, "diffusers", "", theirs.dtype, seconds, "diffusers", expected, expected, pictures["none"])]
    for name in ACCELERATIONS:
        way = drawn[name]
        picture = pictures[way]
        rows.append(_row(size, name, way, engine.plan.dtype, seconds, way, picture, expected, pictures["none"]))
    return rows


def _row(
    size: Size,
    who: str,
    drawn: str,
    dtype: str,
    seconds: dict[str, list[float]],
    way: str,
    picture: Pixels,
    expected: Pixels,
    none: Pixels,
) -> Row:
    return {
        "size": f"{size[0]}x{size[1]}", "who": who, "drawn as": drawn, "dtype": dtype,
        "seconds": median(seconds[way]), "slowest/fastest": spread(seconds, way),
        "times as fast as diffusers": times_as_fast(seconds, way, "diffusers"),
        "times as fast as none": times_as_fast(seconds, way, "none"),
        "PSNR to diffusers": decibels(psnr(picture, expected)), "PSNR to none": decibels(psnr(picture, none)),
    }  # fmt: skip


def waterfall(engine: Engine, size: Size, rounds: int) -> list[Row]:
    """The passes of the levels one on top of the other, from eager arithmetic on; distances are of four pictures."""
    climbed = list(climb(engine.pipeline, rungs_of(engine.levels)))
    seconds = take_turns(
        {one.rung.name: lambda one=one: draw(one.pipeline, PROMPT, size, SEED) for one in climbed},  # type: ignore[misc]
        rounds,
    )
    none = [draw(engine.levels["none"].pipeline, PROMPT, size, seed) for seed in DISTANCE_SEEDS]
    rows, before = [], climbed[0]
    for one in climbed:
        pictures = [draw(one.pipeline, PROMPT, size, seed) for seed in DISTANCE_SEEDS]
        distance = min(psnr(picture, other) for picture, other in zip(pictures, none, strict=True))
        rows.append({
            "pass": one.rung.name, "level": one.rung.level, "lossless": "yes" if one.rung.lossless else "no",
            "seconds": median(seconds[one.rung.name]), "slowest/fastest": spread(seconds, one.rung.name),
            "times as fast as eager": times_as_fast(seconds, one.rung.name, "eager"),
            "times as fast as the row before": times_as_fast(seconds, one.rung.name, before.rung.name),
            "added MiB": one.added_bytes / MIB, "least PSNR to none": decibels(distance),
        })  # fmt: skip
        before = one
    return rows


def markdown() -> str:
    """The tables of the last run as the README shows them."""
    parts = []
    for name in ("engine-cpu", "waterfall-cpu"):
        path = report.RESULTS / f"{name}.json"
        if path.is_file():
            result = json.loads(path.read_text())
            parts.append(
                f"{report.table(result['rows'])}\n\n{result['note']} ([conditions](bench/results/{path.name}))"
            )
    return "\n\n".join(parts)


def run(folder: Path, dtype: str, sizes: Sequence[Size], rounds: int) -> None:
    """Measure, print and write both tables."""
    engine, (theirs, tried) = load(str(folder), dtype), fastest(folder, sizes[0])
    rows: list[Row] = []
    for size in sizes:
        rows += compare(engine, theirs, size, rounds)
        print(report.table(rows[-4:]), flush=True)
    probe = ", ".join(f"{name} {taken:.2f} s" for name, taken in tried.items())
    turns = (
        f"{folder.name}, prompt to pixels after loading, {STEPS} forwards, batch 1, medians of {rounds} rounds in turns"
    )
    report.publish("engine-cpu", engine.machine, rows, f"{turns}; diffusers' dtypes tried with one forward: {probe}")
    falls = waterfall(engine, sizes[0], rounds)
    note = (
        f"{sizes[0][0]}x{sizes[0][1]}, {engine.plan.dtype}, {turns}; the worst PSNR of {len(DISTANCE_SEEDS)} pictures"
    )
    report.publish("waterfall-cpu", engine.machine, falls, note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", type=Path, help="a diffusers folder; default: nano, else random weights of its form")
    parser.add_argument("--dtype", default="auto", help="of this engine; default: what it would choose here")
    parser.add_argument("--size", action="append", help="WIDTHxHEIGHT, may be repeated; default: 512x512 and 1024x768")
    parser.add_argument("--markdown", action="store_true", help="measure nothing, print the tables of the last run")
    arguments = parser.parse_args()
    if arguments.markdown:
        print(markdown())
        return
    sizes = [parse_size(size) for size in arguments.size] if arguments.size else SIZES
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.model or local_path(NANO) or small_folder(Path(scratch))
        run(folder, arguments.dtype, sizes, arguments.rounds)


def parse_size(text: str) -> Size:
    """WIDTHxHEIGHT in pixels."""
    width, height = map(int, text.split("x"))
    return width, height


if __name__ == "__main__":
    main()
