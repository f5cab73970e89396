"""Measure what a run's weights draw: an automatic judge looks at pictures of prompts that were never trained on.

    python -m nano.evaluate --profile cpu --folder RUN --output docs/images/nano

The judge is a small convolutional network trained on drawn scenes; its own accuracy on held-out drawings is reported
first, because no figure of the model can be trusted beyond it. Written: `figures.json`, `sheet.png`, `prompts.txt`,
and `sizes.png` where a profile trains on large sizes.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from nano.captions import caption
from nano.config import Folders, Profile
from nano.drawing import stream, to_tensor
from nano.picture import draw
from nano.sheet import EXTREMES, Painter, arrange, load_painter, save_sizes, write_png
from nano.training import Average, Optimizers, Run, arguments, cosine, device, half_precision, opened, restored, save
from nano.world import PAINT, PLACES, SETTINGS, WORN, Scene, Subject, World, sample_scene

JUDGE_SIZE = 256  # pixels: pictures are shown to the judge at this size
DRAWN_SIZES = (256, 384, 512, 512)
"""Sides, in pixels, of the drawings that it learns from; lines are thinner in larger ones."""
ASKED_SIZE = 512  # pixels: side of the pictures that are judged
SOFTEST = 1.5
"""Pixels of `JUDGE_SIZE`: half of what it learns from is blurred by up to so much; pictures have softer edges."""
SLOTS = 2  # subjects that the judge names, from left to right
MAX_COUNT = 4
SEEDS = 4  # of one prompt, that are compared with each other
GLANCE = 64  # pixels: side at which they are compared
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
TITLES = ("subject", "setting", "colour", "place", "count", "worn")


@dataclass(frozen=True)
class Verdict:
    """What a picture shows: by caption, by layout, or as the judge sees it. Subjects from left to right."""

    setting: str
    kinds: tuple[str, ...]
    colours: tuple[str, ...]
    places: tuple[str, ...]
    count: int
    worn: tuple[frozenset[str], ...]

    @classmethod
    def of(cls, scene: Scene) -> "Verdict":
        subjects = sorted(scene.subjects, key=lambda s: PLACES.index(s.place) if s.count == 1 else 1)
        return cls(
            scene.setting,
            tuple(s.kind for s in subjects),
            tuple(s.colour for s in subjects),
            tuple(s.place if s.count == 1 else "centre" for s in subjects),
            sum(s.count for s in subjects),
            tuple(frozenset(s.worn) for s in subjects),
        )


class Judge(nn.Module):
    """A residual convolutional network with one linear head per question."""

    def __init__(self, world: World, width: int = 32) -> None:
        super().__init__()
        self.kinds = ("nothing", *world.kinds)
        self.heads = {
            "setting": len(SETTINGS),
            "count": MAX_COUNT,
            "kind": SLOTS * len(self.kinds),
            "colour": SLOTS * len(PAINT),
            "place": SLOTS * len(PLACES),
            "worn": SLOTS * len(WORN),
        }
        widths = (width, 2 * width, 4 * width, 4 * width)
        layers: list[nn.Module] = [nn.Conv2d(3, width, 7, stride=4, padding=3), nn.GroupNorm(8, width), nn.SiLU()]
        for narrow, wide in zip((width, *widths), widths, strict=False):
            layers += [nn.Conv2d(narrow, wide, 3, stride=2, padding=1), nn.GroupNorm(8, wide), nn.SiLU()]
            layers += [nn.Conv2d(wide, wide, 3, padding=1), nn.GroupNorm(8, wide), nn.SiLU()]
        self.look = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * 16, 256), nn.SiLU())
        self.answer = nn.Linear(256, sum(self.heads.values()))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B,3,256,256) in [-1,1] -> logits by question; (B,slots,choices) where asked per subject."""
        parts = dict(
            zip(self.heads, self.answer(self.look(images)).split(list(self.heads.values()), dim=1), strict=True)
        )
        return {
            name: part if name in ("setting", "count") else part.unflatten(1, (SLOTS, -1))
            for name, part in parts.items()
        }

    @torch.no_grad()
    def verdicts(self, images: Tensor) -> list[Verdict]:
        """What a batch of pictures (B,3,256,256) in [-1,1] shows."""
        logits = {name: part.float().cpu() for name, part in self(images).items()}
        return [self._verdict({name: part[i] for name, part in logits.items()}) for i in range(len(images))]

    def _verdict(self, logits: dict[str, Tensor]) -> Verdict:
        kinds = [self.kinds[int(i)] for i in logits["kind"].argmax(-1)]
        there = [slot for slot, kind in enumerate(kinds) if kind != "nothing"] or [0]
        paints = list(PAINT)
        return Verdict(
            SETTINGS[int(logits["setting"].argmax())],
            tuple(kinds[slot] for slot in there),
            tuple(paints[int(logits["colour"][slot].argmax())] for slot in there),
            tuple(PLACES[int(logits["place"][slot].argmax())] for slot in there),
            int(logits["count"].argmax()) + 1,
            tuple(
                frozenset(item for item, value in zip(WORN, logits["worn"][slot], strict=True) if value > 0)
                for slot in there
            ),
        )


