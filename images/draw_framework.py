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


def picture(ax: Axes, x: float, y: float, side: float, heat: np.ndarray | None = None, grid: bool = False) -> None:
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
            ax.add_patch(Rectangle(corner, step, step, color="#c2121f", alpha=0.9 * heat[row, column], lw=0))
    if grid:
        for i in range(1, GRID):
            ax.plot([x + i * step] * 2, [y, y + side], color="white", lw=1.2)
            ax.plot([x, x + side], [y + i * step] * 2, color="white", lw=1.2)
    ax.add_patch(Rectangle((x, y), side, side, fill=False, ec=EDGE[NEUTRAL], lw=1.2))


def inputs(ax: Axes) -> None:
    """Image, network and regions; attribute names and their word vectors."""
    picture(ax, 1.5, 37, 13)
    ax.text(8, 51.6, "image", size=13, color=INK, ha="center")
    arrow(ax, (15, 43.5), (18, 43.5))
    corners = [(18.5, 37), (18.5, 50), (27.5, 47.5), (27.5, 39.5)]
    ax.add_patch(Polygon(corners, fc=NEUTRAL, ec=EDGE[NEUTRAL], lw=1.6, joinstyle="round"))
    ax.text(23, 43.5, "frozen\nCNN", size=12.5, color=INK, ha="center", va="center")
    arrow(ax, (28, 43.5), (31, 43.5))
    for shift in (1.8, 1.2, 0.6):
        ax.add_patch(Rectangle((31.5 + shift, 37 + shift), 12, 12, fc="white", ec=EDGE[NEUTRAL], lw=1.1))
    picture(ax, 31.5, 37, 12, grid=True)
    ax.text(38.4, 51.6, "regions $x$ (B,R,D)", size=13, color=INK, ha="center")

    ax.text(9.8, 26.8, "attribute names", size=13, color=INK, ha="center")
    for i, name in enumerate(("bill colour: red", "wing colour: blue", "belly: yellow", "…")):
        ax.text(9.8, 23.4 - 3.3 * i, name, size=12, color=GREY, ha="center", va="center", style="italic")
    arrow(ax, (20.5, 18.5), (31, 18.5))
    shades = np.random.default_rng(4).random((6, 8))
    width, height = 12 / shades.shape[1], 11 / shades.shape[0]
    for row, column in np.ndindex(shades.shape):
        corner = (31.5 + column * width, 13 + row * height)
        color = plt.get_cmap("Purples")(0.1 + 0.6 * shades[row, column])
        ax.add_patch(Rectangle(corner, width, height, fc=color, ec="white", lw=1))
    ax.add_patch(Rectangle((31.5, 13), 12, 11, fill=False, ec=EDGE[SHARED], lw=1.6))
    ax.text(37.5, 26.8, "word vectors $v$ (K,V)", size=13, color=INK, ha="center")
    arrow(ax, (45.8, 43.5), (50.5, 43.5))
    arrow(ax, (44, 18.5), (50.5, 18.5))


def attention(ax: Axes) -> None:
    """The three maps and what is made of them."""
    rounded(ax, 50.5, 3, 28, 60, "white", EDGE[SHARED])
    title = {"color": EDGE[SHARED], "weight": "bold", "ha": "center", "va": "center"}
    ax.text(64.5, 60.2, "dense attribute attention", size=12.5, **title)
    ax.text(64.5, 57.1, "three maps (B,R,K)", size=11.5, color=GREY, ha="center", va="center")
    box(ax, 52.5, 45.2, 24, 9.3, SHARED, r"$S = v^\top W_1\,x$", "region scores")
    box(ax, 52.5, 20.2, 24, 21.5, SHARED, r"$\theta = \mathrm{softmax}_r\;v^\top W_2\,x$", "region weights")
    for x, name, bump in ((53.4, "bill", BILL), (61.2, "wing", WING), (69, "belly", BELLY)):
        picture(ax, x, 28.8, 6.6, weights(bump))
        ax.text(x + 3.3, 26.7, name, size=11.5, color=GREY, ha="center", va="center", style="italic")
    box(ax, 52.5, 5, 24, 9.7, SHARED, r"$w = \sigma(\Sigma_r\,\theta\;v^\top W_3\,x)$", "attribute weights")
    arrow(ax, (64.5, 20.2), (64.5, 14.7), color=EDGE[SHARED])


