"""Feature files from elsewhere, rewritten to the layout that is read row by row: other axes, or DAZLE's gzip chunks."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tqdm import tqdm

from core.datasets.metadata import Metadata
from core.datasets.registry import DataSet
from core.datasets.xlsa17 import read_metadata
from core.features.feature_file import FeatureFile
from core.features.layout import ROWS, check_stored, plain
from core.features.writer import FeatureFileMetadata, Writer
from core.files.atomic import sha256_file
from core.files.errors import UserError

LAYOUTS = {  # what the axes of feature_map are
    "ndhw": "(N,D,h,w), DAZLE's",
    "ndr": "(N,D,R), regions last",
    "nhwc": "(N,h,w,D), channels last",
    "nrd": "(N,R,D), regions then channels",
    "tokens": "(N,T,D) of a vision transformer: class and register tokens, then the patches",
}
_REQUIRED = ("feature_map", "labels", "att", "trainval_loc", "test_seen_loc", "test_unseen_loc")
_OPTIONAL = ("original_att", "w2v_att", "allclasses_names", "image_files", "train_loc", "val_loc")
_BLOCK = 256 << 20  # bytes of features in memory
_LARGEST_BLOCK = 1 << 30  # where chunks span so many rows that less would read them many times
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Foreign(FeatureFileMetadata):
    """A file's content; what the original lacks is left out."""

    def arrays(self) -> dict[str, np.ndarray]:
        return {key: values for key, values in super().arrays().items() if len(values)}


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
        raise UserError(f"no feature file at {path}")
    if final.exists():
        raise UserError(f"{final} exists already; delete it or choose another name")
    beside = read_beside(str(path))
    metadata = _metadata(path, beside, dataset, Path(data_root))
    provenance = {k: v for k, v in beside["attributes"].items() if k not in ("complete", "format_version")}
    provenance |= {"converted_from": f"{path.name} sha256 {sha256_file(path)}, layout {layout}"}
    provenance.setdefault("pretraining_saw_unseen", "unknown")
    if pool > 1:
        provenance["pool"] = pool * int(provenance.get("pool", 1))
    if dataset is not None:
        provenance["dataset"] = dataset.source
    with h5py.File(path, "r", rdcc_nbytes=_BLOCK) as file:
        maps = file["feature_map"]
        example = averaged(to_ndhw(maps[:1], layout), pool)
        _, channels, height, width = example.shape
        if channels < height * width and channels < 64:
            _log.warning(
                "%d channels on %dx%d regions: is --layout %s right? feature_map is %s",
                channels, height, width, layout, maps.shape,
            )  # fmt: skip
        block = _rows_at_once(maps)
        tokens = file.get("global")  # class tokens beside the maps
        width = 0 if tokens is None else tokens.shape[1]
        content = _Foreign(metadata, provenance, beside.get("w2v_att"))
        with Writer(final, content, example.shape[1:], store, width) as writer:
            for start in tqdm(range(0, len(maps), block), unit="block", desc=final.name):
                rows = np.arange(start, min(start + block, len(maps)))
                if writer.done[rows].all():
                    continue
                try:
                    values = maps[start : start + block]
                    some = None if tokens is None else tokens[start : start + block]
                except Exception as error:  # filters raise nearly anything
                    raise UserError(f"{path}: the rows from {start} on are damaged ({error}); get it again") from error
                writer.write(rows, averaged(to_ndhw(values, layout), pool), some)
            writer.finish()
    try:
        with FeatureFile(final) as made:
            _log.info("%s: %s images, channels, regions", final, made.shape)
    except UserError:
        final.unlink()
        raise
    return final


def read_beside(path: str) -> dict[str, Any]:
    """Everything in a feature file but the features: arrays by name, and its attributes under "attributes".

    Raises:
        UserError: no feature file, or a damaged one.
    """
    try:
        with h5py.File(path, "r") as file:
            if missing := [key for key in _REQUIRED if key not in file]:
                raise UserError(f"{path} lacks {', '.join(missing)}: not a feature file")
            found: dict[str, Any] = {}
            for key in (*_REQUIRED, *_OPTIONAL, "global"):
                if key in file:
                    check_stored(file, key)
                    if key not in ROWS:
                        found[key] = _plain_array(file[key])
            axes = {"att": 2, "original_att": 2, "w2v_att": 2, "allclasses_names": None, "image_files": None}
            for key, values in found.items():
                wanted = axes.get(key, 1)
                if wanted and (isinstance(values, list) or values.ndim != wanted):
                    raise UserError(f"{path}: {key} is not what feature files hold, {wanted} axes of numbers")
                if not wanted and not isinstance(values, list):
                    raise UserError(f"{path}: {key} holds numbers, not names")
            if file["feature_map"].dtype.kind != "f" or 0 in file["feature_map"].shape:
                raise UserError(f"{path}: feature_map is {file['feature_map'].shape} {file['feature_map'].dtype}")
            if len(found["labels"]) != file["feature_map"].shape[0]:
                raise UserError(
                    f"{path}: {len(found['labels'])} labels, but feature_map is {file['feature_map'].shape}; its first "
                    "axis must be the images"
                )
            if "global" in file:
                tokens, n = file["global"], len(found["labels"])
                if tokens.ndim != 2 or tokens.dtype.kind != "f" or len(tokens) != n or not tokens.shape[1]:
                    raise UserError(f"{path}: global is {tokens.shape} {tokens.dtype}; floats of ({n},G) are needed")
            values = {k: plain(v) for k, v in file.attrs.items()}
            found["attributes"] = {k: v for k, v in values.items() if isinstance(v, (str, int))}
            return found
    except UserError:
        raise
    except Exception as error:  # a damaged file raises nearly anything
        raise UserError(f"{path} is damaged or not a feature file ({type(error).__name__}: {error})") from error


def _plain_array(dataset: h5py.Dataset) -> Any:
    """Numbers as an array, text as a list of str."""
    values = dataset[()]
    if values.dtype.kind in "fiu":
        return values if dataset.name.endswith("att") else values.ravel()
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values.ravel()]


def _metadata(path: Path, beside: dict[str, Any], dataset: DataSet | None, root: Path) -> Metadata:
    if dataset is not None:
        metadata = read_metadata(root, dataset)
        if not np.array_equal(metadata.labels, beside["labels"]):
            raise UserError(f"{path}: its labels are not those of {dataset.source} under {root}; leave out --dataset")
        return metadata
    empty = np.empty(0, np.int64)
    return Metadata(
        name=str(beside["attributes"].get("dataset", path.stem)),
        image_files=beside.get("image_files", []),
        labels=beside["labels"].astype(np.int64),
        class_names=beside.get("allclasses_names", []),
        att=beside["att"],
        original_att=beside.get("original_att", beside["att"]),
        **{key: beside[key].astype(np.int64) for key in ("trainval_loc", "test_seen_loc", "test_unseen_loc")},
        **{key: beside.get(key, empty).astype(np.int64) for key in ("train_loc", "val_loc")},
        split_sha256=str(beside["attributes"].get("split_sha256", "unknown")),
    )


def _rows_at_once(maps: h5py.Dataset) -> int:
    """Rows to read at once: whole chunks, for a chunk is decompressed whole."""
    row_bytes = math.prod(maps.shape[1:]) * maps.dtype.itemsize
    chunk = maps.chunks[0] if maps.chunks else 1
    if chunk * row_bytes > _LARGEST_BLOCK:
        return max(1, _LARGEST_BLOCK // row_bytes)
    return int(max(1, _BLOCK // (row_bytes * chunk)) * chunk)
