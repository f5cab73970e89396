"""The drawing surface of the recipe: anti-aliased shapes on an RGB picture, and a map of what lies where.

Every shape is drawn twice: in colour on the picture, and as a label on a map of one cell per 8x8 pixels. The labels are
the free supervision of the transformer's auxiliary head and of the judge. Nothing here knows what a cat is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

RGB = tuple[float, float, float]
Point = tuple[float, float]
Label = tuple[int, int]  # (what, colour), indices into world.LABELS and world.COLOURS; what 0 = nothing of interest

CELL = 8  # pixels per cell of the label map
SHIFT = 4  # fractional bits of the coordinates given to OpenCV

GRID = 32  # pixels along a side of the transformer's token
HEIGHTS = (80, 112, 160, 224, 320, 448)
"""Pixels that things are high; each is 1.4 times the one before."""

STYLES = ("flat", "watercolour", "pixel art", "line drawing", "neon")

cv2.setNumThreads(1)  # a process that was forked from one with OpenCV's threads waits for them for ever


def mix(a: RGB, b: RGB, share: float) -> RGB:
    """`a` with `share` (0 to 1) of `b`."""
    return (a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share, a[2] + (b[2] - a[2]) * share)


def smooth(points: Sequence[Point], pieces: int = 6) -> NDArray[np.float64]:
    """Closed Catmull-Rom curve through the points (N,2) -> (N*pieces,2)."""
    p = np.asarray(points, dtype=np.float64)
    before, after, beyond = np.roll(p, 1, 0), np.roll(p, -1, 0), np.roll(p, -2, 0)
    t = (np.arange(pieces) / pieces)[None, :, None]
    a, b, c, d = before[:, None], p[:, None], after[:, None], beyond[:, None]
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return curve.reshape(-1, 2)


def ring(x: float, y: float, rx: float, ry: float, turn: float = 0.0, corners: int = 28) -> NDArray[np.float64]:
    """Ellipse as a polygon (corners,2); `turn` in degrees."""
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    c, s = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
    u, v = rx * np.cos(angles), ry * np.sin(angles)
    return np.stack([x + u * c - v * s, y + u * s + v * c], axis=1)


def line_weight(height: float) -> float:
    """Pixels that the outlines of a thing so many pixels high are wide, whatever the picture's size."""
    return 0.6 + 0.0135 * height


