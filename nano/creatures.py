"""How the creatures of the world look: a head each, and bodies that stand, sit, lie and recline on a sun lounger.

A creature is drawn in a pen's units: height 1, feet at y = 0, looking to the right. Heads are drawn in units of their
own radius. Nothing here decides where a creature stands; `picture.py` does.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from nano.canvas import RGB, Pen, mix
from nano.world import COLOURS, HEADS, LABEL, PAINT, Subject

WHITE, BLACK, NIGHT = (250.0, 250.0, 246.0), (40.0, 38.0, 48.0), (30.0, 30.0, 44.0)


@dataclass(frozen=True)
class Look:
    """The tones of one subject's paint."""

    body: RGB
    light: RGB
    dark: RGB

    @classmethod
    def of(cls, colour: str) -> "Look":
        body = COLOURS[colour]
        return cls(body, mix(body, (255, 252, 240), 0.5), mix(body, (30, 20, 50), 0.22))


@dataclass(frozen=True)
class Face:
    """Where things are worn on a head, in head units: two lenses (x, y, r), the crown (x, y, width)."""

    lenses: tuple[tuple[float, float, float], tuple[float, float, float]]
    crown: tuple[float, float, float]


Head = Callable[[Pen, Look], Face]


def _eye(pen: Pen, x: float, y: float, r: float) -> None:
    pen.ellipse(x, y, r, r * 1.15, WHITE, ink=0.7)
    pen.ellipse(x + r * 0.2, y + r * 0.1, r * 0.55, r * 0.65, BLACK, ink=0)


def trex_head(pen: Pen, look: Look) -> Face:
    """Big profile with a toothy smile."""
    pen.blob([(-0.1, 0.35), (0.7, 0.5), (1.45, 0.42), (1.4, 0.68), (0.8, 0.86), (0.0, 0.8), (-0.5, 0.6)], look.light)
    skull = [(-0.85, 0.3), (-0.9, -0.4), (-0.45, -0.92), (0.2, -0.9), (0.6, -0.6), (1.3, -0.5), (1.68, -0.15)]
    pen.blob([*skull, (1.6, 0.3), (0.9, 0.44), (0.2, 0.5), (-0.4, 0.62)], look.body)
    for i in range(4):
        x = 0.55 + 0.27 * i
        pen.shape([(x, 0.4), (x + 0.2, 0.38), (x + 0.1, 0.62)], WHITE, ink=0.5)
    pen.ellipse(1.4, -0.2, 0.07, 0.05, BLACK, ink=0)
    _eye(pen, 0.1, -0.42, 0.24)
    return Face(((0.02, -0.4, 0.36), (0.78, -0.4, 0.30)), (-0.25, -0.82, 0.8))


def robot_head(pen: Pen, look: Look) -> Face:
    """Box with an antenna and a grille."""
    pen.line([(0, -0.8), (0, -1.15)], ink=1.4)
    pen.ellipse(0, -1.2, 0.13, 0.13, COLOURS["red"], ink=0.8)
    pen.box(-0.85, -0.8, 0.85, 0.75, look.body, 0.25)
    pen.box(-0.65, -0.5, 0.65, 0.15, NIGHT, 0.2, ink=0.6)
    for x in (-0.32, 0.32):
        pen.ellipse(x, -0.18, 0.17, 0.17, (110, 220, 240), ink=0)
    pen.line([(-0.35, 0.45), (0.35, 0.45)], ink=1.2)
    return Face(((-0.34, -0.18, 0.32), (0.34, -0.18, 0.32)), (0, -0.78, 0.8))


