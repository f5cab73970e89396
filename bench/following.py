"""Does prompt expansion make nano follow prompts worse? The same prompts and seeds with and without it, by its judge.

    python -m bench.following --judge nano-run/judge.pt [--prompts 200] [--model zturbo/embedded/nano]

The judge comes from `python -m nano.judge`, which also states how often it is right. Pictures are drawn by the
engine as a server draws them. Each prompt counts once with and once without, so the difference is of pairs; its
standard error says how much of it is chance. How much seeds of one prompt differ is measured as well.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bench.report import publish
from nano.captions import caption, says_where
from nano.config import PROFILES, Profile
from nano.evaluate import SEEDS, bare_prompt, bare_scene, plain_prompt, spread, unseen
from nano.judge import Judge, Verdict, compare, open_judge, rates, seen_in
from nano.world import CREATURES, Scene
from zturbo.engine.engine import Engine
from zturbo.params import ACCELERATIONS, GenerationParams

Row = dict[str, bool]
VARIED = 16  # prompts, at most, whose seeds are compared with each other


def prompts(profile: Profile, count: int) -> dict[str, list[tuple[str, Scene]]]:
    """Three ways to ask for scenes: one plain sentence that names everything, captions as varied as in training, and
    few words about one creature: those are asked first, and what is not said in them shall not be drawn.
    """
    rng = np.random.default_rng((profile.seed, 7654321))
    scenes = (scene for _, scene in unseen(profile, sys.maxsize, plain_prompt) if scene.subjects[0].kind in CREATURES)
    return {
        "plain": list(unseen(profile, count, plain_prompt)),
        "free": list(unseen(profile, count, lambda scene: caption(scene, rng))),
        "bare": [(bare_prompt(scene), bare_scene(scene)) for scene in islice(scenes, count)],
    }


def right(seen: Verdict, prompt: str, scene: Scene) -> Row:
    """What is right in a picture; where the prompt asks for no place, any is."""
    asked = Verdict.of(scene)
    return compare(seen, asked if says_where(prompt) else replace(asked, places=seen.places))


def follow(
    engine: Engine, judge: Judge, rows: Sequence[tuple[str, Scene]], way: Mapping[str, object]
) -> tuple[list[Row], int]:
    """What is right in the picture of each prompt, and how many prompts were expanded.

    way: the members of a request beside prompt and seed.
    """
    found: list[Row] = []
    expanded = 0
    for seed, (prompt, scene) in enumerate(rows, start=1):
        *_, done = engine.draw(GenerationParams.parse({**way, "prompt": prompt, "seed": seed}))
        expanded += done.expansion is not None and done.expansion.applied
        found.append(right(seen_in(judge, done.pictures[0].pixels), prompt, scene))
    return found, expanded


def seeds_differ(engine: Engine, rows: Sequence[tuple[str, Scene]], way: Mapping[str, object]) -> float:
    """How far apart the pictures of one prompt at several seeds are, of 255, in the mean of the prompts."""
    apart = []
    for prompt, _ in rows:
        request = GenerationParams.parse({**way, "prompt": prompt, "seed": 1, "num_images": SEEDS})
        *_, done = engine.draw(request)
        apart.append(spread([picture.pixels for picture in done.pictures]))
    return float(np.mean(apart))


def difference(without: Sequence[Row], with_it: Sequence[Row]) -> tuple[float, float]:
    """Mean over the attributes of what is right, with less without, in points; and the standard error of the pairs."""
    pairs = np.array([[np.mean(list(row.values())) for row in rows] for rows in (without, with_it)])
    gain = 100 * (pairs[1] - pairs[0])
    return float(gain.mean()), float(gain.std(ddof=1) / len(gain) ** 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", type=Path, required=True, help="judge.pt of a training run")
    parser.add_argument("--profile", choices=sorted(PROFILES), default="cpu", help="of that run")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--acceleration", choices=ACCELERATIONS, default="none")
    arguments = parser.parse_args()
    profile, engine = PROFILES[arguments.profile], Engine.load(arguments.model)
    judge = open_judge(profile, arguments.judge)
    table: list[dict[str, Any]] = []
    for name, rows in prompts(profile, arguments.prompts).items():
        both: list[list[Row]] = []
        for expand in (False, True):
            way = {
                "size": f"{arguments.size}x{arguments.size}",
                "acceleration": arguments.acceleration,
                "prompt_expansion": expand,
            }
            found, expanded = follow(engine, judge, rows, way)
            both.append(found)
            gain, error = difference(both[0], found)
            table.append(
                {"prompts": name, "expansion": "on" if expand else "off", "expanded": expanded}
                | {key: round(value, 1) for key, value in rates(found).items()}
                | {"mean gain, points": round(gain, 2), "standard error": round(error, 2)}
                | {"seeds differ": round(seeds_differ(engine, rows[:VARIED], way), 1)}
            )
            print(table[-1], flush=True)
    note = (
        f"percent right at {arguments.size}x{arguments.size}, 8 steps, acceleration {arguments.acceleration}; "
        f"seeds differ: a pixel of two of {SEEDS} seeds, seen from afar, of 255, {VARIED} prompts"
    )
    publish("following", engine.machine, table, note)


if __name__ == "__main__":
    main()
