"""How far `regular` and `high` draw from `none`: the same unseen prompts at the same seeds, picture by picture.

    python -m bench.quality [--pictures 64] [--size 512x512] [--model nano] [--dtype auto]
                            [--judge RUN/judge.pt --profile cpu]

Prompts are sentences about fresh scenes of nano's recipe. PSNR and SSIM (`distance`) of each pair; LPIPS is not
measured, because its weights are not at hand. The judge, which `python -m nano.judge` trains, says how often each
level draws what was asked for; a loss that a distance shows but the judge does not is one that few would see.
Written: bench/results/quality-cpu.json, and the pair furthest apart by PSNR (none, the level, eight times the
difference) as quality-cpu-worst.png. A level that draws as a lower one is shown as that and not drawn again.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench import report
from bench.distance import Pixels, decibels, psnr, ssim
from bench.engine import STEPS, Size, draw, load, parse_size
from nano.config import PROFILES
from nano.evaluate import plain_prompt, unseen
from nano.judge import Judge, Verdict, compare, open_judge, rates, seen_in
from nano.world import Scene
from zturbo.engine.engine import Engine
from zturbo.params import ACCELERATIONS
from zturbo.pictures import encode

LOUDER = 8
"""How many times the saved difference is the real one."""
Row = dict[str, Any]


@dataclass(slots=True)
class Pairs:
    """A level's pictures beside those of `none`."""

    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    worst: tuple[Pixels, Pixels] | None = None

    def add(self, none: Pixels, other: Pixels) -> None:
        """Another pair."""
        distance = psnr(none, other)
        if self.worst is None or distance < min(self.psnr):
            self.worst = (none, other)
        self.psnr.append(distance)
        self.ssim.append(ssim(none, other))

    def row(self) -> Row:
        """Median, fifth percentile and worst; `equal` where that pair is."""
        middles = {"median": 0.5, "5%": 0.05, "worst": 0.0}
        row: Row = {"equal pictures": sum(value == math.inf for value in self.psnr)}
        for name, share in middles.items():
            row[f"PSNR {name}"] = decibels(float(np.quantile(self.psnr, share, method="lower")))
        for name, share in middles.items():
            row[f"SSIM {name}"] = float(np.quantile(self.ssim, share, method="lower"))
        return row


@dataclass(slots=True)
class Measured:
    """What every level that is drawn by itself did."""

    pairs: dict[str, Pairs]
    seen: dict[str, list[dict[str, bool]]]
    """By the judge, where there is one: which attributes of each picture are right."""


def measure(
    engine: Engine, work: Sequence[tuple[str, Scene]], size: Size, judge: Judge | None = None, steps: int = STEPS
) -> Measured:
    """Draw each prompt once at each level, the number of the prompt being its seed."""
    names = list(dict.fromkeys(engine.levels[name].drawn for name in ACCELERATIONS))
    measured = Measured({name: Pairs() for name in names}, {name: [] for name in names})
    for number, (prompt, scene) in enumerate(work, 1):
        pictures = {name: draw(engine.levels[name].pipeline, prompt, size, number, steps) for name in names}
        for name, picture in pictures.items():
            measured.pairs[name].add(pictures["none"], picture)
            if judge is not None:
                measured.seen[name].append(compare(seen_in(judge, picture), Verdict.of(scene)))
    return measured


def rows_of(engine: Engine, measured: Measured) -> list[Row]:
    """One row a level."""
    rows: list[Row] = []
    for name in ACCELERATIONS:
        level = engine.levels[name]
        row: Row = {"level": name, "drawn as": level.drawn, "passes": ", ".join(level.passes) or "none"}
        row |= measured.pairs[level.drawn].row()
        if seen := measured.seen[level.drawn]:
            row.update({f"judge: {title} %": rate for title, rate in rates(seen).items() if title != "pictures"})
        rows.append(row)
    return rows


def save_worst(measured: Measured, path: Path) -> str:
    """Write the pair furthest apart; which level drew it, in words."""
    name, pairs = min(measured.pairs.items(), key=lambda one: min(one[1].psnr))
    assert pairs.worst is not None
    none, other = pairs.worst
    difference = np.clip(LOUDER * np.abs(none.astype(int) - other.astype(int)), 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(np.concatenate((none, other, difference), axis=1), "png", None))
    return "every picture is equal" if min(pairs.psnr) == math.inf else f"the worst pair is of {name} ({path.name})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=64, help="prompts")
    parser.add_argument("--size", type=parse_size, default=(512, 512), help="WIDTHxHEIGHT")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--judge", type=Path, help="checkpoint of the judge that nano.judge trains")
    parser.add_argument("--profile", choices=sorted(PROFILES), default="cpu", help="whose world prompts are about")
    arguments = parser.parse_args()
    profile, size = PROFILES[arguments.profile], arguments.size
    judge = open_judge(profile, arguments.judge) if arguments.judge else None
    engine = load(arguments.model, arguments.dtype)
    work = list(unseen(profile, arguments.pictures, plain_prompt))
    measured = measure(engine, work, size, judge, arguments.steps)
    worst = save_worst(measured, report.RESULTS / "quality-cpu-worst.png")
    note = (
        f"{engine.model.name} in {engine.plan.dtype}, {len(work)} unseen prompts at {size[0]}x{size[1]}, "
        f"{arguments.steps} forwards, each level beside none at the same seeds; {worst}; LPIPS not measured: no weights"
    )
    report.publish("quality-cpu", engine.machine, rows_of(engine, measured), note)


if __name__ == "__main__":
    main()
