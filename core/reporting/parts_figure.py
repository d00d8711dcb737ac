"""Photographs with the key points of their parts and where each method says the parts are, hits and misses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.lines import Line2D

from core.inference.names import shown_class
from core.reporting.canvas import COLOURS, canvas, drawing, printable, save
from core.reporting.localisation import Parts, hits


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """One image, its parts, and what methods predict."""

    picture: np.ndarray  # (H,W,3) uint8, as the backbone saw it
    name: str  # of its class
    parts: Parts  # of this one image
    points: Mapping[str, np.ndarray]  # method -> (1,G,2)


def parts_figure(
    photographs: Sequence[Photograph], groups: Sequence[str], out: Path, *, radius: float, title: str
) -> None:
    """A row a method, a column a photograph; a line joins a prediction to the key point it is measured against.

    Args:
        groups: G names of the part groups; each has its colour.
        radius: a prediction hits within this share of the image's side.
        out: the PNG; the PDF stands beside it.
    """
    methods = list(photographs[0].points)
    with drawing():
        figure, axes = canvas(1.9 * len(photographs) + 1.3, 2.15 * len(methods) + 0.9, len(methods), len(photographs))
        for row, method in zip(axes, methods, strict=True):
            for axis, photograph in zip(row, photographs, strict=True):
                found = hits(photograph.points[method], photograph.parts, radius=radius)["pointing"][0]  # (G,)
                height, width = photograph.picture.shape[:2]
                side = np.array([width, height])
                drawn = side_by_side(photograph.points[method][0])
                axis.imshow(photograph.picture, alpha=0.75)
                for g, members in enumerate(photograph.parts.groups):
                    colour = COLOURS[g % len(COLOURS)]
                    targets = photograph.parts.points[0, list(members)]
                    targets = targets[targets[:, 2] > 0, :2]
                    if not len(targets):
                        continue
                    at = photograph.points[method][0, g]
                    near = targets[np.hypot(*(targets - at).T).argmin()]
                    axis.plot(*(np.stack([drawn[g], near]) * side).T, color=colour, linewidth=0.9)
                    axis.plot(
                        *(targets * side).T, "o", color=colour, markersize=4, markeredgecolor="white", linestyle="none"
                    )
                    hit = found[g] == 1
                    axis.plot(
                        *(drawn[g] * side), "P" if hit else "X", color=colour, markersize=8,
                        markeredgecolor="white" if hit else "black", markeredgewidth=0.8,
                    )  # fmt: skip
                shown = np.isfinite(found).sum()
                name = printable(shown_class(photograph.name), 26)
                says = f"{name}\n{printable(method, 18)}: {np.nansum(found):.0f} of {shown}"
                axis.set_title(says, fontsize=7, loc="left")
                axis.set(xlim=(0, width), ylim=(height, 0))
                axis.set_axis_off()
        plain: dict[str, Any] = {"linestyle": "none", "markeredgecolor": "white"}
        handles = [
            Line2D([], [], marker="o", color=COLOURS[g % len(COLOURS)], label=n, **plain) for g, n in enumerate(groups)
        ]
        handles += [
            Line2D([], [], marker="o", color="0.4", label="key point", **plain),
            Line2D([], [], marker="P", color="0.4", markersize=8, label="predicted, hit", **plain),
            Line2D(
                [],
                [],
                marker="X",
                color="0.4",
                markersize=8,
                label="predicted, miss",
                linestyle="none",
                markeredgecolor="black",
            ),
        ]
        figure.legend(handles=handles, fontsize=7.5, loc="outside right center", frameon=False)
        rule = f"hit: within {100 * radius:.0f} % of the side; predictions of one cell are drawn side by side"
        figure.suptitle(f"{printable(title, 110)}\n{rule}", fontsize=8.5)
        save(figure, out)


def side_by_side(points: np.ndarray) -> np.ndarray:
    """Points (G,2) with those that coincide moved apart a little, round the place they share."""
    moved = points.astype(float)
    for place in np.unique(points, axis=0):
        same = np.flatnonzero((points == place).all(axis=1))
        if len(same) > 1:
            angle = 2 * np.pi * np.arange(len(same)) / len(same)
            moved[same] += 0.055 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return moved
