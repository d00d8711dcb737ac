"""What a feature file holds: its datasets, the axes of its features, what decides them, and a digest of all of it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from core.datasets.metadata import SPLITS, Metadata
from core.files.errors import UserError, differences
from core.files.hdf5 import matrix, names, open_hdf5, plain, whole_numbers

FORMAT_VERSION = 4
# what a file says that decides no feature: another run may go on with it though it would say something else
RECORDED = {
    "weights", "pretraining_saw_unseen", "batch_size", "device", "torch_version", "word_vectors", "notes",
    "format_version", "sha256", "complete",
}  # fmt: skip
_OPTIONAL = ("image_files", "allclasses_names", "train_loc", "val_loc")  # left out where they are empty
_HEADER_3 = struct.Struct("<8sQQQ32s")  # of format 3: magic, offset of row 0, rows, bytes of a row, SHA-256
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


def metadata_of(file: h5py.File, provenance: Mapping[str, Any], path: Path) -> Metadata:
    """Labels, attributes and splits as they are in a file of any format, checked.

    Raises:
        UserError: they cannot be, or do not belong together.
    """
    att = matrix(file, "att")
    keys = (*SPLITS, "train_loc", "val_loc")
    positions = {key: np.sort(whole_numbers(file, key)) if key in file else np.empty(0, np.int64) for key in keys}
    labels, images = whole_numbers(file, "labels"), file["feature_map"].shape[0]
    if len(labels) != images:
        raise UserError(f"{path}: {len(labels)} labels for {images} feature maps")
    if "w2v_att" in file:
        w2v = matrix(file, "w2v_att")
        if len(w2v) != att.shape[1] or not np.isfinite(w2v).all():
            of = f"is of {len(w2v)} attributes, att of {att.shape[1]}"
            raise UserError(f"{path}: w2v_att {of}, or holds NaN or infinity")
    m = Metadata(
        name=str(provenance.get("dataset", "unknown")),
        image_files=names(file, "image_files") or [],
        labels=labels,
        class_names=names(file, "allclasses_names") or [f"class {c}" for c in range(len(att))],
        att=att,
        original_att=matrix(file, "original_att") if "original_att" in file else att,
        split_sha256=str(provenance.get("split_sha256", "unknown")),
        notes=[str(provenance["notes"])] if provenance.get("notes") else [],
        attribute_names=[],
        allow_candidates=False,
        **positions,  # type: ignore[arg-type]
    )
    m.check(str(path))
    return m


@dataclass(frozen=True)
class Part:
    """Rows of a feature file in the making."""

    path: Path
    rows: range

    @property
    def beside(self) -> Path:
        """The file with all but the rows."""
        return self.path.with_suffix(".beside")

    @cached_property
    def stored(self) -> np.memmap:
        """(n,) records of crc32 and maps (D,h,w).

        Raises:
            UserError: damaged beyond its rows.
        """
        try:
            stored = np.load(self.path, mmap_mode="r")
            if stored.shape != (len(self.rows),) or stored.dtype.names != ("crc32", "maps"):
                raise ValueError("it holds other rows than its name says")
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{self.path} is damaged ({error}); delete it and run what made it again") from error
        return stored

    def content(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Attributes and arrays beside the rows.

        Raises:
            UserError: they are missing or damaged.
        """
        try:
            with open_hdf5(self.beside) as file:
                return held(file)
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise UserError(f"{self.beside} is missing or damaged ({error}); delete {self.path}, run again") from error

    def row(self, row: int) -> bytes | None:
        """The map of a row of the data set; None where it is not here, or does not fit its crc32."""
        if row not in self.rows:
            return None
        record = self.stored[row - self.rows.start]
        data: bytes = record["maps"].tobytes()
        return data if record["crc32"] and zlib.crc32(data) == record["crc32"] else None


def parts_of(final: Path) -> list[Part]:
    """The parts of a feature file in the making."""
    form = re.compile(re.escape(final.name) + r"\.rows-(\d+)-(\d+)\.npy")
    matches = [(path, form.fullmatch(path.name)) for path in sorted(final.parent.glob("*.npy"))]
    parts = [Part(path, range(int(m[1]), int(m[2]))) for path, m in matches if m]
    return sorted(parts, key=lambda part: (part.rows.start, part.rows.stop))


def digest_of_format_3(descriptor: int) -> str | None:
    """The SHA-256 of a file of format 3, compared with its bytes outside the rows; None of any other file."""
    start = os.pread(descriptor, _HEADER_3.size, 0)
    if len(start) < _HEADER_3.size or not start.startswith(b"VSMRFEAT"):
        return None
    _, base, rows, row_bytes, sha256 = _HEADER_3.unpack(start)
    digest, at, size = hashlib.sha256(), 0, os.fstat(descriptor).st_size
    for skip_from, skip_to in ((32, 64), (base, base + rows * row_bytes), (size, size)):
        if not at <= skip_from <= skip_to <= size:
            raise ValueError("it is cut short, or its header is damaged")
        while at < skip_from:
            piece = os.pread(descriptor, min(skip_from - at, 1 << 20), at)
            if not piece:
                raise ValueError("it is cut short")
            digest.update(piece)
            at += len(piece)
        at = skip_to
    if digest.digest() != sha256:
        raise ValueError("its checksum does not match")
    return digest.hexdigest()


def store(file: h5py.File, attributes: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write all but the features into an HDF5 file.

    Text has a fixed length: HDF5 keeps that of any length in a heap without checksums, and hangs on a damaged one.
    """
    for name, value in attributes.items():
        if name not in ("sha256", "complete"):
            file.attrs[name] = text_array([value]).reshape(()) if isinstance(value, str) else value
    file.attrs["format_version"] = FORMAT_VERSION
    for key, values in arrays.items():
        file.create_dataset(key, data=text_array(values.tolist()) if values.dtype == object else values)


def text_array(values: Sequence[str]) -> np.ndarray:
    """Text as UTF-8 bytes of one length."""
    encoded = [value.encode("utf-8", "surrogateescape") for value in values]
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", max(1, *map(len, encoded))))


def held(file: h5py.File) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Attributes and arrays of a file, but its features and what vouches for them."""
    attributes = {k: plain(v) for k, v in file.attrs.items()}
    keys = [key for key in file if key not in ("feature_map", "row_crc32")]
    text = {k: np.array(names(file, k), dtype=object) for k in keys if h5py.check_string_dtype(file[k].dtype)}
    return attributes, {k: text[k] if k in text else file[k][()] for k in keys}


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
        if key != "feature_map":
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
