"""Whether the attention of an attribute falls on the part that shows it, where part locations are known.

Two measures, each with rows that keep it honest: how much attention lies on an attribute's own part compared with the
attention of other attributes there (:func:`own_and_others`); pointing, whether the predicted point lies within a radius
of the part.

Places are x and y as shares of the image's width and height, 0 at the upper left. G part groups (head, wing, ...) of P
key points; an attribute belongs to one group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from core.files.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Where the parts of N images are."""

    points: np.ndarray  # (N,P,3) x, y and whether visible
    groups: Sequence[Sequence[int]]  # G lists of key points: the parts of a group, such as both eyes of the head
    labels: np.ndarray  # (N,) class numbers

    def of(self, images: np.ndarray | slice) -> Parts:
        """The parts of some of the images."""
        return Parts(points=self.points[images], groups=self.groups, labels=self.labels[images])


def centres(grid: tuple[int, int]) -> np.ndarray:
    """(R,2) x and y of the cells' centres, row by row."""
    h, w = grid
    y, x = np.meshgrid((np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w, indexing="ij")
    return np.stack([x.ravel(), y.ravel()], axis=1)


def predicted_points(
    theta: np.ndarray, values: np.ndarray, attribute_group: np.ndarray, G: int, grid: tuple[int, int]
) -> np.ndarray:
    """(N,G,2) where a model says each part group is: the highest cell of one attribute a group, as APN picks it.

    Args:
        theta: (N,R,K) region weights.
        values: (N,K) predicted attribute values; the group's attribute of the highest value speaks for it.
        attribute_group: (K,) number of an attribute's part group; -1: of none.
    """
    places, rows, points = centres(grid), np.arange(len(theta)), np.empty((len(theta), G, 2))
    for group in range(G):
        mine = np.flatnonzero(attribute_group == group)
        speaks = mine[values[:, mine].argmax(axis=1)]
        points[:, group] = places[theta[rows, :, speaks].argmax(axis=1)]
    return points


def hits(points: np.ndarray, parts: Parts, radius: float) -> np.ndarray:
    """(N,G) of 0 and 1: a visible key point of the group is at most ``radius``, a share of the image's side, away from
    the predicted one; NaN where none is visible.

    Args:
        points: (N,G,2) or anything that broadcasts to it.
    """
    N, G = len(parts.points), len(parts.groups)
    points, found = np.broadcast_to(points, (N, G, 2)), np.full((N, G), np.nan)
    for number, group in enumerate(parts.groups):
        targets = parts.points[:, list(group)]  # (N,P',3)
        gap = targets[:, :, :2] - points[:, number, None]
        distance = np.where(targets[:, :, 2].astype(bool), np.hypot(gap[:, :, 0], gap[:, :, 1]), np.inf).min(axis=1)
        shown = np.isfinite(distance)
        found[shown, number] = distance[shown] <= radius
    return found


def localisation_table(
    points: dict[str, np.ndarray],
    test: Parts,
    training: Parts,
    *,
    grid: tuple[int, int],
    radius: float,
    rng: np.random.Generator,
    resamples: int = 2_000,
) -> pd.DataFrame:
    """Pointing of models beside what needs no model: share of visible groups hit, with 95 % intervals.

    Rows: ``random cell`` (its exact expectation: every cell in turn), ``image centre``, ``part prior`` (mean place in
    training images), the models, ``best cell`` (the best that a grid of this size allows).

    Args:
        points: model -> (N,G,2) of :func:`predicted_points`.
        resamples: draws of classes, with all their images, for the intervals.

    Returns:
        Columns ``point``, ``share``, ``low``, ``high``, ``pairs``.
    """
    prior = np.empty((len(training.groups), 2))  # mean place of a group's visible key points
    for number, group in enumerate(training.groups):
        placed = training.points[:, list(group)].reshape(-1, 3)
        prior[number] = placed[placed[:, 2].astype(bool), :2].mean(axis=0)
    per_cell = [hits(cell, test, radius) for cell in centres(grid)]
    simple = {"image centre": np.array([0.5, 0.5]), "part prior": prior}
    found = {name: hits(place, test, radius) for name, place in (simple | points).items()}
    found = {"random cell": np.mean(per_cell, axis=0), **found, "best cell": np.max(per_cell, axis=0)}
    _, position = np.unique(test.labels, return_inverse=True)
    n = position.max() + 1
    draws = rng.multinomial(n, np.full(n, 1 / n), size=resamples)  # (resamples,C) how often each class is drawn
    rows = []
    for name, values in found.items():
        total = np.bincount(position, weights=np.nansum(values, axis=1))
        count = np.bincount(position, weights=np.isfinite(values).sum(axis=1))
        drawn = draws @ count
        low, high = np.percentile((draws @ total)[drawn > 0] / drawn[drawn > 0], (2.5, 97.5))
        row = {"point": name, "share": total.sum() / count.sum(), "low": low, "high": high}
        rows.append(row | {"pairs": int(count.sum())})
    return pd.DataFrame(rows)


def own_and_others(
    theta: np.ndarray, parts: Parts, attribute_group: np.ndarray, present: np.ndarray, grid: tuple[int, int]
) -> pd.DataFrame:
    """Attention within one region of each key point: of attributes of its own part and of those of other parts, which
    rules out that attention merely falls on the creature.

    Args:
        theta: (N,R,K) region weights; those of many images are too many to hold, so blocks of images may be given one
            after another and their tables together to :func:`ratio_of`.
        attribute_group: (K,) number in ``parts.groups``; -1: of none, left out.
        present: (N,K) whether the image's class has the attribute.

    Returns:
        One row a key point: ``pairs`` of an image that shows it and an attribute of its part that the class has,
        ``own`` the sum of their attention, ``other_pairs`` and ``others`` of attributes of other parts.
    """
    rows, of_parts = [], present & (attribute_group >= 0)
    for group, members in enumerate(parts.groups):
        for point in members:
            x, y, visible = parts.points[:, point].T  # (N,)
            near = _near(y, grid[0])[:, :, None] & _near(x, grid[1])[:, None, :]  # (N,h,w): its cell and the neighbours
            mass = np.einsum("nrk,nr->nk", theta, near.reshape(len(theta), -1))
            shown = of_parts & visible.astype(bool)[:, None]  # (N,K)
            mine, other = shown & (attribute_group == group), shown & (attribute_group != group)
            row = {"point": point, "pairs": mine.sum(), "own": mass[mine].sum(dtype=np.float64)}
            rows.append(row | {"other_pairs": other.sum(), "others": mass[other].sum(dtype=np.float64)})
    return pd.DataFrame(rows)


def _near(place: np.ndarray, cells: int) -> np.ndarray:
    """(N,cells): cells whose centre is within one and a half cells of the place."""
    middles = (np.arange(cells) + 0.5) / cells
    return np.abs(middles - place[:, None]) <= 1.5 / cells + 1e-9


def ratio_of(tables: Sequence[pd.DataFrame]) -> float:
    """own/others: the mean over all pairs of a visible key point and an attribute of a part that the class has.

    1: attention on a part does not depend on what the attribute is of.
    """
    points = pd.concat(tables).groupby("point").sum()
    points = points[(points.pairs > 0) & (points.other_pairs > 0)]
    if points.empty:
        raise UserError("no image shows a part of which its class has an attribute")
    return float(np.divide(points.own.sum(), (points.others / points.other_pairs * points.pairs).sum()))
