"""Which images of a folder of one's own are trained on: splits.csv, the choices, unseen.txt, or a draw."""

from __future__ import annotations

import difflib
import shlex
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
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


def split_images(root: Path, choices: Choices, number: dict[str, int], images: dict[str, list[str]]) -> _Split:
    """Every split of the images, from splits.csv, the choices, unseen.txt or a draw.

    Args:
        number: of each class of the sheet.
    """
    path = root / "splits.csv"
    val: set[str] = set()
    if path.is_file():
        if choices.unseen or choices.unseen_share is not None or (root / "unseen.txt").is_file():
            also = "unseen.txt" if (root / "unseen.txt").is_file() else "--unseen or --unseen-share"
            raise UserError(f"both {path} and {also} say which classes are unseen; keep one of them")
        files = [file for name in images for file in images[name]]
        kind, sides = _read_splits(path, number, files)
        if kind == "image":
            return _by_image(path, sides, files)
        if lost := [name for name in images if name not in sides]:
            raise UserError(f"{path} has no line for {listed(lost)}")
        unseen, note = {name for name in images if sides[name] == "unseen"}, "unseen classes of splits.csv"
        val = {name for name, side in sides.items() if side == "val"}
    else:
        unseen, note = _unseen(root, choices, number, images)
    needed = 3 if choices.validation else 2
    seen = [name for name in images if name not in unseen]
    _check_enough(root, seen, {name: len(files) for name, files in images.items()}, needed)

    ends = np.cumsum([len(files) for files in images.values()])
    rows = dict(zip(images, np.split(np.arange(ends[-1]), ends[:-1]), strict=True))  # of each class
    rng = np.random.default_rng(choices.seed)
    test = {name: rng.permutation(rows[name])[: max(1, round(TEST_SHARE * len(rows[name])))] for name in seen}
    trainval = {name: np.setdiff1d(rows[name], test[name]) for name in seen}

    def of(classes: Iterable[str], part: dict[str, np.ndarray]) -> np.ndarray:
        return np.sort(np.concatenate([np.empty(0, np.int64), *(part[name] for name in classes)]))

    held = val & {*seen}
    locs = {
        "trainval_loc": of(seen, trainval),
        "test_seen_loc": of(seen, test),
        "test_unseen_loc": of([name for name in images if name in unseen], rows),
        "train_loc": of([name for name in seen if name not in held] if held else [], trainval),
        "val_loc": of(held, trainval),
    }
    return locs, [note, f"{TEST_SHARE:.0%} of each seen class's images drawn for test, seed {choices.seed}"]


def _unseen(root: Path, choices: Choices, known: dict[str, int], images: dict[str, list[str]]) -> tuple[set[str], str]:
    """Classes with images that are not trained on, and how they came about."""
    path = root / "unseen.txt"
    if choices.unseen and choices.unseen_share is not None:
        raise UserError("--unseen and --unseen-share exclude each other")
    if choices.unseen:
        named = [(f"--unseen {name}", unicodedata.normalize("NFC", name).strip()) for name in choices.unseen]
        note = "unseen classes of --unseen"
    elif choices.unseen_share is None and path.is_file():
        lines = enumerate(text_of(path).splitlines(), start=1)
        named = [(f"{path}, line {n}", name) for n, line in lines if (name := line.strip())]
        note = "unseen classes of unseen.txt"
    else:
        needed = 3 if choices.validation else 2
        share = UNSEEN_SHARE if choices.unseen_share is None else choices.unseen_share
        count = max(0, min(max(1, round(share * len(images))), len(images) - needed))
        drawn = np.random.default_rng(choices.seed).permutation(sorted(images))[:count].tolist()
        which = listed(sorted(drawn))
        return {*drawn}, f"{count_of(count, 'unseen ')} drawn with seed {choices.seed} (share {share:g}): {which}"
    for where, name in named:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UserError(f"{where}: attributes.csv has no class {name!r}{hint}")
    return {name for _, name in named if name in images}, note


def _check_enough(root: Path, seen: list[str], counts: dict[str, int], needed: int) -> None:
    """Raise unless there are ``needed`` seen classes with as many images each, and an unseen one."""
    few = [name for name in seen if counts[name] < needed]
    unseen = len(counts) - len(seen)
    if len(seen) >= needed and unseen and not few:
        return
    make = f", make {listed(few)} unseen with --unseen {shlex.join(few[:5])}" if few else ""
    way = ", or choose nothing on validation with --select last (2 are enough)" if needed == 3 else ""
    short = f", with fewer images: {', '.join(f'{name!r} has {counts[name]}' for name in few[:5])}" if few else ""
    raise UserError(
        f"{root / 'images'}: {needed} seen classes with {needed} images each and 1 unseen class with images are "
        f"needed, there are {len(seen)} and {unseen}{short}. Add images{make}{way}"
    )


def _read_splits(path: Path, classes: Iterable[str], files: list[str]) -> tuple[str, dict[str, str]]:
    """What splits.csv splits (class or image), and the side of each class or file."""
    table = read_table(path).fillna("")
    header = [cell.lower() for cell in table.iloc[0]]
    kind = header[0]
    if kind not in ("class", "image") or header[1:] != ["split"]:
        raise UserError(
            f"{path}, line {table.index[0]}: the header must be class,split or image,split, not {','.join(header)}"
        )
    names = classes if kind == "class" else files
    known = {unicodedata.normalize("NFC", name): name for name in names}  # as text_of gives them
    allowed = CLASS_SPLITS if kind == "class" else IMAGE_SPLITS
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


def _by_image(path: Path, sides: dict[str, str], files: list[str]) -> _Split:
    side_of = np.array([sides.get(file, "") for file in files])
    parts = {side: np.flatnonzero(side_of == side) for side in IMAGE_SPLITS}
    notes = [f"the split of {path.name}"]
    if left := len(files) - len(sides):
        notes.append(f"{left} images are not in {path.name} and are left out")
    locs = {
        "trainval_loc": np.sort(np.concatenate([parts["trainval"], parts["train"], parts["val"]])),
        "test_seen_loc": parts["test_seen"],
        "test_unseen_loc": parts["test_unseen"],
        "train_loc": parts["train"],
        "val_loc": parts["val"],
    }
    return locs, notes


def count_of(n: int, kind: str = "") -> str:
    return f"{n} {kind}{'class' if n == 1 else 'classes'}"


def listed(names: Sequence[str]) -> str:
    counted = Counter(names)
    shown = ", ".join(repr(name) for name in list(counted)[:5])
    return shown + (f" and {len(counted) - 5} more" if len(counted) > 5 else "")
