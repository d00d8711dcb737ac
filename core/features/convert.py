"""Feature files from elsewhere, rewritten to the layout that is read row by row: other axes, or DAZLE's gzip chunks."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from core.datasets.metadata import SPLITS, Metadata
from core.datasets.registry import DataSet
from core.datasets.xlsa17 import read_metadata
from core.features.layout import FeatureFileMetadata, check_maps
from core.features.writer import Writer
from core.files.atomic import sha256_file
from core.files.errors import UserError
from core.files.hdf5 import matrix, names, open_hdf5, plain, whole_numbers
from core.files.kinds import missing, unreadable
from core.files.progress import Progress

LAYOUTS = {  # what the axes of feature_map are
    "ndhw": "(N,D,h,w), DAZLE's",
    "ndr": "(N,D,R), regions last",
    "nhwc": "(N,h,w,D), channels last",
    "nrd": "(N,R,D), regions then channels",
    "tokens": "(N,T,D) of a vision transformer: class and register tokens, then the patches",
}
_BLOCK = 256 << 20  # bytes of features in memory
_LARGEST_BLOCK = 1 << 30  # where chunks span so many rows that less would read them many times


def to_ndhw(maps: np.ndarray, layout: str) -> np.ndarray:
    """Features (n,...) of that layout as (n,D,h,w).

    Raises:
        UserError: the axes cannot be of that layout.
    """
    if maps.ndim != (4 if layout in ("ndhw", "nhwc") else 3):
        raise UserError(f"feature_map has {maps.ndim} axes, --layout {layout} is {LAYOUTS[layout]}")
    if layout == "ndhw":
        return maps
    if layout == "nhwc":
        return maps.transpose(0, 3, 1, 2)
    if layout == "ndr":
        maps = maps.transpose(0, 2, 1)
    side = math.isqrt(maps.shape[1])
    if layout == "tokens":  # the patches are the largest square that leaves a token in front
        side = math.isqrt(maps.shape[1] - 1)
        maps = maps[:, maps.shape[1] - side * side :]
    height, width = (side, side) if side * side == maps.shape[1] else (1, maps.shape[1])
    return maps.reshape(len(maps), height, width, maps.shape[2]).transpose(0, 3, 1, 2)


def averaged(maps: np.ndarray, pool: int) -> np.ndarray:
    """Maps (n,D,h,w) with pool x pool regions averaged into one, in float32.

    Raises:
        UserError: the grid cannot be divided so.
    """
    n, channels, height, width = maps.shape
    if pool == 1:
        return maps
    if height % pool or width % pool:
        raise UserError(f"--pool {pool}: {height}x{width} regions cannot be averaged by {pool}")
    parts = maps.astype(np.float32).reshape(n, channels, height // pool, pool, width // pool, pool)
    return np.asarray(parts.mean(axis=(3, 5)))


def convert(
    source: Path | str, target: Path | str, *, layout: str, store: str = "float16", pool: int = 1,
    dataset: DataSet | None = None, data_root: Path | str = "data",
) -> Path:  # fmt: skip
    """Rewrite a feature file, or go on with a run that was interrupted.

    Args:
        layout: a key of LAYOUTS. store: type in the new file, float16 or float32.
        pool: average pool x pool regions into one, as ``--pool`` of the extraction does before it rounds to ``store``.
        dataset: take class names, image names, attributes and splits from this data set's .mat files under
            ``data_root``; labels must agree. None: what the source has.

    Raises:
        UserError: not a feature file, axes that cannot be of the layout, or a disk that refuses.
    """
    path, final = Path(source), Path(target)
    if layout not in LAYOUTS:
        raise UserError(f"--layout {layout}: choose one of {', '.join(LAYOUTS)}")
    if not path.is_file():
        raise UserError(missing(path, "feature file"))
    try:
        file = open_hdf5(path)
    except (OSError, RuntimeError) as error:
        raise unreadable(path, "feature file", error) from error
    with file:
        content, maps = _content(path, file, dataset, Path(data_root)), file["feature_map"]
        example = averaged(to_ndhw(maps[:1], layout), pool)
        shape = (len(maps), *example.shape[1:])
        check_maps(shape, maps.dtype, path)
        changed: dict[str, str | int] = {"converted_from": f"{path.name} sha256 {sha256_file(path)}, layout {layout}"}
        if pool > 1:
            changed["pool"] = pool * int(content.provenance.get("pool", 1))
        content = replace(content, provenance={**content.provenance, **changed})
        block = _rows_at_once(maps)
        with Writer(final, content, shape[1:], store) as writer, Progress(len(maps), final.name, "image") as bar:
            for start in range(0, len(maps), block):
                rows = np.arange(start, min(start + block, len(maps)))
                bar.update(len(rows))
                if writer.done[rows].all():
                    continue
                try:
                    values = maps[start : start + block]
                except Exception as error:  # filters raise nearly anything
                    raise UserError(f"{path}: the rows from {start} on are damaged ({error}); get it again") from error
                writer.write(rows, averaged(to_ndhw(values, layout), pool))
            return writer.finish()


def _content(path: Path, file: h5py.File, dataset: DataSet | None, root: Path) -> FeatureFileMetadata:
    """Everything in a file from elsewhere but the features."""
    if lacks := [key for key in ("feature_map", "labels", "att", *SPLITS) if key not in file]:
        raise UserError(f"{path} lacks {', '.join(lacks)}: not a feature file")
    labels, att, shape = whole_numbers(file, "labels"), matrix(file, "att"), file["feature_map"].shape
    if len(labels) != shape[0]:
        raise UserError(f"{path}: {len(labels)} labels, but feature_map is {shape}; its first axis must be the images")
    said: dict[str, Any] = {k: plain(v) for k, v in file.attrs.items()}
    provenance = {k: v for k, v in said.items() if isinstance(v, (str, int)) and k not in ("complete", "sha256")}
    provenance.setdefault("pretraining_saw_unseen", "unknown")
    if dataset is not None:
        provenance["dataset"] = dataset.source
        metadata = read_metadata(root, dataset)
        if not np.array_equal(metadata.labels, labels):
            raise UserError(f"{path}: its labels are not those of {dataset.source} under {root}; leave out --dataset")
    else:
        keys = (*SPLITS, "train_loc", "val_loc")
        positions = {key: whole_numbers(file, key) if key in file else np.empty(0, np.int64) for key in keys}
        metadata = Metadata(
            name=str(provenance.get("dataset", path.stem)),
            image_files=names(file, "image_files") or [],
            labels=labels,
            class_names=names(file, "allclasses_names") or [],
            att=att,
            original_att=matrix(file, "original_att") if "original_att" in file else att,
            split_sha256=str(provenance.get("split_sha256", "unknown")),
            allow_candidates=False,
            **positions,  # type: ignore[arg-type]
        )
        named = metadata.class_names or [f"class {c}" for c in range(len(att))]
        replace(metadata, class_names=named).check(str(path))
    w2v, text = (file[key][()] if key in file else None for key in ("w2v_att", "class_text"))
    return FeatureFileMetadata(metadata, provenance, w2v, text)


def _rows_at_once(maps: h5py.Dataset) -> int:
    """Rows to read at once: whole chunks, for a chunk is decompressed whole."""
    row_bytes = math.prod(maps.shape[1:]) * maps.dtype.itemsize
    chunk = maps.chunks[0] if maps.chunks else 1
    if chunk * row_bytes > _LARGEST_BLOCK:
        return max(1, _LARGEST_BLOCK // row_bytes)
    return int(max(1, _BLOCK // (row_bytes * chunk)) * chunk)
