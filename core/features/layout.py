"""Where the bytes of a feature file lie, and what vouches for them: what its reader and its writer must agree on.

Format 3 is a header of 512 bytes (HDF5's user block, which HDF5 programs pass over and leave as it is) and HDF5 data in
which the rows of feature_map stand one behind another. The crc32 of each row stands in the dataset row_crc32; a SHA-256
in the header is of every other byte. The bytes follow from the content alone: no times, no process numbers.

Class tokens, where they were asked for, are the rows of global, their crc32 in global_crc32. The SHA-256 is of them
too; a run that is resumed goes by the crc32.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from core.files.errors import UserError

FORMAT_VERSION = 3  # 2: one chunk with a fletcher32 a row; 0: DAZLE's
HEADER_BYTES = 512
DIGEST = (32, 64)  # bytes of the header that hold the SHA-256
_HEADER = struct.Struct("<8sQQQ32s")  # magic, offset of row 0, rows, bytes of a row, SHA-256
_MAGIC = b"VSMRFEAT"
_BESIDE = 256 << 20  # bytes of any dataset beside the features; CUB's longest is 2 MB
ROWS = {"feature_map": "row_crc32", "global": "global_crc32"}  # datasets of one row an image, and their checksums
_FILTERS = {1, 2, 3, 32000}  # gzip, shuffle, fletcher32, lzf: others may be plug-ins, which are code


@dataclass(frozen=True)
class Header:
    """What the first bytes of a finished file say."""

    base: int  # byte offset of row 0
    rows: int
    row_bytes: int
    sha256: bytes = bytes(32)  # of every byte of the file but the rows and itself

    def row_offset(self, row: int) -> int:
        """Byte offset of a row."""
        return self.base + row * self.row_bytes

    @property
    def span(self) -> tuple[int, int]:
        """Byte offsets where the rows begin and end."""
        return self.base, self.row_offset(self.rows)

    def pack(self) -> bytes:
        return _HEADER.pack(_MAGIC, self.base, self.rows, self.row_bytes, self.sha256)


@dataclass(frozen=True)
class RowPlace:
    """Where the rows of one of ROWS lie in a file, and their checksums."""

    base: int  # byte offset of row 0
    rows: int
    row_bytes: int
    crcs: int  # byte offset of row 0's crc32

    @property
    def spans(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Byte offsets where rows and checksums begin and end."""
        return (self.base, self.base + self.rows * self.row_bytes), (self.crcs, self.crcs + 4 * self.rows)


def row_places(file: h5py.File) -> dict[str, RowPlace]:
    """That of feature_map, and of global where a file has it."""
    found = {}
    for key, crcs in ROWS.items():
        if key in file:
            rows, *shape = file[key].shape
            size = math.prod(shape) * file[key].dtype.itemsize
            found[key] = RowPlace(file[key].id.get_offset(), rows, size, file[crcs].id.get_offset())
    return found


def read_header(descriptor: int) -> Header | None:
    """The header, not yet compared; None where there is none (unfinished files, older formats)."""
    start = os.pread(descriptor, _HEADER.size, 0)
    if len(start) < _HEADER.size or not start.startswith(_MAGIC):
        return None
    return Header(*_HEADER.unpack(start)[1:])


def sha256_outside(descriptor: int, *skipped: tuple[int, int]) -> bytes:
    """SHA-256 of a file's bytes outside the skipped spans (start, stop).

    Raises:
        ValueError: the spans overlap or lie outside the file.
    """
    digest, at, size = hashlib.sha256(), 0, os.fstat(descriptor).st_size
    for start, stop in (*sorted(skipped), (size, size)):
        if not at <= start <= stop <= size:
            raise ValueError("it is cut short, or its header is damaged")
        while at < start:
            piece = os.pread(descriptor, min(start - at, 1 << 20), at)
            if not piece:
                raise ValueError("it is cut short")
            digest.update(piece)
            at += len(piece)
        at = stop
    return digest.digest()


