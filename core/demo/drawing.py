"""One bird of the demo data set, drawn from its signature: apart from the set, whose files need none of this.

Pose, articulation, scale, position, individual colour, background, light and occlusion come from the generator.
``dataset.FORMAT`` must rise when anything here changes a picture.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

SIZE = 112  # pixels, both sides
SUPERSAMPLE = 3  # drawn this many times larger, then averaged down

Signature = dict[str, str]  # trait -> value
RGB = tuple[int, int, int]
Box = tuple[float, ...]  # x0, y0, x1, y1 in the bird's coordinates, and an angle in degrees


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
    p, t = np.array(list(points), dtype=float)[:, None], (np.arange(steps) / steps)[None, :, None]
    a, b, c, d = np.roll(p, 1, 0), p, np.roll(p, -1, 0), np.roll(p, -2, 0)
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return curve.reshape(-1, 2)


# fmt: off
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (200, 38, 40), "blue": (48, 92, 200), "green": (58, 145, 70), "yellow": (238, 204, 52),
    "orange": (236, 126, 36), "brown": (124, 78, 44), "grey": (132, 137, 142), "black": (34, 34, 40),
    "white": (240, 240, 234),
}
# of the background: a gradient's ends, and what lies in it out of focus
SCENES = (
    ((150, 195, 235), (222, 235, 245)),  # sky
    ((70, 110, 60), (150, 175, 100)),  # foliage
    ((90, 130, 150), (160, 185, 190)),  # water
    ((150, 130, 95), (205, 190, 150)),  # sand
    ((40, 60, 50), (95, 115, 85)),  # forest shade
    ((190, 175, 185), (235, 205, 180)),  # dusk
)
BLOTCHES = (
    (60, 105, 50), (120, 150, 70), (110, 85, 55), (205, 190, 120), (170, 70, 55), (85, 105, 150), (225, 225, 220),
)

# outlines in the bird's coordinates
TAILS = {
    "forked": np.array([(0, -0.13), (-0.95, -0.36), (-0.5, 0.0), (-0.95, 0.36), (0, 0.13)]),
    "pointed": np.array([(0, -0.17), (-0.55, -0.12), (-1.1, 0.0), (-0.55, 0.12), (0, 0.17)]),
    "rounded": smooth([(0, -0.12), (-0.6, -0.34), (-0.88, 0), (-0.6, 0.34)]),
}
BILLS = {
    "dagger": np.array([(0.32, -0.1), (0.98, 0.04), (0.32, 0.12)]),
    "cone": np.array([(0.28, -0.2), (0.62, 0.05), (0.26, 0.24)]),
    "hooked": smooth([(0.28, -0.17), (0.55, -0.16), (0.74, 0.0), (0.7, 0.28), (0.6, 0.12), (0.3, 0.14)], 4),
    "curved": smooth(
        [(0.3, -0.08), (0.66, -0.12), (0.95, 0.06), (1.08, 0.36), (0.88, 0.16), (0.62, 0.04), (0.3, 0.1)], 4
    ),
}
LEGS = {"short": 0.32, "long": 0.78}
SPINE = [(-0.98, -0.16), (-0.5, -0.42), (0.1, -0.5), (0.62, -0.72), (1.08, -0.5), (0.98, 0.0), (0.66, 0.38)]
BELLY = smooth([(-1.1, 0.1), (-0.4, 0.05), (0.5, 0.1), (0.9, 0.2), (0.6, 0.8), (-0.8, 0.8)])
WING = smooth([(0.42, -0.24), (0.3, 0.12), (-0.25, 0.26), (-0.8, 0.16), (-1.2, -0.02), (-0.75, -0.26), (-0.1, -0.4)])
CROWN = smooth([(-0.46, 0.0), (-0.36, -0.34), (0.0, -0.46), (0.34, -0.3), (0.42, -0.1), (0.1, -0.07), (-0.2, 0.02)])
CREST = np.array([(0.16, -0.32), (-0.12, -0.62), (-0.62, -0.72), (-0.36, -0.44), (-0.62, -0.4), (-0.34, -0.12)])
# fmt: on


class Canvas:
    """A supersampled image, painted in the bird's coordinates."""

    def __init__(self, image: Image.Image, matrix: np.ndarray, shift: np.ndarray, rng: np.random.Generator) -> None:
        self.image, self.draw = image, ImageDraw.Draw(image)
        self.matrix, self.shift, self.rng = matrix, shift, rng
        self.unit = float(np.sqrt(abs(np.linalg.det(matrix))))  # pixels to the bird's unit of length

    def place(self, points: np.ndarray) -> list[tuple[float, float]]:
        """Bird coordinates (n,2) to pixels."""
        return [(x, y) for x, y in (points @ self.matrix.T + self.shift).tolist()]

    def mask(self, *polygons: np.ndarray, within: Image.Image | None = None) -> Image.Image:
        """Where polygons lie, or what of them lies within another mask."""
        mask = Image.new("L", self.image.size, 0)
        for polygon in polygons:
            ImageDraw.Draw(mask).polygon(self.place(polygon), fill=255)
        return ImageChops.darker(within, mask) if within else mask

    def paint(self, mask: Image.Image, colour: RGB, pattern: str = "solid", box: Box = ()) -> None:
        """Fill ``mask`` with a colour and a pattern laid over ``box``."""
        around = mask.getbbox() or (0, 0, 1, 1)  # half the time of a drawing is pixels beside a part
        within = mask.crop(around)
        self.image.paste(colour, around, within)
        if pattern != "solid":
            marks = self.mask(*_marks(pattern, box, self.rng))
            light = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] > 95
            marks = ImageChops.darker(within, marks.crop(around))
            self.image.paste((38, 34, 34) if light else (232, 226, 208), around, marks)

    def outline(self, polygon: np.ndarray, colour: RGB, width: float = 0.035) -> None:
        pixels, (r, g, b) = self.place(np.concatenate([polygon, polygon[:1]])), (int(0.45 * c) for c in colour)
        self.draw.line(pixels, fill=(r, g, b), width=max(1, round(width * self.unit)), joint="curve")

    def stroke(self, points: np.ndarray, colour: RGB, width: float) -> None:
        self.draw.line(self.place(points), fill=colour, width=max(2, round(width * self.unit)), joint="curve")