def bird_head(pen: Pen, look: Look) -> Face:
    """Round, with a beak and a tuft."""
    for turn in (-25, 0, 25):
        pen.at(0, -0.85, turn=turn).ellipse(0, -0.15, 0.1, 0.28, look.dark, ink=0.7)
    pen.ellipse(0, 0, 0.95, 0.92, look.body)
    pen.ellipse(0.25, 0.15, 0.6, 0.6, look.light, ink=0)
    pen.shape([(0.75, -0.08), (1.45, 0.2), (0.7, 0.42)], (250, 176, 50))
    _eye(pen, 0.02, -0.15, 0.22)
    _eye(pen, 0.58, -0.15, 0.2)
    return Face(((0.0, -0.14, 0.32), (0.66, -0.14, 0.28)), (-0.05, -0.78, 0.75))


def person_head(pen: Pen, look: Look) -> Face:
    """Smiling face under brown hair; the paint colours the clothes and tints the lips."""
    skin, hair = (248, 206, 170), (104, 66, 44)
    pen.ellipse(-0.05, -0.1, 1.0, 0.98, hair)
    pen.ellipse(0.08, 0.1, 0.85, 0.85, skin, ink=0.8)
    pen.blob(
        [(-0.8, 0.0), (-0.7, -0.75), (0.1, -0.95), (0.85, -0.5), (0.7, -0.3), (0.0, -0.45), (-0.5, -0.2)], hair, ink=0
    )
    for x in (-0.2, 0.42):
        pen.ellipse(x, 0.02, 0.1, 0.14, BLACK, ink=0)
    pen.line([(-0.12, 0.42), (0.1, 0.54), (0.35, 0.42)], ink=1.0, colour=mix(look.dark, (120, 40, 40), 0.7))
    return Face(((-0.22, 0.03, 0.3), (0.46, 0.03, 0.3)), (0, -0.85, 0.85))


def penguin_head(pen: Pen, look: Look) -> Face:
    """Dark cap, white cheeks, short beak."""
    pen.ellipse(0, 0, 0.95, 0.92, look.body)
    pen.ellipse(-0.2, 0.12, 0.45, 0.55, WHITE, ink=0)
    pen.ellipse(0.42, 0.12, 0.45, 0.55, WHITE, ink=0)
    pen.shape([(-0.1, 0.2), (0.4, 0.2), (0.15, 0.55)], (250, 170, 50))
    _eye(pen, -0.2, -0.1, 0.17)
    _eye(pen, 0.45, -0.1, 0.17)
    return Face(((-0.22, -0.08, 0.3), (0.47, -0.08, 0.3)), (0, -0.8, 0.8))


def frog_head(pen: Pen, look: Look) -> Face:
    """Wide, with eyes on top."""
    for x in (-0.5, 0.55):
        pen.ellipse(x, -0.62, 0.36, 0.36, look.body)
        _eye(pen, x + 0.03, -0.64, 0.22)
    pen.ellipse(0, 0.05, 1.1, 0.78, look.body)
    pen.line([(-0.65, 0.2), (0.0, 0.42), (0.7, 0.2)], ink=1.1)
    return Face(((-0.5, -0.6, 0.36), (0.55, -0.6, 0.36)), (0, -0.85, 0.8))


