"""Passes one on top of the other: forks of one pipeline, each with one pass more than the one before."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from zturbo.acceleration.levels import LEVELS, Levels, Pass, Table, added_bytes
from zturbo.engine.pipeline import Pipeline
from zturbo.params import ACCELERATIONS


@dataclass(frozen=True, slots=True)
class Rung:
    """A set of passes: what its last one is called and whether that one is lossless; the level that has them."""

    name: str
    lossless: bool
    passes: tuple[Callable[[Pipeline], None], ...] = ()
    level: str = "high"


@dataclass(frozen=True, slots=True)
class Climbed:
    """A rung that was made: its fork, and the bytes of tensors that the fork has beside the eager pipeline's."""

    rung: Rung
    pipeline: Pipeline
    added_bytes: int


def climb(pipeline: Pipeline, rungs: Sequence[Rung]) -> Iterator[Climbed]:
    """Forks of a pipeline without passes; one that nobody keeps is gone before the next is made."""
    for rung in rungs:
        fork = pipeline.fork(rung.level)
        for change in rung.passes:
            change(fork)
        yield Climbed(rung, fork, added_bytes(fork, pipeline))
        del fork


def rungs_of(levels: Levels, table: Table | None = None) -> list[Rung]:
    """Eager, then every pass that an engine's levels have, in their order; what a lower level has is climbed once."""
    rungs = [Rung("eager", True, (), "none")]
    climbed: set[tuple[str, ...]] = {()}
    for level in ACCELERATIONS:
        named: dict[str, Pass] = {one.name: one for one in reversed((table or LEVELS)[level])}
        chosen = [named[name] for name in levels[level].passes]
        for count in range(1, len(chosen) + 1):
            passes = chosen[:count]
            names = tuple(one.name for one in passes)
            if names not in climbed:
                climbed.add(names)
                rungs.append(Rung(_title(rungs, names), passes[-1].lossless, tuple(o.apply for o in passes), level))
    return rungs


def _title(rungs: Sequence[Rung], names: tuple[str, ...]) -> str:
    """The last pass alone where it stands on the rung before, else all of them."""
    return f"+ {names[-1]}" if len(rungs[-1].passes) == len(names) - 1 else " + ".join(names)
