"""How the things of the world look: vehicles, plants, houses and toys, each a function of a pen and a paint.

As with creatures: height about 1, ground at y = 0, x = 0 in the middle.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from nano.canvas import Pen, mix
from nano.creatures import BLACK, NIGHT, WHITE, Look, draw_lounger
from nano.world import COLOURS, LABEL, PAINT, Subject

GLASS = (190.0, 226.0, 240.0)
WOOD = (150.0, 104.0, 66.0)
LEAF = (84.0, 160.0, 76.0)


def fish(pen: Pen, look: Look) -> None:
    """Looking right, 1.1 long."""
    pen.blob([(-0.3, -0.42), (-0.62, -0.74), (-0.72, -0.66), (-0.58, -0.42), (-0.72, -0.16), (-0.62, -0.1)], look.dark)
    pen.blob([(-0.15, -0.64), (0.0, -0.88), (0.2, -0.84), (0.15, -0.62)], look.dark)
    pen.blob(
        [
            (-0.42, -0.42),
            (-0.2, -0.66),
            (0.15, -0.72),
            (0.45, -0.56),
            (0.52, -0.42),
            (0.42, -0.26),
            (0.1, -0.12),
            (-0.2, -0.2),
        ],
        look.body,
    )
    pen.blob([(-0.1, -0.24), (0.15, -0.18), (0.4, -0.3), (0.15, -0.32)], look.light, ink=0)
    pen.blob([(0.0, -0.42), (-0.18, -0.5), (-0.2, -0.32)], look.dark, ink=0.8)
    pen.ellipse(0.3, -0.5, 0.075, 0.085, WHITE, ink=0.7)
    pen.ellipse(0.32, -0.49, 0.04, 0.05, BLACK, ink=0)
    pen.line([(0.36, -0.34), (0.44, -0.35), (0.49, -0.39)], ink=0.9)


def car(pen: Pen, look: Look) -> None:
    """Looking right, 1.6 long, 0.75 high."""
    pen.blob([(-0.5, -0.42), (-0.36, -0.74), (0.0, -0.8), (0.26, -0.7), (0.48, -0.42)], look.body)
    pen.shape([(-0.36, -0.45), (-0.27, -0.67), (-0.04, -0.7), (-0.04, -0.45)], GLASS, ink=0.8)
    pen.shape([(0.04, -0.45), (0.04, -0.7), (0.2, -0.65), (0.34, -0.45)], GLASS, ink=0.8)
    pen.box(-0.78, -0.46, 0.8, -0.14, look.body, 0.14)
    pen.box(-0.74, -0.24, 0.76, -0.16, look.dark, 0.03, ink=0)
    pen.ellipse(0.73, -0.34, 0.06, 0.07, (255, 236, 150), ink=0.7)
    pen.line([(0.0, -0.44), (0.0, -0.2)], ink=0.8)
    for x in (-0.44, 0.46):
        pen.ellipse(x, -0.15, 0.17, 0.17, BLACK, ink=0.8)
        pen.ellipse(x, -0.15, 0.08, 0.08, (210, 210, 216), ink=0)


def boat(pen: Pen, look: Look) -> None:
    """Sailing boat, 1.2 long."""
    pen.limb([(0, -0.25), (0, -0.98)], 0.035, WOOD)
    pen.shape([(0.05, -0.95), (0.5, -0.34), (0.05, -0.32)], WHITE)
    pen.shape([(-0.05, -0.86), (-0.4, -0.34), (-0.05, -0.32)], mix(look.light, WHITE, 0.3))
    pen.shape([(0, -0.99), (0.16, -0.94), (0, -0.89)], look.body, ink=0.7)
    pen.blob([(-0.62, -0.27), (0.0, -0.25), (0.64, -0.28), (0.46, -0.06), (0.0, 0.0), (-0.46, -0.04)], look.body)
    pen.line([(-0.54, -0.18), (0.0, -0.16), (0.55, -0.19)], ink=1.2, colour=WHITE)


def house(pen: Pen, look: Look) -> None:
    """Gable house with a door and two windows, 1.0 wide."""
    roof = COLOURS["brown"] if look.body != COLOURS["brown"] else (190, 70, 60)
    pen.box(0.18, -0.98, 0.3, -0.62, (168, 92, 80))
    pen.box(-0.42, -0.58, 0.42, 0.0, look.body)
    pen.shape([(-0.54, -0.56), (0.0, -0.98), (0.54, -0.56)], roof)
    pen.box(-0.1, -0.3, 0.1, 0.0, WOOD, 0.04)
    for x in (-0.27, 0.27):
        pen.box(x - 0.09, -0.46, x + 0.09, -0.28, (255, 238, 164), ink=0.9)
        pen.line([(x, -0.46), (x, -0.28)], ink=0.6)
    pen.ellipse(0.06, -0.14, 0.016, 0.016, (250, 210, 80), ink=0)


def tree(pen: Pen, look: Look) -> None:
    """Round crown in three lobes."""
    pen.shape([(-0.08, -0.45), (0.08, -0.45), (0.12, 0.0), (-0.12, 0.0)], WOOD)
    for x, y, r in ((-0.24, -0.52, 0.22), (0.24, -0.52, 0.22), (0.0, -0.72, 0.27)):
        pen.ellipse(x, y, r, r * 0.95, look.body)
    pen.ellipse(0, -0.56, 0.26, 0.18, look.body, ink=0)
    pen.ellipse(-0.07, -0.8, 0.12, 0.08, look.light, turn=-20, ink=0)


def balloon(pen: Pen, look: Look) -> None:
    """Party balloon on a string."""
    pen.line([(0, -0.42), (0.04, -0.28), (-0.03, -0.14), (0.02, 0.0)], ink=0.9)
    pen.shape([(0, -0.46), (-0.06, -0.4), (0.06, -0.4)], look.dark)
    pen.blob(
        [
            (0, -0.44),
            (-0.2, -0.58),
            (-0.26, -0.78),
            (-0.16, -0.96),
            (0, -1.0),
            (0.16, -0.96),
            (0.26, -0.78),
            (0.2, -0.58),
        ],
        look.body,
    )
    pen.ellipse(-0.09, -0.84, 0.05, 0.09, mix(look.light, WHITE, 0.5), turn=20, ink=0)


def flower(pen: Pen, look: Look) -> None:
    """Six petals on a stem with two leaves."""
    pen.limb([(0, -0.6), (0.02, -0.3), (0, 0.0)], 0.045, LEAF)
    pen.blob([(0.01, -0.16), (0.14, -0.34), (0.3, -0.34), (0.2, -0.18)], LEAF)
    pen.blob([(-0.01, -0.1), (-0.14, -0.26), (-0.28, -0.26), (-0.18, -0.1)], LEAF)
    for i in range(6):
        pen.at(0, -0.72, turn=60 * i).ellipse(0, -0.17, 0.105, 0.14, look.body, ink=0.9)
    pen.ellipse(0, -0.72, 0.1, 0.1, (250, 206, 70) if look.body != COLOURS["yellow"] else (160, 96, 50), ink=0.9)


def castle(pen: Pen, look: Look) -> None:
    """Three towers with pointed roofs."""
    roof = (206, 74, 76) if look.body != COLOURS["red"] else (70, 110, 200)
    pen.box(-0.36, -0.5, 0.36, 0.0, look.body)
    for x, top in ((-0.4, -0.6), (0.4, -0.6), (0.0, -0.72)):
        pen.box(x - 0.13, top, x + 0.13, 0.0 if x else -0.48, look.body)
        pen.shape([(x - 0.18, top), (x, top - 0.27), (x + 0.18, top)], roof)
        pen.box(x - 0.035, top + 0.1, x + 0.035, top + 0.22, NIGHT, 0.03, ink=0.6)
    pen.blob([(-0.1, 0.0), (-0.1, -0.2), (0, -0.28), (0.1, -0.2), (0.1, 0.0)], WOOD)


def rocket(pen: Pen, look: Look) -> None:
    """Standing upright on its flame."""
    pen.blob([(-0.09, -0.2), (0.0, 0.02), (0.09, -0.2)], (252, 170, 50), ink=0.6)
    for side in (-1, 1):
        pen.shape(
            [(side * 0.12, -0.46), (side * 0.32, -0.14), (side * 0.1, -0.22)],
            COLOURS["red"] if look.body != COLOURS["red"] else COLOURS["blue"],
        )
    pen.blob(
        [(-0.17, -0.24), (-0.2, -0.55), (-0.11, -0.85), (0, -1.0), (0.11, -0.85), (0.2, -0.55), (0.17, -0.24)],
        look.body,
    )
    pen.ellipse(0, -0.62, 0.09, 0.09, GLASS)


def train(pen: Pen, look: Look) -> None:
    """Steam engine, looking right, 1.5 long."""
    pen.box(0.3, -0.82, 0.46, -0.5, NIGHT)
    pen.box(-0.2, -0.56, 0.66, -0.2, look.body, 0.08)
    pen.box(-0.68, -0.88, -0.16, -0.2, look.body)
    pen.box(-0.76, -0.96, -0.08, -0.84, look.dark, 0.04)
    pen.box(-0.56, -0.74, -0.28, -0.5, GLASS)
    pen.shape([(0.6, -0.2), (0.84, -0.02), (0.5, -0.02)], (120, 120, 130))
    for x in (-0.48, -0.06, 0.36):
        pen.ellipse(x, -0.14, 0.15, 0.15, (196, 60, 60))
        pen.ellipse(x, -0.14, 0.05, 0.05, (230, 220, 200), ink=0.6)


def umbrella(pen: Pen, look: Look) -> None:
    """Beach umbrella."""
    pen.limb([(0, -0.9), (0, 0.0)], 0.035, WOOD)
    pen.blob(
        [(-0.6, -0.6), (-0.4, -0.86), (0, -0.98), (0.4, -0.86), (0.6, -0.6), (0.3, -0.66), (0, -0.62), (-0.3, -0.66)],
        look.body,
    )
    pen.blob([(-0.2, -0.65), (-0.14, -0.88), (0, -0.97), (0.14, -0.88), (0.2, -0.65), (0, -0.62)], look.light, ink=0.7)


def mushroom(pen: Pen, look: Look) -> None:
    """Cap with white dots."""
    pen.blob([(-0.15, -0.5), (-0.2, -0.04), (0, 0.0), (0.2, -0.04), (0.15, -0.5)], (246, 234, 212))
    pen.blob([(-0.5, -0.46), (-0.36, -0.82), (0, -0.98), (0.36, -0.82), (0.5, -0.46), (0, -0.38)], look.body)
    for x, y, r in ((-0.2, -0.7, 0.08), (0.12, -0.8, 0.07), (0.28, -0.56, 0.06), (-0.02, -0.52, 0.06)):
        pen.ellipse(x, y, r, r, WHITE, ink=0)


def snowman(pen: Pen, look: Look) -> None:
    """Two balls, buttons and a carrot."""
    for y, r in ((-0.28, 0.29), (-0.7, 0.22)):
        pen.ellipse(0, y, r, r, look.body)
    for y in (-0.42, -0.3, -0.18):
        pen.ellipse(0.02, y, 0.03, 0.03, BLACK, ink=0)
    for x in (-0.07, 0.11):
        pen.ellipse(x, -0.76, 0.028, 0.034, BLACK, ink=0)
    pen.shape([(0.02, -0.72), (0.24, -0.66), (0.02, -0.64)], (246, 140, 46), ink=0.7)


def star(pen: Pen, look: Look) -> None:
    """Five points with a smile."""
    angles = np.deg2rad(np.arange(10) * 36 - 90)
    radii = np.where(np.arange(10) % 2 == 0, 0.5, 0.24)
    pen.shape(np.stack([radii * np.cos(angles), -0.5 + radii * np.sin(angles)], axis=1), look.body)
    for x in (-0.09, 0.09):
        pen.ellipse(x, -0.55, 0.03, 0.045, BLACK, ink=0)
    pen.line([(-0.09, -0.42), (0, -0.37), (0.09, -0.42)], ink=0.9)


def ball(pen: Pen, look: Look) -> None:
    """Beach ball."""
    pen.ellipse(0, -0.4, 0.4, 0.4, look.body)
    pen.ellipse(0, -0.4, 0.16, 0.39, WHITE, ink=0.6)
    pen.ellipse(0, -0.4, 0.07, 0.07, look.dark, ink=0.6)


def cake(pen: Pen, look: Look) -> None:
    """Two tiers and a candle."""
    pen.box(-0.03, -0.94, 0.03, -0.66, WHITE, ink=0.7)
    pen.ellipse(0, -0.97, 0.035, 0.055, (252, 190, 60), ink=0.5)
    pen.box(-0.26, -0.68, 0.26, -0.34, look.light, 0.06)
    pen.box(-0.44, -0.38, 0.44, 0.0, look.body, 0.08)
    pen.line([(-0.42, -0.2), (-0.2, -0.14), (0, -0.2), (0.2, -0.14), (0.42, -0.2)], ink=1.6, colour=WHITE)


def lamp(pen: Pen, look: Look) -> None:
    """Street lamp."""
    pen.limb([(0, -0.74), (0, -0.03)], 0.05, (84, 84, 96))
    pen.box(-0.13, -0.07, 0.13, 0.0, (84, 84, 96), 0.03)
    pen.blob([(-0.14, -0.76), (-0.18, -0.92), (0, -1.0), (0.18, -0.92), (0.14, -0.76)], look.body)


def truck(pen: Pen, look: Look) -> None:
    """Looking right, 1.6 long."""
    pen.box(-0.8, -0.84, 0.24, -0.18, look.body, 0.04)
    pen.box(0.24, -0.6, 0.76, -0.18, look.light, 0.08)
    pen.box(0.42, -0.54, 0.7, -0.36, GLASS, 0.03)
    for x in (-0.5, 0.48):
        pen.ellipse(x, -0.15, 0.16, 0.16, BLACK)
        pen.ellipse(x, -0.15, 0.07, 0.07, (210, 210, 216), ink=0)


def plane(pen: Pen, look: Look) -> None:
    """Flying to the right, 1.5 long."""
    pen.shape([(-0.6, -0.5), (-0.78, -0.86), (-0.6, -0.84), (-0.36, -0.54)], look.dark)
    pen.blob([(-0.7, -0.5), (-0.2, -0.62), (0.4, -0.6), (0.72, -0.44), (0.4, -0.3), (-0.3, -0.34)], look.body)
    pen.shape([(-0.1, -0.44), (0.2, -0.44), (-0.1, -0.06), (-0.28, -0.06)], look.dark)
    for x in (-0.16, 0.02, 0.2, 0.38):
        pen.ellipse(x, -0.5, 0.04, 0.045, GLASS, ink=0.6)


def whale(pen: Pen, look: Look) -> None:
    """With a fountain, 1.5 long."""
    for side in (-1, 1):
        pen.limb([(0.2, -0.62), (0.2 + side * 0.04, -0.84), (0.2 + side * 0.17, -0.9)], 0.04, GLASS)
    pen.blob([(-0.5, -0.3), (-0.72, -0.66), (-0.9, -0.6), (-0.78, -0.46), (-0.86, -0.3), (-0.6, -0.2)], look.dark)
    pen.blob(
        [(-0.64, -0.34), (-0.3, -0.4), (0.1, -0.62), (0.5, -0.52), (0.7, -0.26), (0.4, -0.04), (-0.2, -0.04)], look.body
    )
    pen.blob([(0.0, -0.1), (0.4, -0.2), (0.66, -0.22), (0.4, -0.05)], look.light, ink=0)
    pen.ellipse(0.44, -0.38, 0.04, 0.05, BLACK, ink=0)


def butterfly(pen: Pen, look: Look) -> None:
    """Wings spread."""
    for side in (-1, 1):
        wing = pen.at(0, 0, flip=side < 0)
        wing.blob([(0.03, -0.5), (0.2, -0.84), (0.5, -0.84), (0.46, -0.56), (0.2, -0.46)], look.body)
        wing.blob([(0.03, -0.46), (0.3, -0.44), (0.4, -0.2), (0.2, -0.1)], look.light)
        wing.line([(0.01, -0.72), (0.1, -0.9)], ink=0.8)
    pen.ellipse(0, -0.48, 0.05, 0.27, (80, 60, 60))


def snail(pen: Pen, look: Look) -> None:
    """Shell on a soft foot, looking right."""
    skin = (238, 208, 160)
    pen.blob([(-0.6, -0.02), (-0.3, -0.22), (0.2, -0.26), (0.34, -0.5), (0.56, -0.5), (0.56, -0.2), (0.46, 0.0)], skin)
    for x in (0.38, 0.54):
        pen.line([(x, -0.48), (x + 0.04, -0.72)], ink=1.0)
    pen.ellipse(-0.08, -0.44, 0.36, 0.36, look.body)
    pen.ellipse(-0.06, -0.42, 0.22, 0.22, look.light, ink=0.8)
    pen.ellipse(-0.04, -0.4, 0.09, 0.09, look.body, ink=0.8)


def gift(pen: Pen, look: Look) -> None:
    """Box with a bow."""
    pen.box(-0.4, -0.6, 0.4, 0.0, look.body)
    pen.box(-0.07, -0.6, 0.07, 0.0, (250, 206, 70), ink=0.7)
    pen.box(-0.46, -0.72, 0.46, -0.54, look.dark)
    for side in (-1, 1):
        pen.ellipse(side * 0.15, -0.82, 0.15, 0.09, (250, 206, 70), turn=side * -20)


def cactus(pen: Pen, look: Look) -> None:
    """Two arms."""
    for points in ([(0.08, -0.35), (0.32, -0.38), (0.32, -0.62)], [(-0.08, -0.28), (-0.3, -0.3), (-0.3, -0.5)]):
        pen.limb(points, 0.13, look.body)
    pen.limb([(0, -0.88), (0, -0.06)], 0.22, look.body)
    pen.line([(0, -0.85), (0, -0.1)], ink=0.8)


SHAPES: dict[str, Callable[[Pen, Look], None]] = {
    shape.__name__: shape
    for shape in (
        fish,
        car,
        boat,
        house,
        tree,
        balloon,
        flower,
        castle,
        rocket,
        train,
        umbrella,
        mushroom,
        snowman,
        star,
        ball,
        cake,
        lamp,
        truck,
        plane,
        whale,
        butterfly,
        snail,
        gift,
        cactus,
    )
}
WIDTHS = {
    "fish": 1.3,
    "car": 1.65,
    "boat": 1.3,
    "house": 1.1,
    "tree": 1.0,
    "balloon": 0.55,
    "flower": 0.65,
    "train": 1.65,
    "truck": 1.65,
    "plane": 1.6,
    "whale": 1.65,
    "umbrella": 1.25,
    "sun lounger": 1.75,
}


def draw_object(pen: Pen, subject: Subject) -> None:
    """Draw one thing in its colour."""
    if subject.kind == "sun lounger":
        draw_lounger(pen, subject.colour)
        return
    pen = replace(pen, label=(LABEL[subject.kind], PAINT[subject.colour]))
    SHAPES[subject.kind](pen, Look.of(subject.colour))