@dataclass(frozen=True)
class Mammal:
    """A round head told apart by its ears, muzzle and extras."""

    ears: str
    muzzle: float = 0.42
    extra: str = ""

    def __call__(self, pen: Pen, look: Look) -> Face:
        if self.extra == "mane":
            pen.ellipse(0, 0, 1.28, 1.25, look.dark)
        self._ears(pen, look)
        pen.ellipse(0, 0, 0.98, 0.9, look.body)
        if self.muzzle:
            pen.ellipse(0.14, 0.38, self.muzzle * 1.1, self.muzzle * 0.85, look.light, ink=0)
        for x in (-0.3, 0.5):
            _eye(pen, x, -0.12, 0.19)
        self._nose(pen, look)
        return Face(((-0.32, -0.1, 0.34), (0.52, -0.1, 0.34)), (0, -0.74, 0.8))

    def _ears(self, pen: Pen, look: Look) -> None:
        for side in (-1, 1):
            ear = pen.at(side * 0.58, -0.6, flip=side > 0)
            if self.ears == "pointed":
                ear.shape([(-0.4, 0.3), (-0.34, -0.72), (0.4, -0.1)], look.body)
                ear.shape([(-0.24, 0.14), (-0.22, -0.44), (0.18, -0.06)], mix(look.light, (255, 160, 170), 0.4), ink=0)
            elif self.ears == "floppy":
                ear.blob([(0.1, -0.25), (-0.4, -0.1), (-0.62, 0.5), (-0.38, 0.95), (-0.12, 0.5)], look.dark)
            elif self.ears == "round":
                ear.ellipse(-0.12, -0.1, 0.34, 0.34, look.body)
                ear.ellipse(-0.12, -0.1, 0.18, 0.18, look.light, ink=0)
            elif self.ears == "long":
                ear.at(0.1, 0.0, turn=-10).ellipse(0, -0.75, 0.22, 0.75, look.body)
                ear.at(0.1, 0.0, turn=-10).ellipse(0, -0.7, 0.1, 0.5, (250, 176, 186), ink=0)
            elif self.ears == "huge":
                ear.ellipse(-0.45, 0.4, 0.62, 0.7, look.dark)

    def _nose(self, pen: Pen, look: Look) -> None:
        if self.extra == "trunk":
            pen.limb([(0.2, 0.3), (0.35, 0.8), (0.7, 1.05), (0.95, 0.9)], 0.34, look.body)
            return
        if self.extra == "snout":
            pen.ellipse(0.16, 0.3, 0.36, 0.26, look.dark)
            for x in (0.04, 0.28):
                pen.ellipse(x, 0.3, 0.06, 0.1, BLACK, ink=0)
            return
        pen.ellipse(0.16, 0.24, 0.14, 0.1, BLACK, ink=0)
        pen.line([(-0.06, 0.5), (0.06, 0.58), (0.16, 0.46), (0.26, 0.58), (0.38, 0.5)], ink=0.9)
        if self.extra == "whiskers":
            for side in (-1, 1):
                for dy in (-0.06, 0.12):
                    pen.line([(0.16 + side * 0.42, 0.36), (0.16 + side * 0.98, 0.32 + dy * 2)], ink=0.6)


@dataclass(frozen=True)
class Build:
    """A body: its head, how big that is, on how many legs it stands, and its tail."""

    head: Head
    head_size: float = 0.3
    legs: int = 4
    tail: str = "long"
    arm: float = 1.0
    thin_legs: bool = False


BUILDS: dict[str, Build] = {
    "t-rex": Build(trex_head, 0.31, 2, "big", 0.6),
    "cat": Build(Mammal("pointed", 0.4, "whiskers")),
    "dog": Build(Mammal("floppy", 0.5), tail="short"),
    "bird": Build(bird_head, 0.3, 2, "feathers", 1.3, True),
    "robot": Build(robot_head, 0.29, 2, "none", 1.2),
    "person": Build(person_head, 0.27, 2, "none", 1.2),
    "bear": Build(Mammal("round", 0.48), 0.3, 2, "none", 1.1),
    "rabbit": Build(Mammal("long", 0.4), 0.27, 2, "none", 0.9),
    "fox": Build(Mammal("pointed", 0.52), tail="bushy"),
    "horse": Build(Mammal("round", 0.6), 0.26, tail="bushy"),
    "elephant": Build(Mammal("huge", 0.0, "trunk"), 0.31, tail="short"),
    "lion": Build(Mammal("round", 0.46, "mane"), 0.26),
    "penguin": Build(penguin_head, 0.28, 2, "none", 1.2, True),
    "frog": Build(frog_head, 0.32, 2, "none"),
    "mouse": Build(Mammal("round", 0.36, "whiskers"), 0.3, 2),
    "pig": Build(Mammal("pointed", 0.0, "snout"), 0.3, tail="short"),
}


