"""One bird of the demo data set, drawn from its signature: apart from the set, whose files need none of this.

Pose, articulation, scale, position, individual colour, background, light and occlusion come from the generator; where
each part ends up is measured on the drawing. ``dataset.FORMAT`` must rise when anything here changes a picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import binary_erosion

SIZE = 112  # pixels, both sides
SUPERSAMPLE = 3  # drawn this many times larger, then averaged down
PARTS = ("bill", "crown", "throat", "back", "wing", "breast", "belly", "tail", "leg")

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (200, 38, 40),
    "blue": (48, 92, 200),
    "green": (58, 145, 70),
    "yellow": (238, 204, 52),
    "orange": (236, 126, 36),
    "brown": (124, 78, 44),
    "grey": (132, 137, 142),
    "black": (34, 34, 40),
    "white": (240, 240, 234),
}

Signature = dict[str, str]  # trait -> value
RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Drawing:
    """One drawn bird."""

    image: Image.Image  # RGB, (SIZE,SIZE)
    part_locs: np.ndarray  # (P,3) float64: x, y in pixels, 1 when visible; zeros where the part cannot be seen


class _Canvas:
    """A supersampled image with, beside it, which part owns each pixel."""

    def __init__(self, image: Image.Image, matrix: np.ndarray, shift: np.ndarray, rng: np.random.Generator) -> None:
        self.image = image
        self.owner = Image.new("L", image.size, 0)
        self.matrix, self.shift, self.rng = matrix, shift, rng
        self.unit = float(np.sqrt(abs(np.linalg.det(matrix))))  # pixels to the bird's unit of length

    def place(self, points: np.ndarray) -> list[tuple[float, float]]:
        """Bird coordinates (n,2) to pixels."""
        return [(float(x), float(y)) for x, y in points @ self.matrix.T + self.shift]

    def mask(self, *polygons: np.ndarray) -> Image.Image:
        mask = Image.new("L", self.image.size, 0)
        draw = ImageDraw.Draw(mask)
        for polygon in polygons:
            draw.polygon(self.place(polygon), fill=255)
        return mask

    def paint(self, mask: Image.Image, part: str, colour: RGB, pattern: str = "solid", box: Any = None) -> None:
        """Fill ``mask`` with a colour and a pattern laid over the bird-coordinate ``box`` (x0, y0, x1, y1, angle)."""
        self.image.paste(colour, mask=mask)
        self.owner.paste(PARTS.index(part) + 1, mask=mask)
        if pattern != "solid":
            marks = Image.new("L", self.image.size, 0)
            draw = ImageDraw.Draw(marks)
            x0, y0, x1, y1, angle = box
            for polygon in _marks(pattern, x0, y0, x1, y1, angle, self.rng):
                draw.polygon(self.place(polygon), fill=255)
            inside = Image.new("L", self.image.size, 0)
            inside.paste(marks, mask=mask)
            self.image.paste(_contrast(colour), mask=inside)

    def outline(self, polygon: np.ndarray, colour: RGB, width: float = 0.035) -> None:
        points = self.place(polygon)
        shade: RGB = (int(colour[0] * 0.45), int(colour[1] * 0.45), int(colour[2] * 0.45))
        thick = max(1, round(width * self.unit))
        ImageDraw.Draw(self.image).line([*points, points[0]], fill=shade, width=thick, joint="curve")
        ImageDraw.Draw(self.owner).line([*points, points[0]], fill=0, width=thick, joint="curve")

    def stroke(self, points: np.ndarray, part: str, colour: RGB, width: float) -> None:
        pixels, thick = self.place(points), max(2, round(width * self.unit))
        ImageDraw.Draw(self.image).line(pixels, fill=colour, width=thick, joint="curve")
        ImageDraw.Draw(self.owner).line(pixels, fill=PARTS.index(part) + 1, width=thick)


def _ellipse(x: float, y: float, rx: float, ry: float, count: int = 32) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def _turn(points: np.ndarray, degrees: float, about: tuple[float, float]) -> np.ndarray:
    a = np.deg2rad(degrees)
    matrix = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    turned: np.ndarray = (points - about) @ matrix.T + about
    return turned


def _smooth(points: Iterable[tuple[float, float]], steps: int = 5) -> np.ndarray:
    """Closed Catmull-Rom curve through ``points``."""
    p = np.array(list(points), dtype=float)
    a, b, c, d = np.roll(p, 1, 0), p, np.roll(p, -1, 0), np.roll(p, -2, 0)
    t = (np.arange(steps) / steps)[None, :, None]
    a, b, c, d = a[:, None], b[:, None], c[:, None], d[:, None]
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return curve.reshape(-1, 2)


def _marks(
    pattern: str, x0: float, y0: float, x1: float, y1: float, angle: float, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Stripes or spots over a box, turned by ``angle`` degrees about its centre."""
    centre = ((x0 + x1) / 2, (y0 + y1) / 2)
    step = 0.25
    if pattern == "striped":
        for x in np.arange(x0 + rng.uniform(0, step), x1, step):
            yield _turn(np.array([(x, y0), (x + 0.1, y0), (x + 0.1, y1), (x, y1)]), angle, centre)
        return
    for row, y in enumerate(np.arange(y0 + 0.08, y1, 0.21)):
        for x in np.arange(x0 + 0.12 * (row % 2), x1, 0.24):
            jx, jy = rng.uniform(-0.03, 0.03, 2)
            yield _turn(_ellipse(x + jx, y + jy, 0.072, 0.072, 10), angle, centre)


