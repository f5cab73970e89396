"""A whole engine of random weights: the published 6B's shapes, or tiny ones that show the same code working.

    python -m bench.random_engine        serves it as `zturbo serve` does, with the settings of the environment

Its pictures are noise; times, memory and distances between levels do not ask for more. BENCH_SMALL=1 takes the tiny
shapes, and then a CPU runs the passes for CUDA too: kernels interpreted, graphs played by a stand-in.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bench.full_size import CAPTION_TOKENS, random_transformer
from zturbo.acceleration import graphs
from zturbo.acceleration.attention import choose_attention, use_attention
from zturbo.acceleration.levels import FP8, FUSED, GRAPHS, INT8, LEVELS, Levels, Pass, Table
from zturbo.engine.catalog import NANO, local_path
from zturbo.engine.engine import Engine, ModelInfo
from zturbo.engine.machine import detect
from zturbo.engine.pipeline import Pipeline
from zturbo.engine.plan import HEADROOM, ModelSize, choose_plan
from zturbo.engine.tokenizer import PromptTokenizer
from zturbo.models.configs import SchedulerConfig, TextEncoderConfig, TransformerConfig, VaeConfig
from zturbo.models.text_encoder import Qwen3
from zturbo.models.vae import AutoencoderKL
from zturbo.weights import published

if TYPE_CHECKING:
    from starlette.applications import Starlette


@dataclass(frozen=True, slots=True)
class Shapes:
    """What is built and what is measured on it."""

    transformer: TransformerConfig
    text_encoder: TextEncoderConfig
    vae: VaeConfig
    sizes: tuple[tuple[int, int], ...]
    caption_tokens: int
    steps: int
    rounds: int
    """Measured, after `warm` ones that are not: the first compiles, the second is recorded."""
    warm: int


def shapes(small: bool) -> Shapes:
    """The published shapes, or tiny ones."""
    transformer = TransformerConfig.from_dict(published.TRANSFORMER, "published")
    text = dict(published.TEXT_ENCODER)
    vae = VaeConfig.from_dict(published.VAE, "published")
    if not small:
        encoder = TextEncoderConfig.from_dict(text, "published")
        return Shapes(transformer, encoder, vae, ((512, 512), (1024, 768), (1024, 1024)), CAPTION_TOKENS, 8, 5, 2)
    tiny = replace(transformer, dim=128, n_heads=1, n_layers=1, n_refiner_layers=0, cap_feat_dim=64)
    text |= {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 10_000}  # fmt: skip
    vae = replace(vae, block_out_channels=(32,) * 7, layers_per_block=1)  # one token for 128x128 pixels
    encoder = TextEncoderConfig.from_dict(text, "tiny")
    return Shapes(tiny, encoder, vae, ((512, 512),), caption_tokens=20, steps=1, rounds=1, warm=0)


def random_engine(device: str, small: bool, table: Table | None = None) -> Engine:
    """An engine with the plan, the attention and the levels that a loaded model would have here."""
    return engine_of(shapes(small), device, table or (interpreted() if device == "cpu" else LEVELS))


def engine_of(shape: Shapes, device: str, table: Table = LEVELS, dtype: str = "bfloat16") -> Engine:
    """The same for any shapes and dtype."""
    machine = detect(device)
    size = ModelSize.of(shape.transformer, shape.text_encoder, shape.vae)
    plan = choose_plan(machine, size, dtype, "none")
    folder = local_path(NANO)
    assert folder is not None
    pipeline = random_pipeline(torch.device(plan.device), shape, folder / "tokenizer", plan.torch_dtype)
    heads, head = shape.transformer.n_heads, shape.transformer.dim // shape.transformer.n_heads
    attend, reason = choose_attention(pipeline.device, pipeline.dtype, heads, head)
    use_attention(pipeline.transformer, attend)
    spare = int(machine.device_free * HEADROOM[machine.device]) - plan.device_bytes
    levels = Levels(pipeline, spare, table)
    info = ModelInfo("random", "random@0", Path(), False, "random weights")
    return Engine(pipeline, info, machine, replace(plan, attention=reason), levels)


def random_pipeline(
    device: torch.device, shape: Shapes, tokenizer: Path, dtype: torch.dtype = torch.bfloat16
) -> Pipeline:
    """All networks in one dtype, filled on the device."""
    transformer = random_transformer(shape.transformer, None, device, dtype)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            encoder, vae = Qwen3(shape.text_encoder), AutoencoderKL(shape.vae)
    finally:
        torch.set_default_dtype(torch.float32)
    for network in (encoder, vae):
        network.eval().requires_grad_(False)
        _quieten(network)
    del vae.encoder
    vae.decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    scheduler = SchedulerConfig(shift=3.0, num_train_timesteps=1000)
    return Pipeline(PromptTokenizer(tokenizer), encoder, transformer, vae, scheduler)


def _quieten(network: nn.Module) -> None:
    """Weights whose products keep their size, so that no network ends in infinities."""
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, parameter[0].numel() ** -0.5)


class Again:
    """In the place of a CUDA graph on a CPU: does the work again, into the same memory."""

    def __init__(self, work: Any) -> None:
        self.work, self.result = work, work()

    def replay(self) -> None:
        """Do it again."""
        self.result.copy_(self.work())


class StandIn:
    """In the place of `graphs.CudaRecorder`."""

    def record(self, work: Any) -> Again:
        """Keep the work."""
        return Again(work)


def interpreted() -> Table:
    """The passes for CUDA as a CPU can run them: for showing that they work, not for speed."""

    def here(one: Pass, **changes: Any) -> Pass:
        return replace(one, devices=("cpu",), bytes_needed=lambda _pipeline: 0, **changes)

    fused = here(FUSED, unfit=lambda _pipeline: None)
    int8, fp8 = here(INT8, unfit=lambda _pipeline: None), here(FP8, unfit=lambda _pipeline: None)
    recorded = here(
        GRAPHS,
        unfit=lambda _pipeline: None,
        apply=lambda pipeline: graphs.replay(pipeline.transformer, StandIn()),
    )
    return {"none": (fused, recorded), "regular": (int8, fused, recorded), "high": (fp8, fused, recorded)}


def make_app() -> "Starlette":
    """The server's application round a random engine; called in the worker process."""
    from zturbo.api.serve import make_app_of

    return make_app_of(lambda config: _ready(config.device, config.acceleration))


def _ready(device: str, level: str) -> Engine:
    engine = random_engine(device, small="BENCH_SMALL" in os.environ, table=LEVELS)  # interpreted, it takes seconds
    _ = engine.levels[level]
    engine.warm_up()
    return engine


if __name__ == "__main__":
    from zturbo.api.serve import run
    from zturbo.config import load_config

    run(load_config(), None, "bench.random_engine:make_app")