def draw_creature(pen: Pen, subject: Subject) -> None:
    """Draw a creature in its pose, with what it wears."""
    build, look = BUILDS[subject.kind], Look.of(subject.colour)
    pen = replace(pen, label=(LABEL[subject.kind], PAINT[subject.colour]))
    if subject.on_lounger:
        head = _recline(pen, build, look)
    elif subject.pose == "sitting":
        head = _sit(pen, build, look)
    elif subject.pose == "lying":
        head = _lie(pen, build, look)
    elif subject.pose == "jumping":
        head = _stand(pen.at(0, -0.28, turn=-12), build, look, spread=0.12)
    else:
        head = _stand(pen, build, look)
    if "scarf" in subject.worn:
        _scarf(head, COLOURS["red" if subject.colour != "red" else "blue"])
    face = build.head(replace(head, label=(LABEL[HEADS[subject.kind]], PAINT[subject.colour])), look)
    if "sunglasses" in subject.worn:
        _sunglasses(head, face)
    if "hat" in subject.worn:
        _hat(head, face, COLOURS["yellow" if subject.colour != "yellow" else "purple"])


def _tail(pen: Pen, build: Build, look: Look, x: float, y: float, lift: float = 1.0) -> None:
    """From the hip at (x, y) to the left."""
    if build.tail == "big":
        low = [(x + 0.15, y + 0.14), (x - 0.2, y + 0.14), (x - 0.48, y + 0.1)]
        pen.blob([(x + 0.1, y - 0.2), (x - 0.2, y - 0.08), (x - 0.62, y - 0.1 * lift), *reversed(low)], look.body)
    elif build.tail == "long":
        pen.limb(
            [(x, y), (x - 0.12, y - 0.02), (x - 0.2, y - 0.16 * lift), (x - 0.16, y - 0.3 * lift)], 0.06, look.body
        )
    elif build.tail == "short":
        pen.limb([(x, y), (x - 0.1, y - 0.12 * lift)], 0.06, look.body)
    elif build.tail == "bushy":
        pen.blob(
            [(x + 0.04, y), (x - 0.16, y - 0.14), (x - 0.34, y - 0.1), (x - 0.3, y + 0.08), (x - 0.12, y + 0.1)],
            look.dark,
        )
    elif build.tail == "feathers":
        for turn in (-16, 0, 16):
            pen.at(x, y, turn=turn).ellipse(-0.17, 0, 0.2, 0.06, look.dark)


def _foot(pen: Pen, build: Build, look: Look, x: float) -> None:
    tone = (250, 176, 50) if build.thin_legs else look.dark
    pen.ellipse(x + 0.03, -0.03, 0.085, 0.042, tone, ink=0.9)


def _leg(pen: Pen, build: Build, look: Look, x: float, top: float, spread: float = 0.0) -> None:
    tone, width = ((250, 176, 50), 0.035) if build.thin_legs else (look.body, 0.11)
    pen.limb([(x, top), (x + spread, -0.06)], width, tone)
    _foot(pen, build, look, x + spread)


def _arm(pen: Pen, build: Build, look: Look, x: float, y: float, dx: float, dy: float) -> None:
    if build.thin_legs:  # a wing
        pen.blob(
            [(x - 0.02, y - 0.06), (x + dx * 0.5 + 0.07, y + 0.04), (x + dx, y + dy + 0.05), (x - 0.06, y + 0.1)],
            look.dark,
        )
        return
    pen.limb(
        [(x, y), (x + dx * build.arm * 0.6, y + dy * build.arm * 0.7), (x + dx * build.arm, y + dy * build.arm * 0.9)],
        0.075,
        look.body,
    )


