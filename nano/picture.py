"""Scene -> picture and label map: the background of its setting, then its subjects, each in its place.

Any size in steps of 32 pixels and any ratio; nothing is cropped. Things come in few heights and stand on the grid of
the transformer's tokens, so that a cat of one height is made of the same tokens wherever it stands, in pictures of all
sizes. Its words decide where a thing stands and how it looks, the seed what is behind it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nano.canvas import RGB, Canvas, Label, Pen, mix, smooth
from nano.creatures import draw_creature, draw_lounger
from nano.objects import WIDTHS, draw_object
from nano.world import CREATURES, FLYERS, LABEL, SWIMMERS, Scene, Subject

SKIES: dict[str, tuple[RGB, ...]] = {
    "day": ((112, 190, 240), (170, 220, 248), (226, 244, 250)),
    "sunset": ((126, 92, 160), (244, 132, 104), (255, 208, 140)),
    "night": ((16, 20, 56), (36, 42, 98), (74, 78, 142)),
}
DARKENING = {"day": 0.0, "sunset": 0.24, "night": 0.52}
DUSK: dict[str, RGB] = {"day": (255, 255, 255), "sunset": (190, 90, 90), "night": (18, 22, 70)}
GRID = 32  # pixels along a side of a token
HEIGHTS = (80, 112, 160, 224, 320, 448, 640)
"""Pixels that things are high; each is 1.4 times the one before."""
MEDIUM = 0.53  # of the shorter side, at most, is a medium thing high
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


class Backdrop:
    """Draws the background of a scene; everything here is in shares of the picture's width and height."""

    def __init__(self, canvas: Canvas, scene: Scene, rng: np.random.Generator) -> None:
        self.canvas, self.scene, self.rng = canvas, scene, rng
        self.width, self.height = canvas.width, canvas.height
        self.unit = min(self.height, 0.7 * self.width)  # scale of clouds, sun, trees
        self.horizon = float(rng.uniform(0.5, 0.6))

    def tint(self, colour: RGB) -> RGB:
        """The colour in the light of the scene's time."""
        return mix(colour, DUSK[self.scene.time], DARKENING[self.scene.time])

    def zone(self, name: str) -> Label:
        return (LABEL[f"{self.scene.setting} {name}"], 0)

    def area(self, points: list[tuple[float, float]], colour: RGB, zone: str, curve: bool = False) -> None:
        """Polygon of shares; with `curve` its top edge (all but the last two points) is smoothed."""
        pixels = np.asarray(points) * (self.width, self.height)
        if curve:
            edge = smooth([tuple(p) for p in pixels])
            pixels = np.concatenate([edge[: (len(points) - 3) * 6 + 1], pixels[-2:]])
        self.canvas.polygon(pixels, self.tint(colour), self.zone(zone))

    def hills(self, base: float, rise: float, colour: RGB, zone: str, bumps: int = 4) -> None:
        """Rolling ground whose top edge wanders around `base`; reaches the bottom."""
        xs = np.linspace(-0.15, 1.15, bumps + 2)
        edge = [(float(x), base + float(self.rng.uniform(-rise, rise))) for x in xs]
        self.area([*edge, (1.15, 1.05), (-0.15, 1.05)], colour, zone, curve=True)

    def disc(self, x: float, y: float, rx: float, ry: float, colour: RGB, label: Label | None = None) -> None:
        """Ellipse at shares (x, y) with radii in `unit`s."""
        angles = np.linspace(0, 2 * np.pi, 30, endpoint=False)
        points = np.stack([np.cos(angles) * rx, np.sin(angles) * ry], axis=1) * self.unit
        self.canvas.polygon(points + np.array([x * self.width, y * self.height]), colour, label)

    def sky(self, bottom: float = 1.0) -> None:
        """Gradient, sun or moon, clouds or stars."""
        self.canvas.gradient(0, bottom * self.height + 2, SKIES[self.scene.time])
        self.canvas.labels[: int(bottom * len(self.canvas.labels)) + 1] = self.zone("sky")
        if self.scene.time == "night":
            self.stars(40)
        x, y = float(self.rng.choice((0.12, 0.3, 0.7, 0.88))), float(self.rng.uniform(0.13, 0.22))
        if self.scene.time == "sunset":
            y = bottom - 0.07
        light: RGB = (250, 246, 214) if self.scene.time == "night" else (255, 226, 110)
        self.canvas.glow(x * self.width, y * self.height, self.unit * 0.34, light, 0.6)
        self.disc(x, y, 0.075, 0.075, light, self.zone("light"))
        if self.scene.time == "night":
            self.disc(x + 0.035 * self.unit / self.width, y - 0.01, 0.06, 0.06, SKIES["night"][0], None)
        elif self.scene.weather == "clear" or self.scene.weather == "rain":
            for _ in range(int(self.rng.integers(1, 4))):
                self.cloud(float(self.rng.uniform(0.05, 0.95)), float(self.rng.uniform(0.08, 0.3)))

    def stars(self, count: int) -> None:
        for _ in range(count):
            x, y = self.rng.uniform(0, 1), self.rng.uniform(0, self.horizon)
            size = float(self.rng.choice((0.004, 0.006, 0.009)))
            self.disc(float(x), float(y), size, size, (255, 250, 220))

    def cloud(self, x: float, y: float) -> None:
        white = mix(self.tint((255, 255, 255)), SKIES[self.scene.time][1], 0.12)
        if self.scene.weather == "rain":
            white = mix(white, (110, 118, 136), 0.6)
        size = float(self.rng.uniform(0.7, 1.2))
        for dx, dy, r in ((-0.1, 0.01, 0.055), (0.0, -0.02, 0.08), (0.1, 0.012, 0.06)):
            self.disc(x + dx * size * self.unit / self.width, y + dy, 1.25 * r * size, r * size, white)

    def pen(self, x: float, y: float, size: float) -> Pen:
        """A pen for decoration `size` units high standing at shares (x, y)."""
        scale = size * self.unit
        matrix = np.array([[scale, 0, x * self.width], [0, scale, y * self.height], [0, 0, 1]])
        return Pen(self.canvas, matrix, ink=self.tint((70, 66, 72)))

    def sea(self, top: float, bottom: float) -> None:
        """Water with a gradient and a few wave lines between two heights."""
        deep, pale = self.tint((38, 128, 190)), self.tint((110, 204, 220))
        self.canvas.gradient(top * self.height, bottom * self.height, (deep, pale) if bottom < 0.9 else (pale, deep))
        rows = len(self.canvas.labels)
        self.canvas.labels[int(top * rows) : int(np.ceil(bottom * rows))] = self.zone("water")
        for _ in range(int(5 + 16 * (bottom - top))):
            x, y = self.rng.uniform(0, 1), self.rng.uniform(top + 0.02, bottom)
            pen = self.pen(float(x), float(y), 0.2 + 0.25 * float(y - top))
            pen.line(
                [(-0.3, 0), (-0.15, -0.05), (0, 0), (0.15, -0.05), (0.3, 0)], 0.8, mix(pale, (255, 255, 255), 0.45)
            )

    def beach(self) -> float:
        self.horizon -= 0.12
        self.sky(self.horizon)
        self.sea(self.horizon, 0.7)
        shore = self.horizon + float(self.rng.uniform(0.16, 0.2))
        state = self.rng.bit_generator.state
        self.hills(shore - 0.012, 0.014, (250, 250, 244), "water", 5)
        self.rng.bit_generator.state = state
        self.hills(shore + 0.012, 0.014, (246, 220, 160), "ground", 5)
        self.hills(shore + 0.26, 0.02, (238, 206, 142), "ground", 4)
        if self.rng.random() < 0.5:
            self.palm(float(self.rng.choice((0.05, 0.95))), shore + 0.12)
        return 0.0

    def palm(self, x: float, y: float) -> None:
        pen = self.pen(x, y, 0.62)
        lean = 0.12 if x < 0.5 else -0.12
        pen.limb([(0, 0), (lean * 0.3, -0.4), (lean, -0.8)], 0.055, self.tint((168, 122, 80)))
        for turn in (-160, -120, -65, -20, 20):
            leaf = pen.at(lean, -0.8, turn=turn)
            leaf.blob([(0, -0.02), (0.2, -0.1), (0.42, 0.04), (0.2, -0.01)], self.tint((70, 158, 84)), ink=0.7)

    def open_sea(self) -> float:
        self.horizon -= 0.04
        self.sky(self.horizon)
        self.sea(self.horizon, 1.0)
        return 0.0

    def meadow(self) -> float:
        self.sky(self.horizon)
        self.hills(self.horizon - 0.06, 0.05, (150, 204, 120), "far", 3)
        self.hills(self.horizon + 0.06, 0.03, (128, 194, 92), "ground", 4)
        self.hills(self.horizon + 0.24, 0.02, (112, 182, 82), "ground", 4)
        for _ in range(int(14 * max(1.0, self.width / self.height))):
            x, y = float(self.rng.uniform(0, 1)), float(self.rng.uniform(self.horizon + 0.12, 0.98))
            tone = self.tint([(255, 255, 255), (255, 220, 90), (250, 150, 180)][int(self.rng.integers(3))])
            self.disc(x, y, 0.011, 0.011, tone)
        return 0.0

    def forest(self) -> float:
        self.sky(self.horizon)
        self.area([(0, 0.12), (1, 0.12), (1, 0.7), (0, 0.7)], (132, 176, 132), "far")
        for depth, tone in ((0.0, (92, 146, 100)), (0.06, (62, 118, 78))):
            count = round(7 * max(1.0, self.width / self.unit * 0.8))
            for i in range(count):
                x = (i + float(self.rng.uniform(0.1, 0.9))) / count
                self.pine(x, self.horizon + depth + 0.02, float(self.rng.uniform(0.5, 0.72)), tone, None)
        self.hills(self.horizon + 0.02, 0.02, (104, 150, 80), "ground", 5)
        self.hills(self.horizon + 0.2, 0.02, (92, 138, 70), "ground", 4)
        return 0.0

    def pine(self, x: float, y: float, size: float, colour: RGB, snow: RGB | None) -> None:
        pen = self.pen(x, y, size)
        green = self.tint(colour)
        pen = Pen(pen.canvas, pen.matrix, mix(green, (20, 30, 40), 0.35), self.zone("far"))
        pen.box(-0.05, -0.2, 0.05, 0.02, self.tint((120, 84, 60)), ink=0.6)
        for low, high, wide in ((-0.14, -0.58, 0.32), (-0.4, -0.8, 0.25), (-0.64, -1.0, 0.17)):
            pen.shape([(-wide, low), (0, high), (wide, low)], green, ink=0.6)
            if snow:
                pen.shape([(-wide * 0.5, (low + high) / 2), (0, high), (wide * 0.5, (low + high) / 2)], snow, ink=0)

    def snow(self) -> float:
        self.sky(self.horizon)
        self.hills(self.horizon - 0.08, 0.05, (206, 222, 238), "far", 3)
        white = self.tint((250, 252, 255))
        for _ in range(int(3 + 2 * self.width / self.height)):
            x = float(self.rng.uniform(0, 1))
            self.pine(x, self.horizon + 0.08, float(self.rng.uniform(0.3, 0.42)), (70, 130, 110), white)
        self.hills(self.horizon + 0.05, 0.025, (240, 246, 252), "ground", 4)
        self.hills(self.horizon + 0.24, 0.02, (226, 236, 248), "ground", 3)
        for _ in range(int(36 * max(1.0, self.width / self.height))):
            size = float(self.rng.choice((0.006, 0.009)))
            self.disc(float(self.rng.uniform(0, 1)), float(self.rng.uniform(0, 0.95)), size, size, (255, 255, 255))
        return 0.0

    def city(self) -> float:
        self.sky(self.horizon + 0.1)
        left, night = -0.02, self.scene.time == "night"
        while left < 1.0:
            wide = float(self.rng.uniform(0.16, 0.26)) * self.unit / self.width
            top = self.horizon - float(self.rng.uniform(0.1, 0.38))
            tone = [(150, 160, 190), (190, 150, 150), (170, 176, 150), (200, 176, 140)][int(self.rng.integers(4))]
            self.area([(left, top), (left + wide, top), (left + wide, 0.75), (left, 0.75)], tone, "far")
            self.windows(left, top, wide, (255, 226, 130) if night else self.tint((222, 238, 246)))
            left += wide * float(self.rng.uniform(0.98, 1.1))
        self.area([(0, self.horizon + 0.12), (1, self.horizon + 0.12), (1, 1), (0, 1)], (170, 168, 172), "ground")
        self.area([(0, self.horizon + 0.18), (1, self.horizon + 0.18), (1, 1), (0, 1)], (112, 114, 126), "ground")
        for i in range(int(np.ceil(self.width / self.unit * 3))):
            x = i * 0.34 * self.unit / self.width
            self.area(
                [
                    (x, 0.955),
                    (x + 0.17 * self.unit / self.width, 0.955),
                    (x + 0.17 * self.unit / self.width, 0.975),
                    (x, 0.975),
                ],
                (240, 236, 220),
                "ground",
            )
        return 0.0

    def windows(self, left: float, top: float, wide: float, colour: RGB) -> None:
        across, size = 3, wide / 3 * 0.5
        rise = size * self.width / self.height
        for row in range(int((self.horizon + 0.08 - top) / (rise * 2.1))):
            for column in range(across):
                if self.rng.random() < 0.75:
                    x, y = left + wide * (column + 0.25) / across, top + rise * (0.7 + 2.1 * row)
                    corners = np.array([(x, y), (x + size, y), (x + size, y + rise), (x, y + rise)])
                    self.canvas.polygon(corners * (self.width, self.height), colour, None)

    def space(self) -> float:
        self.canvas.gradient(0, self.height, ((14, 12, 40), (34, 24, 76), (66, 40, 110)))
        self.canvas.labels[:] = self.zone("sky")
        self.horizon = 0.85
        self.stars(int(70 * max(1.0, self.width / self.height)))
        self.horizon = 0.7
        for x in (float(self.rng.uniform(0.08, 0.35)), float(self.rng.uniform(0.62, 0.92))):
            y, r = float(self.rng.uniform(0.12, 0.34)), float(self.rng.uniform(0.06, 0.12))
            tone: RGB = [(236, 150, 96), (120, 190, 220), (220, 120, 160), (160, 200, 130)][int(self.rng.integers(4))]
            self.canvas.glow(x * self.width, y * self.height, r * self.unit * 2, tone, 0.4)
            self.disc(x, y, r, r, tone, self.zone("light"))
            if self.rng.random() < 0.5:
                self.disc(x, y, r * 1.7, r * 0.16, mix(tone, (255, 255, 255), 0.5))
                self.disc(x, y - r * 0.12 * self.unit / self.height, r * 0.92, r * 0.2, tone)
        ground: RGB = (168, 164, 186)
        edge = [(x, 0.74 + 0.06 * (2 * x - 1) ** 2) for x in np.linspace(-0.1, 1.1, 7)]
        self.area([*edge, (1.1, 1.05), (-0.1, 1.05)], ground, "ground", curve=True)
        for _ in range(6):
            x, y, r = self.rng.uniform(0, 1), self.rng.uniform(0.84, 0.98), self.rng.uniform(0.03, 0.07)
            self.disc(float(x), float(y), float(r), float(r) * 0.35, (142, 138, 164))
        return 0.0

    def mountains(self) -> float:
        self.sky(self.horizon)
        for step, tone in ((0.0, (150, 164, 196)), (0.08, (116, 136, 172))):
            count = int(2 + self.width / self.unit)
            for i in range(count):
                x, wide = (i + float(self.rng.uniform(0.2, 0.8))) / count, 0.42 * self.unit / self.width
                top = self.horizon - float(self.rng.uniform(0.2, 0.36)) + step * 2
                self.area([(x - wide, 0.75), (x, top), (x + wide, 0.75)], tone, "far")
                cap = 0.26
                rise = (0.75 - top) * cap
                snow = [(x - wide * cap, top + rise), (x, top), (x + wide * cap, top + rise), (x, top + rise * 0.7)]
                self.area(snow, (246, 250, 255), "far")
        self.hills(self.horizon + 0.08, 0.03, (126, 176, 108), "ground", 4)
        self.hills(self.horizon + 0.25, 0.02, (108, 160, 94), "ground", 4)
        return 0.0

    def desert(self) -> float:
        self.sky(self.horizon)
        self.hills(self.horizon - 0.03, 0.05, (232, 176, 112), "far", 3)
        self.hills(self.horizon + 0.08, 0.03, (240, 192, 124), "ground", 3)
        self.hills(self.horizon + 0.25, 0.03, (226, 172, 104), "ground", 3)
        return 0.0

    def underwater(self) -> float:
        self.canvas.gradient(0, self.height, [self.tint(c) for c in ((120, 214, 230), (52, 150, 204), (24, 86, 150))])
        self.canvas.labels[:] = self.zone("water")
        self.hills(0.84, 0.02, (226, 206, 150), "ground", 4)
        for _ in range(int(4 + 3 * self.width / self.height)):
            x, h = float(self.rng.uniform(0, 1)), float(self.rng.uniform(0.15, 0.3))
            weed = [(0.0, 0.0), (0.12, -0.35), (-0.1, -0.7), (0.05, -1.0)]
            self.pen(x, 0.9, h).limb(weed, 0.14, self.tint((60, 150, 96)))
        for _ in range(18):
            r = float(self.rng.choice((0.008, 0.013, 0.02)))
            self.disc(float(self.rng.uniform(0, 1)), float(self.rng.uniform(0.02, 0.8)), r, r, (190, 234, 244))
        return 0.0

    def room(self) -> float:
        wall = [(250, 226, 190), (206, 226, 206), (200, 216, 240), (244, 206, 206)][int(self.rng.integers(4))]
        self.area([(0, 0), (1, 0), (1, 0.7), (0, 0.7)], wall, "far")
        self.area([(0, 0.68), (1, 0.68), (1, 1), (0, 1)], (190, 138, 92), "ground")
        self.area([(0, 0.665), (1, 0.665), (1, 0.69), (0, 0.69)], (250, 246, 236), "far")
        for y in (0.76, 0.84, 0.92):
            self.area([(0, y), (1, y), (1, y + 0.006), (0, y + 0.006)], (166, 116, 76), "ground")
        pen = self.pen(float(self.rng.choice((0.2, 0.8))), 0.5, 0.36)
        pen.box(-0.45, -1.0, 0.45, 0.0, (250, 248, 240))
        pen.box(-0.37, -0.92, 0.37, -0.08, SKIES[self.scene.time][1], ink=0.7)
        pen.line([(0, -0.92), (0, -0.08)], 1.2)
        pen.line([(-0.37, -0.5), (0.37, -0.5)], 1.2)
        return 0.0

    def plain(self) -> float:
        tones = ((252, 232, 200), (214, 236, 220), (208, 226, 246), (248, 214, 222), (236, 222, 246))
        tone = self.tint(tones[int(self.rng.integers(len(tones)))])
        self.canvas.gradient(0, self.height, (mix(tone, (255, 255, 255), 0.4), tone))
        self.canvas.labels[:] = self.zone("sky")
        return 0.0

    def weather(self) -> None:
        """Rain or fog over everything."""
        if self.scene.weather == "fog":
            self.canvas.veil((226, 230, 236), 0.42)
        elif self.scene.weather == "rain":
            for _ in range(int(60 * max(1.0, self.width / self.height))):
                pen = self.pen(float(self.rng.uniform(0, 1)), float(self.rng.uniform(0, 1)), 0.06)
                pen.line([(0.15, -0.5), (-0.15, 0.5)], 0.7, (196, 220, 244))


