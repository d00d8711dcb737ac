"""Which images of a folder of one's own are trained on: splits.csv, the choices, unseen.txt, or a draw."""

from __future__ import annotations

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


@dataclass(frozen=True, kw_only=True)
class Choices:
    """How a folder is split where it has no splits.csv."""

    unseen: tuple[str, ...] = ()  # classes that are not trained on
    unseen_share: float | None = None  # of the classes with images, drawn; None: unseen.txt, else UNSEEN_SHARE
    seed: int = 0  # of what is drawn: unseen classes, test images, validation classes
    validation: bool = True  # False (--select last): no validation classes, so fewer classes and images will do


def split_images(
    root: Path, choices: Choices, classes: Collection[str], images: dict[str, list[str]]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Rows of every part, and notes.

    Args:
        classes: those of the sheet, (C,).
        images: files of each class that has some.
    """
    path, val = root / "splits.csv", set()
    if path.is_file():
        if choices.unseen or choices.unseen_share is not None or (root / "unseen.txt").is_file():
            raise UserError(f"{path} says which classes are unseen, so unseen.txt, --unseen and --unseen-share must go")
        files = [file for name in images for file in images[name]]
        kind, side_of = _read_splits(path, classes, files)
        if kind == "image":
            sides = np.array([side_of.get(file, "") for file in files])
            locs = {f"{side}_loc": np.flatnonzero(sides == side) for side in IMAGE_SPLITS}
            locs["trainval_loc"] = np.flatnonzero(np.isin(sides, ("trainval", "train", "val")))
            left = len(files) - len(side_of)
            return locs, [f"the split of splits.csv; {left} images are not in splits.csv and are left out"]
        if without := sorted(images.keys() - side_of.keys()):
            raise UserError(f"{path} has no line for {listed(without)}")
        unseen, note = {name for name in images if side_of[name] == "unseen"}, "unseen classes of splits.csv"
        val = {name for name in images if side_of[name] == "val"}
    else:
        unseen, note = _unseen(root, choices, classes, images)
    seen, needed = [name for name in images if name not in unseen], _needed(choices)
    few = [name for name in seen if len(images[name]) < needed]
    if len(seen) < needed or few or not (unseen or choices.unseen_share == 0):
        raise UserError(
            f"{root / 'images'}: {needed} seen classes with as many images each and 1 unseen class are needed; there "
            f"are {len(seen)} and {len(unseen)}, with fewer images: {listed(few) or 'none'}; --select last needs 2"
        )
    ends = np.cumsum([len(files) for files in images.values()])
    rows = dict(zip(images, np.split(np.arange(ends[-1]), ends[:-1]), strict=True))  # of each class
    rng = np.random.default_rng(choices.seed)
    test = {name: rng.permutation(rows[name])[: max(1, round(TEST_SHARE * len(rows[name])))] for name in seen}
    trainval = {name: np.setdiff1d(rows[name], test[name]) for name in seen}
    locs = {
        "trainval_loc": _joined(trainval.values()),
        "test_seen_loc": _joined(test.values()),
        "test_unseen_loc": _joined(rows[name] for name in images if name in unseen),
        "train_loc": _joined(trainval[name] for name in seen if val and name not in val),
        "val_loc": _joined(trainval[name] for name in seen if name in val),
    }
    return locs, [note, f"{TEST_SHARE:.0%} of each seen class's images drawn for test, seed {choices.seed}"]


def _needed(choices: Choices) -> int:
    """Seen classes, and images of each."""
    return 3 if choices.validation else 2


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
        wanted = max(1, round(share * len(images))) if share else 0
        count = max(0, min(wanted, len(images) - _needed(choices)))
        drawn = np.random.default_rng(choices.seed).permutation(sorted(images))[:count].tolist()
        note = f"{count} unseen classes drawn with seed {choices.seed} (share {share:g}): {listed(sorted(drawn))}"
        none = "every class with photographs is trained on (--unseen none), so T1, U, H and AUSUC could not be measured"
        return {*drawn}, note if share else none
    unseen = {unicodedata.normalize("NFC", name).strip() for name in names} - {""}
    if strange := sorted(unseen - {*classes}):
        raise UserError(f"{where}: attributes.csv has no class {listed(strange)}")
    return unseen & {*images}, f"unseen classes of {where}"


def _read_splits(path: Path, classes: Collection[str], files: list[str]) -> tuple[str, dict[str, str]]:
    """What splits.csv splits (class or image), and the side of each class or file."""
    table = read_table(path)
    header, names, sides = ",".join(table.iloc[0]).lower(), table.iloc[1:, 0], table.iloc[1:, -1].str.lower()
    if header not in ("class,split", "image,split"):
        raise UserError(f"{path}, line {table.index[0]}: the header must be class,split or image,split, not {header}")
    kind = header.partition(",")[0]
    known, allowed = (classes, CLASS_SPLITS) if kind == "class" else (files, IMAGE_SPLITS)
    if kind == "image":
        names = names.str.replace("\\", "/").str.removeprefix("images/")
    found = names.map({unicodedata.normalize("NFC", name): name for name in known})  # as text_of gives them
    for wrong, why in (
        (found.isna(), f"there is no such {kind}"),
        (~sides.isin(allowed), f"its split must be one of {', '.join(allowed)}"),
        (found.duplicated(), f"the {kind} stands there twice"),
    ):
        for line in names.index[wrong]:
            raise UserError(f"{path}, line {line}, {names[line]!r}: {why}")
    return kind, dict(zip(found, sides, strict=True))


def listed(names: Collection[str]) -> str:
    """The first five names, quoted, and how many more there are."""
    shown = ", ".join(map(repr, list(names)[:5]))
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")
