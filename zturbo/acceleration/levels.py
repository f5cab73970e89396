"""The acceleration levels `none`, `regular`, `high`: ordered lists of passes; only this file decides these words.

A pass changes a loaded pipeline from outside. It belongs to a level only where it was measured to pay on the device
at hand at a loss that the level allows (docs/log.md); a level without such a pass draws as `none`, and says so.
"""

from collections.abc import Callable
from dataclasses import dataclass

from zturbo.engine.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class Pass:
    """One change of a pipeline: its name, whether the pictures stay equal, when it applies, and what it does."""

    name: str
    lossless: bool
    applies: Callable[[Pipeline], bool]
    apply: Callable[[Pipeline], None]


LEVELS: dict[str, tuple[Pass, ...]] = {"none": (), "regular": (), "high": ()}


def accelerate(pipeline: Pipeline, level: str) -> str:
    """Apply a level's passes that fit this device, and say in words what was done."""
    chosen = [one for one in LEVELS[level] if one.applies(pipeline)]
    for one in chosen:
        one.apply(pipeline)
    if chosen:
        return ", ".join(one.name for one in chosen)
    return "the reference's arithmetic" if level == "none" else f"{level} draws as none: it has no pass yet"
