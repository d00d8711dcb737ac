"""Where the bytes of a feature file lie, and what vouches for them: what its reader and its writer must agree on.

Every byte of a finished file is covered: rows by their fletcher32, all else by a SHA-256 in a seal behind the HDF5 data
(HDF5 programs do not see it).
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

FORMAT_VERSION = 2  # 2: sealed
CHECKSUM_BYTES = 4
_SEAL = struct.Struct("<8sQQQ32s")  # magic, end of the HDF5 data, rows, bytes of a row, SHA-256; before it: the offsets
_MAGIC = b"VSMRSEAL"
_BESIDE = 256 << 20  # bytes of any dataset beside the features; CUB's longest is 2 MB
_FILTERS = {1, 2, 3, 32000}  # gzip, shuffle, fletcher32, lzf: others may be plug-ins, which are code
_EXACT_WORDS = 400_000  # above this many 16-bit words the weighted sum may pass 2**53


def fletcher32(data: np.ndarray) -> int:
    """HDF5's fletcher32 of an array's bytes (their number must be even).

    HDF5 reads big-endian 16-bit words. Modulo 65535 swapping the bytes of a word is multiplying it by 256, so the sums
    are taken over the words as they lie in memory. A sum that is not zero but divisible by 65535 is kept as 65535.
    """
    words = np.ascontiguousarray(data).reshape(-1).view(np.uint8).view("<u2")
    n = len(words)
    if n <= _EXACT_WORDS:
        sums = _weights(n) @ words.astype(np.float64)  # exact: below 2**53
        first, second = int(sums[0]), int(sums[1])
    else:
        first = int(words.sum(dtype=np.int64))
        second = int(np.dot(words.astype(np.int64), np.arange(n, 0, -1, dtype=np.int64)))
    low, high = ((s * 256) % 65535 or (65535 if s else 0) for s in (first, second))
    return (high << 16) | low


def word_sum(data: np.ndarray) -> np.uint64:
    """Sum modulo 2**64 of a contiguous array's bytes as words, in a twentieth of fletcher32's time."""
    octets = data.reshape(-1).view(np.uint8)
    return np.uint64(np.add.reduce(octets.view(np.uint64 if len(octets) % 8 == 0 else np.uint16)))


_WEIGHTS: dict[int, np.ndarray] = {}


def _weights(n: int) -> np.ndarray:
    """(2,n): ones, and n, n-1, ..., 1."""
    if n not in _WEIGHTS:
        _WEIGHTS.clear()
        _WEIGHTS[n] = np.stack([np.ones(n), np.arange(n, 0, -1, dtype=np.float64)])
    return _WEIGHTS[n]


@dataclass(frozen=True)
class Seal:
    """What stands behind the HDF5 data of a finished file."""

    end: int  # bytes of the HDF5 data
    offsets: np.ndarray  # (N,) byte offset of each row
    row_bytes: int  # without the checksum
    sha256: bytes  # of every byte of the file outside the rows, but itself and the magic


def read_seal(descriptor: int) -> Seal | None:
    """The seal, not yet compared; None where there is none."""
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, _SEAL.size, max(0, size - _SEAL.size))
    if len(tail) < _SEAL.size or not tail.startswith(_MAGIC):
        return None
    _, end, rows, row_bytes, digest = _SEAL.unpack(tail)
    if end + 8 * rows + _SEAL.size != size:
        raise ValueError("its seal does not fit its length")
    offsets = np.frombuffer(os.pread(descriptor, 8 * rows, end), "<i8").astype(np.int64)
    return Seal(end, offsets, row_bytes, digest)


def seal_sha256(descriptor: int, seal: Seal) -> bytes:
    """SHA-256 of the HDF5 data outside the rows, the offsets and the sizes."""
    digest = hashlib.sha256()
    at, block = 0, seal.row_bytes + CHECKSUM_BYTES
    for offset in [*np.sort(seal.offsets).tolist(), seal.end]:
        if not at <= offset <= seal.end:
            raise ValueError("its seal names rows that overlap or lie outside it")
        while at < offset:
            piece = os.pread(descriptor, min(offset - at, 1 << 20), at)
            if not piece:
                raise ValueError("it is cut short")
            digest.update(piece)
            at += len(piece)
        at += block
    digest.update(seal.offsets.astype("<i8").tobytes())
    digest.update(struct.pack("<QQQ", seal.end, len(seal.offsets), seal.row_bytes))
    return digest.digest()


def pack_seal(descriptor: int, seal: Seal) -> bytes:
    """What a finished file ends with: the offsets, the sizes, and the SHA-256 that the seal itself lacks yet."""
    digest = seal_sha256(descriptor, seal)
    tail = seal.offsets.astype("<i8").tobytes()
    return tail + _SEAL.pack(_MAGIC, seal.end, len(seal.offsets), seal.row_bytes, digest)


def row_offsets(maps: h5py.Dataset) -> np.ndarray | None:
    """(N,) byte offset of each row where every row is one fletcher32-only chunk, else None."""
    if maps.chunks != (1, *maps.shape[1:]) or not maps.fletcher32 or maps.compression or maps.shuffle:
        return None
    if maps.id.get_create_plist().get_nfilters() != 1 or maps.dtype.byteorder == ">":
        return None
    offsets = np.full(maps.shape[0], -1, dtype=np.int64)
    size = math.prod(maps.shape[1:]) * maps.dtype.itemsize + CHECKSUM_BYTES

    def note(info: Any) -> None:
        row = info.chunk_offset[0]
        if info.size == size and info.filter_mask == 0 and 0 <= row < len(offsets):
            offsets[row] = info.byte_offset

    maps.id.chunk_iter(note)
    return offsets if (offsets >= 0).all() and len(np.unique(offsets)) == len(offsets) else None


def check_stored(file: h5py.File, key: str) -> None:
    """Refuse datasets whose values lie elsewhere, are not there, need a plug-in, or are of absurd size."""
    if not isinstance(file.get(key, getlink=True), h5py.HardLink) or not isinstance(file[key], h5py.Dataset):
        raise ValueError(f"{key} is not a dataset of this file")
    dataset = file[key]
    plan, size = dataset.id.get_create_plist(), math.prod(dataset.shape or (0,)) * dataset.dtype.itemsize
    if dataset.is_virtual or plan.get_external_count():
        raise ValueError(f"the values of {key} lie in another file")
    if filters := {plan.get_filter(i)[0] for i in range(plan.get_nfilters())} - _FILTERS:
        raise ValueError(f"{key} is stored with the unknown filters {sorted(filters)}")
    if key != "feature_map" and size > _BESIDE:
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


def first_not_finite(values: np.ndarray) -> int | None:
    """Index of the first row with NaN or infinity."""
    if not values.size:
        return None
    flat = values.reshape(len(values), -1)
    if values.dtype == np.float16:
        bits = np.ascontiguousarray(flat).view(np.uint16)
        bad = ((bits & 0x7FFF) >= 0x7C00).any(axis=1)
    else:
        bad = ~np.isfinite(flat).all(axis=1)
    return int(bad.argmax()) if bad.any() else None


def plain(value: Any) -> Any:
    """An HDF5 attribute as a plain Python value."""
    if isinstance(value, bytes):
        return value.decode()
    return value.item() if isinstance(value, (np.generic, np.ndarray)) and value.size == 1 else value
