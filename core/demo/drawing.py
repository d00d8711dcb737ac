"""One bird of the demo data set, drawn from its signature: apart from the set, whose files need none of this.

Pose, articulation, scale, position, individual colour, background, light and occlusion come from the generator; where
each part ends up is measured on the drawing. ``dataset.FORMAT`` must rise when anything here changes a picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import binary_erosion, find_objects

from core.demo.canvas import PARTS, RGB, SIZE, SUPERSAMPLE, Canvas, ellipse, near, smooth, turned

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
EYE = np.array([(0.13, -0.06)])
# fmt: on

Signature = dict[str, str]  # trait -> value


@dataclass(frozen=True)
class Drawing:
    """One drawn bird."""

    image: Image.Image  # RGB, (SIZE,SIZE)
    part_locs: np.ndarray  # (P,3) float64: x, y in pixels, 1 when visible; zeros where the part cannot be seen


def draw_creature(signature: Signature, rng: np.random.Generator) -> Drawing:
    """Draw one bird of a signature; everything else about the picture comes from ``rng``."""
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
    before = np.asarray(canvas.owner)
    _occlude(canvas, perch, rng)
    locs = _part_locations(before, np.asarray(canvas.owner))
    return Drawing(_light(image.reduce(SUPERSAMPLE), rng), locs)


def _bird(canvas: Canvas, signature: Signature, rng: np.random.Generator) -> None:
    """Draw the bird, far parts first; it faces +x, y points down, the body is about two units long."""
    tint = rng.normal(0, 9, 3)
    order = ("back", "breast", "belly", "wing", "tail", "leg", "bill", "crown", "throat")
    colour = {part: near(np.array(COLOURS[signature[f"{part}_color"]]) + tint, 10, rng) for part in order}
    fat = rng.uniform(0.9, 1.12)

    tail = turned(TAILS[signature["tail_shape"]] * [rng.uniform(0.85, 1.1), 1.0], rng.uniform(-18, 28), (0, 0))
    tail = tail + np.array([-0.82, -0.12])
    canvas.paint(canvas.mask(tail), "tail", colour["tail"])
    canvas.outline(tail, colour["tail"])

    reach = LEGS[signature["leg_length"]]
    swing = rng.uniform(-0.12, 0.12)
    for hip, bend in ((-0.16, rng.uniform(-0.12, 0.02)), (0.1, rng.uniform(-0.02, 0.14))):
        foot = (hip + swing + bend, 0.45 + reach)
        canvas.stroke(np.array([(hip, 0.4), (hip + bend * 0.2, 0.45 + reach / 2), foot]), "leg", colour["leg"], 0.095)
        for toe in (-0.13, 0.1, 0.2):
            canvas.stroke(np.array([foot, (foot[0] + toe, foot[1] + 0.05)]), "leg", colour["leg"], 0.06)

    nod = rng.uniform(-16, 16)
    head_at = np.array([0.88, -0.66]) + rng.uniform(-0.06, 0.06, 2)
    body = smooth([*SPINE, (0.1, 0.56 * fat), (-0.5, 0.36 * fat)])
    whole = canvas.mask(body)
    canvas.paint(whole, "back", colour["back"])
    canvas.paint(canvas.mask(BELLY, whole), "belly", colour["belly"])
    box = (0.25, -0.65, 1.4, 0.6, 90 + rng.uniform(-15, 15))
    front = canvas.mask(ellipse(0.84, -0.02, 0.5, 0.5), whole)
    canvas.paint(front, "breast", colour["breast"], signature["breast_pattern"], box)
    canvas.outline(body, colour["back"])

    lift = rng.choice([rng.uniform(-10, 14), rng.uniform(20, 55)], p=[0.7, 0.3])
    wing = turned(WING * [1.0, rng.uniform(0.95, 1.25)], lift, (0.25, -0.2))
    box = (-1.4, -1.0, 0.7, 0.9, lift + 12)
    canvas.paint(canvas.mask(wing), "wing", colour["wing"], signature["wing_pattern"], box)
    canvas.outline(wing, colour["wing"], 0.045)

    head, bill, top, crest, eye = (
        turned(points, nod, (0, 0)) + head_at
        for points in (ellipse(0, 0, 0.4, 0.37), BILLS[signature["bill_shape"]], CROWN, CREST, EYE)
    )
    canvas.paint(canvas.mask(bill), "bill", colour["bill"])
    canvas.outline(bill, colour["bill"], 0.03)
    skull = canvas.mask(head)
    canvas.paint(skull, "throat", colour["throat"])
    if signature["head_pattern"] == "crested":
        canvas.paint(canvas.mask(crest), "crown", colour["crown"])
        canvas.outline(crest, colour["crown"], 0.03)
    canvas.paint(canvas.mask(top, skull), "crown", colour["crown"])
    canvas.outline(head, colour["throat"], 0.03)
    for radius, shade in ((0.085, (225, 215, 190)), (0.06, (15, 15, 15))):
        rim = canvas.place(ellipse(float(eye[0][0]), float(eye[0][1]), radius, radius, 14))
        ImageDraw.Draw(canvas.image).polygon(rim, fill=shade)


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
    draw = ImageDraw.Draw(canvas.image)
    slope = rng.uniform(-0.12, 0.12) * side
    if rng.random() < 0.6:
        draw.line([(0, y - slope), (side, y + slope)], fill=colour, width=round(rng.uniform(0.03, 0.06) * side))
    else:
        ground = near((128, 122, 80), 25, rng)
        draw.polygon([(0, y - slope / 3), (side, y + slope / 3), (side, side), (0, side)], fill=ground)
    return colour


def _occlude(canvas: Canvas, wood: RGB, rng: np.random.Generator) -> None:
    """Twigs, leaves and grass in front of the bird; the pixels they cover belong to no part."""
    side = float(canvas.image.width)
    if rng.random() < 0.45:  # a twig with leaves
        start, end = rng.uniform(0, side, 2), rng.uniform(0, side, 2)
        points = [(0.0, float(start[0])), (float(start[1]), float(end[0])), (side, float(end[1]))]
        canvas.line(points, wood, round(rng.uniform(0.015, 0.045) * side))
        for _ in range(rng.integers(1, 6)):
            x, y = rng.uniform(0, side, 2)
            long, wide = rng.uniform(0.05, 0.09) * side, rng.uniform(0.02, 0.04) * side
            leaf = turned(ellipse(x, y, long, wide, 16), rng.uniform(0, 180), (x, y))
            canvas.cover([(float(a), float(b)) for a, b in leaf], near((80, 130, 55), 22, rng))
    if rng.random() < 0.45:  # grass
        for _ in range(rng.integers(4, 16)):
            x, lean = rng.uniform(0, side), rng.normal(0, 0.06) * side
            height, half = rng.uniform(0.2, 0.55) * side, rng.uniform(0.006, 0.014) * side
            canvas.cover([(x - half, side), (x + lean, side - height), (x + half, side)], near((80, 130, 55), 22, rng))


def _part_locations(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Where each part is, (P,3): the inner pixel of it nearest its centroid, and whether occlusion left it."""
    locs = np.zeros((len(PARTS), 3))
    for p, box in enumerate(find_objects(before, len(PARTS))):
        if box is None:
            continue
        y, x = np.nonzero(binary_erosion(before[box] == p + 1, iterations=2))  # not on the rim, where colours mix
        if len(x) < SUPERSAMPLE**2:
            continue
        y, x = y + box[0].start, x + box[1].start
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
