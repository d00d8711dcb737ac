"""Reader for xlsa17's res101.mat + att_splits.mat, with every trap of those files checked.

Two versions of att_splits.mat circulate. In one, train_loc + val_loc contain all of test_seen; in the other they are
absent. They are always intersected with trainval_loc here, and drawn (seeded, class-disjoint) where absent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from core.datasets.registry import CUB50, CUB50_SEEN, CUB50_UNSEEN, DataSet
from core.files.atomic import sha256_file
from core.files.errors import UserError
from core.files.matfile import read_mat

VALIDATION_SEED = 0
_SPLITS = ("trainval_loc", "test_seen_loc", "test_unseen_loc")


@dataclass
class Metadata:
    """Labels, attributes and splits of a data set; every index 0-based."""

    name: str
    image_files: list[str]  # (N,) below the data set's own folder, '/'-separated
    labels: np.ndarray  # (N,) int64
    class_names: list[str]  # (C,)
    att: np.ndarray  # (C,K) float32, negatives set to 0
    original_att: np.ndarray  # (C,K) float32
    trainval_loc: np.ndarray
    test_seen_loc: np.ndarray
    test_unseen_loc: np.ndarray
    train_loc: np.ndarray  # class-disjoint from val_loc, inside trainval
    val_loc: np.ndarray
    split_sha256: str
    notes: list[str] = field(default_factory=list)

    @property
    def seen(self) -> np.ndarray:
        """Sorted seen classes (those of trainval)."""
        return np.unique(self.labels[self.trainval_loc])

    @property
    def unseen(self) -> np.ndarray:
        """Sorted unseen classes (those of test_unseen)."""
        return np.unique(self.labels[self.test_unseen_loc])


def find_xlsa17(data_root: Path, dataset: DataSet) -> Path:
    """The folder with the data set's two .mat files."""
    tried = [data_root / "xlsa17" / "data" / dataset.source, data_root / dataset.source]
    for folder in tried:
        if (folder / "att_splits.mat").is_file() and (folder / "res101.mat").is_file():
            return folder
    raise UserError(
        f"xlsa17's res101.mat and att_splits.mat of {dataset.source} are not there. Looked in: "
        + ", ".join(str(t) for t in tried)
        + f". See data/{dataset.source}.md, or point --data-root at the folder that holds xlsa17/."
    )


def read_metadata(data_root: Path | str, dataset: DataSet) -> Metadata:
    """Read and check a data set's metadata under ``data_root`` (published counts are enforced only on full data).

    Raises:
        UserError: files missing, or anything in them inconsistent; names the file and the cause.
    """
    folder = find_xlsa17(Path(data_root), dataset)
    return read_mat_files(folder / "res101.mat", folder / "att_splits.mat", dataset)


