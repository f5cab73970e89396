"""Measure what a run's weights draw: an automatic judge looks at pictures of prompts that were never trained on.

Wordings are fresh, and scenes drawn by seeds of their own; as the world is small, some of these are the training's too.

    python -m nano.evaluate --profile cpu --folder RUN --output docs/images/nano

The judge (judge.py) is trained first, where it is not yet; its own accuracy on held-out drawings is reported first,
because no figure of the model can be trusted beyond it. Written: `figures.json`, `sheet.png`, `prompts.txt`,
and `sizes.png` where a profile trains on large sizes.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from nano.captions import PLURALS, caption, with_article
from nano.config import Folders, Profile
from nano.judge import (
    ASKED_SIZE,
    HELD_OUT,
    Judge,
    Verdict,
    compare,
    judge_accuracy,
    rates,
    seen_in,
    train_judge,
)
from nano.picture import draw
from nano.sheet import EXTREMES, Painter, arrange, load_painter, save_sizes, write_png
from nano.training import arguments, opened
from nano.world import Scene, Subject, World, sample_scene

SEEDS = 4  # of one prompt, that are compared with each other
GLANCE = 64  # pixels: side at which they are compared
NUMBERS = {2: "two", 3: "three", 4: "four"}
WEATHERS = {"clear": "", "rain": " in the rain", "fog": " in the fog"}
THERE = {
    "beach": "on a beach",
    "sea": "on the sea",
    "meadow": "in a meadow",
    "forest": "in a forest",
    "snow": "in the snow",
    "city": "in a city",
    "space": "in space",
    "mountains": "in the mountains",
    "desert": "in a desert",
    "underwater": "under water",
    "room": "in a room",
    "plain": "on a plain background",
}


def plain_prompt(scene: Scene) -> str:
    """A prompt that names everything the judge asks about, in one plain wording."""
    parts = []
    for subject in scene.subjects:
        one = with_article(f"{subject.colour} {subject.kind}")
        noun = PLURALS.get(subject.kind, f"{subject.kind}s")
        named = one if subject.count == 1 else f"{NUMBERS[subject.count]} {subject.colour} {noun}"
        worn = (
            f" wearing {' and '.join(item if item == 'sunglasses' else 'a ' + item for item in subject.worn)}"
            if subject.worn
            else ""
        )
        lounger = " lying on a sun lounger" if subject.on_lounger else ""
        place = (
            "" if subject.count > 1 else " in the middle" if subject.place == "centre" else f" on the {subject.place}"
        )
        parts.append(f"{named}{lounger}{worn}{place}")
    when = {"day": "", "sunset": " at sunset", "night": " at night"}[scene.time] if scene.setting != "space" else ""
    return f"{' and '.join(parts)} {THERE[scene.setting]}{when}{WEATHERS[scene.weather]}"


def bare_prompt(scene: Scene) -> str:
    """What people type first: a colour, a kind and a setting, and not a word about place, time or clothes."""
    subject = scene.subjects[0]
    return f"{with_article(f'{subject.colour} {subject.kind}')} {THERE[scene.setting]}"


def bare_scene(scene: Scene) -> Scene:
    """What nobody is surprised to get for its `bare_prompt`: one thing, standing there by day, with nothing on."""
    first = scene.subjects[0]
    time = "night" if scene.setting == "space" else "day"
    return replace(scene, time=time, weather="clear", subjects=(Subject(first.kind, first.colour),))


_TREX, _CAT, _DOG, _BIRD = (
    Subject(kind, colour)
    for kind, colour in (("t-rex", "green"), ("cat", "orange"), ("dog", "brown"), ("bird", "blue"))
)
_LOUNGE: dict[str, Any] = {"on_lounger": True, "pose": "lying"}
PARAPHRASES: tuple[tuple[str, Scene], ...] = (
    (
        "holiday snapshot: green dino chilling by the ocean on a deck chair, shades on",
        Scene("beach", "day", (replace(_TREX, worn=("sunglasses",), **_LOUNGE),), 0),
    ),
    (
        "imagine an orange kitty that has sunglasses on, it sits somewhere in the grass",
        Scene("meadow", "day", (replace(_CAT, pose="sitting", worn=("sunglasses",)),), 0),
    ),
    ("it is winter and a brown puppy has put on a scarf", Scene("snow", "day", (replace(_DOG, worn=("scarf",)),), 0)),
    (
        "somewhere in town there's a red automobile at left and a yellow cottage at right",
        Scene("city", "day", (Subject("car", "red", "left"), Subject("house", "yellow", "right")), 0),
    ),
    ("a trio of purple balloons above the fields", Scene("meadow", "day", (Subject("balloon", "purple", count=3),), 0)),
    (
        "couple of white sailing boats far out on the ocean, evening",
        Scene("sea", "sunset", (Subject("boat", "white", count=2),), 0),
    ),
    (
        "astronaut robot, white, on the moon, wears a hat",
        Scene("space", "night", (Subject("robot", "white", worn=("hat",)),), 0),
    ),
    ("deep in the woods after dark stands one pink tree", Scene("forest", "night", (Subject("tree", "pink"),), 0)),
    ("blue birdie with a hat enjoying a snowy day", Scene("snow", "day", (replace(_BIRD, worn=("hat",)),), 0)),
    ("black cat, night, skyscrapers", Scene("city", "night", (replace(_CAT, colour="black"),), 0)),
    (
        "a huge red flower growing in the sand by the sea",
        Scene("beach", "day", (Subject("flower", "red", size="big"),), 0),
    ),
    ("orange goldfish splashing around in the ocean", Scene("sea", "day", (Subject("fish", "orange"),), 0)),
    (
        "dog in brown sunbathing on a beach chair, wearing shades and a hat",
        Scene("beach", "day", (replace(_DOG, worn=("sunglasses", "hat"), **_LOUNGE),), 0),
    ),
    (
        "yellow house all by itself in the snow, stars overhead",
        Scene("snow", "night", (Subject("house", "yellow"),), 0),
    ),
    (
        "left: green tree. right: blue car. place: meadow",
        Scene("meadow", "day", (Subject("tree", "green", "left"), Subject("car", "blue", "right")), 0),
    ),
    (
        "on the right-hand side of a dark forest, a purple t-rex in a scarf",
        Scene("forest", "day", (replace(_TREX, colour="purple", place="right", worn=("scarf",)),), 0),
    ),
)


def _asked_of(
    rows: Sequence[tuple[str, Scene]], painter: Painter, judge: Judge, size: int, steps: int
) -> dict[str, float]:
    results = []
    for seed, (prompt, scene) in enumerate(rows):
        picture = painter(prompt, size, size, seed=seed, steps=steps)
        results.append(compare(seen_in(judge, picture), Verdict.of(scene)))
    return rates(results)


def paraphrases(world: World) -> list[tuple[str, Scene]]:
    """The hand-written prompts whose things exist in a world."""
    return [
        (prompt, scene)
        for prompt, scene in PARAPHRASES
        if scene.setting in world.settings and all(subject.kind in world.kinds for subject in scene.subjects)
    ]


def unseen(profile: Profile, count: int, wording: Callable[[Scene], str]) -> Iterator[tuple[str, Scene]]:
    """Prompts of fresh scenes with their truth; seeds differ from all of the training's."""
    rng = np.random.default_rng((profile.seed, 1234567))
    for _ in range(count):
        scene = sample_scene(profile.world, rng)
        yield wording(scene), scene


