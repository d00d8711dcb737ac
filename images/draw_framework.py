"""Draws framework.png, what core/VSMR.py computes of an image and the class attributes, next to this file.

python images/draw_framework.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle, Ellipse, FancyArrowPatch, FancyBboxPatch, Patch, Polygon, Rectangle

WIDTH, HEIGHT, DPI = 142, 66, 130  # ten units are an inch
INK, GREY = "#1f2933", "#5b6773"
NEUTRAL, SHARED, UP, DOWN, CLASSES = "#eef1f4", "#e8e4f5", "#d6e7f8", "#fde3cb", "#dff2e1"
EDGE = {NEUTRAL: "#8a96a3", SHARED: "#6f5bab", UP: "#2670ae", DOWN: "#c2680f", CLASSES: "#35823f"}
GRID = 7  # regions a side
BILL, WING, BELLY = (5.6, 2.2, 0.7), (2.4, 3.5, 0.9), (4.0, 3.9, 0.8)  # column, row, width of a bump of weights


def rounded(ax: Axes, x: float, y: float, w: float, h: float, fill: str, edge: str, alpha: float = 1) -> None:
    """A rounded rectangle whose lower left corner is (x, y)."""
    style = "round,pad=0,rounding_size=1.2"
    ax.add_patch(FancyBboxPatch((x, y), w, h, boxstyle=style, fc=fill, ec=edge, lw=1.6, alpha=alpha))


def box(ax: Axes, x: float, y: float, w: float, h: float, fill: str, formula: str, words: str) -> None:
    """A quantity: its formula at the top, what it is called below."""
    rounded(ax, x, y, w, h, fill, EDGE[fill])
    ax.text(x + w / 2, y + h - 3.3, formula, size=14.5, color=INK, ha="center", va="center")
    ax.text(x + w / 2, y + 2.4, words, size=12, color=INK, ha="center", va="center")


def arrow(ax: Axes, *points: tuple[float, float], color: str = INK, style: str = "-|>", dashes: str = "-") -> None:
    """A line through the points with its head at the last."""
    ax.plot(*zip(*points[:-1], strict=True), color=color, lw=2, solid_capstyle="round")
    ends = {"posA": points[-2], "posB": points[-1], "shrinkA": 0, "shrinkB": 0}
    ax.add_patch(FancyArrowPatch(**ends, arrowstyle=style, mutation_scale=16, lw=2, color=color, ls=dashes))


def bird(x: float, y: float, side: float) -> list[Patch]:
    """A bird on a branch in the square whose lower left corner is (x, y)."""

    def at(u: float, v: float) -> tuple[float, float]:
        return x + u * side, y + v * side

    def blob(u: float, v: float, w: float, h: float, angle: float, color: str) -> Ellipse:
        return Ellipse(at(u, v), w * side, h * side, angle=angle, color=color, lw=0)

    return [
        Rectangle((x, y), side, side, color="#cfe3ee", lw=0),
        blob(0.12, 0.10, 0.9, 0.5, 0, "#b5d3a7"),
        blob(0.85, 0.05, 0.9, 0.4, 0, "#a5c896"),
        Rectangle(at(0, 0.21), side, 0.05 * side, color="#7b5a3c", lw=0),
        Polygon([at(0.34, 0.42), at(0.06, 0.20), at(0.13, 0.13), at(0.42, 0.34)], color="#27496d", lw=0),
        Rectangle(at(0.47, 0.25), 0.02 * side, 0.10 * side, color="#5b4636", lw=0),
        Rectangle(at(0.56, 0.25), 0.02 * side, 0.12 * side, color="#5b4636", lw=0),
        blob(0.49, 0.45, 0.54, 0.36, 28, "#e9b44c"),
        blob(0.41, 0.48, 0.42, 0.21, 30, "#3d73a8"),
        blob(0.69, 0.68, 0.27, 0.27, 0, "#3d73a8"),
        Polygon([at(0.80, 0.73), at(0.95, 0.66), at(0.80, 0.62)], color="#d95d39", lw=0),
        Circle(at(0.73, 0.71), 0.025 * side, color="#10151a", lw=0),
    ]


def weights(*bumps: tuple[float, float, float]) -> np.ndarray:
    """Region weights (GRID,GRID) in [0,1]."""
    rows, columns = np.mgrid[:GRID, :GRID]
    return np.clip(sum(np.exp(-((columns - c) ** 2 + (rows - r) ** 2) / (2 * w**2)) for c, r, w in bumps), 0, 1)


def picture(
    ax: Axes,
    x: float,
    y: float,
    side: float,
    heat: np.ndarray | None = None,
    grid: bool = False,
    color: str = "#c2121f",
) -> None:
    """The bird, with region weights (GRID,GRID) laid over it or the regions' borders."""
    frame = Rectangle((x, y), side, side, transform=ax.transData)
    for patch in bird(x, y, side):
        ax.add_patch(patch)
        patch.set_clip_path(frame)
    step = side / GRID
    if heat is not None:
        ax.add_patch(Rectangle((x, y), side, side, color="white", alpha=0.45, lw=0))
        for row, column in np.ndindex(heat.shape):
            corner = (x + column * step, y + side - (row + 1) * step)
            ax.add_patch(Rectangle(corner, step, step, color=color, alpha=0.9 * heat[row, column], lw=0))
    if grid:
        for i in range(1, GRID):
            ax.plot([x + i * step] * 2, [y, y + side], color="white", lw=1.2)
            ax.plot([x, x + side], [y + i * step] * 2, color="white", lw=1.2)
    ax.add_patch(Rectangle((x, y), side, side, fill=False, ec=EDGE[NEUTRAL], lw=1.2))