def read_mat_files(res101: Path | str, att_splits: Path | str, dataset: DataSet) -> Metadata:
    """As :func:`read_metadata`, from two named files; res101.mat may lack its features."""
    res101, att_splits = Path(res101), Path(att_splits)
    images = _load(res101, ("labels", "image_files"))
    splits = _load(att_splits, ("att", "allclasses_names", *_SPLITS), optional=("original_att", "train_loc", "val_loc"))

    class_names = _strings(splits["allclasses_names"], att_splits)
    for name in class_names:
        if not name or re.match(r"[=@+-]", name) or re.search(r"[\x00-\x1f]", name):
            raise UserError(
                f"{att_splits}: {name!r} is no class name (it is empty, holds control characters, or would be a "
                "formula in the result tables); get the file again"
            )
    if len(set(class_names)) != len(class_names):
        twice = sorted({n for n in class_names if class_names.count(n) > 1})
        raise UserError(f"{att_splits}: the class names {twice[:5]} stand in allclasses_names more than once")
    image_files = [_below_anchor(p, dataset.anchor, res101) for p in _strings(images["image_files"], res101)]
    labels = _labels(images["labels"], len(image_files), len(class_names), res101)
    att = _attributes(splits["att"], "att", class_names, att_splits)
    original = _attributes(splits.get("original_att", splits["att"]), "original_att", class_names, att_splits)
    if original.shape != att.shape:
        raise UserError(f"{att_splits}: att is {att.T.shape}, but original_att {original.T.shape}")
    att = np.maximum(att, 0.0)
    if not (att > 0).any(axis=1).all():
        bad = [class_names[c] for c in np.flatnonzero(~(att > 0).any(axis=1))]
        raise UserError(f"{att_splits}: no attribute is present in the classes {bad[:5]}")

    locs = {key: _indices(splits[key], key, len(labels), att_splits) for key in _SPLITS}
    metadata = Metadata(
        name=dataset.name,
        image_files=image_files,
        labels=labels,
        class_names=class_names,
        att=att,
        original_att=original,
        train_loc=locs["trainval_loc"],
        val_loc=np.empty(0, dtype=np.int64),
        trainval_loc=locs["trainval_loc"],
        test_seen_loc=locs["test_seen_loc"],
        test_unseen_loc=locs["test_unseen_loc"],
        split_sha256=sha256_file(att_splits),
    )
    check_splits(metadata, str(att_splits))
    left = np.setdiff1d(np.arange(len(class_names)), np.concatenate([metadata.seen, metadata.unseen]))
    if left.size:
        raise UserError(
            f"{att_splits}: the classes {[class_names[c] for c in left[:5]]} have no image in any split, so their "
            "accuracy is undefined; leave them out of allclasses_names and att, or get the file again"
        )
    if duplicates := len(image_files) - len(set(image_files)):
        raise UserError(f"{res101}: {duplicates} image files are named more than once")
    _check_class_order(metadata, res101, att_splits)
    _check_counts(metadata, dataset, att_splits)
    if dataset.name == CUB50.name:
        metadata = cub50(metadata)
    return _with_validation(metadata, dataset, splits, att_splits)


def check_splits(metadata: Metadata, where: str) -> None:
    """Raise unless the three splits are disjoint and the seen and unseen classes are too."""
    m = metadata
    for first, second in (
        ("trainval_loc", "test_seen_loc"),
        ("trainval_loc", "test_unseen_loc"),
        ("test_seen_loc", "test_unseen_loc"),
    ):
        if common := np.intersect1d(getattr(m, first), getattr(m, second)).size:
            raise UserError(f"{where}: {first} and {second} share {common} images; this is not a usable split")
    if both := np.intersect1d(m.seen, m.unseen).size:
        raise UserError(f"{where}: {both} unseen classes have images in trainval; this is not a zero-shot split")
    if strangers := np.setdiff1d(m.labels[m.test_seen_loc], m.seen).size:
        raise UserError(f"{where}: {strangers} classes of test_seen have no image in trainval")
    if missing := np.setdiff1d(m.seen, m.labels[m.test_seen_loc]).size:
        raise UserError(f"{where}: {missing} seen classes have no test image, so their accuracy is undefined")


def cub50(metadata: Metadata, seed: int = VALIDATION_SEED) -> Metadata:
    """The authors' 40+10 class subset of CUB: 10 seeded test images from each seen class, the rest for training.

    Which images the authors tested on was not published; their counts (1938/400/598) are met exactly.
    """
    m = metadata
    number = {int(name.split(".")[0]): c for c, name in enumerate(m.class_names) if name.split(".")[0].isdigit()}
    if lost := [n for n in CUB50_SEEN + CUB50_UNSEEN if n not in number]:
        raise UserError(f"CUB50 needs the CUB classes {lost[:8]}..., which this copy of CUB does not have")
    seen = [number[n] for n in CUB50_SEEN]
    unseen = [number[n] for n in CUB50_UNSEEN]
    rng = np.random.default_rng(seed)
    test_seen = np.concatenate([rng.permutation(np.flatnonzero(m.labels == c))[:10] for c in seen])
    trainval = np.setdiff1d(np.flatnonzero(np.isin(m.labels, seen)), test_seen)
    kept = np.array(sorted(seen + unseen))
    new_label = np.full(len(m.class_names), -1, dtype=np.int64)
    new_label[kept] = np.arange(len(kept))
    subset = replace(
        m,
        name=CUB50.name,
        labels=new_label[m.labels],
        class_names=[m.class_names[c] for c in kept],
        att=m.att[kept],
        original_att=m.original_att[kept],
        trainval_loc=trainval,
        test_seen_loc=np.sort(test_seen),
        test_unseen_loc=np.flatnonzero(np.isin(m.labels, unseen)),
        # what was noted of the proposed split does not hold here
        notes=[f"CUB50: 10 test images per seen class drawn with seed {seed}"],
    )
    check_splits(subset, "CUB50")
    counts = CUB50.counts
    found = (len(subset.trainval_loc), len(subset.test_seen_loc), len(subset.test_unseen_loc))
    if counts and found != (published := (counts.trainval, counts.test_seen, counts.test_unseen)):
        if len(m.labels) == 11788:
            raise UserError(f"CUB50 has {found} images, expected {published}")
        subset.notes.append(
            "a subset of CUB50, numbers do not compare with the literature: trainval, test_seen, test_unseen are "
            f"{found[0]}, {found[1]}, {found[2]} (published {published[0]}, {published[1]}, {published[2]})"
        )
    return subset


