"""A folder of one's own as a data set: photographs below images/<class>/, and a sheet that describes the classes.

    ROOT/images/<class>/*.jpg     folders of photographs (any depth below the class)
    ROOT/attributes.csv           class,<attribute>,<attribute>,...   one row a class, any real numbers (or .xlsx)
    ROOT/splits.csv               optional: image,split
    ROOT/unseen.txt               optional: one class a line that is not trained on

A class with a row and no images is a candidate: predictions may name it, no accuracy is over it (docs/own-data.md).
"""

import hashlib
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.datasets.metadata import Metadata, clip_negative, listed, name_problem
from core.datasets.own_splits import Choices, split_images
from core.datasets.paths import feature_file
from core.datasets.registry import OWN
from core.datasets.sheets import read_attributes
from core.files.atomic import sha256_file
from core.files.errors import UserError
from core.files.kinds import IMAGE_SUFFIXES

_SCALE = 10  # times the median size of the attributes; one above it drowns the others


@dataclass(frozen=True)
class Photograph:
    """What one look at an image file told: core/features/images.py."""

    sha256: str  # of its bytes
    error: str = ""  # why it cannot be read


def read_folder(
    root: Path | str, choices: Choices | None = None, looked: Mapping[str, Photograph] | None = None
) -> Metadata:
    """Labels, attributes and splits of a folder; images in the order of its feature file.

    Args: looked: a look at each image file; None: all are taken for readable, and no copies are known.
    """
    root, choices = Path(root), choices or Choices()
    path = root / "attributes.csv"
    if not path.exists() and (book := path.with_suffix(".xlsx")).exists():
        path = book
    sheet = read_attributes(path)
    images, notes = usable_images(root, looked or {})
    if strange := sorted(images.keys() - {*sheet.classes}):
        raise UserError(f"{path} has no row for the folders {listed(strange)}. Add it, or rename them")
    att, negative = clip_negative(sheet.values, OWN)
    locs, split_notes = split_images(root, choices, sheet.classes, images)
    files = [file for name in images for file in images[name]]
    digests = [looked[file].sha256 for file in files] if looked else []
    if digests and (moved := _move_copies(locs, np.array(digests))):
        notes.append(f"{moved} images are copies of test images: they are kept with them, not trained on")
    metadata = Metadata(
        name=OWN.name,
        image_files=files,
        image_sha256=digests,
        labels=np.concatenate([np.full(len(images[name]), sheet.classes.index(name)) for name in images]),
        class_names=sheet.classes,
        att=att,
        original_att=att,
        **locs,
        split_sha256=sha256_file(path),
        notes=[*split_notes, *notes, *negative],
        attribute_names=sheet.attributes,
        groups=sheet.groups,
        allow_candidates=True,
    )
    metadata.check(str(root))
    sizes = np.abs(att).max(axis=0)
    if big := [sheet.attributes[k] for k in np.flatnonzero(sizes > _SCALE * np.median(sizes))]:
        metadata.notes.append(f"the attributes {listed(big)} are more than {_SCALE} times as large as most; scale them")
    if (without := metadata.candidates).size:
        count = "1 class" if without.size == 1 else f"{without.size} classes"
        names = listed([sheet.classes[c] for c in without])
        metadata.notes.insert(0, f"{count} without images ({names}): offered in every prediction, in no accuracy")
    if not choices.validation:
        return metadata
    metadata = metadata.with_validation(OWN.val_share, choices.seed)
    if len(held := np.unique(metadata.labels[metadata.val_loc])) < 3:
        note = f"epochs and γ are chosen on few validation classes ({len(held)}): add classes, or use --select last"
        metadata.notes.append(note)
    return metadata


def _move_copies(locs: dict[str, np.ndarray], digests: np.ndarray) -> int:
    """Move to ``test_seen_loc`` what is trained on and the copy of a test image; how many there were."""
    trainval = locs["trainval_loc"]
    copies = trainval[np.isin(digests[trainval], digests[locs["test_seen_loc"]])]
    for part in ("trainval_loc", "train_loc", "val_loc"):
        locs[part] = np.setdiff1d(locs[part], copies)
    locs["test_seen_loc"] = np.union1d(locs["test_seen_loc"], copies)
    return len(copies)