def _stand(pen: Pen, build: Build, look: Look, spread: float = 0.0) -> Pen:
    """Standing body; returns the pen of the head."""
    if build.legs == 4:
        _tail(pen, build, look, -0.36, -0.4)
        for x in (-0.2, 0.2):
            _leg(pen, build, replace(look, body=look.dark), x, -0.28, spread)
        pen.blob(
            [(-0.4, -0.36), (-0.32, -0.5), (0.05, -0.5), (0.26, -0.56), (0.36, -0.4), (0.28, -0.24), (-0.3, -0.22)],
            look.body,
        )
        pen.ellipse(-0.02, -0.27, 0.24, 0.06, look.light, ink=0)
        for x in (-0.3, 0.1):
            _leg(pen, build, look, x, -0.28, spread)
        return pen.at(0.27, -0.74, build.head_size)
    _tail(pen, build, look, -0.12, -0.3)
    _arm(pen, build, look, -0.14, -0.46, -0.14, 0.2)
    for x in (-0.1, 0.09):
        _leg(pen, build, look, x, -0.2, spread)
    pen.blob(
        [(-0.2, -0.3), (-0.16, -0.5), (0.0, -0.62), (0.15, -0.52), (0.2, -0.3), (0.12, -0.14), (-0.12, -0.14)],
        look.body,
    )
    pen.ellipse(0.05, -0.32, 0.12, 0.17, look.light, ink=0)
    _arm(pen, build, look, 0.12, -0.46, 0.16, 0.16)
    return pen.at(0.03, -0.8, build.head_size)


def _sit(pen: Pen, build: Build, look: Look) -> Pen:
    """Sitting body; returns the pen of the head."""
    _tail(pen, build, look, -0.22, -0.14, 1.2)
    pen.blob(
        [(-0.3, -0.12), (-0.2, -0.4), (-0.02, -0.58), (0.16, -0.46), (0.22, -0.2), (0.2, -0.02), (-0.2, -0.01)],
        look.body,
    )
    if build.legs == 4:
        pen.ellipse(-0.16, -0.1, 0.15, 0.12, look.dark, ink=0.8)
        for x in (0.02, 0.16):
            _leg(pen, build, look, x, -0.34)
    else:
        pen.ellipse(0.05, -0.28, 0.13, 0.17, look.light, ink=0)
        for y in (-0.11, -0.05):
            pen.limb(
                [(0.04, y), (0.34, y)],
                0.035 if build.thin_legs else 0.11,
                (250, 176, 50) if build.thin_legs else look.body,
            )
            pen.ellipse(0.4, y - 0.04, 0.05, 0.085, (250, 176, 50) if build.thin_legs else look.dark)
        _arm(pen, build, look, 0.08, -0.42, 0.18, 0.14)
    return pen.at(0.02, -0.76, build.head_size)


def _lie(pen: Pen, build: Build, look: Look) -> Pen:
    """On its belly; returns the pen of the head."""
    _tail(pen, build, look, -0.38, -0.14, 0.6)
    pen.blob(
        [(-0.44, -0.1), (-0.32, -0.3), (0.0, -0.34), (0.3, -0.32), (0.38, -0.12), (0.26, -0.01), (-0.36, 0.0)],
        look.body,
    )
    pen.ellipse(-0.22, -0.1, 0.16, 0.1, look.dark, ink=0.8)
    pen.limb([(0.2, -0.07), (0.52, -0.05)], 0.035 if build.thin_legs else 0.1, look.body)
    return pen.at(0.34, -0.46, build.head_size)


def draw_lounger(pen: Pen, colour: str) -> None:
    """A sun lounger from the side: 1.7 wide, 0.85 high, its backrest on the left."""
    look, wood = Look.of(colour), (196, 142, 88)
    pen = replace(pen, label=(LABEL["sun lounger"], PAINT[colour]))
    for x in (-0.55, -0.12, 0.72):
        pen.limb([(x, -0.24), (x, -0.03)], 0.055, wood)
    pen.limb([(-0.42, -0.52), (-0.6, -0.22)], 0.04, wood)
    pen.limb([(-0.62, -0.2), (0.86, -0.2)], 0.06, wood)
    pen.shape([(-0.22, -0.3), (0.88, -0.3), (0.88, -0.21), (-0.2, -0.21)], look.body)
    pen.shape([(-0.2, -0.21), (-0.22, -0.32), (-0.66, -0.84), (-0.75, -0.77), (-0.3, -0.22)], look.body)
    for x in (0.0, 0.28, 0.56):
        pen.shape([(x, -0.3), (x + 0.12, -0.3), (x + 0.12, -0.21), (x, -0.21)], look.light, ink=0.5)


