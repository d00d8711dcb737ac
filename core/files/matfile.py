"""MATLAB 5 files (.mat, up to -v7): numbers, text and cells of them, read so that no file can ask for too much.

scipy reads these files too, but sets aside whatever sizes a file names. Here every size is held against the bytes that
are really there, other variables (res101.mat's features, hundreds of MB) are passed over, and nothing else is decoded.
Format: MathWorks, "MAT-File Format", level 5.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from core.files.errors import UserError

VARIABLE_LIMIT = 64 << 20  # bytes of one variable; CUB's list of images takes 3 MB
_MATRIX, _COMPRESSED = 14, 15
_CELL, _CHAR = 1, 4
_NUMERIC = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}  # by class
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}  # by type
_TEXT = {1: "latin1", 2: "latin1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_DEPTH = 4  # cells within cells


def read_mat(path: Path | str, wanted: Collection[str] | None = None) -> dict[str, Any]:
    """The named variables that the file has (None: all it can): numeric arrays, str, or object arrays (cells) of these.

    Char matrices of several rows become an array of str.

    Raises:
        UserError: missing, not a MATLAB 5 file, damaged, or larger than any of these data sets needs; names the file.
    """
    path = Path(path)
    try:
        with open(path, "rb") as handle:
            return _read(handle, wanted)
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except (OSError, ValueError, IndexError, KeyError, struct.error, zlib.error) as error:
        raise UserError(f"{path} is not a readable MATLAB file ({type(error).__name__}: {error})") from error


def _read(handle: BinaryIO, wanted: Collection[str] | None) -> dict[str, Any]:
    header = handle.read(128)
    if header[126:128] not in (b"IM", b"MI") or len(header) < 128:
        raise ValueError("no MATLAB 5 header; save it with -v7 in MATLAB")
    order = "<" if header[126:128] == b"IM" else ">"
    if struct.unpack_from(order + "H", header, 124)[0] != 0x0100:
        raise ValueError("a -v7.3 file; save it with -v7 in MATLAB")
    end = os.fstat(handle.fileno()).st_size
    found: dict[str, Any] = {}
    while tag := handle.read(8):
        kind, size = struct.unpack(order + "II", tag)
        after = handle.tell() + size
        if kind not in (_MATRIX, _COMPRESSED) or after > end:
            raise ValueError(f"an element of type {kind} that ends at byte {after} of {end}")
        reader = _Inflated(handle, size) if kind == _COMPRESSED else _Plain(handle, size)
        body = reader.read(1024)
        if kind == _COMPRESSED:  # its own tag comes first
            inner, size = struct.unpack_from(order + "II", body)
            if inner != _MATRIX:
                raise ValueError(f"a compressed element of type {inner}")
            body = body[8:]
        name = _Element(body, order).head()[2]
        if wanted is None or name in wanted:
            if name in found:
                raise ValueError(f"two variables {name!r}")
            if size > VARIABLE_LIMIT:
                raise ValueError(f"{name} has {size} bytes; none of these data sets needs more than {VARIABLE_LIMIT}")
            body += reader.read(size - len(body))
            if len(body) < size:
                raise ValueError(f"{name} is cut short")
            if isinstance(reader, _Inflated):
                reader.finish()
            found[name] = _Element(body[:size], order).matrix()
        handle.seek(after)
    return found


class _Plain:
    """The bytes of one element."""

    def __init__(self, handle: BinaryIO, size: int) -> None:
        self._handle, self._left = handle, size

    def read(self, n: int) -> bytes:
        """At most ``n`` bytes more."""
        data = self._handle.read(max(0, min(n, self._left)))
        self._left -= len(data)
        return data


class _Inflated:
    """The decompressed bytes of one element, never more than asked for."""

    def __init__(self, handle: BinaryIO, size: int) -> None:
        self._source, self._zlib = _Plain(handle, size), zlib.decompressobj()

    def read(self, n: int) -> bytes:
        """At most ``n`` bytes more."""
        parts: list[bytes] = []
        while n > 0 and not self._zlib.eof:
            packed = self._zlib.unconsumed_tail or self._source.read(1 << 16)
            if not packed:
                break
            parts.append(self._zlib.decompress(packed, n))
            n -= len(parts[-1])
        return b"".join(parts)

    def finish(self) -> None:
        """Read to the end, where zlib compares its checksum."""
        if self.read(1) or not self._zlib.eof:
            raise ValueError("a compressed variable does not end where it should")


class _Element:
    """Reads the parts of one matrix from its bytes."""

    def __init__(self, data: bytes, order: str, depth: int = 0) -> None:
        self._data, self._order, self._at, self._depth = data, order, 0, depth

    def _next(self) -> tuple[int, bytes]:
        """Type and bytes of the next part."""
        kind, size = struct.unpack_from(self._order + "II", self._data, self._at)
        if kind >> 16:  # short form: type, size and up to four bytes in one word
            kind, size, start = kind & 0xFFFF, kind >> 16, self._at + 4
            if size > 4:
                raise ValueError("a short part of more than four bytes")
            self._at += 8
        else:
            start = self._at + 8
            self._at = start + size + -size % 8
        if start + size > len(self._data):
            raise ValueError("a part that is longer than its variable")
        return kind, self._data[start : start + size]

    def head(self) -> tuple[int, list[int], str]:
        """Flags, dimensions and name."""
        kind, flags = self._next()
        dims_kind, dims = self._next()
        if kind != 6 or len(flags) != 8 or dims_kind != 5 or len(dims) % 4 or not 8 <= len(dims) <= 32:
            raise ValueError("a variable without flags or dimensions")
        shape = list(struct.unpack(f"{self._order}{len(dims) // 4}i", dims))
        if min(shape) < 0:
            raise ValueError(f"dimensions {shape}")
        return struct.unpack_from(self._order + "I", flags)[0], shape, self._next()[1].decode("latin1")

    def matrix(self) -> Any:
        """The variable as numpy has it."""
        flags, shape, name = self.head()
        kind, count = flags & 0xFF, math.prod(shape)
        if kind == _CELL:
            if self._depth == _DEPTH or count > len(self._data) // 8:  # a cell takes 8 bytes at the least
                raise ValueError(f"{name}: {count} cells in {len(self._data)} bytes")
            cells = np.empty(count, dtype=object)
            for i in range(count):
                inner, body = self._next()
                if inner != _MATRIX:
                    raise ValueError(f"{name}: a cell of type {inner}")
                cells[i] = _Element(body, self._order, self._depth + 1).matrix() if body else np.empty((0, 0))
            return cells.reshape(shape, order="F")
        stored, body = self._next()
        if kind == _CHAR:
            return _text(stored, body, shape, self._order)
        if kind not in _NUMERIC or stored not in _STORED or flags & 0x0800:
            raise ValueError(f"{name} is neither real numbers nor text nor a cell")
        values = np.frombuffer(body, np.dtype(self._order + _STORED[stored]))
        if len(values) != count:
            raise ValueError(f"{name}: {len(values)} numbers for the shape {shape}")
        return values.reshape(shape, order="F").astype(_NUMERIC[kind])


def _text(stored: int, body: bytes, shape: list[int], order: str) -> Any:
    """One row: a str. Several: an array of str."""
    coding = _TEXT[stored]
    if coding in ("utf-16", "utf-32"):
        coding += "-le" if order == "<" else "-be"
    text = body.decode(coding)
    rows = shape[0] if len(shape) == 2 else 1
    if rows <= 1:
        return text
    if len(text) != math.prod(shape):
        raise ValueError(f"{len(text)} letters for the shape {shape}")
    return np.array([text[row::rows] for row in range(rows)])
