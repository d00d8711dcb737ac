"""A data set's metadata as feature files hold them: read from HDF5, and compared with those of the data root."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from core.datasets.metadata import LOCS, SPLITS, Metadata
from core.files.errors import UserError
from core.files.hdf5 import matrix, names, plain, whole_numbers

_TOLERANCE = 1e-4  # to which attributes of the file and of the data root agree


def read_content(file: h5py.File, path: Path) -> Metadata:
    """Labels, attributes and splits as they are in a file of any format, checked."""
    if lacks := [k for k in ("feature_map", "labels", *SPLITS, "att") if not isinstance(file.get(k), h5py.Dataset)]:
        raise UserError(f"{path} lacks {', '.join(lacks)}: not a feature file")
    provenance: Mapping[str, Any] = {k: plain(v) for k, v in file.attrs.items()}
    values = {key: file[key][()] for key in ("att", "labels", "original_att", "w2v_att", *LOCS) if key in file}
    att, labels = matrix(values["att"], f"{path}: att"), whole_numbers(values["labels"], f"{path}: labels")
    locs = {key: np.sort(whole_numbers(values.get(key, []), f"{path}: {key}")) for key in LOCS}
    w2v, shape = matrix(values.get("w2v_att", att.T), f"{path}: w2v_att"), file["feature_map"].shape
    if len(w2v) != att.shape[1] or not np.isfinite(w2v).all() or shape[:1] != labels.shape:
        sizes = f"feature_map {shape}, labels {labels.shape}, att {att.shape}, w2v_att {w2v.shape}"
        raise UserError(f"{path}: {sizes} do not fit together, or hold NaN")
    m = Metadata(
        name=str(provenance.get("dataset", "unknown")),
        image_files=names(file, "image_files") or [],
        labels=labels,
        class_names=names(file, "allclasses_names") or [f"class {c}" for c in range(len(att))],
        att=att,
        original_att=matrix(values.get("original_att", att), f"{path}: original_att"),
        split_sha256=str(provenance.get("split_sha256", "unknown")),
        notes=[str(provenance["notes"])] if provenance.get("notes") else [],
        image_sha256=names(file, "image_sha256") or [],
        **locs,  # type: ignore[arg-type]
    )
    m.check(str(path))
    return m


def check_maps(shape: tuple[int, ...], dtype: np.dtype[Any], path: Path) -> None:
    """Refuse a feature_map that is not (N,D,h,w) or (N,D,R) of real numbers with D the longest axis of an image."""
    if len(shape) not in (3, 4) or 0 in shape or dtype.kind != "f" or shape[1] < max(shape[2:]):
        raise UserError(
            f"{path}: feature_map is {shape} of {dtype}, which cannot be (N,D,h,w) of floating-point numbers: images, "
            "channels, rows and columns of the grid (1x1 for features of whole images). Where other axes come last, "
            "use np.transpose, or: python -m core.commands.convert IN OUT --layout nhwc (or nrd, tokens)"
        )


def first_difference(mine: Metadata, root: Metadata, splits: Sequence[str], attributes: Sequence[str]) -> str:
    """In what a feature file's metadata are not the data root's; empty if in nothing.

    Images are compared by their file names, where the file has any.
    """
    images, others = ([Path(file).name for file in m.image_files] for m in (mine, root))
    compared = {"label": (mine.labels.tolist(), root.labels.tolist()), "image file": (images or others, others)}
    compared |= {"class": ([n.strip() for n in mine.class_names], root.class_names)}
    compared |= {f"row of {key}": (getattr(mine, key).tolist(), getattr(root, key).tolist()) for key in splits}
    for what, (a, b) in compared.items():
        for i, (one, other) in enumerate(itertools.zip_longest(a, b, fillvalue="not there"), start=1):
            if one != other:
                return f"its {what} {i} is {one}, the split file's {other}"
    for key in attributes:
        x, y = getattr(mine, key), getattr(root, key)
        clipped = np.where(y >= 0, np.maximum(x, 0), x) if x.shape == y.shape else x  # xlsa17's rule for negative ones
        if x.shape != y.shape or not np.allclose(clipped, y, rtol=_TOLERANCE, atol=_TOLERANCE):
            return f"its {key} {x.shape} has other values than the split file's {y.shape}"
    return ""