def _recline(pen: Pen, build: Build, look: Look) -> Pen:
    """On its back on a sun lounger (drawn before), head up on the backrest; returns the pen of the head."""
    leg_width, leg_tone = (0.04, (250.0, 176.0, 50.0)) if build.thin_legs else (0.13, look.body)
    foot_tone = (250.0, 176.0, 50.0) if build.thin_legs else look.dark
    if build.tail == "big":
        pen.blob(
            [(-0.2, -0.42), (0.1, -0.36), (0.34, -0.14), (0.62, -0.02), (0.3, -0.02), (0.02, -0.14), (-0.2, -0.28)],
            look.dark,
        )
    elif build.tail != "none":
        pen.limb([(-0.1, -0.34), (0.12, -0.2), (0.1, -0.06), (0.22, -0.04)], 0.06, look.dark)
    pen.limb([(-0.16, -0.4), (0.18, -0.58), (0.46, -0.38)], leg_width, mix(leg_tone, look.dark, 0.6))
    pen.ellipse(0.5, -0.43, 0.055, 0.1, foot_tone, turn=10)
    pen.ellipse(-0.33, -0.58, 0.19, 0.3, look.body, turn=-42)
    pen.at(-0.29, -0.56, turn=-42).ellipse(0.02, 0.03, 0.11, 0.19, look.light, ink=0)
    pen.limb([(-0.16, -0.4), (0.22, -0.42), (0.62, -0.37)], leg_width, leg_tone)
    pen.ellipse(0.67, -0.43, 0.06, 0.12, foot_tone, turn=10)
    _arm(pen.at(-0.36, -0.66, turn=-25), build, look, 0.05, 0.02, 0.2, 0.12)
    return pen.at(-0.53, -0.98, build.head_size * 1.04, turn=-14)


def _sunglasses(head: Pen, face: Face) -> None:
    pen = replace(head, label=(LABEL["sunglasses"], PAINT["black"]))
    (x0, y0, r0), (x1, y1, _) = face.lenses
    pen.line([(x0 - r0 * 2.0, y0 - 0.06), (x0, y0 - 0.02), (x1, y1 - 0.02)], ink=2.0, colour=BLACK)
    for x, y, r in face.lenses:
        pen.box(x - r, y - r * 0.72, x + r, y + r * 0.8, (34, 34, 48), r * 0.55, ink=1.0)
        pen.shape(
            [
                (x - r * 0.6, y + r * 0.3),
                (x - r * 0.1, y - r * 0.5),
                (x + r * 0.15, y - r * 0.5),
                (x - r * 0.35, y + r * 0.3),
            ],
            (120, 150, 196),
            ink=0,
        )


def _hat(head: Pen, face: Face, colour: RGB) -> None:
    x, y, width = face.crown
    pen = replace(head.at(x, y, turn=-6), label=(LABEL["hat"], 0))
    pen.box(-width * 0.68, -0.72, width * 0.68, 0.0, colour, 0.25)
    pen.box(-width * 0.68, -0.24, width * 0.68, -0.04, mix(colour, (120, 20, 40), 0.55), 0.0, ink=0.5)
    pen.box(-width * 1.3, -0.08, width * 1.3, 0.14, colour, 0.11)


def _scarf(head: Pen, colour: RGB) -> None:
    pen = replace(head, label=(LABEL["scarf"], 0))
    pen.box(0.05, 0.85, 0.5, 1.75, mix(colour, (30, 20, 50), 0.15), 0.1)
    pen.ellipse(0.0, 0.92, 0.86, 0.3, colour)
