"""Scene -> picture and label map: the background of its setting, then its subjects, each in its place.

Any size in steps of 32 pixels and any ratio; nothing is cropped. Things come in few heights and stand on the grid of
the transformer's tokens, so that a cat of one height is made of the same tokens wherever it stands, in pictures of all
sizes. Its words decide where a thing stands and how it looks, the seed what is behind it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nano.backdrop import Backdrop
from nano.canvas import GRID, HEIGHTS, RGB, Canvas, Pen, line_weight, mix
from nano.creatures import draw_creature, draw_lounger
from nano.objects import WIDTHS, draw_object
from nano.world import CREATURES, FLYERS, SWIMMERS, Scene, Subject

MEDIUM = 0.53  # of the shorter side, at most, is a medium thing high
LARGEST = 448  # pixels that a thing is high at most; medium ones the height before: larger pictures show more scene
LARGER = {"small": -1, "medium": 0, "big": 1}
ROOM = {"alone": 0.92, "aside": 0.64, "pair": 0.46}  # at most that wide, share of the width
FOOT = 0.9  # where things stand, share of the height
MARGIN = 0.015  # that a thing keeps from the picture's sides, share of the width
LOOSE = (0.85, 1.12)  # how much smaller or larger than its height a thing is, where it need not keep to the grid
LOOSE_ASIDE = 0.06  # and how far from its place it stands, share of the width


@dataclass(frozen=True)
class Picture:
    """`image` (H,W,3) uint8 RGB and `labels` (H/8,W/8,2) uint8: what, colour."""

    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]


def width_of(subject: Subject) -> float:
    """How wide a subject is for a height of 1."""
    if subject.on_lounger:
        return 1.75
    if subject.kind in CREATURES:
        return 1.45 if subject.kind == "t-rex" else 1.2
    return WIDTHS.get(subject.kind, 1.0)


def _shadow(canvas: Canvas, x: float, y: float, rx: float) -> None:
    row, column = min(canvas.height - 1, max(0, int(y))), min(canvas.width - 1, max(0, int(x)))
    under: RGB = tuple(float(v) for v in canvas.image[row, column])  # type: ignore[assignment]
    angles = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    points = np.stack([x + rx * np.cos(angles), y + 0.13 * rx * np.sin(angles)], axis=1)
    canvas.polygon(points, mix(under, (30, 26, 60), 0.26), None)


def _raft(pen: Pen, width: float) -> None:
    for i in range(3):
        pen.box(-width / 2 - 0.06, -0.03 + 0.05 * i, width / 2 + 0.06, 0.03 + 0.05 * i, (176, 126, 80), 0.02, ink=0.8)


class Spot(NamedTuple):
    """Where one thing is to stand: its middle and its room are shares of the picture's width.

    flip: whether it looks left.
    """

    subject: Subject
    x: float
    room: float
    flip: bool


def _height(canvas: Canvas, spot: Spot) -> int:
    """Pixels that a thing is high: by its size and the picture's shorter side, as far as its room allows."""
    subject, side = spot.subject, min(canvas.width, canvas.height)
    medium = max(i for i, height in enumerate(HEIGHTS) if not i or (height <= MEDIUM * side and height < LARGEST))
    fits = max(i for i, height in enumerate(HEIGHTS) if not i or height * width_of(subject) <= spot.room * canvas.width)
    larger = 1 if subject.on_lounger else LARGER[subject.size]
    return HEIGHTS[max(0, min(min(medium, fits) + larger, fits))]


def _snapped(low: float, wanted: float, high: float) -> float:
    """The line of the grid nearest to `wanted` between two bounds, all in pixels; the nearest to their middle else."""
    lines = [line for line in range(0, int(high) + 1, GRID) if line >= low]
    return float(min(lines, key=lambda line: abs(line - wanted))) if lines else round((low + high) / 2 / GRID) * GRID


def _foot(canvas: Canvas, subject: Subject, flying: bool, height: float) -> float:
    """Pixels from the top to where a thing stands, swims or hangs."""
    share = FOOT - 0.06 * (subject.kind == "fish")
    if flying:
        share = min(FOOT, 0.56 + 0.3 * height / canvas.height)
    return _snapped(0, share * canvas.height, canvas.height)


