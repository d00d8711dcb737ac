"""Where the parts of images are, as a model sees the images, and which attributes speak of which part.

Places come from CUB's parts/part_locs.txt, sizes from its bounding_boxes.txt, both in pixels of the photograph. A
backbone sees the middle square of a photograph (Resize, CenterCrop): places are shares of that square, and what lies
outside of it counts as not visible.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from core.datasets.names import clean_name
from core.features.images import FORMATS, Transform
from core.files.errors import UserError
from core.files.kinds import missing
from studies.part_measures import Parts, attention_on_parts

Points = list[tuple[str, float, float]]
# group -> words of key points and of attributes that belong to it, as APN groups them (Xu et al., NeurIPS 2020)
GROUPS: dict[str, frozenset[str]] = {
    "head": frozenset({"head", "beak", "bill", "crown", "forehead", "eye", "eyes", "nape", "throat"}),
    "breast": frozenset({"breast"}),
    "belly": frozenset({"belly"}),
    "back": frozenset({"back"}),
    "wing": frozenset({"wing", "wings"}),
    "tail": frozenset({"tail"}),
    "leg": frozenset({"leg", "legs"}),
}


def group_of(name: str) -> str | None:
    """The group of a key point (``left eye``) or of an attribute (``has_eye_color::black``); None: of no part.

    Of an attribute the words before ``::`` count: ``about_the_same_as_head`` is a length of the bill.
    """
    words = set(clean_name(name.partition("::")[0]))
    return next((group for group, own in GROUPS.items() if words & own), None)


def attribute_groups(attributes: Sequence[str], groups: Sequence[str]) -> np.ndarray:
    """(K,) number in ``groups`` of each attribute's part; -1: of none."""
    found = [group_of(name) for name in attributes]
    return np.array([groups.index(g) if g in groups else -1 for g in found], dtype=np.int64)


def shown_groups(attributes: Sequence[str], key_points: Sequence[str]) -> list[str]:
    """Groups that both an attribute and a key point belong to.

    Raises:
        UserError: there are none.
    """
    spoken, placed = ({group_of(name) for name in names} for names in (attributes, key_points))
    if groups := [group for group in GROUPS if group in spoken & placed]:
        return groups
    raise UserError(
        f"no attribute names a part ({', '.join(GROUPS)}) that parts/parts.txt has a key point of; its key points are "
        f"{', '.join(key_points[:5])}, the attributes {', '.join(attributes[:3])}"
    )


def part_points(folder: Path) -> dict[str, Points]:
    """Visible key points in pixels by image, from CUB's parts/part_locs.txt, if that is there.

    Raises:
        UserError: a line that is not of that form.
    """
    locations = folder / "parts" / "part_locs.txt"
    if not locations.is_file():
        return {}
    images, parts = numbered(folder / "images.txt"), numbered(folder / "parts" / "parts.txt")
    found: dict[str, Points] = {}
    for number, line in enumerate(_lines(locations), 1):
        try:
            image, part, x, y, visible = line.split()
            if visible != "0":
                found.setdefault(images[image], []).append((parts[part], float(x), float(y)))
        except (ValueError, KeyError):
            raise UserError(
                f"{locations}, line {number}: image, part, x, y and visible are expected, of images in images.txt and "
                f"parts in parts/parts.txt; it says {line[:80]!r}"
            ) from None
    return found


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text("utf-8", "replace").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def numbered(path: Path) -> dict[str, str]:
    """Number -> name of ``1 name`` lines."""
    pairs = [line.strip().partition(" ") for line in _lines(path)]
    return {number: name.strip() for number, _, name in pairs}


def on_crop(points: Points, path: Path, transform: Transform | None) -> Points:
    """Key points in pixels of a file as shares of what the backbone saw of it; those outside are left out."""
    if not points:
        return []
    try:
        with Image.open(path, formats=FORMATS) as image:  # the head alone
            width, height = image.size
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be shown on the page: {error}") from error
    zoom = (transform.resize / transform.crop if transform else 1.0) / min(width, height)
    placed = [
        (name, (x - width / 2) * zoom + 0.5, (y - height / 2) * zoom + 0.5) for name, x, y in points
    ]  # the crop is the middle, and of side 1
    return [(name, x, y) for name, x, y in placed if 0 <= x <= 1 and 0 <= y <= 1]


def read_key_points(folder: Path) -> list[str]:
    """Names of the key points, in the order of parts/parts.txt.

    Raises:
        UserError: it or part_locs.txt is not there, or cannot be read.
    """
    for name in ("parts.txt", "part_locs.txt"):
        if not (folder / "parts" / name).is_file():
            raise UserError(f"{missing(folder / 'parts' / name, 'list of part locations')}. CUB's archive has one")
    return [*numbered(folder / "parts" / "parts.txt").values()]


