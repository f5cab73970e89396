"""The 6B's transformer blocks on this CPU, random weights: diffusers' beside ours at every level, in turns, in one run.

    python -m bench.blocks [--layers 2] [--size 512x512] [--dtype auto ...] [--rounds 3] [--loud] [--small]

A few layers at the published widths (3840, 30 heads, 10240 hidden), because all 30 want more memory and time than such
a machine has. One forward is the patches' embedding, the layers over image tokens and a caption of 32 slots, and the
last projection; a step cache and whatever else spans steps is not in it. Our last layer leaves out the caption's
rows, as always: with 2 layers that is 1.5% of the work, with 30 it is 0.1%.

The error is of one forward, relative, against eager fp32 arithmetic on the same weights. --loud gives the weights the
outliers of the trained model: in a few tokens (pads) one hidden value of each layer reaches some 6.6e4, where the
others are near one (docs/concepts/cuda.md). Written: bench/results/blocks-cpu.json (with --loud blocks-cpu-loud.json).
"""

import argparse
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor, nn

from bench import report
from bench.engine import Size, parse_size
from bench.gpu import diffusers_config
from bench.random_engine import Shapes, engine_of, shapes
from bench.turns import spread, take_turns, times_as_fast
from zturbo.engine.engine import Engine
from zturbo.engine.machine import detect
from zturbo.engine.plan import DTYPES, choose_dtype
from zturbo.models.transformer import Block, ZImageTransformer
from zturbo.params import ACCELERATIONS
from zturbo.weights.names import transformer_names

CAPTION_TOKENS, CAPTION_SLOTS = 20, 32
"""Slots beyond the tokens are pads."""
TIME = 0.3
LOUDEST = 6.6e4
LOUD_CHANNEL = 3
MIB = 2**20
Row = dict[str, Any]


def shape_of(layers: int, small: bool) -> Shapes:
    """The published widths in a few layers; what stands beside the transformer is tiny, because nothing runs it."""
    tiny, full = shapes(small=True), shapes(small=small)
    transformer = replace(full.transformer, n_layers=layers, n_refiner_layers=0)
    if small:
        transformer = replace(transformer, dim=256, n_heads=2)
    return replace(tiny, transformer=transformer)


