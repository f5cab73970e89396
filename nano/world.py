"""What exists in the drawn world, and how a scene of it is chosen: plain facts and seeded chance, no drawing, no words.

`SMALL` is the world of the cpu profile, `WIDE` of the gpu profile, `FULL` all that can be drawn; each has the T-Rex.
"""

from dataclasses import dataclass, replace

import numpy as np

from nano.canvas import RGB

COLOURS: dict[str, RGB] = {
    "none": (0, 0, 0),  # label 0: no colour of interest
    "red": (222, 62, 56),
    "orange": (244, 142, 44),
    "yellow": (250, 208, 62),
    "green": (92, 178, 84),
    "blue": (62, 122, 214),
    "purple": (146, 92, 196),
    "pink": (246, 142, 182),
    "brown": (148, 98, 62),
    "white": (246, 244, 238),
    "black": (62, 62, 72),
}
PAINTS = tuple(COLOURS)[1:]

CREATURES: dict[str, str] = {  # kind -> natural colour
    "t-rex": "green",
    "cat": "orange",
    "dog": "brown",
    "bird": "blue",
    "robot": "white",
    "person": "blue",
    "bear": "brown",
    "rabbit": "white",
    "fox": "orange",
    "horse": "brown",
    "elephant": "blue",
    "lion": "yellow",
    "penguin": "black",
    "frog": "green",
    "mouse": "white",
    "pig": "pink",
}
OBJECTS: dict[str, str] = {
    "fish": "orange",
    "car": "red",
    "boat": "red",
    "house": "yellow",
    "tree": "green",
    "balloon": "red",
    "flower": "pink",
    "castle": "white",
    "rocket": "white",
    "train": "blue",
    "umbrella": "red",
    "sun lounger": "blue",
    "mushroom": "red",
    "snowman": "white",
    "star": "yellow",
    "ball": "red",
    "cake": "pink",
    "lamp": "yellow",
    "truck": "green",
    "plane": "white",
    "whale": "blue",
    "butterfly": "purple",
    "snail": "orange",
    "gift": "purple",
    "cactus": "green",
}
NATURAL = CREATURES | OBJECTS
WORN = ("sunglasses", "hat", "scarf")
POSES = ("standing", "sitting", "lying", "jumping")
PLACES = ("left", "centre", "right")
SIZES = ("small", "medium", "big")
SETTINGS = (
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
TIMES = ("day", "sunset", "night")
WEATHERS = ("clear", "rain", "fog")
WEATHERED = 0.3  # share of scenes outdoors whose weather is any of the world's

HEADS = {kind: f"{kind} head" for kind in CREATURES}  # what tells creatures apart has a label of its own
ZONES = ("sky", "ground", "water", "far", "light")  # parts of a background that have labels of their own
LABELS: tuple[str, ...] = (
    "nothing",
    *(f"{setting} {zone}" for setting in SETTINGS for zone in ZONES),
    *NATURAL,
    *HEADS.values(),
    *WORN,
)
LABEL = {name: index for index, name in enumerate(LABELS)}
PAINT = {name: index for index, name in enumerate(COLOURS)}

OUTDOORS = ("beach", "sea", "meadow", "forest", "city", "mountains", "desert")  # where it may rain or be foggy
FLYERS = ("balloon", "star", "plane", "butterfly", "rocket")  # drawn above the ground
SWIMMERS = ("fish", "boat", "whale")  # drawn in the water where there is some


@dataclass(frozen=True)
class Subject:
    """One thing, or `count` of the same thing side by side."""

    kind: str
    colour: str
    place: str = "centre"
    count: int = 1
    size: str = "medium"
    pose: str = "standing"
    worn: tuple[str, ...] = ()
    on_lounger: bool = False


@dataclass(frozen=True)
class Scene:
    """All that a picture shows; `seed` decides what no caption speaks of: where sun, clouds, hills and trees are."""

    setting: str
    time: str
    subjects: tuple[Subject, ...]
    seed: int
    weather: str = "clear"
    style: str = "flat"


@dataclass(frozen=True)
class World:
    """What scenes are drawn from, and how often the rarer things happen."""

    settings: tuple[str, ...]
    kinds: tuple[str, ...]
    styles: tuple[str, ...] = ("flat",)
    weathers: tuple[str, ...] = ("clear",)
    poses: tuple[str, ...] = ("standing", "sitting", "lying")
    max_count: int = 3
    variants: int = 1 << 31  # ways of drawing one and the same backdrop; a small model learns few of them sooner
    several: float = 0.28  # share of scenes with several of a kind
    pairs: float = 0.34  # share of scenes with two different subjects
    lounging: float = 0.07  # share of scenes where a creature relaxes on a sun lounger, mostly on the beach
    creature_weight: int = 1  # how many times as often as any other kind a creature is chosen
    flyer_weight: int = 1  # the same of what hangs in the air, whose height follows from the picture's and its own


SMALL = World(
    settings=SETTINGS,
    kinds=("t-rex", "cat", "dog", "robot", "car", "boat", "house", "tree", "balloon", "fish", "flower", "rocket"),
    weathers=WEATHERS,
    poses=("standing", "lying"),
    variants=4,
    several=0.14,
    pairs=0.2,
    lounging=0.16,
)
PRACTICE = replace(SMALL, creature_weight=3, flyer_weight=3, pairs=0.3, lounging=0.16)
"""`SMALL` with more of what is learnt last: creatures that stand and wear something, what flies, and two subjects."""
WIDE = replace(
    SMALL,
    kinds=(
        *("t-rex", "cat", "dog", "bird", "robot", "person", "rabbit", "elephant", "penguin", "frog"),
        *("fish", "car", "boat", "house", "tree", "balloon", "flower", "castle", "rocket", "train", "umbrella"),
        *("mushroom", "snowman", "ball"),
    ),
)
"""All subjects that are easily told apart: twice those of `SMALL`."""
WIDE_PRACTICE = replace(WIDE, creature_weight=2, pairs=0.25)
"""`WIDE` with more creatures and pairs, as `PRACTICE`."""
FULL = World(
    settings=SETTINGS,
    kinds=tuple(NATURAL),
    styles=("flat", "watercolour", "pixel art", "line drawing", "neon"),
    weathers=WEATHERS,
    poses=POSES,
    max_count=4,
)

HABITATS: dict[str, tuple[str, ...]] = {  # a kind that has several is first of all at home in the first of them
    "sea": ("fish", "boat", "whale"),
    "beach": ("t-rex", "boat", "umbrella", "sun lounger", "ball"),
    "space": ("rocket", "star", "robot"),
    "city": ("car", "house", "truck", "lamp"),
    "underwater": ("fish", "whale"),
    "desert": ("cactus",),
    "snow": ("snowman", "penguin"),
}


def homes(kind: str) -> tuple[str, ...]:
    """Settings where nobody is surprised to see a kind; a meadow where none is better."""
    return tuple(setting for setting, kinds in HABITATS.items() if kind in kinds) or ("meadow",)


def moved(scene: Scene, setting: str) -> Scene:
    """The scene elsewhere, in a time and a weather that there are."""
    time = "night" if setting == "space" else scene.time
    return replace(scene, setting=setting, time=time, weather=scene.weather if setting in OUTDOORS else "clear")


def _paint(kind: str, rng: np.random.Generator) -> str:
    return NATURAL[kind] if rng.random() < 0.3 else str(rng.choice(PAINTS))


def _creature(kind: str, world: World, rng: np.random.Generator) -> Subject:
    """A creature with a pose and things worn; one in four lies on a sun lounger, T-Rexes more often."""
    if rng.random() < (0.4 if kind == "t-rex" else 0.22):
        pose, lounger = "lying", True
    else:
        pose, lounger = str(rng.choice([p for p in world.poses if p != "lying"])), False
    chance = 0.6 if lounger else 0.4
    worn = tuple(item for item in WORN if rng.random() < chance * (0.62 if item == "sunglasses" else 0.42))
    return Subject(kind, _paint(kind, rng), pose=pose, worn=worn[:2], on_lounger=lounger)


def sample_subject(world: World, setting: str, rng: np.random.Generator, besides: tuple[str, ...] = ()) -> Subject:
    """One subject for a setting, of a kind not in `besides`; a quarter of the time one that is at home there."""
    kinds = [kind for kind in world.kinds if kind not in besides]
    weight = dict.fromkeys(FLYERS, world.flyer_weight) | dict.fromkeys(CREATURES, world.creature_weight)
    choice = [kind for kind in kinds for _ in range(weight.get(kind, 1))]
    at_home = [kind for kind in HABITATS.get(setting, ()) if kind in kinds]
    kind = str(rng.choice(at_home if at_home and rng.random() < 0.25 else choice))
    size = str(rng.choice(SIZES, p=(0.2, 0.55, 0.25)))
    if kind in CREATURES:
        subject = _creature(kind, world, rng)
        return replace(subject, size="medium" if subject.on_lounger else size)
    return Subject(kind, _paint(kind, rng), size=size)


def _holiday(world: World, rng: np.random.Generator) -> Scene:
    """A creature alone on a sun lounger: the family of the scene that every model of this recipe must draw."""
    kinds = [kind for kind in world.kinds if kind in CREATURES]
    kind = "t-rex" if rng.random() < 0.45 else str(rng.choice(kinds))
    worn = tuple(item for item, chance in zip(WORN, (0.7, 0.25, 0.12), strict=True) if rng.random() < chance)
    place = str(rng.choice(PLACES, p=(0.15, 0.7, 0.15)))
    subject = Subject(kind, _paint(kind, rng), place=place, pose="lying", worn=worn[:2], on_lounger=True)
    setting = "beach" if rng.random() < 0.6 else str(rng.choice(world.settings))
    time = "night" if setting == "space" else str(rng.choice(TIMES, p=(0.7, 0.15, 0.15)))
    return Scene(setting, time, (subject,), int(rng.integers(world.variants)), style=str(rng.choice(world.styles)))


def sample_scene(world: World, rng: np.random.Generator) -> Scene:
    """A scene of the world: one subject, several of a kind, or two different ones."""
    if rng.random() < world.lounging:
        return _holiday(world, rng)
    setting = str(rng.choice(world.settings))
    time = "night" if setting == "space" else str(rng.choice(TIMES, p=(0.55, 0.2, 0.25)))
    first = sample_subject(world, setting, rng)
    shape = rng.random()
    subjects: tuple[Subject, ...]
    if shape < world.several and not first.on_lounger:
        count = int(rng.integers(2, world.max_count + 1))
        subjects = (replace(first, count=count, size="medium"),)
    elif shape < world.several + world.pairs:
        second = sample_subject(world, setting, rng, (first.kind,))
        if first.on_lounger and second.on_lounger:
            second = replace(second, on_lounger=False, pose="standing")
        places = [str(place) for place in rng.permutation(("left", "right"))]
        subjects = tuple(
            replace(s, place=place, size="medium" if s.size == "big" else s.size)
            for s, place in zip((first, second), places, strict=True)
        )
    else:
        subjects = (replace(first, place=str(rng.choice(PLACES, p=(0.28, 0.44, 0.28)))),)
    return Scene(
        setting=setting,
        time=time,
        subjects=subjects,
        seed=int(rng.integers(world.variants)),
        weather=str(rng.choice(world.weathers)) if setting in OUTDOORS and rng.random() < WEATHERED else "clear",
        style=str(rng.choice(world.styles)),
    )