def _placed(canvas: Canvas, spot: Spot, flying: bool, loose: np.random.Generator | None) -> tuple[float, float, float]:
    """Middle, foot and height of a thing in pixels, on the grid; near it, where the picture is `loose`."""
    height = float(_height(canvas, spot))
    half = min(0.5, height * width_of(spot.subject) / canvas.width / 2 + MARGIN) * canvas.width
    foot = _foot(canvas, spot.subject, flying, height)
    if loose is None:
        return _snapped(half, spot.x * canvas.width, canvas.width - half), foot, height
    middle = (spot.x + float(loose.uniform(-LOOSE_ASIDE, LOOSE_ASIDE) * min(1.0, 2 * spot.room))) * canvas.width
    foot += float(loose.uniform(-0.04, 0.03)) * canvas.height
    return min(canvas.width - half, max(half, middle)), foot, height * float(loose.uniform(*LOOSE))


def _place(canvas: Canvas, scene: Scene, spot: Spot, loose: np.random.Generator | None) -> None:
    """Draw one thing where it stands."""
    subject, flip = spot.subject, spot.flip
    width = width_of(subject)
    flying = subject.kind in FLYERS and not (subject.kind == "rocket" and scene.setting != "space")
    afloat = scene.setting in ("sea", "underwater")
    left, foot, height = _placed(canvas, spot, flying, loose)
    matrix = np.array([[height, 0, left], [0, height, foot], [0, 0, 1]], dtype=np.float64)
    pen = Pen(canvas, matrix, weight=line_weight(height)).at(0, 0, flip=flip)
    if afloat and not flying and subject.kind not in SWIMMERS and scene.setting == "sea":
        _raft(pen, width * 0.85)
    elif not flying and not afloat and scene.setting != "plain":
        _shadow(canvas, left, foot, height * width * 0.42)
    if subject.on_lounger:
        draw_lounger(pen, next(paint for paint in ("blue", "red") if paint != subject.colour))
    if subject.kind in CREATURES:
        draw_creature(pen, subject)
    else:
        draw_object(pen, subject)
    if subject.kind in SWIMMERS and scene.setting == "sea" and subject.kind != "fish":
        wave = pen.at(0, 0, flip=flip)
        wave.line([(-0.6, 0), (-0.35, -0.05), (-0.1, 0), (0.15, -0.05), (0.4, 0), (0.62, -0.04)], 1.4, (200, 236, 244))


def _spots(scene: Scene) -> list[Spot]:
    """All things of a scene; those on the right look to the left, into the picture."""
    spots = []
    for subject in scene.subjects:
        aside, room = (0.21, ROOM["aside"]) if len(scene.subjects) == 1 else (0.24, ROOM["pair"])
        step = 0.86 / subject.count
        middles = [0.5 + step * (i - (subject.count - 1) / 2) for i in range(subject.count)]
        if subject.count > 1:
            room = step * 0.96
        elif subject.place == "centre":
            room = ROOM["alone"]
        else:
            middles = [0.5 - aside if subject.place == "left" else 0.5 + aside]
        spots += [Spot(subject, x, room, x > 0.55) for x in middles]
    return spots


def draw(scene: Scene, width: int, height: int, loose: bool = False) -> Picture:
    """Draw a scene at a size in pixels (multiples of 32, from 256 to 2048).

    loose: things are near their places and heights instead of on the grid, and look either way, by the scene's seed:
        what tells the kinds apart, not what a model of this world draws.
    """
    rng = np.random.default_rng(scene.seed)
    chance = np.random.default_rng((scene.seed, 1)) if loose else None
    canvas = Canvas(width, height, scene.style)
    Backdrop(canvas, scene).draw()
    for spot in _spots(scene):
        turned = chance is not None and chance.random() < 0.5
        _place(canvas, scene, spot._replace(flip=spot.flip != turned), chance)
    return Picture(canvas.finish(rng), canvas.labels)