def class_disjoint_split(labels: np.ndarray, loc: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split ``loc`` by class: ``share`` of its classes (at least one, never all) go to the second part."""
    classes = np.unique(labels[loc])
    if len(classes) < 2:
        raise UserError("a class-disjoint validation split needs at least two seen classes")
    count = min(max(1, round(share * len(classes))), len(classes) - 1)
    held = np.random.default_rng(seed).permutation(classes)[:count]
    inside = np.isin(labels[loc], held)
    return loc[~inside], loc[inside]


def _with_validation(metadata: Metadata, dataset: DataSet, splits: dict[str, Any], where: Path) -> Metadata:
    """Fill train_loc and val_loc: the file's own where they are usable, drawn where not."""
    m = metadata
    why = "the split file has none"
    if dataset.name != CUB50.name and "train_loc" in splits and "val_loc" in splits:
        train, val = (_indices(splits[key], key, len(m.labels), where) for key in ("train_loc", "val_loc"))
        outside = np.setdiff1d(np.concatenate([train, val]), m.trainval_loc).size
        train, val = np.intersect1d(train, m.trainval_loc), np.intersect1d(val, m.trainval_loc)
        shared = np.intersect1d(m.labels[train], m.labels[val]).size
        if len(train) and len(val) and not shared:
            note = f"train/val classes of the split file; {outside} of its images lie outside trainval and are dropped"
            return replace(m, train_loc=train, val_loc=val, notes=[*m.notes, note])
        why = f"the split file's share {shared} classes"
    train, val = class_disjoint_split(m.labels, m.trainval_loc, dataset.val_share, VALIDATION_SEED)
    note = f"train/val classes drawn with seed {VALIDATION_SEED} ({why})"
    return replace(m, train_loc=train, val_loc=val, notes=[*m.notes, note])


def _load(path: Path, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    content = read_mat(path, {*required, *optional})
    if missing := [key for key in required if key not in content]:
        raise UserError(f"{path} lacks {', '.join(missing)}; is it xlsa17's file of that name?")
    return content


def _strings(values: Any, where: Path) -> list[str]:
    names = [str(v).strip() if isinstance(v, str) else None for v in np.ravel(values)]
    if any(n is None for n in names):
        raise UserError(f"{where}: a list of names holds something that is not a name")
    return [n for n in names if n is not None]


def _attributes(values: Any, key: str, class_names: list[str], where: Path) -> np.ndarray:
    """(C,K) float32"""
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iuf" or values.ndim != 2:
        raise UserError(f"{where}: {key} is not a matrix of numbers")
    with np.errstate(over="ignore"):  # to infinity, which is refused
        att: np.ndarray = values.astype(np.float32).T
    if att.shape[0] != len(class_names):
        raise UserError(f"{where}: {key} is {att.T.shape}, but there are {len(class_names)} class names")
    if not np.isfinite(att).all():
        raise UserError(f"{where}: {key} holds NaN or infinity")
    return att


def _check_class_order(metadata: Metadata, res101: Path, att_splits: Path) -> None:
    """Refuse class names in another order than the labels, where the folders of the images tell their classes."""
    m = metadata
    folders: dict[str, set[int]] = {}  # folder name -> labels of its images
    for file, label in zip(m.image_files, m.labels.tolist(), strict=True):
        for folder in _folder_names(file):
            folders.setdefault(folder, set()).add(label)
    for c, name in enumerate(m.class_names):
        found = folders.get(_letters(name), {c})
        if c not in found:
            raise UserError(
                f"{att_splits}: class {c + 1} is {name!r}, but {res101} gives the label {min(found) + 1} to the images "
                "in the folder of that name. The files number the classes differently; take both from one release"
            )


def _folder_names(file: str) -> Iterator[str]:
    """Names an image's folder may have in a list of classes: SUN's a/apse/indoor/x.jpg is of apse_indoor."""
    parts = file.split("/")[:-1]
    for i in range(len(parts)):
        yield _letters("".join(parts[i:]))


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


def _below_anchor(path: str, anchor: str, where: Path) -> str:
    parts = [p for p in path.replace("\\", "/").split("/") if p not in ("", ".")]
    if anchor not in parts:
        raise UserError(f"{where}: the image path {path!r} has no folder {anchor!r}; is it of another data set?")
    below = parts[parts.index(anchor) + 1 :]
    if not below or ".." in below:
        raise UserError(f"{where}: the image path {path!r} names no file below {anchor!r}")
    return "/".join(below)


def _labels(values: np.ndarray, images: int, classes: int, where: Path) -> np.ndarray:
    labels = _whole_numbers(values, "labels", where)
    if len(labels) != images:
        raise UserError(f"{where}: {len(labels)} labels for {images} image files")
    if labels.min() < 1 or labels.max() > classes:
        raise UserError(
            f"{where}: labels run from {labels.min()} to {labels.max()}, expected 1 to {classes} (MATLAB counts from 1)"
        )
    return labels - 1


def _indices(values: np.ndarray, key: str, images: int, where: Path) -> np.ndarray:
    loc = _whole_numbers(values, key, where)
    if loc.min() < 1 or loc.max() > images:
        raise UserError(f"{where}: {key} runs from {loc.min()} to {loc.max()}, expected 1 to {images} (counted from 1)")
    if duplicates := len(loc) - len(np.unique(loc)):
        raise UserError(f"{where}: {key} names {duplicates} images twice")
    return np.sort(loc - 1)


def _whole_numbers(values: np.ndarray, key: str, where: Path) -> np.ndarray:
    flat = np.asarray(values).ravel()
    # 2**53: what a MATLAB number counts to, and far from what an int64 cannot hold
    if flat.size == 0 or flat.dtype.kind not in "iuf" or not (np.abs(flat) < 2**53).all() or (flat % 1 != 0).any():
        raise UserError(f"{where}: {key} is empty or holds something other than whole numbers")
    return flat.astype(np.int64)


def _check_counts(metadata: Metadata, dataset: DataSet, where: Path) -> None:
    """Hold a full copy of a published data set against its published counts; note a subset."""
    counts = dataset.counts if dataset.name != CUB50.name else None
    if counts is None:
        return
    m = metadata
    found = {
        "seen": len(m.seen),
        "unseen": len(m.unseen),
        "attributes": m.att.shape[1],
        "images": len(m.labels),
        "trainval": len(m.trainval_loc),
        "test_seen": len(m.test_seen_loc),
        "test_unseen": len(m.test_unseen_loc),
    }
    if found["attributes"] != counts.attributes:
        raise UserError(f"{where}: {found['attributes']} attributes, but {dataset.name} has {counts.attributes}")
    wrong = [f"{k} {v} (published {getattr(counts, k)})" for k, v in found.items() if v != getattr(counts, k)]
    if not wrong:
        return
    if found["images"] == counts.images:
        raise UserError(f"{where}: not the proposed split of {dataset.name}: " + ", ".join(wrong))
    m.notes.append(f"a subset of {dataset.name}, numbers do not compare with the literature: " + ", ".join(wrong))
