"""What the drawn birds are made of: a canvas that knows which part owns each pixel, curves, and colours by chance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image, ImageDraw

SIZE = 112  # pixels, both sides
SUPERSAMPLE = 3  # drawn this many times larger, then averaged down
PARTS = ("bill", "crown", "throat", "back", "wing", "breast", "belly", "tail", "leg")

RGB = tuple[int, int, int]
Pixels = list[tuple[float, float]]
Box = tuple[float, ...]  # x0, y0, x1, y1 in the bird's coordinates, and an angle in degrees


class Canvas:
    """A supersampled image with, beside it, which part owns each pixel."""

    def __init__(self, image: Image.Image, matrix: np.ndarray, shift: np.ndarray, rng: np.random.Generator) -> None:
        self.image = image
        self.owner = Image.new("L", image.size, 0)
        self.matrix, self.shift, self.rng = matrix, shift, rng
        self.unit = float(np.sqrt(abs(np.linalg.det(matrix))))  # pixels to the bird's unit of length

    def place(self, points: np.ndarray) -> Pixels:
        """Bird coordinates (n,2) to pixels."""
        return [(float(x), float(y)) for x, y in points @ self.matrix.T + self.shift]

    def mask(self, polygon: np.ndarray, within: Image.Image | None = None) -> Image.Image:
        """Where a polygon lies, or what of it lies within another mask."""
        mask = Image.new("L", self.image.size, 0)
        ImageDraw.Draw(mask).polygon(self.place(polygon), fill=255)
        return overlap(within, mask) if within else mask

    def paint(self, mask: Image.Image, part: str, colour: RGB, pattern: str = "solid", box: Box = ()) -> None:
        """Fill ``mask`` with a colour and a pattern laid over ``box``."""
        around = mask.getbbox() or (0, 0, 1, 1)  # half the time of a drawing is pixels beside a part
        within = mask.crop(around)
        self.image.paste(colour, around, within)
        self.owner.paste(PARTS.index(part) + 1, around, within)
        if pattern != "solid":
            marks = Image.new("L", self.image.size, 0)
            for polygon in _marks(pattern, box, self.rng):
                ImageDraw.Draw(marks).polygon(self.place(polygon), fill=255)
            light = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] > 95
            shade = (38, 34, 34) if light else (232, 226, 208)
            self.image.paste(shade, around, overlap(within, marks.crop(around)))

    def outline(self, polygon: np.ndarray, colour: RGB, width: float = 0.035) -> None:
        points = self.place(polygon)
        r, g, b = (int(0.45 * c) for c in colour)
        self.line([*points, points[0]], (r, g, b), max(1, round(width * self.unit)))

    def stroke(self, points: np.ndarray, part: str, colour: RGB, width: float) -> None:
        pixels, thick = self.place(points), max(2, round(width * self.unit))
        ImageDraw.Draw(self.image).line(pixels, fill=colour, width=thick, joint="curve")
        ImageDraw.Draw(self.owner).line(pixels, fill=PARTS.index(part) + 1, width=thick)

    def line(self, pixels: Pixels, colour: RGB, width: int) -> None:
        """A line that no part owns."""
        for image, fill in ((self.image, colour), (self.owner, 0)):
            ImageDraw.Draw(image).line(pixels, fill=fill, width=width, joint="curve")

    def cover(self, pixels: Pixels, colour: RGB) -> None:
        """A polygon that no part owns."""
        ImageDraw.Draw(self.image).polygon(pixels, fill=colour)
        ImageDraw.Draw(self.owner).polygon(pixels, fill=0)


def ellipse(x: float, y: float, rx: float, ry: float, count: int = 32) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def turned(points: np.ndarray, degrees: float, about: tuple[float, float]) -> np.ndarray:
    a = np.deg2rad(degrees)
    matrix = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    found: np.ndarray = (points - about) @ matrix.T + about
    return found


def smooth(points: Iterable[tuple[float, float]], steps: int = 5) -> np.ndarray:
    """Closed Catmull-Rom curve through ``points``."""
    p = np.array(list(points), dtype=float)
    a, b, c, d = np.roll(p, 1, 0), p, np.roll(p, -1, 0), np.roll(p, -2, 0)
    t = (np.arange(steps) / steps)[None, :, None]
    a, b, c, d = a[:, None], b[:, None], c[:, None], d[:, None]
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return curve.reshape(-1, 2)


def _marks(pattern: str, box: Box, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Stripes or spots over a box, turned by its angle about its centre."""
    x0, y0, x1, y1, angle = box
    centre = ((x0 + x1) / 2, (y0 + y1) / 2)
    step = 0.25
    if pattern == "striped":
        for x in np.arange(x0 + rng.uniform(0, step), x1, step):
            yield turned(np.array([(x, y0), (x + 0.1, y0), (x + 0.1, y1), (x, y1)]), angle, centre)
        return
    for row, y in enumerate(np.arange(y0 + 0.08, y1, 0.21)):
        for x in np.arange(x0 + 0.12 * (row % 2), x1, 0.24):
            jx, jy = rng.uniform(-0.03, 0.03, 2)
            yield turned(ellipse(x + jx, y + jy, 0.072, 0.072, 10), angle, centre)


def near(colour: Iterable[float], spread: float, rng: np.random.Generator) -> RGB:
    """A colour at random about another."""
    r, g, b = np.clip(np.array(colour) + rng.normal(0, spread, 3), 0, 255).astype(int)
    return int(r), int(g), int(b)


def overlap(mask: Image.Image, other: Image.Image) -> Image.Image:
    both = Image.new("L", mask.size, 0)
    both.paste(other, mask=mask)
    return both
