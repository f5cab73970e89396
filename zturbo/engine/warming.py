"""Draw the common shapes once before the first request: kernels are compiled and chosen, graphs are recorded.

What is compiled stays on the disk (`keep_compiled`), so the next start only loads it.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import torch

from zturbo.engine.pipeline import Pipeline
from zturbo.engine.writing import Writer

SIZES = ((1024, 1024), (512, 512), (1024, 768), (768, 1024))
"""Width and height in pixels; the first two are what most clients ask for."""
CAPTION_SLOTS = (32, 64, 96, 128, 160)
"""Short prompts, long ones, and expanded ones."""
FORWARDS = 2
"""The first runs as it is, the second is recorded."""
PROMPTS = ("a cat", "a cat " * 19)
"""Short ones and long ones are written with graphs of two lengths; 40 words would be left alone."""


def warm_up(
    pipeline: Pipeline,
    max_pixels: int,
    sizes: Iterable[tuple[int, int]] = SIZES,
    slots: Iterable[int] = CAPTION_SLOTS,
) -> int:
    """Draw every size with every number of caption slots, and decode it once; returns how many were drawn.

    Args:
        pipeline: of the level that most requests will have.
        max_pixels: larger sizes are left out.
    """
    drawn = 0
    captions = [_caption(pipeline, count) for count in slots if count <= pipeline.transformer.config.max_caption_tokens]
    for width, height in sizes:
        if width * height > max_pixels or width % pipeline.pixels_per_token or height % pipeline.pixels_per_token:
            continue
        for caption in captions:
            *_, step = pipeline.denoise(caption, width, height, FORWARDS, seed=0)
            drawn += 1
        pipeline.decode(torch.zeros_like(step.latents))
    return drawn


@torch.inference_mode()
def _caption(pipeline: Pipeline, count: int) -> torch.Tensor:
    """So many tokens refined as a prompt's are: that has kernels to compile and to choose as well."""
    width = pipeline.transformer.config.cap_feat_dim
    text = torch.zeros(1, count, width, dtype=pipeline.dtype, device=pipeline.device)
    return pipeline.transformer.embed_caption(text)


def warm_writer(writer: Writer) -> None:
    """Expand a short prompt and a long one, where that records what writes them."""
    if writer.decoder is not None:
        for prompt in PROMPTS:
            writer.expand(prompt)


def keep_compiled(environment: dict[str, str] | os._Environ[str] = os.environ) -> None:
    """Have Triton keep what it compiles beside the rest of this program's cache, unless the environment says where."""
    try:
        home = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home folder, as in some containers: it is left to Triton
        return
    environment.setdefault("TRITON_CACHE_DIR", str(home / "zturbo" / "triton"))
