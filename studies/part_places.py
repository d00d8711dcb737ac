"""Where the parts of images are, as a model sees the images, and which attributes speak of which part.

Places come from CUB's parts/part_locs.txt, in pixels of the photograph. A backbone sees the middle square of a
photograph (Resize, CenterCrop): places are shares of that square, and what lies outside of it counts as not visible.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from core.datasets.names import clean_name
from core.features.images import FORMATS, Transform
from core.files.errors import UserError
from core.files.kinds import unreadable
from studies.part_measures import Parts

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
    """Groups that both an attribute and a key point belong to; where there are none, that is refused."""
    spoken, placed = ({group_of(name) for name in names} for names in (attributes, key_points))
    if groups := [group for group in GROUPS if group in spoken & placed]:
        return groups
    raise UserError(
        f"no attribute names a part ({', '.join(GROUPS)}) that parts/parts.txt has a key point of; its key points are "
        f"{', '.join(key_points[:5])}, the attributes {', '.join(attributes[:3])}"
    )


def read_key_points(folder: Path) -> list[str]:
    """Names of the key points, in the order of parts/parts.txt."""
    return list(_names(folder / "parts" / "parts.txt").values())


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
        folder: of the data set's images: it holds images.txt and parts/.
        names: (N,) image files below ``folder``, as images.txt or with ``images/`` before.
        paths: (N,) the files themselves, whose width and height are read.
        labels: (N,) class numbers.
        transform: of the backbone.
    """
    images, key_points = _names(folder / "images.txt"), _names(folder / "parts" / "parts.txt")
    number_of = {name: number for number, name in images.items()}
    place_of = {number: place for place, number in enumerate(key_points)}
    shown: dict[float, list[list[float]]] = {}
    for row in _numbers(folder / "parts" / "part_locs.txt"):  # image, part, x, y, visible
        shown.setdefault(row[0], []).append(row[1:])
    points = np.zeros((len(names), len(key_points), 3))
    for i, (name, path) in enumerate(zip(names, paths, strict=True)):
        number = number_of[name.removeprefix("images/")]
        with Image.open(path, formats=FORMATS) as image:  # the head alone
            size = np.array(image.size)
        zoom = transform.resize / transform.crop / size.min()  # share of the crop's side that a pixel is
        for part, x, y, visible in shown.get(number, ()):
            place = (np.array([x, y]) - size / 2) * zoom + 0.5  # the crop is the middle, and of side 1
            if visible and ((place >= 0) & (place <= 1)).all():
                points[i, place_of[part]] = *place, 1
    members = [[place_of[n] for n, name in key_points.items() if group_of(name) == group] for group in groups]
    return Parts(points=points, groups=members, labels=labels)


def _names(path: Path) -> dict[float, str]:
    """Number -> name of ``1 name`` lines."""
    try:
        pairs = (line.strip().partition(" ") for line in path.read_text("utf-8").splitlines() if line.strip())
        return {float(number): name.strip() for number, _, name in pairs}
    except (OSError, ValueError) as error:
        raise unreadable(path, "list of part locations, as CUB's archive has it", error) from error


def _numbers(path: Path) -> list[list[float]]:
    """Lines of five numbers."""
    try:
        rows = np.loadtxt(path, ndmin=2)
        if rows.shape[1] != 5:
            raise ValueError(f"{rows.shape[1]} numbers in a line, not 5")
        return rows.tolist()
    except (OSError, ValueError) as error:
        raise unreadable(path, "list of part locations, as CUB's archive has it", error) from error
