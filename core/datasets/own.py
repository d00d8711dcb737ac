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
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from core.datasets.metadata import Metadata, clip_negative, name_problem
from core.datasets.own_splits import Choices, count_of, listed, split_images
from core.datasets.paths import feature_file
from core.datasets.registry import OWN
from core.datasets.sheets import Description, read_attributes
from core.files.atomic import read_json, sha256_file, write_bytes
from core.files.errors import UserError
from core.files.kinds import IMAGE_SUFFIXES

_SCALE = 10  # times the median size of the attributes; one above it drowns the others


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
        raise UserError(
            f"{root / 'attributes.csv'} has no row for {listed(strangers)}, of which there are images in "
            f"{root / 'images'}. {_remedy(strangers[0], images[strangers[0]], number)}"
        )
    files = [file for name in images for file in images[name]]
    labels = np.repeat([number[name] for name in images], [len(images[name]) for name in images])
    att, negative = clip_negative(sheet.values, OWN)
    locs, split_notes = split_images(root, choices, number, images)
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
        names = listed([sheet.classes[c] for c in without])
        note = f"{count_of(without.size)} without images ({names}): offered in every prediction, in no accuracy"
        metadata.notes.insert(0, note)
    if not choices.validation:
        return metadata
    metadata = metadata.with_validation(OWN.val_share, choices.seed)
    if len(held := np.unique(metadata.labels[metadata.val_loc])) < 3:
        metadata.notes.append(
            f"epochs and γ are chosen on {count_of(len(held), 'validation ')}: that says little; add classes with "
            "images, or use --select last, which chooses nothing"
        )
    return metadata


def _remedy(stranger: str, files: list[str], known: Iterable[str]) -> str:
    """What to do about a folder of images that is no class of the sheet, by its likely cause."""
    known = list(known)
    below = {file.split("/")[1] for file in files if file.count("/") > 1}
    if below & {*known}:
        return f"The classes lie in {stranger}/: move them up, and name the parts in splits.csv"
    for name in known:
        if name.lstrip("0") == stranger.lstrip("0"):
            return f"The sheet has {name!r}: a spreadsheet took the zeros in front away; write {stranger!r} there"
    close = difflib.get_close_matches(stranger, known, 1, cutoff=0.75)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"Add the row, rename the folder{hint}, or move it out of images/"


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
    one_hot = np.eye(len(names), dtype=np.float32)
    return Metadata(
        name=OWN.name,
        image_files=files,
        labels=labels,
        class_names=names,
        att=one_hot,
        original_att=one_hot,
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
        what = "; ".join(f"{word} {listed(some)}" for word, some in (("gone:", missing), ("new:", new)) if some)
        raise UserError(f"{features} is of other images than {root / 'images'} ({what or 'another order'}). {mend}")
    beside = features.with_suffix(".json")
    if not beside.is_file():
        return
    known, now = read_json(beside), _sizes(root, m)
    changed = [file for file, size in now.items() if not isinstance(known, dict) or known.get(file) != size]
    if changed:
        raise UserError(f"{len(changed)} images changed since {features} was made: {listed(changed)}. {mend}")


def _sizes(root: Path, m: Metadata) -> dict[str, int]:
    return {file: (root / "images" / file).stat().st_size for file in m.image_files}


def find_images(root: Path) -> tuple[dict[str, list[str]], list[str]]:
    """Class -> its image files below ROOT/images, sorted, and a note on every file that was passed over.

    Links to folders are followed. Class names are compared in Unicode's composed form: file systems that decompose
    them make no other class.

    Raises:
        UserError: no such folder, no image, or names that cannot be used.
    """
    folder = root / "images"
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: --data-root must hold images/<class>/*.jpg and attributes.csv")
    found: dict[str, list[str]] = {}
    passed: list[str] = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            passed.append(entry.name)
            continue
        files: list[str] = []
        visited: set[str] = set()
        for place, folders, names in os.walk(entry, followlinks=True):
            if (real := os.path.realpath(place)) in visited:  # a link to where the walk has been
                folders.clear()
                passed.append(Path(place).relative_to(folder).as_posix())
                continue
            visited.add(real)
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            for file in (Path(place, name) for name in names if not name.startswith(".")):
                below = file.relative_to(folder).as_posix()
                (files if file.suffix.lower() in IMAGE_SUFFIXES else passed).append(below)
        name = unicodedata.normalize("NFC", entry.name).strip()
        for text in (name, *files):
            if why := name_problem(text):
                raise UserError(f"{folder}: rename {text!r}: its name {why}")
        if files and name in found:
            raise UserError(
                f"{folder} has two folders for the class {name!r}, which differ in a blank at the end or in how "
                "accents are stored; merge them"
            )
        if files:
            found[name] = sorted(files)
    if not found:
        raise UserError(f"no image below {folder}/<class>/; what is read: {', '.join(IMAGE_SUFFIXES)}")
    if not passed:
        return found, []
    kinds = Counter(Path(file).suffix.lower() or "no suffix" for file in sorted(passed))
    counts = ", ".join(f"{kind} {n}" for kind, n in kinds.most_common(5))
    return found, [f"{len(passed)} files below images/ are passed over ({counts}): {listed(sorted(passed))}"]


def _odd_attributes(sheet: Description) -> list[str]:
    """Notes on attributes that say the same as others, or drown them."""
    values, names = sheet.values, sheet.attributes
    _, group, size = np.unique(values, axis=1, return_inverse=True, return_counts=True)
    notes = [
        f"the attributes {listed([names[k] for k in np.flatnonzero(group.ravel() == g)])} are the same in every class"
        for g in np.flatnonzero(size > 1)[:5]
    ]
    sizes = np.abs(values).max(axis=0)
    typical = float(np.median(sizes))
    if big := [names[k] for k in np.flatnonzero(sizes > _SCALE * typical)] if typical else []:
        notes.append(
            f"the attributes {listed(big)} are more than {_SCALE} times as large as most and drown the others; bring "
            "the columns to one scale"
        )
    return notes