def _contrast(colour: RGB) -> RGB:
    """Colour of the marks on ``colour``: dark on light, light on dark."""
    light = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] > 95
    return (38, 34, 34) if light else (232, 226, 208)


def draw_creature(
    signature: Signature, rng: np.random.Generator, occlusion: bool = True, lighting: bool = True
) -> Drawing:
    """Draw one bird of a signature; everything else about the picture comes from ``rng``."""
    side = SIZE * SUPERSAMPLE
    image = _background(side, rng)
    scale = side * rng.uniform(0.15, 0.23)
    tilt = np.deg2rad(rng.normal(0, 13))
    stretch = np.diag([rng.choice([-1.0, 1.0]), rng.uniform(0.9, 1.12)])
    turn = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
    shift = side * (np.array([0.5, 0.5]) + rng.uniform(-0.11, 0.11, 2))
    canvas = _Canvas(image, scale * turn @ stretch, shift, rng)
    perch = _perch(canvas, signature, rng)
    _bird(canvas, signature, rng)
    before = np.asarray(canvas.owner)
    if occlusion:
        _occlude(canvas, perch, rng)
    locs = _part_locations(before, np.asarray(canvas.owner))
    small = image.reduce(SUPERSAMPLE)
    return Drawing(_light(small, rng) if lighting else small, locs)