def lane(ax: Axes, y: float, h: float, color: str, title: str, more: str) -> None:
    """The area of one direction, with its title and a remark in the upper left corner."""
    rounded(ax, 83, y, 57.5, h, color, "none", 0.4)
    ax.text(84.6, y + h - 2.8, title, size=13, color=EDGE[color], weight="bold", va="center")
    ax.text(105.5, y + h - 2.8, more, size=11.5, color=GREY, va="center")


def directions(ax: Axes) -> None:
    """Both ways to class scores, and their sum."""
    blue, orange, green = EDGE[UP], EDGE[DOWN], EDGE[CLASSES]
    lane(ax, 46, 18.5, UP, "visual → semantic", r"dazle is this half, with $s_1=\Sigma_i\,w_i e_i z_i$")
    lane(ax, 1.5, 28, DOWN, "semantic → visual", "")
    box(ax, 84.6, 48.4, 15, 9.3, UP, r"$e = \Sigma_r\,\theta\,S$", "attribute scores")
    box(ax, 102.9, 48.4, 18, 9.3, UP, r"$\alpha\,\cos(w\circ e,\,\tilde z)$", "class scores $s_1$")
    arrow(ax, (78.5, 53), (84.6, 53), color=blue)
    arrow(ax, (99.6, 53), (102.9, 53), color=blue)

    saliency = r"$\frac{1}{2R}+\frac{1}{2}\,\frac{\Sigma_i\,w\,\theta}{\Sigma_i\,w}$"
    box(ax, 84.6, 3, 15, 20.3, DOWN, saliency, r"saliency $\rho$")
    picture(ax, 88.3, 8.6, 7.6, weights(BILL, WING, BELLY))
    box(ax, 102.9, 3, 18, 9.3, DOWN, r"$P\,(\sqrt{\Sigma_r\,\rho\,x}-\mu)$", "image feature $f$")
    box(ax, 123.9, 3, 15.6, 9.3, DOWN, r"$\alpha\,\cos(f, E(\tilde z))$", "class scores $s_2$")
    arrow(ax, (78.5, 9.8), (84.6, 9.8), color=orange)
    arrow(ax, (99.6, 7.6), (102.9, 7.6), color=orange)
    arrow(ax, (120.9, 7.6), (123.9, 7.6), color=orange)

    box(ax, 102.9, 33.2, 18, 9.3, CLASSES, r"$\tilde z$  (C,K)", "class attributes,\nrooted and centred")
    box(
        ax,
        101.4,
        15.9,
        21.5,
        9.8,
        CLASSES,
        r"$E(\tilde z)\propto\Sigma_s\,a_s(\tilde z)\,P M_s$",
        "prototypes, by ridge\nfrom seen means $M$",
    )
    arrow(ax, (111.9, 42.5), (111.9, 48.4), color=green)
    arrow(ax, (111.9, 33.2), (111.9, 25.7), color=green)
    arrow(ax, (122.9, 20.8), (126.6, 20.8), (126.6, 12.3), color=green)

    arrow(ax, (86.2, 46), (86.2, 29.5), style="<|-|>", dashes=(0, (3, 2)), color=EDGE[SHARED])
    tie = "θ and w learn\nfrom both:\nCE($s_1$) + CE($s_2$)"
    ax.text(88, 37.8, tie, size=12, color=EDGE[SHARED], va="center", linespacing=1.3)
    ax.text(113.3, 27.6, "closed form: $P$, μ, $M$, $E$", size=10.5, color=GREY, va="center")

    rounded(ax, 123.4, 33.2, 17, 9.3, "white", INK)
    ax.text(131.9, 39.9, r"$s_1 + \beta\,s_2$", size=16, color=INK, ha="center", va="center")
    ax.text(131.9, 36.9, "less hubness, plus", size=10, color=GREY, ha="center", va="center")
    ax.text(131.9, 34.7, "the seen-class expert", size=10, color=GREY, ha="center", va="center")
    arrow(ax, (120.9, 53), (131.9, 53), (131.9, 42.5), color=blue)
    arrow(ax, (131.9, 12.3), (131.9, 33.2), color=orange)


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