class Canvas:
    """A picture being drawn, in one of STYLES.

    Args:
        width, height: pixels, multiples of 32.
        style: which of STYLES the colours and outlines follow.
    """

    def __init__(self, width: int, height: int, style: str = "flat") -> None:
        self.width, self.height, self.style = width, height, style
        self.image = np.full((height, width, 3), 255, dtype=np.uint8)
        self.labels = np.zeros((height // CELL, width // CELL, 2), dtype=np.uint8)
        self.ink_px = max(1.0, 0.0065 * (width * height) ** 0.5 * min(1.0, 1.15 * height / width + 0.35))

    def polygon(self, points: NDArray[np.float64], fill: RGB, label: Label | None) -> None:
        """Fill a polygon given in pixels (N,2); `label` None leaves the map alone."""
        corners = np.round(points * (1 << SHIFT)).astype(np.int32)
        cv2.fillPoly(self.image, [corners], self._tone(fill), cv2.LINE_AA, SHIFT)
        if label is not None:
            small = np.round(points / CELL * (1 << SHIFT) - (1 << SHIFT) // 2).astype(np.int32)
            cv2.fillPoly(self.labels, [small], label, cv2.LINE_8, SHIFT)

    def path(self, points: NDArray[np.float64], width: float, colour: RGB, closed: bool, label: Label | None) -> None:
        """Stroke a path given in pixels (N,2) with round ends; `width` in pixels."""
        corners = np.round(points * (1 << SHIFT)).astype(np.int32)
        thickness = max(1, round(width))
        cv2.polylines(self.image, [corners], closed, self._tone(colour), thickness, cv2.LINE_AA, SHIFT)
        if label is not None:
            small = np.round(points / CELL * (1 << SHIFT) - (1 << SHIFT) // 2).astype(np.int32)
            cv2.polylines(self.labels, [small], closed, label, max(1, round(width / CELL)), cv2.LINE_8, SHIFT)

    def gradient(self, top: float, bottom: float, stops: Sequence[RGB]) -> None:
        """Vertical gradient through evenly spaced colours between two rows (pixels) over the whole width."""
        y0, y1 = max(0, round(top)), min(self.height, round(bottom))
        if y1 <= y0:
            return
        where = np.linspace(0, len(stops) - 1, y1 - y0)
        tones = [self._tone(stop) for stop in stops]
        rows = np.stack([np.interp(where, range(len(stops)), [tone[i] for tone in tones]) for i in range(3)], axis=1)
        self.image[y0:y1] = np.round(rows).astype(np.uint8)[:, None]

    def glow(self, x: float, y: float, radius: float, colour: RGB, strength: float) -> None:
        """Blend a soft disc of light into what is there already."""
        x0, x1 = max(0, int(x - radius)), min(self.width, int(x + radius) + 1)
        y0, y1 = max(0, int(y - radius)), min(self.height, int(y + radius) + 1)
        if x1 <= x0 or y1 <= y0 or self.style == "line drawing":
            return
        dy, dx = np.ogrid[y0:y1, x0:x1]
        falloff = np.clip(1 - np.sqrt((dx - x) ** 2 + (dy - y) ** 2) / radius, 0, 1)[..., None] ** 2 * strength
        patch = self.image[y0:y1, x0:x1].astype(np.float32)
        self.image[y0:y1, x0:x1] = (patch + (np.asarray(colour) - patch) * falloff).astype(np.uint8)

    def veil(self, colour: RGB, share: float) -> None:
        """Blend one colour over the whole picture (fog, night)."""
        tint = np.full((1, 1, 3), self._tone(colour), dtype=np.float64)
        self.image = np.round(self.image * (1 - share) + tint * share).astype(np.uint8)

    def finish(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        """The picture (H,W,3) uint8 after what its style does to the whole sheet."""
        if self.style == "pixel art":
            block = max(4, round((self.width * self.height) ** 0.5 / 72))
            size = (max(1, self.width // block), max(1, self.height // block))
            small = cv2.resize(self.image, size, interpolation=cv2.INTER_AREA)
            return cv2.resize(small // 16 * 16 + 8, (self.width, self.height), interpolation=cv2.INTER_NEAREST)
        if self.style == "watercolour":
            return self._watercolour(rng)
        return self.image

    def _watercolour(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        coarse = rng.normal(0, 1, (self.height // 32 + 1, self.width // 32 + 1)).astype(np.float32)
        wash = cv2.resize(coarse, (self.width, self.height), interpolation=cv2.INTER_CUBIC)[..., None]
        soft = cv2.bilateralFilter(self.image, 7, 40, 5).astype(np.float32)
        return np.clip(soft * 0.86 + 34 + wash * 6, 0, 255).astype(np.uint8)

    def _tone(self, colour: RGB) -> tuple[int, int, int]:
        if self.style == "line drawing":
            grey = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
            colour = mix((255, 255, 252), colour, 0.16) if grey > 70 else (40, 40, 46)
        elif self.style == "neon":
            colour = mix((14, 10, 34), colour, 0.30)
        return (round(colour[0]), round(colour[1]), round(colour[2]))


@dataclass(frozen=True)
class Pen:
    """Draws in a subject's own coordinates: height 1, ground at y = 0, up is negative, x = 0 in the middle.

    `matrix` (3,3) takes them to pixels, `ink` outlines every shape, `label` is written to the map, `weight` says how
    many pixels wide its lines are (0: by the picture's size).
    """

    canvas: Canvas
    matrix: NDArray[np.float64]
    ink: RGB = (52, 44, 58)
    label: Label | None = None
    weight: float = 0.0

    @property
    def scale(self) -> float:
        """Pixels per unit."""
        return float(np.sqrt(abs(np.linalg.det(self.matrix[:2, :2]))))

    def at(self, x: float, y: float, scale: float = 1.0, turn: float = 0.0, flip: bool = False) -> "Pen":
        """A pen whose origin lies at (x, y) of this one, scaled, turned (degrees, clockwise) and mirrored."""
        c, s = np.cos(np.deg2rad(turn)) * scale, np.sin(np.deg2rad(turn)) * scale
        local = np.array([[c * (-1 if flip else 1), -s, x], [s * (-1 if flip else 1), c, y], [0, 0, 1]])
        return replace(self, matrix=self.matrix @ local)

    def to_pixels(self, points: Sequence[Point] | NDArray[np.float64]) -> NDArray[np.float64]:
        """(N,2) of this pen's units -> (N,2) pixels."""
        return np.asarray(points, dtype=np.float64) @ self.matrix[:2, :2].T + self.matrix[:2, 2]

    def shape(self, points: Sequence[Point] | NDArray[np.float64], fill: RGB, ink: float = 1.0) -> None:
        """Filled polygon, outlined with `ink` times the picture's line width (0 = no outline)."""
        pixels = self.to_pixels(points)
        self.canvas.polygon(pixels, fill, self.label)
        if ink > 0:
            self.canvas.path(pixels, self._line(ink), self._ink(fill), True, None)

    def blob(self, points: Sequence[Point], fill: RGB, ink: float = 1.0) -> None:
        """Smooth closed shape through the points."""
        self.shape(smooth(points), fill, ink)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: RGB, turn: float = 0.0, ink: float = 1.0) -> None:
        """Filled ellipse."""
        self.shape(ring(x, y, rx, ry, turn), fill, ink)

    def box(
        self, x0: float, y0: float, x1: float, y1: float, fill: RGB, round_by: float = 0.0, ink: float = 1.0
    ) -> None:
        """Filled rectangle with corners rounded by `round_by` units."""
        r = min(round_by, abs(x1 - x0) / 2, abs(y1 - y0) / 2)
        if r <= 0:
            self.shape([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill, ink)
            return
        corners = []
        for cx, cy, start in ((x1 - r, y0 + r, -90), (x1 - r, y1 - r, 0), (x0 + r, y1 - r, 90), (x0 + r, y0 + r, 180)):
            angles = np.deg2rad(np.linspace(start, start + 90, 6))
            corners.append(np.stack([cx + r * np.cos(angles), cy + r * np.sin(angles)], axis=1))
        self.shape(np.concatenate(corners), fill, ink)

    def limb(self, points: Sequence[Point], width: float, fill: RGB) -> None:
        """Thick outlined stroke with round ends: arms, legs, tails, masts."""
        pixels = self.to_pixels(points)
        thick = max(1.0, width * self.scale)
        self.canvas.path(pixels, thick + 2 * self._line(1.0), self._ink(fill), False, self.label)
        self.canvas.path(pixels, thick, fill, False, None)

    def line(self, points: Sequence[Point], ink: float = 1.0, colour: RGB | None = None) -> None:
        """Bare stroke of `ink` line widths."""
        self.canvas.path(self.to_pixels(points), self._line(ink), colour or self.ink, False, None)

    def _line(self, ink: float) -> float:
        return max(1.0, (self.weight or min(self.canvas.ink_px, 0.022 * self.scale + 0.6)) * ink)

    def _ink(self, fill: RGB) -> RGB:
        if self.canvas.style == "neon":
            bright = mix(fill, (255, 255, 255), 0.25)
            return (bright[0] * 3.2, bright[1] * 3.2, bright[2] * 3.2) if max(bright) > 120 else (180, 120, 420)
        if self.canvas.style == "watercolour":
            return mix(fill, (70, 60, 70), 0.35)
        return self.ink