def spread(pictures: Sequence[NDArray[np.uint8]]) -> float:
    """Mean distance of a pixel in two of the pictures (H,W,3) of one prompt, seen from afar; of 255."""
    small = [
        cv2.resize(picture, (GLANCE, GLANCE), interpolation=cv2.INTER_AREA).astype(np.float64) for picture in pictures
    ]
    return float(np.mean([np.abs(one - other).mean() for one, other in combinations(small, 2)]))


def variety(profile: Profile, painter: Painter, prompts: int, size: int) -> float:
    """How much seeds of one prompt differ, in percent of what all drawings of its scene differ; mush differs less.

    The prompt leaves the size open, which the drawings share. A painter that took one of the drawings for each seed by
    chance would have 75.
    """
    drawn, painted = [], []
    for prompt, scene in unseen(profile, prompts, lambda scene: plain_prompt(replace(scene, weather="clear"))):
        scenes = [replace(scene, seed=seed, weather="clear") for seed in range(SEEDS)]
        drawn.append(spread([draw(one, size, size).image for one in scenes]))
        painted.append(spread([painter(prompt, size, size, seed) for seed in range(SEEDS)]))
    return 100 * float(np.mean(painted) / np.mean(drawn))


def evaluate(
    profile: Profile, folders: Folders, output: Path, pictures: int, size: int, minutes: float
) -> dict[str, Any]:
    """Train or load the judge, measure, and write the figures and the sheet."""
    judge, painter = train_judge(profile, folders, minutes), load_painter(profile, folders)
    figures: dict[str, Any] = {
        f"judge on {name}": judge_accuracy(judge, profile, 8 * pictures, loose) for name, loose in HELD_OUT.items()
    }
    figures["size"] = size
    for steps in (8, 4):
        figures[f"plain prompts, {steps} steps"] = _asked_of(
            list(unseen(profile, pictures, plain_prompt)), painter, judge, size, steps
        )
        figures[f"paraphrases, {steps} steps"] = _asked_of(paraphrases(profile.world), painter, judge, size, steps)
    figures["variety of seeds"] = variety(profile, painter, max(2, pictures // 8), size)
    output.mkdir(parents=True, exist_ok=True)
    (output / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    sheet48(profile, painter, output, size)
    trained = {bucket[:2] for stage in profile.stages for bucket in stage.buckets}
    if trained & set(EXTREMES):
        save_sizes(painter, output / "sizes.png")
    return figures


def sheet48(profile: Profile, painter: Painter, output: Path, size: int) -> None:
    """The sheet of 48 varied prompts, free captions of unseen scenes, with the prompts beside it."""
    rng = np.random.default_rng((profile.seed, 48))
    prompts = [caption(scene, rng) for _, scene in unseen(profile, 48, plain_prompt)]
    write_png(
        output / "sheet.png",
        arrange([painter(prompt, size, size, seed) for seed, prompt in enumerate(prompts)], 8, 192),
    )
    (output / "prompts.txt").write_text("".join(f"{i + 1}. {prompt}\n" for i, prompt in enumerate(prompts)))


def main() -> None:
    parser = arguments("measure what the weights draw")
    parser.add_argument("--output", type=Path, required=True, help="folder for figures.json, sheet.png and prompts.txt")
    parser.add_argument("--pictures", type=int, default=64, help="unseen prompts to measure")
    parser.add_argument("--size", type=int, default=ASKED_SIZE, help="side of the measured pictures, pixels")
    parsed = parser.parse_args()
    profile, folders = opened(parsed)
    print(json.dumps(evaluate(profile, folders, parsed.output, parsed.pictures, parsed.size, parsed.minutes)))


if __name__ == "__main__":
    main()