def _marks(pattern: str, box: Box, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Stripes or spots over a box, turned by its angle about its centre."""
    x0, y0, x1, y1, angle = box
    centre = ((x0 + x1) / 2, (y0 + y1) / 2)
    if pattern == "striped":
        for x in np.arange(x0 + rng.uniform(0, 0.25), x1, 0.25):
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


def draw_creature(signature: Signature, rng: np.random.Generator) -> Image.Image:
    """One bird of a signature, RGB (SIZE,SIZE); everything else about the picture comes from ``rng``."""
    side = SIZE * SUPERSAMPLE
    image = _background(side, rng)
    scale = side * rng.uniform(0.15, 0.23)
    tilt = np.deg2rad(rng.normal(0, 13))
    stretch = np.diag([rng.choice([-1.0, 1.0]), rng.uniform(0.9, 1.12)])
    turn = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
    shift = side * (np.array([0.5, 0.5]) + rng.uniform(-0.11, 0.11, 2))
    canvas = Canvas(image, scale * turn @ stretch, shift, rng)
    perch = _perch(canvas, signature, rng)
    _bird(canvas, signature, rng)
    _occlude(canvas, perch, rng)
    return _light(image.reduce(SUPERSAMPLE), rng)


def _bird(canvas: Canvas, signature: Signature, rng: np.random.Generator) -> None:
    """Draw the bird, far parts first; it faces +x, y points down, the body is about two units long."""
    tint = rng.normal(0, 9, 3)
    order = ("back", "breast", "belly", "wing", "tail", "leg", "bill", "crown", "throat")
    colour = {part: near(np.array(COLOURS[signature[f"{part}_color"]]) + tint, 10, rng) for part in order}
    fat = rng.uniform(0.9, 1.12)

    tail = turned(TAILS[signature["tail_shape"]] * [rng.uniform(0.85, 1.1), 1.0], rng.uniform(-18, 28), (0, 0))
    tail = tail + np.array([-0.82, -0.12])
    canvas.paint(canvas.mask(tail), colour["tail"])
    canvas.outline(tail, colour["tail"])

    reach = LEGS[signature["leg_length"]]
    swing = rng.uniform(-0.12, 0.12)
    for hip, bend in ((-0.16, rng.uniform(-0.12, 0.02)), (0.1, rng.uniform(-0.02, 0.14))):
        foot = (hip + swing + bend, 0.45 + reach)
        canvas.stroke(np.array([(hip, 0.4), (hip + bend * 0.2, 0.45 + reach / 2), foot]), colour["leg"], 0.095)
        for toe in (-0.13, 0.1, 0.2):
            canvas.stroke(np.array([foot, (foot[0] + toe, foot[1] + 0.05)]), colour["leg"], 0.06)

    nod = rng.uniform(-16, 16)
    head_at = np.array([0.88, -0.66]) + rng.uniform(-0.06, 0.06, 2)
    body = smooth([*SPINE, (0.1, 0.56 * fat), (-0.5, 0.36 * fat)])
    whole = canvas.mask(body)
    canvas.paint(whole, colour["back"])
    canvas.paint(canvas.mask(BELLY, within=whole), colour["belly"])
    box = (0.25, -0.65, 1.4, 0.6, 90 + rng.uniform(-15, 15))
    front = canvas.mask(ellipse(0.84, -0.02, 0.5, 0.5), within=whole)
    canvas.paint(front, colour["breast"], signature["breast_pattern"], box)
    canvas.outline(body, colour["back"])

    lift = rng.choice([rng.uniform(-10, 14), rng.uniform(20, 55)], p=[0.7, 0.3])
    wing = turned(WING * [1.0, rng.uniform(0.95, 1.25)], lift, (0.25, -0.2))
    box = (-1.4, -1.0, 0.7, 0.9, lift + 12)
    canvas.paint(canvas.mask(wing), colour["wing"], signature["wing_pattern"], box)
    canvas.outline(wing, colour["wing"], 0.045)

    parts = (ellipse(0, 0, 0.4, 0.37), BILLS[signature["bill_shape"]], CROWN, CREST, np.array([(0.13, -0.06)]))
    head, bill, top, crest, eye = (turned(points, nod, (0, 0)) + head_at for points in parts)
    canvas.paint(canvas.mask(bill), colour["bill"])
    canvas.outline(bill, colour["bill"], 0.03)
    skull = canvas.mask(head)
    canvas.paint(skull, colour["throat"])
    if signature["head_pattern"] == "crested":
        canvas.paint(canvas.mask(crest), colour["crown"])
        canvas.outline(crest, colour["crown"], 0.03)
    canvas.paint(canvas.mask(top, within=skull), colour["crown"])
    canvas.outline(head, colour["throat"], 0.03)
    x, y = eye[0]
    for radius, shade in ((0.085, (225, 215, 190)), (0.06, (15, 15, 15))):
        canvas.draw.polygon(canvas.place(ellipse(x, y, radius, radius, 14)), fill=shade)


def _background(side: int, rng: np.random.Generator) -> Image.Image:
    """Sky, water or foliage: a gradient with soft blotches, drawn small and enlarged, so that it is out of focus."""
    small = 56
    first, last = (np.array(c) + rng.normal(0, 16, 3) for c in SCENES[rng.integers(len(SCENES))])
    ramp = np.linspace(0, 1, small)[:, None, None]
    pixels = np.broadcast_to((1 - ramp) * first + ramp * last, (small, small, 3))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(3, 12)):
        x, y = rng.uniform(0, small, 2)
        rx, ry = rng.uniform(3, 12, 2)
        tone = near(BLOTCHES[rng.integers(len(BLOTCHES))], 18, rng)
        draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=tone)
    blurred = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(1.0, 3.0))))
    return blurred.resize((side, side), Image.Resampling.BICUBIC)


def _perch(canvas: Canvas, signature: Signature, rng: np.random.Generator) -> RGB:
    """A branch or the ground under the bird's feet; returns the wood's colour."""
    side = canvas.image.width
    colour = near((96, 72, 50), 16, rng)
    y = canvas.place(np.array([(0.0, 0.5 + LEGS[signature["leg_length"]])]))[0][1]
    slope = rng.uniform(-0.12, 0.12) * side
    if rng.random() < 0.6:
        canvas.draw.line([(0, y - slope), (side, y + slope)], fill=colour, width=round(rng.uniform(0.03, 0.06) * side))
    else:
        ground = near((128, 122, 80), 25, rng)
        canvas.draw.polygon([(0, y - slope / 3), (side, y + slope / 3), (side, side), (0, side)], fill=ground)
    return colour


def _occlude(canvas: Canvas, wood: RGB, rng: np.random.Generator) -> None:
    """Twigs, leaves and grass in front of the bird."""
    side = float(canvas.image.width)
    if rng.random() < 0.45:  # a twig with leaves
        start, end = rng.uniform(0, side, 2), rng.uniform(0, side, 2)
        points = [(0.0, float(start[0])), (float(start[1]), float(end[0])), (side, float(end[1]))]
        canvas.draw.line(points, fill=wood, width=round(rng.uniform(0.015, 0.045) * side), joint="curve")
        for _ in range(rng.integers(1, 6)):
            x, y = rng.uniform(0, side, 2)
            long, wide = rng.uniform(0.05, 0.09) * side, rng.uniform(0.02, 0.04) * side
            leaf = turned(ellipse(x, y, long, wide, 16), rng.uniform(0, 180), (x, y))
            canvas.draw.polygon(leaf.ravel().tolist(), fill=near((80, 130, 55), 22, rng))
    if rng.random() < 0.45:  # grass
        for _ in range(rng.integers(4, 16)):
            x, lean = rng.uniform(0, side), rng.normal(0, 0.06) * side
            height, half = rng.uniform(0.2, 0.55) * side, rng.uniform(0.006, 0.014) * side
            blade = [(x - half, side), (x + lean, side - height), (x + half, side)]
            canvas.draw.polygon(blade, fill=near((80, 130, 55), 22, rng))


def _light(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Exposure, colour of the light, a gradient across the picture, and sensor noise."""
    pixels = np.asarray(image, dtype=np.float32)
    gain = rng.uniform(0.62, 1.22) * (1 + rng.normal(0, 0.06, 3))
    x, y = np.meshgrid(np.linspace(-1, 1, SIZE), np.linspace(-1, 1, SIZE))
    slope = rng.uniform(-0.2, 0.2, 2)
    shade = 1 + slope[0] * x + slope[1] * y
    lit = pixels * gain * shade[..., None] + rng.normal(0, rng.uniform(2, 9), pixels.shape)
    return Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))