def inputs(ax: Axes) -> None:
    """Image, network and regions; the table of class attributes."""
    picture(ax, 1.5, 44, 13)
    ax.text(8, 58.6, "image", size=13, color=INK, ha="center")
    arrow(ax, (15, 50.5), (18, 50.5))
    corners = [(18.5, 44), (18.5, 57), (27.5, 54.5), (27.5, 46.5)]
    ax.add_patch(Polygon(corners, fc=NEUTRAL, ec=EDGE[NEUTRAL], lw=1.6, joinstyle="round"))
    ax.text(23, 50.5, "frozen\nCNN", size=12.5, color=INK, ha="center", va="center")
    arrow(ax, (28, 50.5), (31, 50.5))
    for shift in (1.8, 1.2, 0.6):
        ax.add_patch(Rectangle((31.5 + shift, 44 + shift), 12, 12, fc="white", ec=EDGE[NEUTRAL], lw=1.1))
    picture(ax, 31.5, 44, 12, grid=True)
    ax.text(38.4, 58.6, "regions $x_r$ (R,D)", size=13, color=INK, ha="center")
    arrow(ax, (45.8, 50.5), (50.5, 50.5))

    ax.text(13.5, 28.6, "class attributes (C,K)", size=13, color=INK, ha="center")
    for column, name in enumerate(("bill: red", "wing: blue", "belly: yellow")):
        ax.text(13.1 + 5 * column, 26.4, name, size=9.5, color=GREY, ha="center", va="top", rotation=40)
    for row, (name, values) in enumerate((("seen", (1, 0, 0)), ("seen", (0, 1, 1)), ("unseen", (1, 1, 1)))):
        y = 15.8 - 4.2 * row
        ax.text(9.6, y + 1.9, name, size=11.5, color=GREY, ha="right", va="center", style="italic")
        for column, value in enumerate(values):
            corner = (10.6 + 5 * column, y)
            ax.add_patch(Rectangle(corner, 5, 3.8, fc=CLASSES if value else "white", ec=EDGE[CLASSES], lw=1.1))
            ax.text(corner[0] + 2.5, y + 1.9, str(value), size=11, color=INK, ha="center", va="center")
    arrow(ax, (27, 13.3), (31.5, 13.3), color=EDGE[CLASSES])
    box(ax, 31.5, 8, 15, 10.6, CLASSES, r"$\tilde z_c$", "shares, root,\ncentred")