def _bird(canvas: _Canvas, signature: Signature, rng: np.random.Generator) -> None:
    """Draw the bird, far parts first; it faces +x, y points down, the body is about two units long."""
    tint = rng.normal(0, 9, 3)

    def colour(trait: str) -> RGB:
        r, g, b = np.clip(np.array(COLOURS[signature[trait]]) + tint + rng.normal(0, 10, 3), 0, 255).astype(int)
        return int(r), int(g), int(b)

    back, breast, belly, wing_colour = (colour(f"{p}_color") for p in ("back", "breast", "belly", "wing"))
    tail_colour, leg_colour, bill_colour = colour("tail_color"), colour("leg_color"), colour("bill_color")
    crown_colour, throat_colour = colour("crown_color"), colour("throat_color")
    fat = rng.uniform(0.9, 1.12)

    tails = {
        "forked": [(0, -0.13), (-0.95, -0.36), (-0.5, 0.0), (-0.95, 0.36), (0, 0.13)],
        "pointed": [(0, -0.17), (-0.55, -0.12), (-1.1, 0.0), (-0.55, 0.12), (0, 0.17)],
    }
    shape = signature["tail_shape"]
    tail = np.array(tails[shape]) if shape in tails else _smooth([(0, -0.12), (-0.6, -0.34), (-0.88, 0), (-0.6, 0.34)])
    tail = _turn(tail * [rng.uniform(0.85, 1.1), 1.0], rng.uniform(-18, 28), (0, 0)) + np.array([-0.82, -0.12])
    canvas.paint(canvas.mask(tail), "tail", tail_colour)
    canvas.outline(tail, tail_colour)

    reach = _leg_length(signature)
    swing = rng.uniform(-0.12, 0.12)
    for hip, bend in ((-0.16, rng.uniform(-0.12, 0.02)), (0.1, rng.uniform(-0.02, 0.14))):
        foot = (hip + swing + bend, 0.45 + reach)
        canvas.stroke(np.array([(hip, 0.4), (hip + bend * 0.2, 0.45 + reach / 2), foot]), "leg", leg_colour, 0.095)
        for toe in (-0.13, 0.1, 0.2):
            canvas.stroke(np.array([foot, (foot[0] + toe, foot[1] + 0.05)]), "leg", leg_colour, 0.06)

    nod = rng.uniform(-16, 16)
    head_at = np.array([0.88, -0.66]) + rng.uniform(-0.06, 0.06, 2)
    spine = [(-0.98, -0.16), (-0.5, -0.42), (0.1, -0.5), (0.62, -0.72), (1.08, -0.5)]
    body = _smooth([*spine, (0.98, 0.0), (0.66, 0.38), (0.1, 0.56 * fat), (-0.5, 0.36 * fat)])
    canvas.paint(canvas.mask(body), "back", back)
    whole = canvas.mask(body)
    lower = _clip(
        whole, canvas.mask(_smooth([(-1.1, 0.1), (-0.4, 0.05), (0.5, 0.1), (0.9, 0.2), (0.6, 0.8), (-0.8, 0.8)]))
    )
    canvas.paint(lower, "belly", belly)
    front = _clip(whole, canvas.mask(_ellipse(0.84, -0.02, 0.5, 0.5)))
    canvas.paint(
        front, "breast", breast, signature["breast_pattern"], (0.25, -0.65, 1.4, 0.6, 90 + rng.uniform(-15, 15))
    )
    canvas.outline(body, back)

    lift = rng.choice([rng.uniform(-10, 14), rng.uniform(20, 55)], p=[0.7, 0.3])
    wing = _smooth(
        [(0.42, -0.24), (0.3, 0.12), (-0.25, 0.26), (-0.8, 0.16), (-1.2, -0.02), (-0.75, -0.26), (-0.1, -0.4)]
    )
    wing = _turn(wing * [1.0, rng.uniform(0.95, 1.25)], lift, (0.25, -0.2))
    canvas.paint(canvas.mask(wing), "wing", wing_colour, signature["wing_pattern"], (-1.4, -1.0, 0.7, 0.9, lift + 12))
    canvas.outline(wing, wing_colour, 0.045)

    head = _ellipse(0, 0, 0.4, 0.37)
    top = _smooth([(-0.46, 0.0), (-0.36, -0.34), (0.0, -0.46), (0.34, -0.3), (0.42, -0.1), (0.1, -0.07), (-0.2, 0.02)])
    crest = np.array([(0.16, -0.32), (-0.12, -0.62), (-0.62, -0.72), (-0.36, -0.44), (-0.62, -0.4), (-0.34, -0.12)])
    bills = {
        "dagger": np.array([(0.32, -0.1), (0.98, 0.04), (0.32, 0.12)]),
        "cone": np.array([(0.28, -0.2), (0.62, 0.05), (0.26, 0.24)]),
        "hooked": _smooth([(0.28, -0.17), (0.55, -0.16), (0.74, 0.0), (0.7, 0.28), (0.6, 0.12), (0.3, 0.14)], 4),
        "curved": _smooth(
            [(0.3, -0.08), (0.66, -0.12), (0.95, 0.06), (1.08, 0.36), (0.88, 0.16), (0.62, 0.04), (0.3, 0.1)], 4
        ),
    }
    bill = bills[signature["bill_shape"]]
    head, top, crest, bill, eye = (
        _turn(p, nod, (0, 0)) + head_at for p in (head, top, crest, bill, np.array([(0.13, -0.06)]))
    )
    canvas.paint(canvas.mask(bill), "bill", bill_colour)
    canvas.outline(bill, bill_colour, 0.03)
    skull = canvas.mask(head)
    canvas.paint(skull, "throat", throat_colour)
    if signature["head_pattern"] == "crested":
        canvas.paint(canvas.mask(crest), "crown", crown_colour)
        canvas.outline(crest, crown_colour, 0.03)
    canvas.paint(_clip(skull, canvas.mask(top)), "crown", crown_colour)
    canvas.outline(head, throat_colour, 0.03)
    for radius, shade in ((0.085, (225, 215, 190)), (0.06, (15, 15, 15))):
        ImageDraw.Draw(canvas.image).polygon(
            canvas.place(_ellipse(float(eye[0][0]), float(eye[0][1]), radius, radius, 14)), fill=shade
        )


