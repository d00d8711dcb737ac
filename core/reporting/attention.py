"""The figure of a run's evidence: the attributes that say most for the class predicted, and where each of them is seen.

Colours, scale and words are those of the page: orange for the class, blue against it, transparent where there is
neither, one scale a photograph; the cells of a map add up to what the attribute adds to the score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb

from core.experiments.inputs import Inputs
from core.features.images import load_image
from core.files.errors import UserError
from core.inference.explain import explain, why_no_maps
from core.inference.names import shown_class, shown_reason
from core.inference.trained import load_trained
from core.reporting.canvas import canvas, printable
from core.reporting.run_page import photographs
from core.training.evaluation import calibrated
from core.training.loop import class_scores

FOR, AGAINST, _COVER = "#e07b00", "#0063c7", 0.85  # core/inference/page/panels.js has the same
_LETTERS = 28  # of a line of a title: more overlap the next column
_SHOWN = 5  # attributes of an image


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One photograph and the maps of the attributes that count most for its predicted class."""

    picture: np.ndarray  # (H,W,3) uint8, as the backbone saw it
    evidence: np.ndarray  # (A,h,w) points of each cell for the predicted class
    reasons: Sequence[str]  # A names of what the photograph shows
    true: str
    predicted: str
    says: str  # which image this is, such as "best, margin +2.1"


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


def draw_attention(run_folder: Path, inputs: Inputs, data_root: Path, out: Path) -> None:
    """Draw the best, the median and the worst test image of the unseen classes, by the margin of the true class."""
    metadata, features, rows = inputs.metadata, inputs.features, inputs.metadata.test_unseen_loc
    if not len(rows):
        raise UserError("no unseen class has a test image")
    trained = load_trained(run_folder, features.device)
    sides = (trained.space.seen.cpu().numpy(), trained.space.unseen.cpu().numpy())
    scores = calibrated(class_scores(trained.model, features, rows), *sides, trained.gamma)
    labels, predicted = metadata.labels[rows], scores.argmax(axis=1)
    margins = margins_of(scores, labels)
    panels = []
    for says, i in best_median_worst(margins).items():
        found, c = explain(trained, features.batch(rows[i : i + 1])), int(predicted[i])
        if why := why_no_maps(trained, found):
            raise UserError(why)
        assert found.ev is not None and found.g is not None
        (path,) = photographs(inputs, data_root, rows[[i]])
        top = found.attributes(0, c).topk(min(_SHOWN, found.g.shape[1])).indices.tolist()
        grid = [int(side) for side in inputs.provenance["regions"].split("x")]
        panels.append(
            Panel(
                picture=load_image(path, 224),
                evidence=np.stack([found.places(0, c, k).cpu().numpy().reshape(grid) for k in top]),
                reasons=[shown_reason(inputs.attribute_names[k], float(found.g[0, k])) for k in top],
                true=metadata.class_names[labels[i]],
                predicted=metadata.class_names[c],
                says=f"{says}, margin {margins[i]:+.2f}",
            )
        )
    attention_figure(panels, out, title=f"{inputs.dataset}, {trained.config['method']}, test images of unseen classes")


def attention_figure(panels: Sequence[Panel], out: Path, *, title: str) -> None:
    """A row a photograph, a column an attribute; ``out`` is the PNG, the PDF stands beside it."""
    columns = 1 + max(len(panel.reasons) for panel in panels)
    with canvas(out, 0.2 + 1.55 * columns, 0.75 + 1.95 * len(panels), len(panels), columns) as (figure, axes):
        for row, panel in zip(axes, panels, strict=True):
            right, scale = panel.true == panel.predicted, float(np.abs(panel.evidence).max()) or 1.0
            predicted = "the same" if right else printable(shown_class(panel.predicted), _LETTERS - 11)
            said = f"{printable(panel.says, _LETTERS)}\ntrue: {printable(shown_class(panel.true), _LETTERS - 6)}"
            titles = [f"{said}\npredicted: {predicted}"] + [
                f"{printable(reason, _LETTERS)}\n{cells.sum():+.2f} (full colour ±{scale:.2g})"
                for reason, cells in zip(panel.reasons, panel.evidence, strict=True)
            ]
            height, width = panel.picture.shape[:2]
            grey = np.repeat(panel.picture.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)
            for n, (axis, text) in enumerate(zip(row, titles, strict=False)):
                axis.imshow(grey if n else panel.picture)
                axis.set_title(text, fontsize=6.5, loc="left", color="black" if n or right else "#B00020")
                if n:
                    cells = panel.evidence[n - 1][..., None]  # (h,w,1)
                    colours = np.where(cells < 0, to_rgb(AGAINST), to_rgb(FOR))
                    drawn = np.concatenate([colours, _COVER * np.abs(cells) / scale], axis=2)
                    axis.imshow(drawn, extent=(0, width, height, 0), interpolation="nearest")
            for axis in row:
                axis.set_axis_off()
        figure.suptitle(printable(title, 100), fontsize=9)
        rule = "images by the margin of the true class's calibrated score over the best other: highest, median, lowest"
        what = "orange: for the predicted class, in points of its score; blue: against it; one scale a photograph"
        figure.supxlabel(f"{rule}\n{what}", fontsize=6.5)