def wrong_maps(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    """What a feature_map is that holds no maps of real numbers, and what it should be; "" for one that does."""
    if len(shape) not in (2, 3, 4) or 0 in shape:
        return f"{shape}; (N,D,h,w) is needed: images, channels, rows and columns of the grid"
    if len(shape) == 2:
        return f"{shape}, without regions; features of whole images are stored as (N,D,1,1): maps[:, :, None, None]"
    return "" if dtype.kind == "f" else f"of {dtype}; floating-point numbers are needed: maps.astype('float32')"


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


def check_stored(file: h5py.File, key: str) -> None:
    """Refuse datasets whose values lie elsewhere, are not there, need a plug-in, or are of absurd size."""
    if not isinstance(file.get(key, getlink=True), h5py.HardLink) or not isinstance(file[key], h5py.Dataset):
        raise ValueError(f"{key} is not a dataset of this file")
    dataset = file[key]
    plan, size = dataset.id.get_create_plist(), math.prod(dataset.shape or (0,)) * dataset.dtype.itemsize
    if dataset.is_virtual or plan.get_external_count():
        raise ValueError(f"the values of {key} lie in another file")
    if filters := {plan.get_filter(i)[0] for i in range(plan.get_nfilters())} - _FILTERS:
        raise ValueError(f"{key} is stored with the unknown filters {sorted(filters)}; repack it: h5repack -f NONE")
    if key not in ROWS and size > _BESIDE:
        raise ValueError(f"{key} has {size} bytes, more than {_BESIDE}")
    if dataset.chunks is None:
        stored = dataset.id.get_storage_size() >= size  # text takes more there than in memory
    else:
        if math.prod(dataset.chunks) * dataset.dtype.itemsize > _BESIDE:
            raise ValueError(f"the chunks of {key} are of {dataset.chunks}, too much for the memory")
        chunks = math.prod(-(-n // c) for n, c in zip(dataset.shape, dataset.chunks, strict=True))
        stored = dataset.id.get_num_chunks() == chunks
    if not stored:  # HDF5 would fill the gaps with zeros
        raise ValueError(f"{key} is not all there")


def matrix(file: h5py.File, key: str) -> np.ndarray:
    """A dataset as a float32 matrix."""
    values = file[key][()]
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        raise UserError(f"{file.filename}: {key} is {values.shape} of {values.dtype}; a matrix of numbers is needed")
    with np.errstate(over="ignore"):  # to infinity, which is refused
        return values.astype(np.float32)


def class_tokens(file: h5py.File, rows: int) -> np.ndarray | None:
    """The dataset global, (N,G) in its stored type, every row compared with its checksum; None where there is none.

    Raises:
        ValueError: no floats of one row an image, a damaged row, NaN or infinity.
    """
    if "global" not in file:
        return None
    tokens: np.ndarray = file["global"][()]
    if tokens.ndim != 2 or tokens.dtype.kind != "f" or len(tokens) != rows:
        raise ValueError(f"global is {tokens.shape} of {tokens.dtype}; floats of ({rows},G) are needed")
    if ROWS["global"] in file:  # files from elsewhere have no checksums
        for row, crc in enumerate(file[ROWS["global"]][()].tolist()):
            if zlib.crc32(tokens[row].tobytes()) != crc:
                raise ValueError(f"the class token of row {row} is damaged (checksum)")
    if (bad := first_not_finite(tokens)) is not None:
        raise ValueError(f"the class token of row {bad} holds NaN or infinity")
    return tokens


def whole_numbers(file: h5py.File, key: str) -> np.ndarray:
    """A dataset as a list of int64."""
    values = file[key][()]
    if values.dtype.kind not in "fiu" or not (np.abs(values) < 2**53).all() or (values % 1 != 0).any():
        raise UserError(f"{file.filename}: {key} is {values.shape} of {values.dtype}; whole numbers are needed")
    return values.ravel().astype(np.int64)


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


def plain(value: Any) -> Any:
    """An HDF5 attribute as a plain Python value."""
    if isinstance(value, bytes):
        return value.decode()
    return value.item() if isinstance(value, (np.generic, np.ndarray)) and value.size == 1 else value