def attention(ax: Axes) -> None:
    """Where attributes are looked for."""
    rounded(ax, 50.5, 34.5, 31, 28.5, "white", EDGE[SHARED])
    title = {"color": EDGE[SHARED], "weight": "bold", "ha": "center", "va": "center"}
    ax.text(66, 60.4, "where attributes can be read", size=12.5, **title)
    ax.text(
        66, 56.4, r"$\theta_{ri}=\mathrm{softmax}_r\,(\,\Sigma_k\,A_{ik}P_k\,x_r)$", size=14, ha="center", va="center"
    )
    for x, name, bump in ((52.5, "bill", BILL), (62.1, "wing", WING), (71.7, "belly", BELLY)):
        picture(ax, x, 45.4, 8, weights(bump))
        ax.text(x + 4, 43.6, name, size=11.5, color=GREY, ha="center", va="center", style="italic")
    said = "$A$: how well regions of kind $k$ answer\nthe question of $i$ for classes left out"
    ax.text(66, 38.6, said, size=11, color=INK, ha="center", va="center", linespacing=1.3)


def directions(ax: Axes) -> None:
    """One bilinear form, read in both directions, and the score."""
    blue, orange, green = EDGE[UP], EDGE[DOWN], EDGE[CLASSES]
    box(ax, 50.5, 8, 31, 17, NEUTRAL, r"$W=(\tilde Z^\top\tilde Z+\lambda I)^{-1}\,\tilde Z^\top M$", "")
    said = "what each attribute looks like,\nfrom the means $M$ of seen classes"
    ax.text(66, 13.0, said, size=11.5, color=INK, ha="center", va="center", linespacing=1.3)
    arrow(ax, (46.5, 13.3), (50.5, 13.3), color=green)
    arrow(ax, (59, 34.5), (59, 25), color=EDGE[SHARED])

    rounded(ax, 86, 34.5, 33, 28.5, UP, "none", 0.4)
    ax.text(87.6, 60.4, "visual → semantic", size=13, color=blue, weight="bold", va="center")
    box(
        ax,
        87.6,
        36.4,
        29.8,
        21,
        UP,
        r"$ev_{ri}\propto t_{ri}\;W_i\cdot P(x_r-\mu)$",
        "evidence for attribute i at region r",
    )
    for x, name, bump in ((89.2, "bill: red", BILL), (98.5, "wing: blue", WING), (107.8, "belly: yellow", BELLY)):
        picture(ax, x, 43.4, 7.6, weights(bump), color="#e07b00")
        ax.text(x + 3.8, 41.8, name, size=9.5, color=GREY, ha="center", va="center", style="italic")
    arrow(ax, (81.5, 50.5), (87.6, 50.5), color=blue)
    arrow(ax, (76, 25), (76, 30), (90, 30), (90, 36.4), color=blue)

    rounded(ax, 86, 5, 33, 21.5, DOWN, "none", 0.4)
    ax.text(87.6, 23.8, "semantic → visual", size=13, color=orange, weight="bold", va="center")
    box(ax, 87.6, 9, 29.8, 9.6, DOWN, r"$W\,\tilde z_c$", "what class $c$ looks like")
    arrow(ax, (81.5, 13.3), (87.6, 13.3), color=orange)

    rounded(ax, 122.5, 19, 18.3, 29, "white", INK)
    ax.text(131.6, 44.6, "score of class $c$", size=12, color=INK, ha="center", va="center", weight="bold")
    ax.text(
        131.6,
        38.6,
        r"$\dfrac{\Sigma_i\,\tilde z_{ci}\,\Sigma_r\,ev_{ri}}{|W\,\tilde z_c|}$",
        size=17,
        ha="center",
        va="center",
    )
    said = "less its hubness,\nplus the seen expert,\nplus γ where unseen"
    ax.text(131.6, 26.4, said, size=11, color=INK, ha="center", va="center", linespacing=1.45)
    arrow(ax, (117.4, 47), (120, 47), (120, 42), (122.5, 42), color=blue)
    arrow(ax, (117.4, 13.7), (131.6, 13.7), (131.6, 19), color=orange)


def main() -> None:
    """Draw everything and write the file."""
    plt.rcParams.update({"font.family": "DejaVu Sans", "mathtext.fontset": "dejavusans"})
    figure = plt.figure(figsize=(WIDTH / 10, HEIGHT / 10), dpi=DPI, facecolor="white")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, WIDTH), ylim=(0, HEIGHT), aspect="equal")
    ax.axis("off")
    inputs(ax)
    attention(ax)
    directions(ax)
    figure.savefig(Path(__file__).with_name("framework.png"), metadata={"Software": None})


if __name__ == "__main__":
    main()