def _clip(mask: Image.Image, other: Image.Image) -> Image.Image:
    both = Image.new("L", mask.size, 0)
    both.paste(other, mask=mask)
    return both


def _leg_length(signature: Signature) -> float:
    return 0.32 if signature["leg_length"] == "short" else 0.78


def _background(side: int, rng: np.random.Generator) -> Image.Image:
    """Sky, water or foliage: a gradient with soft blotches, drawn small and enlarged, so that it is out of focus."""
    small = 56
    pairs = [
        ((150, 195, 235), (222, 235, 245)),  # sky
        ((70, 110, 60), (150, 175, 100)),  # foliage
        ((90, 130, 150), (160, 185, 190)),  # water
        ((150, 130, 95), (205, 190, 150)),  # sand
        ((40, 60, 50), (95, 115, 85)),  # forest shade
        ((190, 175, 185), (235, 205, 180)),  # dusk
    ]
    first, last = (np.array(c) + rng.normal(0, 16, 3) for c in pairs[rng.integers(len(pairs))])
    ramp = np.linspace(0, 1, small)[:, None, None]
    pixels = np.broadcast_to((1 - ramp) * first + ramp * last, (small, small, 3))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    tones = [
        (60, 105, 50),
        (120, 150, 70),
        (110, 85, 55),
        (205, 190, 120),
        (170, 70, 55),
        (85, 105, 150),
        (225, 225, 220),
    ]
    for _ in range(rng.integers(3, 12)):
        x, y = rng.uniform(0, small, 2)
        rx, ry = rng.uniform(3, 12, 2)
        tone = np.clip(np.array(tones[rng.integers(len(tones))]) + rng.normal(0, 18, 3), 0, 255).astype(int)
        draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=(int(tone[0]), int(tone[1]), int(tone[2])))
    blurred = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(1.0, 3.0))))
    return blurred.resize((side, side), Image.Resampling.BICUBIC)


