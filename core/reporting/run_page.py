"""The page of a finished run: why its model named the data set's test images as it did."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
from PIL import Image

from core.datasets.paths import image_folder, resolve_images
from core.datasets.registry import DATASETS
from core.experiments.inputs import Inputs
from core.features.images import FORMATS, Transform
from core.files.errors import UserError
from core.inference.page import IMAGES, Item, write_page
from core.inference.trained import grid_said, load_trained

log = logging.getLogger(__name__)
Points = list[tuple[str, float, float]]


def draw_page(run_folder: Path, inputs: Inputs, data_root: Path, out: Path) -> Path:
    """Write the page for at most 200 test images, spread over the classes, and return its index.html.

    Raises:
        UserError: the images are not there, one cannot be read, or ``out`` holds something else.
    """
    metadata, features = inputs.metadata, inputs.features
    folder = image_folder(data_root, DATASETS[inputs.dataset])
    transform = transform_of(inputs.provenance.get("transform", ""))
    rows = spread(np.concatenate([metadata.test_unseen_loc, metadata.test_seen_loc]), metadata.labels, IMAGES)
    names = [metadata.image_files[row] for row in rows]
    paths, missing = resolve_images(folder, names)
    if missing:
        raise UserError(f"{len(missing)} of {len(paths)} images are missing, the first is {paths[missing[0]]}")
    items = []
    for row, path in zip(rows, paths, strict=True):
        x = features.batch(np.array([row]))[0]
        items.append(Item(picture=path, x=x, truth=int(metadata.labels[row])))
    return write_page(
        load_trained(run_folder, features.device),
        items,
        out,
        grid=grid_said(inputs.provenance["regions"]),
        transform=transform,
        title=f"{inputs.dataset}, {inputs.provenance['name']}, test images",
    )


def spread(rows: np.ndarray, labels: np.ndarray, most: int) -> np.ndarray:
    """At most ``most`` of the rows: the first of every class, then the second of every class, and so on; by class."""
    turn = np.empty(len(rows), dtype=np.int64)
    for c in np.unique(labels[rows]):
        mine = np.flatnonzero(labels[rows] == c)
        turn[mine] = np.arange(len(mine))
    taken = np.argsort(turn, kind="stable")[:most]
    return rows[taken[np.argsort(labels[rows[taken]], kind="stable")]]


def transform_of(said: str) -> Transform | None:
    """The geometry of a feature file's transform, as str(Transform) records it; None where it records none."""
    found = re.match(r"Resize\((\d+), (\w+)\) CenterCrop\((\d+)\)", said)
    return Transform(int(found[3]), int(found[1]), found[2]) if found else None


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