BACKDROPS: dict[str, Callable[[Backdrop], float]] = {
    name: getattr(Backdrop, "open_sea" if name == "sea" else name)
    for name in (
        "beach",
        "sea",
        "meadow",
        "forest",
        "snow",
        "city",
        "space",
        "mountains",
        "desert",
        "underwater",
        "room",
        "plain",
    )
}


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


def _line_weight(height: float) -> float:
    """Pixels that the outlines of a thing are wide: by its height alone, whatever the picture's size."""
    return 0.6 + 0.0135 * height


def _height(canvas: Canvas, spot: Spot) -> int:
    """Pixels that a thing is high: by its size and the picture's shorter side, and as its room allows."""
    subject, side = spot.subject, min(canvas.width, canvas.height)
    medium = max(i for i, height in enumerate(HEIGHTS[:-1]) if not i or height <= MEDIUM * side)
    index = medium + (1 if subject.on_lounger else LARGER[subject.size])
    fitting = [i for i, height in enumerate(HEIGHTS) if height * width_of(subject) <= spot.room * canvas.width]
    return HEIGHTS[max(0, min([index, *fitting[-1:]]))]


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
    pen = Pen(canvas, matrix, weight=_line_weight(height)).at(0, 0, flip=flip)
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
    backdrop = Backdrop(canvas, scene, rng)
    BACKDROPS[scene.setting](backdrop)
    for spot in _spots(scene):
        turned = chance is not None and chance.random() < 0.5
        _place(canvas, scene, spot._replace(flip=spot.flip != turned), chance)
    backdrop.weather()
    return Picture(canvas.finish(rng), canvas.labels)