def _perch(canvas: _Canvas, signature: Signature, rng: np.random.Generator) -> RGB:
    """A branch or the ground under the bird's feet; returns the wood's colour."""
    side = canvas.image.width
    wood = np.clip(np.array((96, 72, 50)) + rng.normal(0, 16, 3), 0, 255).astype(int)
    colour = (int(wood[0]), int(wood[1]), int(wood[2]))
    y = canvas.place(np.array([(0.0, 0.5 + _leg_length(signature))]))[0][1]
    draw = ImageDraw.Draw(canvas.image)
    slope = rng.uniform(-0.12, 0.12) * side
    if rng.random() < 0.6:
        draw.line([(0, y - slope), (side, y + slope)], fill=colour, width=round(rng.uniform(0.03, 0.06) * side))
    else:
        ground = tuple(int(v) for v in np.clip(np.array((128, 122, 80)) + rng.normal(0, 25, 3), 0, 255))
        draw.polygon([(0, y - slope / 3), (side, y + slope / 3), (side, side), (0, side)], fill=ground)
    return colour


def _occlude(canvas: _Canvas, wood: RGB, rng: np.random.Generator) -> None:
    """Twigs, leaves and grass in front of the bird; the pixels they cover belong to no part."""
    side = canvas.image.width
    image, owner = ImageDraw.Draw(canvas.image), ImageDraw.Draw(canvas.owner)

    def leaf() -> RGB:
        r, g, b = np.clip(np.array((80, 130, 55)) + rng.normal(0, 22, 3), 0, 255).astype(int)
        return int(r), int(g), int(b)

    if rng.random() < 0.45:  # a twig with leaves
        start, end = rng.uniform(0, side, 2), rng.uniform(0, side, 2)
        points = [(0.0, float(start[0])), (float(start[1]), float(end[0])), (float(side), float(end[1]))]
        width = round(rng.uniform(0.015, 0.045) * side)
        image.line(points, fill=wood, width=width, joint="curve")
        owner.line(points, fill=0, width=width, joint="curve")
        for _ in range(rng.integers(1, 6)):
            x, y = rng.uniform(0, side, 2)
            long, wide = rng.uniform(0.05, 0.09) * side, rng.uniform(0.02, 0.04) * side
            outline = _turn(_ellipse(x, y, long, wide, 16), rng.uniform(0, 180), (x, y))
            polygon = [(float(a), float(b)) for a, b in outline]
            image.polygon(polygon, fill=leaf())
            owner.polygon(polygon, fill=0)
    if rng.random() < 0.45:  # grass
        for _ in range(rng.integers(4, 16)):
            x, lean = rng.uniform(0, side), rng.normal(0, 0.06) * side
            height, half = rng.uniform(0.2, 0.55) * side, rng.uniform(0.006, 0.014) * side
            blade = [(x - half, float(side)), (x + lean, side - height), (x + half, float(side))]
            image.polygon(blade, fill=leaf())
            owner.polygon(blade, fill=0)


def _part_locations(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Where each part is, (P,3): the inner pixel of it nearest its centroid, and whether occlusion left it."""
    locs = np.zeros((len(PARTS), 3))
    for p in range(len(PARTS)):
        y, x = np.nonzero(binary_erosion(before == p + 1, iterations=2))  # not on the rim, where colours mix
        if len(x) < SUPERSAMPLE**2:
            continue
        nearest = np.argmin((x - x.mean()) ** 2 + (y - y.mean()) ** 2)
        locs[p, :2] = x[nearest] / SUPERSAMPLE, y[nearest] / SUPERSAMPLE
        locs[p, 2] = after[y[nearest], x[nearest]] == p + 1
    locs[locs[:, 2] == 0] = 0.0
    return locs


def _light(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Exposure, colour of the light, a gradient across the picture, and sensor noise."""
    pixels = np.asarray(image, dtype=np.float32)
    gain = rng.uniform(0.62, 1.22) * (1 + rng.normal(0, 0.06, 3))
    x, y = np.meshgrid(np.linspace(-1, 1, SIZE), np.linspace(-1, 1, SIZE))
    slope = rng.uniform(-0.2, 0.2, 2)
    shade = 1 + slope[0] * x + slope[1] * y
    lit = pixels * gain * shade[..., None] + rng.normal(0, rng.uniform(2, 9), pixels.shape)
    return Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))
