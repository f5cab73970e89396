"""Train the judge: a small network that says what a picture of the drawn world shows, and how often it is right.

    python -m nano.judge --profile cpu --folder RUN [--minutes M]

It learns from drawings alone, most of them off the grid and half of them blurred (`picture.draw(..., loose=True)`),
since what a model draws is never quite where and as sharp as a drawing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from nano.config import Folders, Profile
from nano.drawing import stream, to_tensor
from nano.picture import draw
from nano.training import Average, Optimizers, Run, arguments, cosine, device, half_precision, opened, restored, save
from nano.world import PAINT, PLACES, SETTINGS, WORN, Scene, World, sample_scene

JUDGE_SIZE = 256  # pixels: pictures are shown to the judge at this size
DRAWN_SIZES = (256, 384, 512, 512)
"""Sides, in pixels, of the drawings that it learns from; lines are thinner in larger ones."""
ASKED_SIZE = 512  # pixels: side of the pictures that are judged
OFF_GRID = 0.7  # share of them off the grid
SOFTEST = 1.5
"""Pixels of `JUDGE_SIZE`: half of what it learns from is blurred by up to so much; pictures have softer edges."""
SLOTS = 2  # subjects that the judge names, from left to right
MAX_COUNT = 4
TITLES = ("subject", "setting", "colour", "place", "count", "worn")
HELD_OUT = {"held-out drawings": False, "held-out drawings off the grid": True}  # name -> loose


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
        image = shrunk(draw(scene, side, side, loose=bool(rng.random() < OFF_GRID)).image)
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
    """The judge of a run, trained to the profile's number of steps: from its checkpoint on, where there is one."""
    path = folders.root / "judge.pt"
    judge = _untrained(profile)
    average = Average(judge, horizon=200)
    optimizers = Optimizers(judge.named_parameters(), muon=("look",), lr=1e-3, muon_lr=0.01)
    run = Run("judge", profile.judge_steps, minutes, profile.checkpoint_every_s)
    if state := restored(path):
        judge.load_state_dict(state["model"])
        average.model.load_state_dict(state["average"])
        average.steps = state["step"]
        optimizers.load_state_dict(state["optimizers"])
        run = Run("judge", profile.judge_steps, minutes, profile.checkpoint_every_s, state["step"], state["spent_s"])
    batch = 64 if profile.judge_steps > 10 else 4
    source = stream(Answered(judged_world(profile.world)), batch, profile.workers, profile.seed + 50 + 1000 * run.step)
    while not run.done:
        images, truth = next(source)
        truth = {name: part.to(device()) for name, part in truth.items()}
        with half_precision():
            loss = judge_loss(judge(_images(images)), truth)
        loss.backward()
        optimizers.step(cosine(run.progress))
        average.update(judge)
        run.tick(loss=loss.detach())
        if run.due():
            weights, averaged = judge.state_dict(), average.model.state_dict()
            parts = {"model": weights, "average": averaged, "optimizers": optimizers.state_dict()}
            save(path, {**parts, "step": run.step, "spent_s": run.elapsed_s})
    return average.model.eval()


def _untrained(profile: Profile) -> Judge:
    return Judge(profile.world).to(device=device(), memory_format=torch.channels_last)  # type: ignore[call-overload]


def open_judge(profile: Profile, path: Path) -> Judge:
    """A trained judge from its checkpoint."""
    state = restored(path)
    if state is None:
        raise FileNotFoundError(f"no judge at {path}: `python -m nano.judge` trains one")
    judge = _untrained(profile)
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


def judge_accuracy(judge: Judge, profile: Profile, pictures: int, loose: bool) -> dict[str, float]:
    """The judge's own rates on drawings that it has not been trained on, off the grid (`loose`) or as nano has them."""
    rng = np.random.default_rng((profile.seed, 99))
    scenes = [sample_scene(judged_world(profile.world), rng) for _ in range(pictures)]
    rows = []
    for first in range(0, pictures, 32):
        part = scenes[first : first + 32]
        drawn = [draw(scene, ASKED_SIZE, ASKED_SIZE, loose).image for scene in part]
        images = torch.stack([to_tensor(shrunk(image)) for image in drawn])
        rows += [
            compare(seen, Verdict.of(scene)) for seen, scene in zip(judge.verdicts(_images(images)), part, strict=True)
        ]
    return rates(rows)


def main() -> None:
    parser = arguments("train the judge of what the weights draw")
    parser.add_argument("--drawings", type=int, default=512, help="held-out drawings to measure it on")
    parsed = parser.parse_args()
    profile, folders = opened(parsed)
    judge = train_judge(profile, folders, parsed.minutes)
    for name, loose in HELD_OUT.items():
        right = judge_accuracy(judge, profile, parsed.drawings, loose)
        print(f"{name}: " + ", ".join(f"{title} {share:.1f}%" for title, share in right.items() if title != "pictures"))


if __name__ == "__main__":
    main()