def stand_in(root: Path | str, looked: Mapping[str, Photograph]) -> Metadata:
    """What a feature file of a folder records: its images and their folders.

    Features depend on the images alone, so a changed attributes.csv or split needs no new ones. The format asks for
    attributes and splits too: one-hot ones and a split that says nothing; :func:`read_folder` gives the true ones.
    """
    images, _ = usable_images(Path(root), looked)
    files = [file for name in images for file in images[name]]
    digests = [looked[file].sha256 for file in files]
    counts = np.array([len(of_class) for of_class in images.values()])
    labels = np.repeat(np.arange(len(images)), counts)
    last = np.isin(np.arange(len(labels)), np.cumsum(counts) - 1)
    # at least one class is left for test_unseen
    of_seen = np.isin(labels, np.flatnonzero(counts > 1)[: len(images) - 1])
    one_hot = np.eye(len(images), dtype=np.float32)
    return Metadata(
        name=OWN.name,
        image_files=files,
        image_sha256=digests,
        labels=labels,
        class_names=list(images),
        att=one_hot,
        original_att=one_hot,
        trainval_loc=np.flatnonzero(of_seen & ~last),
        test_seen_loc=np.flatnonzero(of_seen & last),
        test_unseen_loc=np.flatnonzero(~of_seen),
        train_loc=np.empty(0, np.int64),
        val_loc=np.empty(0, np.int64),
        split_sha256=images_digest(files, digests),
        notes=["attributes and splits in this file are stand-ins; those of the folder count"],
    )


def images_digest(files: list[str], digests: list[str]) -> str:
    """SHA-256 of the list of images and of what is in them."""
    return hashlib.sha256("\n".join([*files, *digests]).encode()).hexdigest()


def feature_pattern(root: Path, m: Metadata, backbone: str = "*") -> Path:
    """ROOT/OWN/feature_map_<Backbone>_<digest of the images>_OWN.hdf5"""
    return feature_file(root, OWN, f"{backbone}_{images_digest(m.image_files, m.image_sha256)[:8]}")


def check_images(features: Path, files: list[str], digests: list[str], root: Path, m: Metadata) -> None:
    """Refuse features of other images than those of the folder; files of before know no digests."""
    digests = digests or m.image_sha256
    if files != m.image_files or digests != m.image_sha256:
        changed = {*zip(files, digests, strict=False)} ^ {*zip(m.image_files, m.image_sha256, strict=True)}
        raise UserError(
            f"{features} was made of other images than are in {root / 'images'} (they differ in "
            f"{listed(sorted({file for file, _ in changed}))}). Move it away, and run the same command again"
        )


def usable_images(root: Path, looked: Mapping[str, Photograph]) -> tuple[dict[str, list[str]], list[str]]:
    """:func:`find_images` without those that cannot be read or lie in the folders of two classes, and notes."""
    images, notes = find_images(root)
    of = {file: looked.get(file, Photograph(file)) for files in images.values() for file in files}
    classes = Counter(sha256 for files in images.values() for sha256 in {of[file].sha256 for file in files})
    bad = [f"{file}: {photo.error}" for file, photo in of.items() if photo.error]
    torn = [file for file, photo in of.items() if classes[photo.sha256] > 1]
    if bad:
        notes.append(f"{len(bad)} images cannot be read and are left out: {listed(bad)}")
    if torn:
        notes.append(f"{len(torn)} images lie in the folders of two classes and are left out: {listed(torn)}")
    good = {file: photo for file, photo in of.items() if not photo.error and classes[photo.sha256] == 1}
    if not good:
        raise UserError(f"no image below {root / 'images'} can be used: {'; '.join(notes)}")
    kept = {name: [file for file in files if file in good] for name, files in images.items()}
    return {name: files for name, files in kept.items() if files}, notes


def find_images(root: Path) -> tuple[dict[str, list[str]], list[str]]:
    """Class -> its image files below ROOT/images, sorted, and a note on what was passed over.

    Links to folders are followed. Folders whose names differ in a blank at the end or in how accents are stored (NFC)
    are one class.
    """
    folder = root / "images"
    walk = os.walk(folder, followlinks=True)
    files = [Path(place, name).relative_to(folder) for place, _, names in walk for name in names]
    files = [file for file in files if not any(part.startswith(".") for part in file.parts)]
    images, passed = defaultdict[str, list[str]](list), []
    for file in sorted(files, key=lambda file: file.parts[0]):
        if len(file.parts) == 1 or file.suffix.lower() not in IMAGE_SUFFIXES:
            passed.append(file.as_posix())
            continue
        if why := name_problem(file.as_posix()):
            raise UserError(f"{folder}: rename {file.as_posix()!r}: its name {why}")
        images[unicodedata.normalize("NFC", file.parts[0]).strip()].append(file.as_posix())
    if not images:
        raise UserError(f"no image {folder}/<class>/*.jpg; --data-root must hold images/<class>/ and attributes.csv")
    note = f"{len(passed)} files below images/ are no photographs and are passed over: {listed(sorted(passed))}"
    return {name: sorted(of_class) for name, of_class in images.items()}, [note] if passed else []