@dataclass(slots=True)
class Given:
    """What every way computes one forward of."""

    latents: Tensor
    prompt_embeds: Tensor
    time: Tensor

    @classmethod
    def random(cls, transformer: ZImageTransformer, size: Size) -> "Given":
        generator, config = torch.Generator().manual_seed(0), transformer.config
        latents = torch.randn(1, config.in_channels, size[1] // 8, size[0] // 8, generator=generator)
        prompt = torch.randn(1, CAPTION_TOKENS, config.cap_feat_dim, generator=generator)
        return cls(latents, prompt, torch.tensor([TIME]))


@torch.inference_mode()
def ours(transformer: ZImageTransformer, given: Given) -> Callable[[], Tensor]:
    """One forward as the pipeline calls it: caption, modulation and rotations are there already."""
    dtype, patch = transformer.x_pad_token.dtype, transformer.config.patch_size
    latents = given.latents.to(dtype)
    caption = transformer.embed_caption(given.prompt_embeds.to(dtype))
    modulation = transformer.modulation(given.time)
    rows, columns = latents.shape[2] // patch, latents.shape[3] // patch
    rope = transformer.rope(rows, columns, caption.shape[1], latents.device)

    @torch.inference_mode()
    def forward() -> Tensor:
        return transformer(latents, caption, modulation, rope)

    return forward


def theirs(transformer: ZImageTransformer, given: Given) -> Callable[[], Tensor]:
    """One forward of diffusers' model with the same weights."""
    dtype = transformer.x_pad_token.dtype
    with torch.device("meta"):
        model = ZImageTransformer2DModel(**diffusers_config(transformer.config)).eval().requires_grad_(False)
    model.load_state_dict(named_as_published(transformer), strict=True, assign=True)
    latents, prompt = given.latents.to(dtype)[0][:, None], given.prompt_embeds.to(dtype)[0]

    @torch.inference_mode()
    def forward() -> Tensor:
        return model([latents], given.time, [prompt], return_dict=False)[0][0][:, 0][None]

    return forward


def named_as_published(transformer: ZImageTransformer) -> dict[str, Tensor]:
    """A transformer's weights under diffusers' names; views, so that they take no memory."""
    weights = dict(transformer.named_parameters())
    places = transformer_names(transformer.config, "diffusers").placements
    return {
        name: weights[place.parameter].detach()[place.first_row : place.first_row + place.shape[0]].view(place.shape)
        for name, place in places.items()
    }


@torch.inference_mode()
def make_loud(transformer: ZImageTransformer, given: Given) -> float:
    """Give the trained model's outliers to random weights, layer by layer; returns the largest hidden value.

    Massive activations have one direction of the stream. Pad tokens all come in with the same vector; one channel of
    each layer's gate and value looks along the pads' direction there, which the other tokens hardly have. The last
    layer's feed-forward has no caption rows, so there it is the last image token.
    """
    transformer.cap_pad_token.mul_(10 / transformer.cap_pad_token.std())  # it outlives what the layers add to it
    loudest = 0.0

    def turn_up(layer: nn.Linear, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0][0].float()  # (S, dim)
        pad = x[-1]
        direction = pad - x[:-CAPTION_SLOTS].mean(0)
        direction *= LOUDEST**0.5 / (direction @ pad)
        layer.weight[[LOUD_CHANNEL, layer.out_features // 2 + LOUD_CHANNEL]] = direction.to(layer.weight.dtype)

    def listen(_layer: nn.Linear, inputs: tuple[Tensor, ...]) -> None:
        nonlocal loudest
        loudest = max(loudest, float(inputs[0].abs().max()))

    feeds = [block.feed_forward for block in transformer.layers if isinstance(block, Block)]
    hooks = [feed.w13.register_forward_pre_hook(turn_up) for feed in feeds]
    hooks += [feed.w2.register_forward_pre_hook(listen) for feed in feeds]
    ours(transformer, given)()
    for hook in hooks:
        hook.remove()
    return loudest


def compare(engine: Engine, given: Given, rounds: int) -> list[Row]:
    """Diffusers and every level in one dtype, in turns."""
    eager = engine.pipeline.transformer
    expected = ours(eager if eager.x_pad_token.dtype == torch.float32 else copy.deepcopy(eager).float(), given)()
    levels = {name: engine.levels[name] for name in ACCELERATIONS}
    ways = {"diffusers": theirs(eager, given)}
    for level in levels.values():
        if level.drawn not in ways:
            ways[level.drawn] = ours(level.pipeline.transformer, given)
    seconds = take_turns(ways, rounds)

    def row(who: str, way: str, passes: str, added: int) -> Row:
        return {
            "dtype": engine.plan.dtype, "who": who, "drawn as": "" if who == way == "diffusers" else way,
            "passes": passes, "seconds a forward": median(seconds[way]), "slowest/fastest": spread(seconds, way),
            "times as fast as diffusers": times_as_fast(seconds, way, "diffusers"),
            "times as fast as none": times_as_fast(seconds, way, "none"),
            "relative error": float((ways[way]().float() - expected).norm() / expected.norm()),
            "added MiB": added / MIB,
        }  # fmt: skip

    rows = [row("diffusers", "diffusers", "", 0)]
    for name, level in levels.items():
        print(f"level {name}: {level}", flush=True)
        rows.append(row(name, level.drawn, ", ".join(level.passes) or "none", level.added_bytes))
    return rows


def run(layers: int, size: Size, dtypes: Sequence[str], rounds: int, loud: bool, small: bool) -> None:
    """All dtypes, one after another; print and write the table."""
    machine, rows, outliers = detect("cpu"), [], ""
    for dtype in dtypes:
        engine = engine_of(shape_of(layers, small), "cpu", dtype=choose_dtype(machine, dtype)[0])
        given = Given.random(engine.pipeline.transformer, size)
        if loud:
            outliers = f"; hidden values up to {make_loud(engine.pipeline.transformer, given):.1e}"
        rows += compare(engine, given, rounds)
        del engine
    shape = shape_of(layers, small).transformer
    note = (
        f"one forward of {shape.n_layers} layers of width {shape.dim}, {shape.n_heads} heads, {shape.hidden_dim} "
        f"hidden, at {size[0]}x{size[1]} with {CAPTION_SLOTS} caption slots, random weights{outliers}; "
        f"medians of {rounds} rounds in turns"
    )
    report.publish(f"blocks-cpu{'-loud' if loud else ''}{'-small' if small else ''}", machine, rows, note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--size", type=parse_size, default=(512, 512), help="WIDTHxHEIGHT")
    parser.add_argument("--dtype", choices=("auto", *DTYPES), action="append", help="may be repeated; default: auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loud", action="store_true", help="weights with the trained model's outliers")
    parser.add_argument("--small", action="store_true", help="a small width instead of the 6B's")
    arguments = parser.parse_args()
    dtypes = arguments.dtype or ["auto"]
    run(arguments.layers, arguments.size, dtypes, arguments.rounds, arguments.loud, arguments.small)


if __name__ == "__main__":
    main()
