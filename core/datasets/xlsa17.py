"""Reader for xlsa17's res101.mat + att_splits.mat; what they must hold is :meth:`Metadata.check`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.datasets.metadata import SPLITS, Metadata, clip_negative, cub50
from core.datasets.names import find_names_file, read_names_file
from core.datasets.paths import xlsa17_folder
from core.datasets.registry import CUB50, DataSet
from core.files.atomic import sha256_file
from core.files.errors import UserError
from core.files.matfile import read_mats


def read_metadata(data_root: Path | str, dataset: DataSet) -> Metadata:
    """Read and check a data set's metadata under ``data_root`` (published counts are enforced only on full data).

    Raises:
        UserError: files missing, or anything in them inconsistent; names the file and the cause.
    """
    folder = xlsa17_folder(Path(data_root), dataset)
    try:
        names = read_names_file(find_names_file(dataset, Path(data_root)))
    except UserError:  # the .mat files have none, and nothing but words depends on them
        names = []
    return read_mat_files(folder / "res101.mat", folder / "att_splits.mat", dataset, names)


def read_mat_files(
    res101: Path | str, att_splits: Path | str, dataset: DataSet, attribute_names: Sequence[str] = ()
) -> Metadata:
    """As :func:`read_metadata`, from two named files; res101.mat may lack its features."""
    res101, att_splits = Path(res101), Path(att_splits)
    required, optional = ("att", "allclasses_names", *SPLITS), ("original_att", "train_loc", "val_loc")
    images, splits = read_mats({res101: ("labels", "image_files"), att_splits: (*required, *optional)})
    for path, found, keys in ((res101, images, ("labels", "image_files")), (att_splits, splits, required)):
        if missing := [key for key in keys if key not in found]:
            raise UserError(f"{path} lacks {', '.join(missing)}; is it xlsa17's file of that name?")

    class_names = _names(splits["allclasses_names"], "allclasses_names", att_splits)
    if not (image_files := _names(images["image_files"], "image_files", res101)):
        raise UserError(f"{res101}: image_files is empty; get the file again")
    att, notes = _attributes(splits["att"], "att", len(class_names), att_splits)
    original, _ = _attributes(splits.get("original_att", splits["att"]), "original_att", len(class_names), att_splits)
    att, clipped = clip_negative(att, dataset)
    locs = {
        key: np.sort(_whole_numbers(splits[key], key, att_splits) - 1) if key in splits else np.empty(0, np.int64)
        for key in (*SPLITS, "train_loc", "val_loc")
    }
    metadata = Metadata(
        name=dataset.name,
        image_files=[_below_anchor(file, dataset.anchor, res101) for file in image_files],
        labels=_whole_numbers(images["labels"], "labels", res101) - 1,
        class_names=class_names,
        att=att,
        original_att=original,
        **locs,
        split_sha256=sha256_file(att_splits),
        notes=notes + clipped,
        attribute_names=list(attribute_names) if len(attribute_names) == att.shape[1] else [],
        allow_candidates=False,
    )
    metadata.check(str(att_splits), images=str(res101), first=1)
    _check_class_order(metadata, res101, att_splits)
    compare_counts(metadata, dataset, att_splits)
    return (cub50(metadata) if dataset.name == CUB50.name else metadata).with_validation(dataset.val_share)


def _names(values: Any, key: str, where: Path) -> list[str]:
    names = []
    for value in values if isinstance(values, list) else [values]:
        while isinstance(value, list) and len(value) == 1:  # cells within cells
            value = value[0]
        name = "" if isinstance(value, list) and not value else value
        if not isinstance(name, str):
            raise UserError(f"{where}: {key} holds something that is not a name; a cell array of names is expected")
        names.append(name.strip())
    return names


def _attributes(values: Any, key: str, classes: int, where: Path) -> tuple[np.ndarray, list[str]]:
    """(C,K) float32, and a note if the file has it so (xlsa17's have (K,C))."""
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iuf" or values.ndim != 2:
        raise UserError(f"{where}: {key} is not a matrix of numbers")
    if classes not in values.shape:
        raise UserError(
            f"{where}: {key} is {values.shape}, but there are {classes} class names; attributes x classes is expected"
        )
    with np.errstate(over="ignore"):  # to infinity, which is refused
        att: np.ndarray = values.astype(np.float32)
    if values.shape[1] == classes:
        return att.T, []
    return att, [f"{key} is classes x attributes {att.shape} in {where.name}, the transpose of xlsa17's; read as such"]


def _check_class_order(metadata: Metadata, res101: Path, att_splits: Path) -> None:
    """Refuse class names in another order than the labels, where the folders of the images tell their classes."""
    m = metadata
    folders: dict[str, set[int]] = {}  # folder name -> labels of its images
    for file, label in zip(m.image_files, m.labels.tolist(), strict=True):
        parts = file.split("/")[:-1]
        for i in range(len(parts)):  # names it may have in a list of classes: SUN's a/apse/indoor/x.jpg is apse_indoor
            folders.setdefault(_letters("".join(parts[i:])), set()).add(label)
    for c, name in enumerate(m.class_names):
        found = folders.get(_letters(name), {c})
        if c not in found:
            raise UserError(
                f"{att_splits}: class {c + 1} is {name!r}, but {res101} gives the label {min(found) + 1} to the images "
                "in the folder of that name. The files number the classes differently; take both from one release"
            )


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


def _below_anchor(path: str, anchor: str, where: Path) -> str:
    parts = [p for p in path.replace("\\", "/").split("/") if p not in ("", ".")]
    if anchor not in parts:
        raise UserError(f"{where}: the image path {path[:200]!r} has no folder {anchor!r}; is it of another data set?")
    below = parts[parts.index(anchor) + 1 :]
    if not below or ".." in below:
        raise UserError(f"{where}: the image path {path[:200]!r} names no file below {anchor!r}")
    return "/".join(below)


def _whole_numbers(values: Any, key: str, where: Path) -> np.ndarray:
    flat = np.asarray(values).ravel()
    # 2**53: what a MATLAB number counts to, and far from what an int64 cannot hold
    if flat.size == 0 or flat.dtype.kind not in "iuf" or not (np.abs(flat) < 2**53).all() or (flat % 1 != 0).any():
        raise UserError(f"{where}: {key} is empty or holds something other than whole numbers")
    return flat.astype(np.int64)


def compare_counts(metadata: Metadata, dataset: DataSet, where: Path) -> None:
    """Hold a full copy of a published data set against its published counts; note a subset."""
    counts = dataset.counts if dataset.name != CUB50.name else None
    if counts is None:
        return
    m = metadata
    found = {
        "seen": len(m.seen),
        "unseen": len(m.unseen),
        "images": len(m.labels),
        "trainval": len(m.trainval_loc),
        "test_seen": len(m.test_seen_loc),
        "test_unseen": len(m.test_unseen_loc),
        "attributes": m.att.shape[1],
    }
    wrong = {k: f"{k} {v} (published {getattr(counts, k)})" for k, v in found.items() if v != getattr(counts, k)}
    if found["images"] == counts.images and wrong.keys() - {"attributes"}:
        raise UserError(f"{where}: not the proposed split of {dataset.name}: {', '.join(wrong.values())}")
    if wrong:
        what = "a subset of" if wrong.keys() - {"attributes"} else "other attributes than"
        m.notes.append(
            f"{what} {dataset.name}, numbers do not compare with the literature: {', '.join(wrong.values())}"
        )
