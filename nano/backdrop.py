"""What is behind the things of a picture: sky, land and scenery of a setting, on the grid of the transformer's tokens.

Horizons lie on the grid's lines, scenery stands on its crossings in the few heights that things have, and what repeats
(hills, windows, stars) does so every so many tokens. One backdrop is therefore made of few different tokens, in
pictures of all sizes, and a small model draws it with clean edges.

The seed chooses two things, each of which shows in few tokens and in no others: on which side the sun is, and on which
the scenery has something high. A look at the noise there tells a model which of the two it is to draw. In rain
and fog there is no sun to choose; in a room the first is the colour of its walls, on plain ground both are its colour.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from nano.canvas import GRID, HEIGHTS, RGB, Canvas, Label, Pen, line_weight, mix
from nano.world import LABEL, Scene

SKIES: dict[str, tuple[RGB, ...]] = {
    "day": ((112, 190, 240), (170, 220, 248), (226, 244, 250)),
    "sunset": ((126, 92, 160), (244, 132, 104), (255, 208, 140)),
    "night": ((16, 20, 56), (36, 42, 98), (74, 78, 142)),
}
DARKENING = {"day": 0.0, "sunset": 0.24, "night": 0.52}
DUSK: dict[str, RGB] = {"day": (255, 255, 255), "sunset": (190, 90, 90), "night": (18, 22, 70)}
WHITE: RGB = (255, 255, 255)
LARGEST = 720  # pixels of a side that scales clouds, sun and trees at most: larger pictures show more of the same ones
HEIGHTS_AFAR = (32, 64, 96, 128)  # pixels, of hills on the horizon
RADII = (16, 24, 32, 48, 64, 96, 128)  # pixels, of suns, moons and planets
SUNS = (0.28, 0.72)  # columns of the sun, shares of the width; a cloud is on the other side, another between them
CLOUDS = ((0.86, 0.46), (0.14, 0.46))  # column and row of the one on the other side; rows are shares of the sky
BETWEEN = (0.5, 0.26)
ASIDE = 0.1  # of what the scenery has on one side, from there, share of the width
OVERCAST: RGB = (132, 140, 154)
PLANETS: tuple[RGB, ...] = ((236, 150, 96), (120, 190, 220))
WALLS: tuple[RGB, ...] = ((250, 226, 190), (200, 216, 240))
TOWER = 3  # storeys above the medium of the city
HOUSES: tuple[tuple[int, RGB], ...] = (  # storeys beside that medium, and tone
    (0, (150, 160, 190)),
    (1, (190, 150, 150)),
    (0, (170, 176, 150)),
    (-1, (200, 176, 140)),
)
TILE = 8  # tokens after which scattered dots come again
Dot = tuple[int, int, int, int]  # row and column of its token in the tile, then where it is in it, pixels


def _scatter(count: int, seed: int) -> tuple[Dot, ...]:
    """So many dots of a tile, each in a token of its own."""
    rng = np.random.default_rng(seed)
    tokens = rng.choice(TILE * TILE, count, replace=False)
    inside = rng.choice((10, 16, 22), (count, 2))
    return tuple((int(t) // TILE, int(t) % TILE, int(x), int(y)) for t, (x, y) in zip(tokens, inside, strict=True))


STARS, FLAKES, FLOWERS, BUBBLES, WAVES = (_scatter(count, seed) for seed, count in enumerate((9, 10, 8, 5, 6)))


class Backdrop:
    """Draws the background of a scene.

    Args:
        canvas: what is drawn on.
        scene: whose setting, time and weather are drawn; its seed chooses the sides.
    """

    def __init__(self, canvas: Canvas, scene: Scene) -> None:
        self.canvas, self.scene = canvas, scene
        self.width, self.height = canvas.width, canvas.height
        self.unit = min(self.height, 0.7 * self.width, LARGEST)  # scale of clouds, sun, trees, in pixels
        self.sun, self.side = scene.seed % 2, scene.seed // 2 % 2  # 0: on the left, 1: on the right

    def draw(self) -> None:
        """All of it, and rain or fog before it; what is drawn next is nearer than they are."""
        DRAWN[self.scene.setting](self)
        if self.scene.weather == "fog":
            self.canvas.veil(mix((226, 230, 236), DUSK["night"], 0.6 * (self.scene.time == "night")), 0.5)
        elif self.scene.weather == "rain":
            for x, y in self.dotted(FLAKES, 0, self.height):
                self.stroke([(x + 6, y - 12), (x - 6, y + 12)], 2, (196, 220, 244))

    # where things lie

    def row(self, share: float) -> int:
        """The grid's line nearest to a share of the height, in pixels."""
        return round(share * self.height / GRID) * GRID

    def column(self, share: float) -> int:
        """The grid's line nearest to a share of the width, in pixels."""
        return round(share * self.width / GRID) * GRID

    def step(self, share: float, steps: Sequence[int] = HEIGHTS) -> int:
        """The largest of the steps, in pixels, that is at most a share of the unit; the smallest else."""
        return max([steps[0], *(step for step in steps if step <= share * self.unit)])

    def along(self, spacing: int) -> Iterator[int]:
        """Pixels from the left at which things stand `spacing` pixels apart."""
        return iter(range(0, self.width + spacing, spacing))

    def aside(self, *shares: float) -> Iterator[int]:
        """Pixels from the left of columns so far from the side that the scenery is high on, shares of the width."""
        return (self.column(1 - share if self.side else share) for share in shares)

    def dotted(self, tile: tuple[Dot, ...], top: int, bottom: int) -> Iterator[tuple[int, int]]:
        """(x, y) of the dots of all tiles between two heights."""
        for row, column, dx, dy in tile:
            for y in range(row * GRID, bottom - GRID + 1, TILE * GRID):
                for x in range(column * GRID, self.width, TILE * GRID):
                    if y >= top:
                        yield x + dx, y + dy

    def tint(self, colour: RGB) -> RGB:
        """The colour in the light of the scene's time."""
        return mix(colour, DUSK[self.scene.time], DARKENING[self.scene.time])

    def zone(self, name: str) -> Label:
        return (LABEL[f"{self.scene.setting} {name}"], 0)

    # what is drawn with, all in pixels

    def area(self, points: Sequence[tuple[float, float]], colour: RGB, zone: str) -> None:
        """Polygon in the light of the time."""
        self.canvas.polygon(np.asarray(points, dtype=np.float64), self.tint(colour), self.zone(zone))

    def band(self, top: float, bottom: float, colour: RGB, zone: str) -> None:
        """Over the whole width."""
        self.area([(0, top), (self.width, top), (self.width, bottom), (0, bottom)], colour, zone)

    def hills(self, top: float, rise: float, colour: RGB, zone: str, length: int = 16) -> None:
        """Ground down to the bottom whose top edge goes up and down by `rise`, every `length` tokens the same."""
        xs = range(0, self.width + 9, 8)
        edge = [(x, top + rise * np.sin(2 * np.pi * x / GRID / length)) for x in xs]
        self.area([*edge, (self.width, self.height), (0, self.height)], colour, zone)

    def mound(self, foot: float, rise: float, colour: RGB) -> None:
        """A round hill on one side, six times as wide as high."""
        middle = next(self.aside(ASIDE))
        turns = np.linspace(-1, 1, 41)
        edge = np.stack([middle + 3 * rise * turns, foot - rise * np.cos(np.pi / 2 * turns) ** 2], axis=1)
        self.area([(float(x), float(y)) for x, y in edge], colour, "far")

    def disc(self, x: float, y: float, rx: float, ry: float, colour: RGB, label: Label | None = None) -> None:
        angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        points = np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)
        self.canvas.polygon(points, colour, label)

    def stroke(self, points: Sequence[tuple[float, float]], width: float, colour: RGB) -> None:
        self.canvas.path(np.asarray(points, dtype=np.float64), width, colour, False, None)

    def pen(self, x: float, y: float, height: float) -> Pen:
        """A pen for scenery so many pixels high that stands at (x, y)."""
        matrix = np.array([[height, 0, x], [0, height, y], [0, 0, 1]], dtype=np.float64)
        return Pen(self.canvas, matrix, ink=self.tint((70, 66, 72)), weight=line_weight(height))

    # what settings share

    def sky(self, bottom: int) -> None:
        """Gradient, sun or moon, clouds or stars, down to a height; in rain clouds alone, in fog nothing."""
        time, weather, radius = self.scene.time, self.scene.weather, self.step(0.09, RADII)
        grey = mix(OVERCAST, DUSK["night"], DARKENING[time])
        self.canvas.gradient(0, bottom + 2, [mix(tone, grey, 0.6 * (weather != "clear")) for tone in SKIES[time]])
        self.canvas.labels[: bottom * len(self.canvas.labels) // self.height + 1] = self.zone("sky")
        if weather == "clear":
            self.light(bottom, radius)
        for column, row in {
            "clear": () if time == "night" else (BETWEEN, CLOUDS[self.sun]),
            "rain": (BETWEEN, *CLOUDS),
            "fog": (),
        }[weather]:
            self.cloud(self.column(column), max(GRID, round(row * bottom / GRID) * GRID), radius)

    def light(self, bottom: int, radius: int) -> None:
        """The sun, on the horizon when it sets; or the moon and stars."""
        time = self.scene.time
        if time == "night":
            self.stars(bottom)
        x, y = self.column(SUNS[self.sun]), bottom if time == "sunset" else max(2 * GRID, self.row(0.17))
        light: RGB = (250, 246, 214) if time == "night" else (255, 226, 110)
        self.canvas.glow(x, y, 4.5 * radius, light, 0.6)
        self.disc(x, y, radius, radius, light, self.zone("light"))
        if time == "night":
            self.disc(x + radius / 2, y - radius / 8, 0.8 * radius, 0.8 * radius, SKIES["night"][0])

    def stars(self, bottom: int) -> None:
        for x, y in self.dotted(STARS, 0, bottom):
            size = 3.5 if x % GRID == GRID // 2 else 2.5
            self.disc(x, y, size, size, (255, 250, 220))

    def cloud(self, x: float, y: float, size: float) -> None:
        """Three lobes about a point, four times `size` wide."""
        white = mix(self.tint(WHITE), SKIES[self.scene.time][1], 0.12)
        if self.scene.weather == "rain":
            white = mix(white, mix((96, 104, 122), DUSK["night"], DARKENING[self.scene.time]), 0.7)
        for dx, dy, r in ((-1.15, 0.15, 0.62), (0.0, -0.1, 0.9), (1.15, 0.15, 0.68)):
            self.disc(x + dx * size, y + dy * size, 1.25 * r * size, r * size, white)

    def sea(self, top: int, bottom: int) -> None:
        """Water with a gradient and short waves between two heights."""
        deep, pale = self.tint((38, 128, 190)), self.tint((110, 204, 220))
        stops = (pale, deep) if bottom == self.height else (deep, pale)
        self.canvas.gradient(top, bottom, stops)
        rows = len(self.canvas.labels)
        self.canvas.labels[top * rows // self.height : -(-bottom * rows // self.height)] = self.zone("water")
        for x, y in self.dotted(WAVES, top, bottom):
            wave = [(x - 14, y), (x - 7, y + 4), (x, y), (x + 7, y + 4), (x + 14, y)]
            self.stroke(wave, 2, mix(pale, WHITE, 0.45))

    def pine(self, x: float, y: float, height: float, colour: RGB, snow: RGB | None = None) -> None:
        pen, green = self.pen(x, y, height), self.tint(colour)
        pen = Pen(pen.canvas, pen.matrix, mix(green, (20, 30, 40), 0.35), self.zone("far"), pen.weight)
        pen.box(-0.05, -0.2, 0.05, 0.02, self.tint((120, 84, 60)), ink=0.6)
        for low, high, wide in ((-0.14, -0.58, 0.32), (-0.4, -0.8, 0.25), (-0.64, -1.0, 0.17)):
            pen.shape([(-wide, low), (0, high), (wide, low)], green, ink=0.6)
            if snow:
                pen.shape([(-wide * 0.5, (low + high) / 2), (0, high), (wide * 0.5, (low + high) / 2)], snow, ink=0)

    # the settings

    def beach(self) -> None:
        horizon, shore = self.row(0.43), self.row(0.62)
        self.sky(horizon)
        self.island(horizon)
        self.sea(horizon, shore + GRID)
        self.hills(shore - 8, 5, (250, 250, 244), "water", TILE)
        self.hills(shore + 8, 5, (246, 220, 160), "ground", TILE)
        self.hills(self.row(0.86), 5, (238, 206, 142), "ground", TILE)

    def open_sea(self) -> None:
        horizon = self.row(0.5)
        self.sky(horizon)
        self.island(horizon)
        self.sea(horizon, self.height)

    def island(self, horizon: int) -> None:
        self.mound(horizon, self.step(0.09, HEIGHTS_AFAR), (112, 164, 140))

    def meadow(self) -> None:
        horizon = self.row(0.56)
        self.sky(horizon)
        self.mound(horizon, self.step(0.27, HEIGHTS_AFAR), (150, 204, 120))
        self.hills(horizon - GRID, 24, (150, 204, 120), "far")
        self.hills(horizon + GRID, 8, (128, 194, 92), "ground")
        self.hills(self.row(0.8), 8, (112, 182, 82), "ground")
        tones: tuple[RGB, ...] = (WHITE, (255, 220, 90), (250, 150, 180))
        for x, y in self.dotted(FLOWERS, horizon + 3 * GRID, self.height):
            self.disc(x, y, 5, 5, self.tint(tones[(x // GRID % TILE + y // GRID % TILE) % 3]))

    def forest(self) -> None:
        horizon = self.row(0.56)
        self.sky(horizon)
        self.band(horizon - 2 * GRID, self.height, (84, 136, 84), "far")
        height = self.step(0.6)
        for x in self.along(max(2, round(0.55 * height / GRID)) * GRID):
            self.pine(x, horizon + GRID, height, (84, 142, 98))
        for x in self.aside(ASIDE):
            self.pine(x, horizon + 2 * GRID, self.step(0.8), (48, 104, 68))
        self.hills(horizon + GRID, 4, (104, 150, 80), "ground", TILE)
        self.hills(self.row(0.8), 4, (92, 138, 70), "ground", TILE)

    def snow(self) -> None:
        horizon = self.row(0.56)
        self.sky(horizon)
        self.hills(horizon - GRID, 24, (206, 222, 238), "far")
        for x in self.aside(0.08, 0.22):
            self.pine(x, horizon + 2 * GRID, self.step(0.45), (70, 130, 110), self.tint((250, 252, 255)))
        self.hills(horizon + 2 * GRID - 8, 8, (240, 246, 252), "ground")
        self.hills(self.row(0.84), 8, (226, 236, 248), "ground")
        for x, y in self.dotted(FLAKES, 0, self.height):
            self.disc(x, y, 4, 4, WHITE)

    def city(self) -> None:
        street = self.row(0.72)
        self.sky(street)
        cell = GRID if self.unit < 600 else 2 * GRID
        storeys, wide = max(2, round(0.42 * self.unit / cell)), 3 * cell
        for i, x in enumerate(range(0, self.width, wide)):
            more, tone = HOUSES[i % len(HOUSES)]
            more = TOWER if x <= next(self.aside(ASIDE)) < x + wide else more
            top = street - (storeys + more) * cell
            self.area([(x, top), (x + wide, top), (x + wide, street), (x, street)], tone, "far")
            self.windows(x, top, street, cell, tone)
        self.band(street, street + GRID, (170, 168, 172), "ground")
        self.band(street + GRID, self.height, (112, 114, 126), "ground")
        for x in range(0, self.width, 4 * GRID):
            y = self.height - GRID / 2
            self.area([(x, y - 5), (x + 2 * GRID, y - 5), (x + 2 * GRID, y + 5), (x, y + 5)], (240, 236, 220), "ground")

    def windows(self, left: int, top: int, bottom: int, cell: int, tone: RGB) -> None:
        """One in the middle of each cell of a house's wall; by night two of three are lit."""
        dark, lit = self.tint(mix(tone, (40, 50, 80), 0.4)), (255.0, 226.0, 130.0)
        if self.scene.time != "night":
            lit = dark = self.tint((228, 242, 248))
        for y in range(top, bottom, cell):
            for x in range(left, left + 3 * cell, cell):
                here = lit if (x // cell + 2 * (y // cell)) % 3 else dark
                x0, x1, y0, y1 = x + 0.25 * cell, x + 0.75 * cell, y + 0.2 * cell, y + 0.8 * cell
                self.canvas.polygon(np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)]), here, None)

    def space(self) -> None:
        self.canvas.gradient(0, self.height, ((14, 12, 40), (34, 24, 76), (66, 40, 110)))
        self.canvas.labels[:] = self.zone("sky")
        ground = self.row(0.75)
        self.stars(ground)
        radius = self.step(0.13, RADII)
        for index, (at, y) in enumerate(((0.18, 0.22), (0.8, 0.18))):
            self.planet(self.column(at), self.row(y), radius, PLANETS[index ^ self.sun], index == self.side)
        self.hills(ground, 8, (168, 164, 186), "ground")
        for row, y in enumerate(range(ground + GRID, self.height, 2 * GRID)):
            for x in range((2 + 3 * (row % 2)) * GRID, self.width, 6 * GRID):
                self.disc(x, y + GRID / 2, 28, 9, (142, 138, 164))

    def planet(self, x: float, y: float, radius: float, tone: RGB, ringed: bool) -> None:
        self.canvas.glow(x, y, radius * 2, tone, 0.4)
        self.disc(x, y, radius, radius, tone, self.zone("light"))
        if ringed:
            self.disc(x, y, radius * 1.7, radius * 0.2, mix(tone, WHITE, 0.5))
            self.disc(x, y - radius * 0.14, radius * 0.92, radius * 0.22, tone)

    def mountains(self) -> None:
        horizon = self.row(0.62)
        self.sky(horizon + 2 * GRID)
        foot, high, low = horizon + 2 * GRID, *(round(self.step(share) / GRID) * GRID for share in (0.85, 0.5))
        self.peak(next(self.aside(ASIDE)), foot, high, (150, 164, 196))
        for x in self.along(round(1.4 * low / GRID) * GRID):
            self.peak(x, foot, low, (116, 136, 172))
        self.hills(horizon + GRID, 8, (126, 176, 108), "ground")
        self.hills(self.row(0.84), 8, (108, 160, 94), "ground")

    def peak(self, x: int, foot: int, height: int, tone: RGB) -> None:
        """A mountain of slope one, whose edges run from crossing to crossing, with snow on top."""
        self.area([(x - height, foot), (x, foot - height), (x + height, foot)], tone, "far")
        cap = max(1, round(0.28 * height / GRID)) * GRID
        top, low = foot - height, foot - height + cap
        zigzag = [(x + cap, low), (x + cap / 2, low - cap / 4), (x, low), (x - cap / 2, low - cap / 4), (x - cap, low)]
        self.area([(x, top), *zigzag], (246, 250, 255), "far")

    def desert(self) -> None:
        horizon = self.row(0.56)
        self.sky(horizon)
        self.mound(horizon, self.step(0.27, HEIGHTS_AFAR), (232, 176, 112))
        self.hills(horizon - GRID, 24, (232, 176, 112), "far")
        self.hills(horizon + GRID, 14, (240, 192, 124), "ground", 12)
        self.hills(self.row(0.82), 8, (226, 172, 104), "ground")

    def underwater(self) -> None:
        deep: tuple[RGB, ...] = ((120, 214, 230), (52, 150, 204), (24, 86, 150))
        self.canvas.gradient(0, self.height, [self.tint(tone) for tone in deep])
        self.canvas.labels[:] = self.zone("water")
        x, radius = self.column(SUNS[self.sun]), self.step(0.13, RADII)
        self.canvas.glow(x, 0, 3 * radius, (250, 246, 214), 0.4)
        self.disc(
            x, 0, 1.5 * radius, 0.5 * radius, mix((214, 244, 240), SKIES[self.scene.time][0], 0.25), self.zone("light")
        )
        for x, y in self.dotted(BUBBLES, 0, self.row(0.8)):
            self.disc(x, y, 7, 7, self.tint((190, 234, 244)))
        ground, height = self.row(0.84), self.step(0.4)
        weed = [(0.0, 0.0), (0.12, -0.35), (-0.1, -0.7), (0.05, -1.0)]
        for x in self.aside(0.06, 0.16, 0.26):
            self.pen(x, ground + GRID, height).limb(weed, 0.14, self.tint((60, 150, 96)))
        self.hills(ground + GRID / 2, 8, (226, 206, 150), "ground", TILE)

    def room(self) -> None:
        floor = self.row(0.7)
        self.band(0, floor, WALLS[self.sun], "far")
        self.band(floor, self.height, (190, 138, 92), "ground")
        self.band(floor - 8, floor + 2, (250, 246, 236), "far")
        for y in range(floor + GRID, self.height, GRID):
            self.band(y - 2, y, (166, 116, 76), "ground")
        pen = self.pen(next(self.aside(0.2)), self.row(0.5), self.step(0.5))
        pen.box(-0.45, -1.0, 0.45, 0.0, self.tint((250, 248, 240)))
        pen.box(-0.37, -0.92, 0.37, -0.08, SKIES[self.scene.time][1], ink=0.7)
        pen.line([(0, -0.92), (0, -0.08)], 1.2)
        pen.line([(-0.37, -0.5), (0.37, -0.5)], 1.2)

    def plain(self) -> None:
        tones: tuple[RGB, ...] = ((252, 232, 200), (214, 236, 220), (208, 226, 246), (248, 214, 222))
        tone = self.tint(tones[self.sun + 2 * self.side])
        self.canvas.gradient(0, self.height, (mix(tone, WHITE, 0.4), tone))
        self.canvas.labels[:] = self.zone("sky")


DRAWN: dict[str, Callable[[Backdrop], None]] = {
    "beach": Backdrop.beach,
    "sea": Backdrop.open_sea,
    "meadow": Backdrop.meadow,
    "forest": Backdrop.forest,
    "snow": Backdrop.snow,
    "city": Backdrop.city,
    "space": Backdrop.space,
    "mountains": Backdrop.mountains,
    "desert": Backdrop.desert,
    "underwater": Backdrop.underwater,
    "room": Backdrop.room,
    "plain": Backdrop.plain,
}
