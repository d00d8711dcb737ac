"""A folder of one's own as a data set: photographs below images/<class>/, and a sheet that describes the classes.

    ROOT/images/<class>/*.jpg     folders of photographs (any depth below the class)
    ROOT/attributes.csv           class,<attribute>,<attribute>,...   one row a class, any real numbers
    ROOT/splits.csv               optional: class,split or image,split
    ROOT/unseen.txt               optional: one class a line that is not trained on

A class with a row and no images is a candidate: predictions may name it, no accuracy is over it. Attributes are taken
as they are. docs/own-data.md tells all of it to users.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shlex
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.datasets.metadata import Metadata, clip_negative
from core.datasets.paths import feature_file
from core.datasets.registry import OWN
from core.datasets.sheets import Description, read_attributes, read_rows, text_of
from core.files.atomic import read_json, sha256_file, write_bytes
from core.files.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm")
TEST_SHARE = 0.2  # of a seen class's images
UNSEEN_SHARE = 0.2  # of the classes with images
CLASS_SPLITS = ("seen", "train", "val", "unseen")
IMAGE_SPLITS = ("trainval", "train", "val", "test_seen", "test_unseen")
_FORMULA = ("", "=", "@", "+", "-")  # how no name may begin: a spreadsheet would run it
_SCALE = 100  # times the median size of the attributes; one above it drowns the others


@dataclass(frozen=True, kw_only=True)
class Choices:
    """How a folder is split where it has no splits.csv."""

    unseen: tuple[str, ...] = ()  # classes that are not trained on
    unseen_share: float | None = None  # of the classes with images, drawn; None: unseen.txt, else UNSEEN_SHARE
    seed: int = 0  # of what is drawn: unseen classes, test images, validation classes
    validation: bool = True  # False (--select last): no validation classes, so fewer classes and images will do


def read_folder(root: Path | str, choices: Choices | None = None) -> Metadata:
    """Labels, attributes and splits of a folder; images in the order of its feature file.

    Raises:
        UserError: anything missing or inconsistent; names the file, the line and what mends it.
    """
    root, choices = Path(root), choices or Choices()
    sheet = read_attributes(root / "attributes.csv")
    images, notes = find_images(root)
    number = {name: c for c, name in enumerate(sheet.classes)}
    if strangers := [name for name in images if name not in number]:
        close = difflib.get_close_matches(strangers[0], sheet.classes, 1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise UserError(
            f"{root / 'attributes.csv'} has no row for {_some(strangers)}, of which there are images in "
            f"{root / 'images'}. Add the row, rename the folder{hint}, or move it out of images/"
        )
    files = [file for name in images for file in images[name]]
    labels = np.array([number[name] for name in images for _ in images[name]], dtype=np.int64)
    att, negative = clip_negative(sheet.values, OWN)
    locs, split_notes = _split(root, choices, sheet, images, files, labels)
    metadata = Metadata(
        name=OWN.name,
        image_files=files,
        labels=labels,
        class_names=sheet.classes,
        att=att,
        original_att=att,
        **locs,
        split_sha256=sha256_file(root / "attributes.csv"),
        notes=[*split_notes, *notes, *negative, *_odd_attributes(sheet)],
        attribute_names=sheet.attributes,
        allow_candidates=True,
    )
    metadata.check(str(root / ("splits.csv" if (root / "splits.csv").is_file() else "attributes.csv")))
    if (without := metadata.candidates).size:
        names = _some([sheet.classes[c] for c in without])
        metadata.notes.insert(
            0,
            f"{_count(without.size)} without images ({names}): offered in every prediction, in no accuracy",
        )
    if not choices.validation:
        return metadata
    metadata = metadata.with_validation(OWN.val_share, choices.seed)
    if len(held := np.unique(metadata.labels[metadata.val_loc])) < 3:
        metadata.notes.append(
            f"epochs and γ are chosen on {_count(len(held), 'validation ')}: that says little; add classes with "
            "images, or use --select last, which chooses nothing"
        )
    return metadata


def stand_in(root: Path | str) -> Metadata:
    """What a feature file of a folder records: its images and their folders.

    Features depend on the images alone, so a changed attributes.csv or split needs no new ones. The format asks for
    attributes and splits too: one-hot ones and a split that says nothing; :func:`read_folder` gives the true ones.
    """
    images, _ = find_images(Path(root))
    names = list(images)
    counts = np.array([len(images[name]) for name in names])
    labels = np.repeat(np.arange(len(names)), counts)
    several = np.flatnonzero(counts > 1)
    seen = several[: len(names) - 1]  # at least one class is left for test_unseen
    last = np.isin(np.arange(len(labels)), np.cumsum(counts) - 1)
    of_seen = np.isin(labels, seen)
    files = [file for name in names for file in images[name]]
    return Metadata(
        name=OWN.name,
        image_files=files,
        labels=labels,
        class_names=names,
        att=np.eye(len(names), dtype=np.float32),
        original_att=np.eye(len(names), dtype=np.float32),
        trainval_loc=np.flatnonzero(of_seen & ~last),
        test_seen_loc=np.flatnonzero(of_seen & last),
        test_unseen_loc=np.flatnonzero(~of_seen),
        train_loc=np.empty(0, np.int64),
        val_loc=np.empty(0, np.int64),
        split_sha256=images_digest(files),
        notes=["attributes and splits in this file are stand-ins; those of the folder count"],
    )


def images_digest(files: Sequence[str]) -> str:
    """SHA-256 of the list of images."""
    return hashlib.sha256("\n".join(files).encode()).hexdigest()


def feature_pattern(root: Path, files: Sequence[str], backbone: str = "*") -> Path:
    """ROOT/OWN/feature_map_<Backbone>_<digest of the list of images>_OWN.hdf5"""
    return feature_file(root, OWN, f"{backbone}_{images_digest(files)[:8]}")


def record_images(features: Path, root: Path, m: Metadata) -> None:
    """Write the sizes of the images beside their finished features, once."""
    beside = features.with_suffix(".json")
    if not beside.is_file():
        write_bytes(beside, json.dumps(_sizes(root, m), ensure_ascii=False, indent=0).encode())


def check_images(features: Path, of_file: Sequence[str], root: Path, m: Metadata) -> None:
    """Refuse features of other images than those of the folder.

    Raises:
        UserError: another list of images, or some have another size than when their features were made.
    """
    mend = f"Delete {features} and make it anew with: python OWN_ours.py --data-root {root}"
    if list(of_file) != m.image_files:
        missing, new = sorted({*of_file} - {*m.image_files}), sorted({*m.image_files} - {*of_file})
        what = "; ".join(f"{word} {_some(some)}" for word, some in (("gone:", missing), ("new:", new)) if some)
        raise UserError(f"{features} is of other images than {root / 'images'} ({what or 'another order'}). {mend}")
    beside = features.with_suffix(".json")
    if not beside.is_file():
        return
    known, now = read_json(beside), _sizes(root, m)
    changed = [file for file, size in now.items() if not isinstance(known, dict) or known.get(file) != size]
    if changed:
        raise UserError(f"{len(changed)} images changed since {features} was made: {_some(changed)}. {mend}")


def _sizes(root: Path, m: Metadata) -> dict[str, int]:
    return {file: (root / "images" / file).stat().st_size for file in m.image_files}


def find_images(root: Path) -> tuple[dict[str, list[str]], list[str]]:
    """Class -> its image files below ROOT/images, sorted, and notes on what was left aside.

    Class names are compared in Unicode's composed form: file systems that decompose them make no other class.

    Raises:
        UserError: no such folder, no image, or names that cannot be used.
    """
    folder = root / "images"
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: --data-root must hold images/<class>/*.jpg and attributes.csv")
    found: dict[str, list[str]] = {}
    skipped: list[str] = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            skipped.append(entry.name)
            continue
        files: list[str] = []
        for place, folders, names in os.walk(entry):  # a class folder may be a link, as for a subset of a data set
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            for file in (Path(place, name) for name in sorted(names) if not name.startswith(".")):
                below = file.relative_to(folder).as_posix()
                (files if file.suffix.lower() in SUFFIXES else skipped).append(below)
        name = unicodedata.normalize("NFC", entry.name).strip()
        for text in (name, *files):
            if not text.isprintable() or text[:1] in _FORMULA:
                foreign = any("\ud800" <= letter <= "\udfff" for letter in text)  # as Python shows bytes of no letter
                why = "is not UTF-8" if foreign else "holds control characters or begins with = @ + or -"
                raise UserError(f"{folder}: rename {text!r}: its name {why}")
        if files and name in found:
            raise UserError(f"{folder} has two folders named {name!r} (composed and decomposed letters); merge them")
        if files:
            found[name] = sorted(files)
    if not found:
        raise UserError(f"no image below {folder}/<class>/; what is read: {', '.join(SUFFIXES)}")
    notes = [f"{len(skipped)} files below images/ are no images of a class: {_some(skipped)}"] if skipped else []
    return found, notes


_Split = tuple[dict[str, np.ndarray], list[str]]  # rows of each part, and notes


def _split(
    root: Path, choices: Choices, sheet: Description, images: dict[str, list[str]], files: list[str], labels: np.ndarray
) -> _Split:
    """Every split of the images, from splits.csv, the choices, unseen.txt or a draw."""
    path = root / "splits.csv"
    if path.is_file():
        if choices.unseen or choices.unseen_share is not None or (root / "unseen.txt").is_file():
            also = "unseen.txt" if (root / "unseen.txt").is_file() else "--unseen or --unseen-share"
            raise UserError(f"both {path} and {also} say which classes are unseen; keep one of them")
        kind, rows = _read_splits(path, sheet.classes, files)
        if kind == "image":
            return _by_image(path, rows, files)
        sides = {name: side for _, name, side in rows}
        if lost := [name for name in images if name not in sides]:
            raise UserError(f"{path} has no line for {_some(lost)}")
        unseen = [name for name in images if sides[name] == "unseen"]
        note = "unseen classes of splits.csv"
    else:
        sides = {}
        unseen, note = _unseen(root, choices, sheet.classes, images)
    needed = 3 if choices.validation else 2
    seen = [name for name in images if name not in unseen]
    if not unseen or len(seen) < needed:
        raise _too_few(root, len(seen), len(unseen), choices.validation)
    if few := [name for name in seen if len(images[name]) < needed]:
        counts = ", ".join(f"{name!r} has {len(images[name])}" for name in few[:5])
        way = ", or choose nothing on validation with --select last (2 images are enough)" if needed == 3 else ""
        uses = "train, validate, test" if needed == 3 else "train, test"
        raise UserError(
            f"{root / 'images'}: a seen class needs {needed} images or more ({uses}); {counts}. Add images, or make it "
            f"an unseen class with --unseen {shlex.join(few[:5])}{way}"
        )
    rng = np.random.default_rng(choices.seed)
    of = {name: labels == sheet.classes.index(name) for name in images}
    test = []
    for name in seen:
        rows_of = rng.permutation(np.flatnonzero(of[name]))
        test.append(rows_of[: max(1, round(TEST_SHARE * len(rows_of)))])
    held = np.sort(np.concatenate(test))
    is_seen = np.any([of[name] for name in seen], axis=0)
    trainval = np.setdiff1d(np.flatnonzero(is_seen), held)
    val = np.isin(labels, [sheet.classes.index(n) for n, side in sides.items() if side == "val"])[trainval]
    locs = {
        "trainval_loc": trainval,
        "test_seen_loc": held,
        "test_unseen_loc": np.flatnonzero(~is_seen),
        "train_loc": trainval[~val] if val.any() else np.empty(0, np.int64),
        "val_loc": trainval[val],
    }
    return locs, [note, f"{TEST_SHARE:.0%} of each seen class's images drawn for test, seed {choices.seed}"]


def _unseen(root: Path, choices: Choices, classes: list[str], images: dict[str, list[str]]) -> tuple[list[str], str]:
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
        share, needed = choices.unseen_share, 3 if choices.validation else 2
        share = UNSEEN_SHARE if share is None else share
        count = min(max(1, round(share * len(images))), len(images) - needed)
        if count < 1:
            raise _too_few(root, len(images), 0, choices.validation)
        drawn = np.random.default_rng(choices.seed).permutation(sorted(images))[:count].tolist()
        return (
            drawn,
            f"{_count(count, 'unseen ')} drawn with seed {choices.seed} (share {share:g}): {_some(sorted(drawn))}",
        )
    for where, name in named:
        if name not in classes:
            close = difflib.get_close_matches(name, classes, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UserError(f"{where}: attributes.csv has no class {name!r}{hint}")
    return [name for name in dict.fromkeys(n for _, n in named) if name in images], note


def _too_few(root: Path, seen: int, unseen: int, validation: bool) -> UserError:
    need = "3 seen classes (2 to train on, 1 to validate with)" if validation else "2 seen classes"
    way = ", or choose nothing on validation with --select last (2 seen classes are enough)" if validation else ""
    have = f"{seen} and {unseen}" if unseen else f"{seen} in all"
    return UserError(
        f"too few classes with images in {root / 'images'}: {need} and 1 unseen class to test on are needed, there are "
        f"{have}. Add classes{way}"
    )


def _read_splits(path: Path, classes: list[str], files: list[str]) -> tuple[str, list[tuple[int, str, str]]]:
    """What splits.csv splits (class or image), and its lines: number, name, side."""
    (line, header), *rows = read_rows(path)
    kind = header[0].lower()
    if kind not in ("class", "image") or [h.lower() for h in header[1:]] != ["split"]:
        raise UserError(f"{path}, line {line}: the header must be class,split or image,split, not {','.join(header)}")
    allowed = CLASS_SPLITS if kind == "class" else IMAGE_SPLITS
    known = set(classes) if kind == "class" else {unicodedata.normalize("NFC", file): file for file in files}
    first: dict[str, int] = {}
    found = []
    for line, cells in rows:
        if len(cells) != 2:
            raise UserError(f"{path}, line {line}: {len(cells)} cells, expected {kind} and split")
        name, side = cells[0], cells[1].lower()
        if kind == "image":
            name = name.replace("\\", "/").removeprefix("images/")
        if name not in known:
            where = "attributes.csv" if kind == "class" else "images/"
            raise UserError(f"{path}, line {line}: {where} has no {kind} {name!r}")
        if side not in allowed:
            raise UserError(f"{path}, line {line}: {cells[1]!r} is no split; there are {', '.join(allowed)}")
        if name in first:
            raise UserError(f"{path}, line {line}: the {kind} {name!r} stands in line {first[name]} already")
        first[name] = line
        found.append((line, known[name] if isinstance(known, dict) else name, side))
    return kind, found


def _by_image(path: Path, rows: list[tuple[int, str, str]], files: list[str]) -> _Split:
    at = {file: i for i, file in enumerate(files)}
    parts = {side: np.array(sorted(at[f] for _, f, s in rows if s == side), dtype=np.int64) for side in IMAGE_SPLITS}
    notes = [f"the split of {path.name}"]
    if left := len(files) - len(rows):
        notes.append(f"{left} images are not in {path.name} and are left out")
    locs = {
        "trainval_loc": np.sort(np.concatenate([parts["trainval"], parts["train"], parts["val"]])),
        "test_seen_loc": parts["test_seen"],
        "test_unseen_loc": parts["test_unseen"],
        "train_loc": parts["train"],
        "val_loc": parts["val"],
    }
    return locs, notes


def _odd_attributes(sheet: Description) -> list[str]:
    """Notes on attributes that say the same as others, or drown them."""
    values, names = sheet.values, sheet.attributes
    _, group, size = np.unique(values, axis=1, return_inverse=True, return_counts=True)
    notes = [
        f"the attributes {_some([names[k] for k in np.flatnonzero(group.ravel() == g)])} are the same in every class"
        for g in np.flatnonzero(size > 1)[:5]
    ]
    sizes = np.abs(values).max(axis=0)
    typical = float(np.median(sizes))
    if big := [names[k] for k in np.flatnonzero(sizes > _SCALE * typical)] if typical else []:
        notes.append(
            f"the attributes {_some(big)} are more than {_SCALE} times as large as most and drown the others; bring "
            "the columns to one scale"
        )
    return notes


def _count(n: int, kind: str = "") -> str:
    return f"{n} {kind}{'class' if n == 1 else 'classes'}"


def _some(names: Sequence[str]) -> str:
    counted = Counter(names)
    shown = ", ".join(repr(name) for name in list(counted)[:5])
    return shown + (f" and {len(counted) - 5} more" if len(counted) > 5 else "")
