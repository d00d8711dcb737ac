"""Reader for xlsa17's res101.mat + att_splits.mat; what they must hold is :meth:`Metadata.check`."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from core.datasets.metadata import LOCS, SPLITS, Metadata, clip_negative, compare_counts, cub50
from core.datasets.names import read_attribute_names
from core.datasets.paths import xlsa17_folder
from core.datasets.registry import CUB50, DataSet
from core.files.atomic import sha256_file
from core.files.errors import UserError
from core.files.hdf5 import matrix, whole_numbers
from core.files.matfile import read_mat


def read_metadata(data_root: Path | str, dataset: DataSet) -> Metadata:
    """Read and check a data set's metadata under ``data_root`` (published counts are enforced only on full data)."""
    folder = xlsa17_folder(Path(data_root), dataset)
    names: list[str] = []
    with contextlib.suppress(UserError):  # the .mat files have none, and nothing but words depends on them
        names = read_attribute_names(dataset, Path(data_root))
    return read_mat_files(folder / "res101.mat", folder / "att_splits.mat", dataset, names)


def read_mat_files(
    res101: Path | str, att_splits: Path | str, dataset: DataSet, attribute_names: Sequence[str] = ()
) -> Metadata:
    """As :func:`read_metadata`, from two named files; res101.mat may lack its features."""
    res101, att_splits = Path(res101), Path(att_splits)
    required = ("att", "allclasses_names", *SPLITS)
    images = read_mat(res101, ("labels", "image_files"))
    splits = read_mat(att_splits, (*required, "original_att", "train_loc", "val_loc"))
    for mat, content, keys in ((res101, images, ("labels", "image_files")), (att_splits, splits, required)):
        if missing := [key for key in keys if key not in content]:
            raise UserError(f"{mat} lacks {', '.join(missing)}; is it xlsa17's file of that name?")

    # xlsa17 has attributes x classes, and counts from 1
    att, original = (
        matrix(splits.get(key, splits["att"]), f"{att_splits}: {key}").T for key in ("att", "original_att")
    )
    att, notes = clip_negative(att, dataset)
    files = []  # below the data set's own folder
    for path in map(str, images["image_files"]):
        parts = [part for part in path.strip().split("/") if part]
        if dataset.anchor not in parts[:-1]:
            where = f"{res101}: no folder {dataset.anchor!r} in the image path {path[:200]!r}"
            raise UserError(f"{where}; is it of another data set?")
        files.append("/".join(parts[parts.index(dataset.anchor) + 1 :]))
    locs = {key: np.sort(whole_numbers(splits.get(key, []), f"{att_splits}: {key}")) - 1 for key in LOCS}
    metadata = Metadata(
        name=dataset.source,
        image_files=files,
        labels=whole_numbers(images["labels"], f"{res101}: labels") - 1,
        class_names=[str(name).strip() for name in splits["allclasses_names"]],
        att=att,
        original_att=original,
        **locs,  # type: ignore[arg-type]
        split_sha256=sha256_file(att_splits),
        notes=notes,
        attribute_names=list(attribute_names) if len(attribute_names) == att.shape[1] else [],
    )
    metadata.check(f"{res101} and {att_splits.name}")
    compare_counts(metadata, dataset, att_splits)
    return (cub50(metadata) if dataset.name == CUB50.name else metadata).with_validation(dataset.val_share)
