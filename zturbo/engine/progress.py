"""What an engine tells while it draws; light, so that doors need not import the engine to listen to it."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from zturbo.expansion.expansion import Expansion

if TYPE_CHECKING:
    import numpy as np

    Pixels = np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]

Stage = Literal["queued", "expand", "encode", "denoise", "decode", "drawn", "done"]


@dataclass(frozen=True, slots=True)
class Picture:
    """One drawn picture: (H, W, 3) uint8, and the seed that draws it again alone."""

    pixels: "Pixels"
    seed: int


@dataclass(frozen=True, slots=True)
class Progress:
    """What becomes of a request: what `Engine.draw` is doing, and before that the queue's "queued".

    `image` counts from 0, `step` from 0 (nothing done yet) to `steps`.

    preview: the picture as the network expects it at this step, where one was asked for.
    pictures: with the stage "drawn" the picture just finished, with "done" all of them.
    timings: only with "done"; seconds by stage, and "total".
    expansion: with "encode", "drawn" and "done" what became of the prompt, where expansion was asked of the engine;
        its text is the first picture's.
    level: only with "done"; the acceleration level that really drew, where the engine has levels.
    position, expected_s: only with "queued"; how many waiting requests go before this one, and in about how many
        seconds it begins (None while no rate is known).
    """

    stage: Stage
    image: int
    images: int
    step: int
    steps: int
    preview: "Pixels | None" = None
    pictures: tuple[Picture, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)
    expansion: Expansion | None = None
    position: int | None = None
    expected_s: float | None = None
    level: str | None = None


def preview_steps(steps: int, previews: int) -> frozenset[int]:
    """The steps (from 1) that carry a preview: at most `previews` of them, evenly spread, never the last."""
    count = min(previews, steps - 1)
    return frozenset(round(steps * (i + 1) / (count + 1)) for i in range(count))
