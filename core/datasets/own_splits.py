"""Which images of a folder of one's own are trained on: splits.csv, the choices, unseen.txt, or a draw."""

import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.datasets.metadata import listed
from core.datasets.sheets import read_table, text_of
from core.files.errors import UserError

TEST_SHARE = 0.2  # of a seen class's images
UNSEEN_SHARE = 0.2  # of the classes with images
SIDES = ("trainval", "train", "val", "test_seen", "test_unseen")


@dataclass(frozen=True, kw_only=True)
class Choices:
    """How a folder is split where it has no splits.csv."""

    unseen: tuple[str, ...] = ()  # classes that are not trained on
    unseen_share: float | None = None  # of the classes with images, drawn; None: unseen.txt, else UNSEEN_SHARE
    seed: int = 0  # of what is drawn: unseen classes, test images, validation classes
    validation: bool = True  # False (--select last): no validation classes, so fewer classes and images will do

    @property
    def needed(self) -> int:
        """Seen classes, and images of each."""
        return 3 if self.validation else 2


def split_images(
    root: Path, choices: Choices, classes: Collection[str], images: dict[str, list[str]]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Rows of every part, and notes; of the classes (C,) of the sheet, and the files of those that have some."""
    path = root / "splits.csv"
    if path.is_file():
        if choices.unseen or choices.unseen_share is not None or (root / "unseen.txt").is_file():
            raise UserError(f"{path} says which images are trained on, so unseen.txt, --unseen, --unseen-share must go")
        sides = _read_splits(path, [file for name in images for file in images[name]])
        notes = [f"the split of splits.csv; {(sides == '').sum()} images are not in it and are left out"]
    else:
        sides, notes = _drawn(root, choices, classes, images)
    locs = {f"{side}_loc": np.flatnonzero(sides == side) for side in SIDES}
    return locs | {"trainval_loc": np.flatnonzero(np.isin(sides, ("trainval", "train", "val")))}, notes


def _drawn(
    root: Path, choices: Choices, classes: Collection[str], images: dict[str, list[str]]
) -> tuple[np.ndarray, list[str]]:
    """The side (N,) of each image file, and notes: unseen classes, and of each seen one a share for test."""
    unseen, note = _unseen(root, choices, classes, images)
    seen = [name for name in images if name not in unseen]
    few = [name for name in seen if len(images[name]) < choices.needed]
    if len(seen) < choices.needed or few or not (unseen or choices.unseen_share == 0):
        raise UserError(
            f"{root / 'images'}: {choices.needed} seen classes with as many images each and 1 unseen class are needed; "
            f"there are {len(seen)} and {len(unseen)}; with fewer images: {listed(few) or 'none'}. (--select last: 2)"
        )
    of = np.repeat([*images], [len(files) for files in images.values()])  # (N,) classes
    sides = np.where(np.isin(of, [*unseen]), "test_unseen", "trainval")
    rng = np.random.default_rng(choices.seed)
    for name in seen:
        rows = np.flatnonzero(of == name)
        sides[rng.permutation(rows)[: max(1, round(TEST_SHARE * len(rows)))]] = "test_seen"
    return sides, [note, f"{TEST_SHARE:.0%} of each seen class's images drawn for test, seed {choices.seed}"]


def _unseen(root: Path, choices: Choices, classes: Collection[str], images: Collection[str]) -> tuple[set[str], str]:
    """Classes with images that are not trained on, and how they came about."""
    path = root / "unseen.txt"
    if choices.unseen:
        where, names = "--unseen", list(choices.unseen)
    elif choices.unseen_share is None and path.is_file():
        where, names = "unseen.txt", text_of(path).splitlines()
    else:
        share = UNSEEN_SHARE if choices.unseen_share is None else choices.unseen_share
        if not share:
            none = "every class with photographs is trained on (--unseen none)"
            return set(), f"{none}, so T1, U, H and AUSUC could not be measured"
        count = max(0, min(max(1, round(share * len(images))), len(images) - choices.needed))
        drawn = np.random.default_rng(choices.seed).permutation(sorted(images))[:count].tolist()
        how = f"drawn with seed {choices.seed} (share {share:g})"
        return {*drawn}, f"{count} unseen classes {how}: {listed(sorted(drawn))}"
    unseen = {unicodedata.normalize("NFC", name).strip() for name in names} - {""}
    if strange := sorted(unseen - {*classes}):
        raise UserError(f"{where}: attributes.csv has no class {listed(strange)}")
    return unseen & {*images}, f"unseen classes of {where}"


def _read_splits(path: Path, files: list[str]) -> np.ndarray:
    """The side (N,) that splits.csv (``image,split``) gives each image file; "" where it names none."""
    table = read_table(path, "image")
    names, sides = table.iloc[:, 0].str.replace("\\", "/").str.removeprefix("images/"), table.iloc[:, -1].str.lower()
    found = names.map({unicodedata.normalize("NFC", file): file for file in files})  # as text_of gives them
    # files that are there and not among them are left out: damaged, or in the folders of two classes
    there = found.notna() | names.map(lambda name: (path.parent / "images" / name).is_file())
    for line in names.index[~there | ~sides.isin(SIDES) | names.duplicated()]:
        rule = f"each line names an image that is there, once, and one of {', '.join(SIDES)}"
        raise UserError(f"{path}, line {line}, {names[line]!r}: {rule}")
    side_of = dict(zip(found, sides, strict=True))
    return np.array([side_of.get(file, "") for file in files])