class Answered:
    """Makes (image, answers) of random scenes for the judge: answers are indices as `Judge` orders them."""

    def __init__(self, world: World) -> None:
        self.world = world

    def __call__(self, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        scene, side = sample_scene(self.world, rng), DRAWN_SIZES[int(rng.integers(len(DRAWN_SIZES)))]
        image = shrunk(draw(scene, side, side, loose=True).image)
        if rng.random() < 0.5:
            image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.3, SOFTEST)))
        return to_tensor(image), answers(scene, self.world)


def shrunk(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture (H,W,3) as the judge looks at it."""
    return cast(NDArray[np.uint8], cv2.resize(picture, (JUDGE_SIZE, JUDGE_SIZE), interpolation=cv2.INTER_AREA))


def answers(scene: Scene, world: World) -> dict[str, Tensor]:
    """What the judge should say of a scene; empty slots are -100 (not asked) but for their kind."""
    truth, kinds = Verdict.of(scene), ("nothing", *world.kinds)
    empty = SLOTS - len(truth.kinds)
    return {
        "setting": torch.tensor(SETTINGS.index(truth.setting)),
        "count": torch.tensor(truth.count - 1),
        "kind": torch.tensor([kinds.index(kind) for kind in truth.kinds] + [0] * empty),
        "colour": torch.tensor([PAINT[colour] for colour in truth.colours] + [-100] * empty),
        "place": torch.tensor([PLACES.index(place) for place in truth.places] + [-100] * empty),
        "worn": torch.tensor(
            [[float(item in worn) for item in WORN] for worn in truth.worn] + [[0.0] * len(WORN)] * empty
        ),
    }


def judge_loss(logits: dict[str, Tensor], truth: dict[str, Tensor]) -> Tensor:
    """Sum of the cross entropies of all questions."""
    loss = F.binary_cross_entropy_with_logits(logits["worn"].float(), truth["worn"]) * len(WORN)
    for name in ("setting", "count", "kind", "colour", "place"):
        part = logits[name].float()
        loss = loss + F.cross_entropy(part.reshape(-1, part.shape[-1]), truth[name].reshape(-1), ignore_index=-100)
    return loss


def judged_world(world: World) -> World:
    """The world in all ways of drawing it: of a few the judge learns the poses by heart, and misjudges others."""
    return replace(world, variants=World.variants)


def _images(batch: Tensor) -> Tensor:
    return batch.to(device(), non_blocking=True).float() / 127.5 - 1


def train_judge(profile: Profile, folders: Folders, minutes: float) -> Judge:
    """The judge of a run: trained now, or read from its checkpoint if it is complete."""
    path, judge = folders.root / "judge.pt", Judge(profile.world).to(device=device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = Run("judge", profile.judge_steps, minutes, profile.checkpoint_every_s)
    if (state := restored(path)) and state["step"] >= profile.judge_steps:
        return open_judge(profile, path)
    average, optimizers = (
        Average(judge, horizon=200),
        Optimizers(judge.named_parameters(), muon=("look",), lr=1e-3, muon_lr=0.01),
    )
    batch = 64 if profile.judge_steps > 10 else 4
    source = stream(Answered(judged_world(profile.world)), batch, profile.workers, profile.seed + 50)
    while not run.done:
        images, truth = next(source)
        truth = {name: part.to(device()) for name, part in truth.items()}
        with half_precision():
            loss = judge_loss(judge(_images(images)), truth)
        loss.backward()
        optimizers.step(cosine(run.progress))
        average.update(judge)
        run.tick(loss=loss.detach())
    save(path, {"average": average.model.state_dict(), "step": run.step})
    return average.model.eval()


def open_judge(profile: Profile, path: Path) -> Judge:
    """A trained judge from its checkpoint."""
    state = restored(path)
    if state is None:
        raise FileNotFoundError(f"no judge at {path}: `python -m nano.evaluate` trains one")
    judge = Judge(profile.world).to(device=device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
    judge.load_state_dict(state["average"])
    return judge.eval()


def seen_in(judge: Judge, picture: NDArray[np.uint8]) -> Verdict:
    """What a picture (H,W,3) shows."""
    return judge.verdicts(_images(to_tensor(shrunk(picture))[None]))[0]


def compare(seen: Verdict, asked: Verdict) -> dict[str, bool]:
    """Which attributes of what was asked for are seen; attributes of several subjects must all be right."""
    same = len(seen.kinds) == len(asked.kinds)
    return {
        "subject": seen.kinds == asked.kinds,
        "setting": seen.setting == asked.setting,
        "colour": same and seen.colours == asked.colours,
        "place": same and seen.places == asked.places,
        "count": seen.count == asked.count,
        "worn": same and seen.worn == asked.worn,
    }


def rates(rows: Sequence[dict[str, bool]]) -> dict[str, float]:
    """Share of pictures with each attribute right, and with all of them right; in percent."""
    parts = {title: 100 * float(np.mean([row[title] for row in rows])) for title in TITLES}
    return {**parts, "all": 100 * float(np.mean([all(row.values()) for row in rows])), "pictures": float(len(rows))}


def judge_accuracy(judge: Judge, profile: Profile, pictures: int) -> dict[str, float]:
    """The judge's own rates on drawings that it has not been trained on."""
    rng = np.random.default_rng((profile.seed, 99))
    scenes = [sample_scene(judged_world(profile.world), rng) for _ in range(pictures)]
    rows = []
    for first in range(0, pictures, 32):
        part = scenes[first : first + 32]
        images = torch.stack(
            [to_tensor(shrunk(draw(scene, ASKED_SIZE, ASKED_SIZE, loose=True).image)) for scene in part]
        )
        rows += [
            compare(seen, Verdict.of(scene)) for seen, scene in zip(judge.verdicts(_images(images)), part, strict=True)
        ]
    return rates(rows)


def plain_prompt(scene: Scene) -> str:
    """A prompt that names everything the judge asks about, in one plain wording."""
    parts = []
    for subject in scene.subjects:
        number = {1: "a", 2: "two", 3: "three", 4: "four"}[subject.count]
        noun = (
            subject.kind
            if subject.count == 1 or subject.kind == "fish"
            else subject.kind + ("es" if subject.kind == "t-rex" else "s")
        )
        worn = (
            f" wearing {' and '.join(item if item == 'sunglasses' else 'a ' + item for item in subject.worn)}"
            if subject.worn
            else ""
        )
        lounger = " lying on a sun lounger" if subject.on_lounger else ""
        place = (
            "" if subject.count > 1 else " in the middle" if subject.place == "centre" else f" on the {subject.place}"
        )
        parts.append(f"{number} {subject.colour} {noun}{lounger}{worn}{place}")
    when = {"day": "", "sunset": " at sunset", "night": " at night"}[scene.time] if scene.setting != "space" else ""
    return f"{' and '.join(parts)} {THERE[scene.setting]}{when}"


def bare_prompt(scene: Scene) -> str:
    """What people type first: a colour, a kind and a setting, and not a word about place, time or clothes."""
    subject = scene.subjects[0]
    return f"a {subject.colour} {subject.kind} {THERE[scene.setting]}"


def bare_scene(scene: Scene) -> Scene:
    """What nobody is surprised to get for its `bare_prompt`: one thing, standing there by day, with nothing on."""
    first = scene.subjects[0]
    time = "night" if scene.setting == "space" else "day"
    return replace(scene, time=time, subjects=(Subject(first.kind, first.colour),))


def _holds(subject: Subject, **others: Any) -> Subject:
    return replace(subject, **others)


_TREX, _CAT, _DOG, _BIRD = (
    Subject(kind, colour)
    for kind, colour in (("t-rex", "green"), ("cat", "orange"), ("dog", "brown"), ("bird", "blue"))
)
_LOUNGE: dict[str, Any] = {"on_lounger": True, "pose": "lying"}
PARAPHRASES: tuple[tuple[str, Scene], ...] = (
    (
        "holiday snapshot: green dino chilling by the ocean on a deck chair, shades on",
        Scene("beach", "day", (_holds(_TREX, worn=("sunglasses",), **_LOUNGE),), 0),
    ),
    (
        "imagine an orange kitty that has sunglasses on, it sits somewhere in the grass",
        Scene("meadow", "day", (_holds(_CAT, pose="sitting", worn=("sunglasses",)),), 0),
    ),
    ("it is winter and a brown puppy has put on a scarf", Scene("snow", "day", (_holds(_DOG, worn=("scarf",)),), 0)),
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
    ("blue birdie with a hat enjoying a snowy day", Scene("snow", "day", (_holds(_BIRD, worn=("hat",)),), 0)),
    ("black cat, night, skyscrapers", Scene("city", "night", (_holds(_CAT, colour="black"),), 0)),
    (
        "a huge red flower growing in the sand by the sea",
        Scene("beach", "day", (Subject("flower", "red", size="big"),), 0),
    ),
    ("orange goldfish splashing around in the ocean", Scene("sea", "day", (Subject("fish", "orange"),), 0)),
    (
        "dog in brown sunbathing on a beach chair, wearing shades and a hat",
        Scene("beach", "day", (_holds(_DOG, worn=("sunglasses", "hat"), **_LOUNGE),), 0),
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
        Scene("forest", "day", (_holds(_TREX, colour="purple", place="right", worn=("scarf",)),), 0),
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
    """How much seeds of one prompt differ, in percent of what drawings of its scene differ; mush differs less."""
    drawn, painted = [], []
    for prompt, scene in unseen(profile, prompts, plain_prompt):
        scenes = [replace(scene, seed=seed) for seed in range(SEEDS)]
        drawn.append(spread([draw(one, size, size).image for one in scenes]))
        painted.append(spread([painter(prompt, size, size, seed) for seed in range(SEEDS)]))
    return 100 * float(np.mean(painted) / np.mean(drawn))


def evaluate(
    profile: Profile, folders: Folders, output: Path, pictures: int, size: int, minutes: float
) -> dict[str, Any]:
    """Train or load the judge, measure, and write the figures and the sheet."""
    judge, painter = train_judge(profile, folders, minutes), load_painter(profile, folders)
    figures: dict[str, Any] = {"judge on held-out drawings": judge_accuracy(judge, profile, 8 * pictures), "size": size}
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
