"""The attention figure of a run: the attributes that say most for the class predicted, and where each was looked for.

Attributes are ranked as predict.py and the page rank them, by what they add to the score (ZeroShotModel.evidence). The
colour of a cell is its share θ of the attribute's attention: one scale for all maps, cells as they are. It says where
was looked, not what was seen there and not that the decision rests on it; studies/localisation.py measures whether the
place is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from core.datasets.paths import image_folder, resolve_images
from core.datasets.registry import DATASETS
from core.experiments.inputs import Inputs
from core.features.images import load_image
from core.files.errors import UserError
from core.inference.names import shown_attribute, shown_class
from core.inference.trained import grid_said, load_trained
from core.reporting.canvas import canvas, printable
from core.training.evaluation import calibrated
from core.training.loop import class_scores

_COVER = 0.62  # of the map over the photograph
_LETTERS = 28  # of a line of a title: more overlap the next column
_SHOWN = 5  # attributes of an image


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One photograph and the maps of the attributes that count most for its predicted class."""

    picture: np.ndarray  # (H,W,3) uint8, as the backbone saw it
    theta: np.ndarray  # (A,h,w) shares of attention; each map sums to 1
    attributes: Sequence[str]  # A names
    contributions: np.ndarray  # (A,) to the predicted class's score
    true: str
    predicted: str
    says: str  # which image this is, such as "best, margin +2.1"


def grid_of(R: int, grid: tuple[int, int] | None = None) -> tuple[int, int]:
    """Rows and columns (h,w) of R regions; a square where ``grid`` does not say."""
    h, w = grid or (round(R**0.5), round(R**0.5))
    if h * w != R:
        raise UserError(f"{R} regions do not form a grid of {h} x {w}; give the rows and columns of the feature map")
    return h, w


def margins_of(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """By how much (N,) the true class's calibrated score is ahead of the best other class, from scores (N,C)."""
    others = scores.astype(np.float64)
    rows = np.arange(len(others))
    own = others[rows, labels].copy()
    others[rows, labels] = -np.inf
    return own - others.max(axis=1)


def best_median_worst(margins: np.ndarray) -> dict[str, int]:
    """Positions of the images of the highest, the median and the lowest margin; of equal ones the first."""
    order = np.argsort(-margins, kind="stable")
    return {"best": int(order[0]), "median": int(order[(len(order) - 1) // 2]), "worst": int(order[-1])}


@torch.no_grad()
def draw_attention(run_folder: Path, inputs: Inputs, data_root: Path, out: Path) -> None:
    """Draw the best, the median and the worst test image of the unseen classes, by the margin of the true class.

    A method without attention or scores by attributes is refused, as is an image that cannot be read.
    """
    metadata, features, rows = inputs.metadata, inputs.features, inputs.metadata.test_unseen_loc
    trained = load_trained(run_folder, features.device)
    model, z = trained.model, trained.z
    sides = (trained.space.seen.cpu().numpy(), trained.space.unseen.cpu().numpy())
    scores = calibrated(class_scores(model, features, rows), *sides, trained.gamma)
    labels, predicted = metadata.labels[rows], scores.argmax(axis=1)
    margins = margins_of(scores, labels)
    panels = []
    for says, i in best_median_worst(margins).items():
        (path,), _ = resolve_images(image_folder(data_root, DATASETS[inputs.dataset]), [metadata.image_files[rows[i]]])
        try:
            picture = load_image(path, 224)
        except ValueError as error:
            raise UserError(f"{path} cannot be drawn: {error}") from error
        x = features.batch(rows[i : i + 1])
        a = model.attend(x)
        evidence = None if a is None else model.evidence(x, a)
        if a is None or evidence is None or z is None:
            method = trained.config["method"]
            raise UserError(f"{method} has no attention over regions to draw, or does not score by attributes")
        added = (evidence[0] * z[predicted[i]]).float().cpu().numpy()  # (K,) to the predicted class's score
        top = np.argsort(-added, kind="stable")[:_SHOWN]
        theta = a.theta[0].float().cpu().numpy()  # (R,K)
        panels.append(
            Panel(
                picture=picture,
                theta=theta.T[top].reshape(len(top), *grid_of(len(theta), grid_said(inputs.provenance["regions"]))),
                attributes=[inputs.attribute_names[k] for k in top],
                contributions=added[top],
                true=metadata.class_names[labels[i]],
                predicted=metadata.class_names[predicted[i]],
                says=f"{says}, margin {margins[i]:+.2f}",
            )
        )
    attention_figure(panels, out, title=f"{inputs.dataset}, {trained.config['method']}, test images of unseen classes")


def attention_figure(panels: Sequence[Panel], out: Path, *, title: str) -> None:
    """A row a photograph, a column an attribute; one colour scale for all, from 0 to the largest share shown."""
    columns = 1 + max(len(panel.attributes) for panel in panels)
    scale = Normalize(0, 100 * max(float(panel.theta.max()) for panel in panels))
    small = {"fontsize": 6.5, "loc": "left"}
    with canvas(out, 0.7 + 1.55 * columns, 0.75 + 1.95 * len(panels), len(panels), columns) as (figure, axes):
        for row, panel in zip(axes, panels, strict=True):
            right = panel.true == panel.predicted
            predicted = "the same" if right else printable(shown_class(panel.predicted), _LETTERS - 11)
            said = f"{printable(panel.says, _LETTERS)}\ntrue: {printable(shown_class(panel.true), _LETTERS - 6)}"
            row[0].imshow(panel.picture)
            row[0].set_title(f"{said}\npredicted: {predicted}", color="black" if right else "#B00020", **small)
            height, width = panel.picture.shape[:2]
            grey = np.repeat(panel.picture.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)
            shown = zip(row[1:], panel.attributes, panel.contributions, panel.theta, strict=False)
            for axis, name, value, heat in shown:
                axis.imshow(grey)
                look = {"cmap": "viridis", "norm": scale, "alpha": _COVER, "interpolation": "nearest"}
                axis.imshow(100 * heat, extent=(0, width, height, 0), **look)
                peak = f"{value:+.3g} · peak {100 * heat.max():.1f} %"
                axis.set_title(f"{printable(shown_attribute(name), _LETTERS)}\n{peak}", **small)
            for axis in row:
                axis.set_axis_off()
        label = f"share of attention in a cell (%); uniform: {100 / panels[0].theta[0].size:.1f}"
        bar: dict[str, Any] = {"shrink": 0.8, "aspect": 30, "pad": 0.01, "alpha": _COVER, "label": label}
        figure.colorbar(ScalarMappable(scale, "viridis"), ax=axes, **bar).ax.tick_params(labelsize=7)
        figure.suptitle(printable(title, 100), fontsize=9)
        rule = "images by the margin of the true class's calibrated score over the best other: highest, median, lowest"
        number = "signed number: what the attribute adds to the predicted class's score"
        figure.supxlabel(f"{rule}\n{number}", fontsize=6.5)