def read_parts(
    folder: Path,
    names: Sequence[str],
    paths: Sequence[Path],
    labels: np.ndarray,
    *,
    transform: Transform,
    groups: Sequence[str],
) -> Parts:
    """Where the parts of N images are in what the backbone saw of them.

    Args:
        folder: of the data set's images: it holds images.txt, parts/, and bounding_boxes.txt where objects are smaller
            than the image (without it, the object is the whole crop).
        names: (N,) image files below ``folder``, as images.txt or with ``images/`` before.
        paths: (N,) the files themselves, whose width and height are read.
        labels: (N,) class numbers.
        transform: of the backbone.

    Raises:
        UserError: a list is missing or damaged, or no key point of these images is visible.
    """
    key_points, known = read_key_points(folder), part_points(folder)
    number = {name: i for i, name in enumerate(key_points)}
    boxes = _boxes(folder)
    points, sizes = np.zeros((len(names), len(key_points), 3)), np.ones((len(names), 2))
    for i, (name, path) in enumerate(zip(names, paths, strict=True)):
        short = name.removeprefix("images/")
        for part, x, y in on_crop(known.get(short, []), path, transform):
            points[i, number[part]] = x, y, 1
        if boxes:
            if short not in boxes:
                raise UserError(f"{folder / 'bounding_boxes.txt'} has no box of {short}")
            sizes[i] = boxes[short] * _zoom(path, transform)
    if not points[:, :, 2].any():
        raise UserError(f"{folder / 'parts' / 'part_locs.txt'} shows no part of any of these {len(names)} images")
    members = [[number[p] for p in key_points if group_of(p) == group] for group in groups]
    return Parts(points=points, groups=members, size=sizes, labels=labels)


def _boxes(folder: Path) -> dict[str, np.ndarray]:
    """Width and height in pixels of the object by image; empty where there is no bounding_boxes.txt."""
    path = folder / "bounding_boxes.txt"
    if not path.is_file():
        return {}
    try:
        files = dict(line.split(maxsplit=1) for line in (folder / "images.txt").read_text("utf-8").splitlines() if line)
        rows = [line.split() for line in path.read_text("utf-8").splitlines() if line]
        found = {files[i].strip(): np.array([float(w), float(h)]) for i, _, _, w, h in rows}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: image, x, y, width and height are expected, of images in images.txt") from error
    if not all(np.isfinite(box).all() and (box > 0).all() for box in found.values()):
        raise UserError(f"{path}: a width or height that is not a number above 0")
    return found


def _zoom(path: Path, transform: Transform) -> float:
    """Share of the crop's side that a pixel of the photograph is."""
    with Image.open(path, formats=FORMATS) as image:
        return transform.resize / transform.crop / min(image.size)


def own_and_others(
    theta: np.ndarray, parts: Parts, attribute_group: np.ndarray, present: np.ndarray, grid: tuple[int, int]
) -> pd.DataFrame:
    """Attention within one region of each key point: of attributes of its own part and of those of other parts.

    Args:
        theta: (N,R,K) region weights; those of many images are too many to hold, so blocks of images may be given one
            after another and their tables together to :func:`ratio_of`.
        attribute_group: (K,) number in ``parts.groups``; -1: of none, left out.
        present: (N,K) whether the image's class has the attribute.

    Returns:
        One row a key point of a group, as of :func:`studies.part_measures.attention_on_parts`.
    """
    tables = []
    of_parts = present & (attribute_group >= 0)
    for group, members in enumerate(parts.groups):
        mine = np.where(attribute_group == group, 0, 1)
        for point in members:
            found = attention_on_parts(theta, parts.points[:, [point]], mine, of_parts, grid)
            tables.append(found.assign(part=point))
    return pd.concat(tables, ignore_index=True)


def ratio_of(tables: Sequence[pd.DataFrame]) -> float:
    """own/others: the mean over all pairs of a visible key point and an attribute of a part that the class has.

    1: attention on a part does not depend on what the attribute is of.

    Raises:
        UserError: there is no such pair.
    """
    rows = pd.concat(tables)
    own, others = rows.own.fillna(0) * rows.pairs, rows.others.fillna(0) * rows.other_pairs
    points = rows[["part", "pairs", "other_pairs"]].assign(own=own, others=others).groupby("part").sum()
    points = points[(points.pairs > 0) & (points.other_pairs > 0)]
    if points.empty:
        raise UserError("no image shows a part of which its class has an attribute")
    own, others = points.own.sum(), (points.others / points.other_pairs * points.pairs).sum()
    return float(np.divide(own, others))
