"""Which images of a folder of one's own are trained on: splits.csv, the choices, unseen.txt, or a draw."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.datasets.sheets import read_table, text_of
from core.files.errors import UserError

TEST_SHARE = 0.2  # of a seen class's images
UNSEEN_SHARE = 0.2  # of the classes with images
CLASS_SPLITS = ("seen", "train", "val", "unseen")
IMAGE_SPLITS = ("trainval", "train", "val", "test_seen", "test_unseen")

_Split = tuple[dict[str, np.ndarray], list[str]]  # rows of each part, and notes


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


def split_images(root: Path, choices: Choices, classes: Collection[str], images: dict[str, list[str]]) -> _Split:
    """Every split of the images, from splits.csv, the choices, unseen.txt or a draw.

    Args:
        classes: those of the sheet, (C,).
        images: files of each class that has some.
    """
    path = root / "splits.csv"
    val: set[str] = set()
    if path.is_file():
        if choices.unseen or choices.unseen_share is not None or (root / "unseen.txt").is_file():
            raise UserError(f"{path} says which classes are unseen, so unseen.txt, --unseen and --unseen-share must go")
        files = [file for name in images for file in images[name]]
        kind, sides = _read_splits(path, classes, files)
        if kind == "image":
            return _by_image(sides, files)
        if without := [name for name in images if name not in sides]:
            raise UserError(f"{path} has no line for {listed(without)}")
        unseen, note = {name for name in images if sides[name] == "unseen"}, "unseen classes of splits.csv"
        val = {name for name in images if sides[name] == "val"}
    else:
        unseen, note = _unseen(root, choices, classes, images)
    seen = [name for name in images if name not in unseen]
    few = [name for name in seen if len(images[name]) < choices.needed]
    if len(seen) < choices.needed or not unseen or few:
        raise UserError(
            f"{root / 'images'}: {choices.needed} seen classes with as many images each and 1 unseen class are needed; "
            f"there are {len(seen)} and {len(unseen)}{f', with fewer images {listed(few)}' if few else ''}. Add "
            "images, name classes with few with --unseen, or choose nothing with --select last, which needs 2"
        )
    ends = np.cumsum([len(files) for files in images.values()])
    rows = dict(zip(images, np.split(np.arange(ends[-1]), ends[:-1]), strict=True))  # of each class
    rng = np.random.default_rng(choices.seed)
    test = {name: rng.permutation(rows[name])[: max(1, round(TEST_SHARE * len(rows[name])))] for name in seen}
    trainval = {name: np.setdiff1d(rows[name], test[name]) for name in seen}
    locs = {
        "trainval_loc": _joined(trainval[name] for name in seen),
        "test_seen_loc": _joined(test[name] for name in seen),
        "test_unseen_loc": _joined(rows[name] for name in images if name in unseen),
        "train_loc": _joined(trainval[name] for name in seen if val and name not in val),
        "val_loc": _joined(trainval[name] for name in seen if name in val),
    }
    return locs, [note, f"{TEST_SHARE:.0%} of each seen class's images drawn for test, seed {choices.seed}"]


def _joined(parts: Iterable[np.ndarray]) -> np.ndarray:
    return np.sort(np.concatenate([np.empty(0, np.int64), *parts]))


def _unseen(root: Path, choices: Choices, classes: Collection[str], images: Collection[str]) -> tuple[set[str], str]:
    """Classes with images that are not trained on, and how they came about."""
    path = root / "unseen.txt"
    if choices.unseen:
        where, names = "--unseen", list(choices.unseen)
    elif choices.unseen_share is None and path.is_file():
        where, names = "unseen.txt", text_of(path).splitlines()
    else:
        share = UNSEEN_SHARE if choices.unseen_share is None else choices.unseen_share
        count = max(0, min(max(1, round(share * len(images))), len(images) - choices.needed))
        drawn = np.random.default_rng(choices.seed).permutation(sorted(images))[:count].tolist()
        note = f"{count} unseen classes drawn with seed {choices.seed} (share {share:g}): {listed(sorted(drawn))}"
        return {*drawn}, note
    unseen = {unicodedata.normalize("NFC", name).strip() for name in names} - {""}
    for name in sorted(unseen - {*classes}):
        raise UserError(f"{where}: attributes.csv has no class {name!r}{did_you_mean(name, classes)}")
    return unseen & {*images}, f"unseen classes of {where}"


def _read_splits(path: Path, classes: Collection[str], files: list[str]) -> tuple[str, dict[str, str]]:
    """What splits.csv splits (class or image), and the side of each class or file."""
    table = read_table(path)
    header = ",".join(table.iloc[0]).lower()
    if header not in ("class,split", "image,split"):
        raise UserError(f"{path}, line {table.index[0]}: the header must be class,split or image,split, not {header}")
    kind = header.partition(",")[0]
    names, allowed = (classes, CLASS_SPLITS) if kind == "class" else (files, IMAGE_SPLITS)
    known = {unicodedata.normalize("NFC", name): name for name in names}  # as text_of gives them
    sides: dict[str, str] = {}
    for line, (name, side) in table.iloc[1:].iterrows():
        if kind == "image":
            name = name.replace("\\", "/").removeprefix("images/")
        if name not in known:
            where = "attributes.csv" if kind == "class" else "images/"
            raise UserError(f"{path}, line {line}: {where} has no {kind} {name!r}")
        if side.lower() not in allowed:
            raise UserError(f"{path}, line {line}: {side!r} is no split; there are {', '.join(allowed)}")
        if known[name] in sides:
            raise UserError(f"{path}, line {line}: the {kind} {name!r} stands there twice")
        sides[known[name]] = side.lower()
    return kind, sides


def _by_image(sides: dict[str, str], files: list[str]) -> _Split:
    side_of = np.array([sides.get(file, "") for file in files])
    notes = ["the split of splits.csv"]
    if left := len(files) - len(sides):
        notes.append(f"{left} images are not in splits.csv and are left out")
    locs = {f"{side}_loc": np.flatnonzero(side_of == side) for side in IMAGE_SPLITS}
    locs["trainval_loc"] = np.flatnonzero(np.isin(side_of, ("trainval", "train", "val")))
    return locs, notes


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint at the known name that is most like one that is not known; "" where none is like it."""
    close = difflib.get_close_matches(name, known, 1, cutoff=0.75)
    return f" (did you mean {close[0]!r}?)" if close else ""


def listed(names: Collection[str]) -> str:
    """The first five names, quoted, and how many more there are."""
    shown = ", ".join(map(repr, list(names)[:5]))
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")
