"""An engine that draws at once, for servers whose every other part is real. Imports no test library."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from zturbo.engine.progress import Picture, Progress
from zturbo.errors import Cancelled
from zturbo.params import MAX_SIDE, GenerationParams


@dataclass
class Model:
    name: str = "instant"
    version: str = "instant@0"
    description: str = "a gradient by seed"
    is_nano: bool = False


@dataclass
class Instant:
    """Draws gradients; a closed `gate` holds it between two steps, and the prompt "break" breaks it.

    max_side: pixels; larger pictures are drawn no larger than this, where encoding is not what is looked at.
    """

    model: Model = field(default_factory=Model)
    writer: None = None
    gate: threading.Event = field(default_factory=threading.Event)
    max_side: int = MAX_SIDE
    draws: int = 0
    steps_drawn: int = 0
    lanes: int = 1
    abreast: int = 1

    def draw(
        self, params: GenerationParams, cancelled: Callable[[], bool] = lambda: False, previews: int = 0
    ) -> Iterator[Progress]:
        images, steps = params.num_images, params.steps
        self.draws += 1
        yield Progress("encode", 0, images, 0, steps)
        for image, step in product(range(images), range(1, steps + 1)):
            self.gate.wait(10)
            if cancelled():
                raise Cancelled("cancelled")
            if params.prompt == "break":
                raise RuntimeError("secret of the inside")
            self.steps_drawn += 1
            preview = self.pixels(params, params.seed + image) if step <= previews else None
            yield Progress("denoise", image, images, step, steps, preview)
        pictures = tuple(Picture(self.pixels(params, params.seed + i), params.seed + i) for i in range(images))
        timings = {"encode": 0.0, "denoise": 0.0, "decode": 0.0, "total": 0.0}
        yield Progress("done", images - 1, images, steps, steps, None, pictures, timings)

    def pixels(self, params: GenerationParams, seed: int) -> Any:
        width, height = min(params.width, self.max_side), min(params.height, self.max_side)
        row = (np.arange(width) + seed % 256) % 256
        return np.broadcast_to(row[None, :, None], (height, width, 3)).astype(np.uint8)
