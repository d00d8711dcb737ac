"""What a feature file holds: its datasets, the axes of its features, what decides them, and a digest of all of it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from core.datasets.metadata import Metadata
from core.files.errors import UserError, differences
from core.files.hdf5 import plain

FORMAT_VERSION = 4
# what a file says that decides no feature: another run may go on with it though it would say something else
RECORDED = {
    "weights", "pretraining_saw_unseen", "batch_size", "device", "torch_version", "word_vectors", "notes",
    "format_version", "sha256", "complete",
}  # fmt: skip
_OPTIONAL = ("image_files", "allclasses_names", "train_loc", "val_loc")  # left out where they are empty
_ROW = 64 << 20  # bytes of one image's features; ResNet-101's have 200 kB


@dataclass(frozen=True)
class FeatureFileMetadata:
    """Everything in a feature file but the features themselves."""

    metadata: Metadata
    provenance: Mapping[str, str | int]  # attributes of the root
    w2v: np.ndarray | None = None  # (K,V) float32
    class_text: np.ndarray | None = None  # (C,2,E) float32

    def arrays(self) -> dict[str, np.ndarray]:
        """Every dataset but the features and their checksums; text as objects."""
        m = self.metadata
        integers = ("labels", "trainval_loc", "test_seen_loc", "test_unseen_loc", "train_loc", "val_loc")
        arrays = {key: np.asarray(getattr(m, key)).astype("<i8") for key in integers}
        arrays |= {key: getattr(m, key).astype("<f4") for key in ("att", "original_att")}
        arrays |= {"image_files": np.array(m.image_files, dtype=object)}
        arrays |= {"allclasses_names": np.array(m.class_names, dtype=object)}
        arrays |= {} if self.w2v is None else {"w2v_att": self.w2v.astype("<f4")}
        arrays |= {} if self.class_text is None else {"class_text": self.class_text.astype("<f4")}
        return {key: values for key, values in arrays.items() if len(values) or key not in _OPTIONAL}


def store(file: h5py.File, attributes: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write all but the features into an HDF5 file."""
    for name, value in attributes.items():
        if name not in ("sha256", "complete"):
            file.attrs[name] = value
    file.attrs["format_version"] = FORMAT_VERSION
    for key, values in arrays.items():
        file.create_dataset(key, data=values, dtype=h5py.string_dtype() if values.dtype == object else None)


def held(file: h5py.File) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Attributes and arrays of a file, but its features and what vouches for them."""
    attributes = {k: plain(v) for k, v in file.attrs.items()}
    keys = [key for key in file if key not in ("feature_map", "row_crc32")]
    return attributes, {k: file[k].asstr()[()] if h5py.check_string_dtype(file[k].dtype) else file[k][()] for k in keys}


def difference(
    there: tuple[Mapping[str, Any], Mapping[str, np.ndarray]], now: tuple[Mapping[str, Any], Mapping[str, np.ndarray]]
) -> str:
    """In what features of these attributes and arrays are of another extraction; empty if in nothing."""
    a, b = ({k: v for k, v in attributes.items() if k not in RECORDED} for attributes, _ in (there, now))
    found = differences(a, b)
    for key in sorted({*there[1], *now[1]} - {"w2v_att"}):
        if key not in there[1] or key not in now[1] or not np.array_equal(there[1][key], now[1][key]):
            found.append(f"{key} is not the same")
    return "; ".join(found)


def content_digest(file: h5py.File) -> str:
    """SHA-256 of all of a file of format 4 but its rows, whose crc32 stand for them."""
    attributes = {k: plain(v) for k, v in file.attrs.items() if k != "sha256"}
    digest = hashlib.sha256(json.dumps(attributes, sort_keys=True, default=str).encode())
    for key in sorted(file):
        data = file[key]
        digest.update(f"{key} {data.shape} {data.dtype.str}".encode())
        if key == "feature_map":
            continue
        if h5py.check_string_dtype(data.dtype):
            digest.update(json.dumps(data.asstr()[()].tolist()).encode())
        else:
            digest.update(data[()].tobytes())
    return digest.hexdigest()


def first_not_finite(values: np.ndarray) -> int | None:
    """Index of the first row with NaN or infinity."""
    if not values.size:
        return None
    flat = np.ascontiguousarray(values).reshape(len(values), -1)
    if values.dtype == np.float16:
        bad = (flat.view(np.uint16) & 0x7FFF).max(axis=1) >= 0x7C00
    else:
        bad = ~np.isfinite(flat).all(axis=1)
    return int(bad.argmax()) if bad.any() else None


def check_maps(shape: tuple[int, ...], dtype: np.dtype[Any], path: Path) -> None:
    """Refuse a feature_map that cannot be (N,D,h,w) or (N,D,R) of real numbers; nothing is guessed."""
    wrong = ""
    if len(shape) not in (2, 3, 4) or 0 in shape:
        wrong = f"{shape}; (N,D,h,w) is needed: images, channels, rows and columns of the grid"
    elif len(shape) == 2:
        wrong = f"{shape}, without regions; features of whole images are stored as (N,D,1,1): maps[:, :, None, None]"
    elif dtype.kind != "f":
        wrong = f"of {dtype}; floating-point numbers are needed: maps.astype('float32')"
    elif (row_bytes := math.prod(shape[1:]) * dtype.itemsize) > _ROW:
        wrong = f"{shape}: {row_bytes} bytes of features an image, more than {_ROW}"
    if wrong:
        raise UserError(f"{path}: feature_map is {wrong}")
    try:
        check_axes(shape)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def check_axes(shape: tuple[int, ...]) -> None:
    """Refuse a feature_map that cannot be (N,D,h,w) or (N,D,R); nothing is guessed.

    (N,D,h,w): the grid is square, or D is the longest of the three. (N,D,R): D >= R, or else R is a square number and
    D is none, nor one more (a class token).

    Raises:
        ValueError: says which transposition would mend it.
    """
    sides = shape[1:]
    if len(sides) == 3:
        wrong = sides[1] != sides[2] and sides[0] <= max(sides[1:])
    else:
        wrong = sides[0] < sides[1] and (not _is_square(sides[1]) or _is_square(sides[0]) or _is_square(sides[0] - 1))
    if wrong:
        # two equal sides are the grid, what is left is D; else the longest is D
        alone = [i for i in range(3) if len(sides) == 3 and sides.count(sides[i]) == 1]
        d = alone[0] if len(alone) == 1 else int(np.argmax(sides))
        order = (0, d + 1, *(i + 1 for i in range(len(sides)) if i != d))
        other = " (of maps[:, 1:] where region 0 is a class token), or stored as (N,D,h,w)" if len(sides) == 2 else ""
        raise ValueError(
            f"feature_map is {shape}, which cannot be (N,D,h,w): images, channels, rows and columns of the grid. "
            f"It would be as np.transpose(maps, {order}){other}"
        )


def _is_square(n: int) -> bool:
    return math.isqrt(n) ** 2 == n
