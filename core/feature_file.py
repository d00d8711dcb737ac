"""The feature file: region features of a whole data set on disk, written crash-safely and read row by row.

DAZLE's dataset names, so files travel both ways. New files: float16, one image per chunk, fletcher32, no compression.
While it is being made the file is `<final>.partial`. Its HDF5 structure is complete (and its disk space taken) before
the first row is computed; rows are then written in place at their byte offsets, and `<final>.partial.rows` records
which of them are safely on disk. So a process killed at any moment loses at most the rows since the last flush.

Every byte of a finished file is covered: rows by their fletcher32, all else by a SHA-256 in a seal behind the HDF5 data
(HDF5 programs do not see it). The seal is compared before HDF5 parses anything, since the HDF5 library crashes on some
damaged files; a file without one (DAZLE's) is parsed in a child process first.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from core import xlsa17
from core.datasets import CUB50, DataSet
from core.errors import UserError
from core.files import Lock, fsync, fsync_folder, sha256_file
from core.xlsa17 import VALIDATION_SEED, Metadata

FORMAT_VERSION = 2  # 2: sealed
_FLUSH_ROWS = 256  # rows between two fsyncs; what a crash can cost
_RECORD = struct.Struct("<QI")  # row, crc32 of its bytes; followed by the crc32 of these 12 bytes
_RECORD_BYTES = _RECORD.size + 4
_CHECKSUM_BYTES = 4
_OPTIONAL = ("original_att", "w2v_att", "allclasses_names", "image_files", "train_loc", "val_loc")
_REQUIRED = ("feature_map", "labels", "trainval_loc", "test_seen_loc", "test_unseen_loc", "att")
_NOT_WRITTEN = b"\xff" * _CHECKSUM_BYTES  # no checksum of a row of zeros: a row that was lost is noticed
_SEAL = struct.Struct("<8sQQQ32s")  # magic, end of the HDF5 data, rows, bytes of a row, SHA-256; before it: the offsets
_MAGIC = b"VSMRSEAL"
_BESIDE = 256 << 20  # bytes of any dataset beside the features; CUB's longest is 2 MB
_ROW = 64 << 20  # bytes of one image's features; ResNet-101's have 200 kB
_FILTERS = {1, 2, 3, 32000}  # gzip, shuffle, fletcher32, lzf: others may be plug-ins, which are code
_CHILD_MEMORY, _CHILD_SECONDS, _REFUSED = 4 << 30, 60, 65
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


def _read_seal(descriptor: int) -> Seal | None:
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


def _seal_sha256(descriptor: int, seal: Seal) -> bytes:
    """SHA-256 of the HDF5 data outside the rows, the offsets and the sizes."""
    digest = hashlib.sha256()
    at, block = 0, seal.row_bytes + _CHECKSUM_BYTES
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


@dataclass(frozen=True)
class Content:
    """Everything in a feature file but the features themselves."""

    metadata: Metadata
    provenance: Mapping[str, str | int]  # attributes of the root; what a resumed run must agree with
    w2v: np.ndarray | None = None  # (K,V) float32

    def arrays(self) -> dict[str, np.ndarray]:
        """Every dataset but the features; text as objects."""
        m = self.metadata
        integers = ("labels", "trainval_loc", "test_seen_loc", "test_unseen_loc", "train_loc", "val_loc")
        arrays = {key: getattr(m, key).astype(np.int64) for key in integers}
        arrays |= {key: getattr(m, key).astype(np.float32) for key in ("att", "original_att")}
        arrays |= {"image_files": np.array(m.image_files, dtype=object)}
        arrays |= {"allclasses_names": np.array(m.class_names, dtype=object)}
        return arrays | ({} if self.w2v is None else {"w2v_att": self.w2v.astype(np.float32)})


class Writer:
    """Writes rows of a feature file; a context manager that leaves the `.partial` unless :meth:`finish` was called."""

    def __init__(
        self, final: Path | str, content: Content, shape: tuple[int, int, int], dtype: str = "float16"
    ) -> None:
        """Create or resume `<final>.partial`. shape is (D,h,w).

        Raises:
            UserError: another writer is at work, the disk is full, or the partial file was begun with other settings.
        """
        self.final = Path(final)
        self.partial = self.final.with_name(self.final.name + ".partial")
        self.journal = self.final.with_name(self.final.name + ".partial.rows")
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._row_bytes = int(np.prod(shape)) * self.dtype.itemsize
        if self.dtype.name not in ("float16", "float32") or self._row_bytes % 2:
            raise UserError(f"features are stored as float16 or float32, not {dtype}")
        self._pending: list[bytes] = []
        self._data = self._rows = -1
        try:
            self.final.parent.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(self.final)
        except OSError as error:
            raise UserError(f"cannot write {self.final}: {error.strerror}") from error
        try:
            if self.final.exists():
                raise UserError(f"{self.final} exists already; delete it or choose another --out")
            if self.partial.exists():
                _parse_in_child(self.partial, finished=False)
            else:
                self.journal.unlink(missing_ok=True)
                self._create(content)
            self._offsets = self._open(content)
            self._data = os.open(self.partial, os.O_RDWR)
            self.done = self._read_journal()
            self._rows = os.open(self.journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise UserError(f"cannot write {self.partial}: {error.strerror or error}") from error
            raise

    def write(self, rows: np.ndarray, maps: np.ndarray) -> None:
        """Write maps (n,D,h,w) or (n,D,R) at the given rows.

        Raises:
            UserError: values that are not finite in the stored type, or the disk refuses.
        """
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(maps, dtype=self.dtype).reshape(len(rows), -1)
        if stored.shape[1] * self.dtype.itemsize != self._row_bytes:
            raise ValueError(f"maps of shape {maps.shape[1:]} in a file of {self.shape}")
        if (bad := _first_not_finite(stored)) is not None:
            raise UserError(
                f"the features of row {int(rows[bad])} are NaN or too large for {self.dtype.name}: damaged weights, or "
                "run again with --dtype float32 --store float32"
            )
        try:
            for row, values in zip(rows, stored, strict=True):
                data = values.tobytes()
                block = data + struct.pack("<I", fletcher32(values))
                if os.pwrite(self._data, block, self._offsets[row]) != len(block):
                    raise OSError("short write")
                record = _RECORD.pack(int(row), zlib.crc32(data))
                self._pending.append(record + struct.pack("<I", zlib.crc32(record)))
            if len(self._pending) >= _FLUSH_ROWS:
                self._flush()
        except OSError as error:
            raise UserError(f"cannot write {self.partial}: {error.strerror or error}. Rerun to continue.") from error

    def flush(self) -> None:
        """Make the rows written so far durable, then say so in the journal.

        Raises:
            UserError: the disk refuses.
        """
        try:
            self._flush()
        except OSError as error:
            raise UserError(f"cannot write {self.partial}: {error.strerror or error}. Rerun to continue.") from error

    def _flush(self) -> None:
        if not self._pending:
            return
        fsync(self._data)
        records, before = b"".join(self._pending), os.fstat(self._rows).st_size
        if os.write(self._rows, records) != len(records):
            os.ftruncate(self._rows, before)  # a torn record would hide all that follow it
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(self._rows)
        for record in self._pending:
            self.done[_RECORD.unpack(record[: _RECORD.size])[0]] = True
        self._pending.clear()

    def finish(self) -> Path:
        """Mark the file complete, seal it and give it its final name.

        Raises:
            UserError: rows are missing, or the disk refuses.
        """
        try:
            self._flush()
            if missing := int((~self.done).sum()):
                raise UserError(f"{missing} rows of {self.partial} are not there yet; run the extraction again")
            self._unseal()
            with h5py.File(self.partial, "r+") as file:
                file.attrs.modify("complete", True)
            seal = Seal(os.fstat(self._data).st_size, self._offsets, self._row_bytes, b"")
            digest = _seal_sha256(self._data, seal)
            tail = self._offsets.astype("<i8").tobytes()
            tail += _SEAL.pack(_MAGIC, seal.end, len(self._offsets), self._row_bytes, digest)
            if os.pwrite(self._data, tail, seal.end) != len(tail):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(self._data)
            os.replace(self.partial, self.final)
        except OSError as error:
            raise UserError(f"cannot write {self.final}: {error.strerror or error}. Rerun to continue.") from error
        fsync_folder(self.final.parent)
        self.journal.unlink(missing_ok=True)
        return self.final

    def _unseal(self) -> None:
        """Take off the seal of a run that ended between sealing and renaming."""
        with contextlib.suppress(ValueError):
            if seal := _read_seal(self._data):
                os.ftruncate(self._data, seal.end)

    def close(self) -> None:
        """Close without finishing; what was flushed stays for the next run."""
        for descriptor in (self._data, self._rows):
            if descriptor >= 0:
                os.close(descriptor)
        self._data = self._rows = -1
        self._lock.release()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            # what cannot be flushed is done again by the next run
            with contextlib.suppress(OSError):
                self._flush()
        finally:
            self.close()

    def _create(self, content: Content) -> None:
        """Write the whole structure and a zero block for every row, then rename: a partial file is never half made."""
        m = content.metadata
        new = self.final.with_name(self.final.name + ".partial.new")
        zeros = bytes(self._row_bytes) + _NOT_WRITTEN
        text = h5py.string_dtype()
        try:
            with h5py.File(new, "w") as file:
                for key, value in {**content.provenance, "format_version": FORMAT_VERSION}.items():
                    file.attrs[key] = value
                file.attrs["complete"] = False
                maps = file.create_dataset(
                    "feature_map",
                    shape=(len(m.labels), *self.shape),
                    dtype=self.dtype,
                    chunks=(1, *self.shape),
                    fletcher32=True,
                )
                for row in range(len(m.labels)):
                    maps.id.write_direct_chunk((row, 0, 0, 0), zeros)
                for key, values in content.arrays().items():
                    file.create_dataset(key, data=values, dtype=text if values.dtype == object else None)
            with open(new, "rb") as handle:
                fsync(handle.fileno())
            os.replace(new, self.partial)
            fsync_folder(self.partial.parent)
        except (OSError, RuntimeError) as error:
            need = len(zeros) * len(m.labels) / 2**30
            number = getattr(error, "errno", None)  # HDF5's own text is long
            reason = os.strerror(number) if number else error
            raise UserError(
                f"cannot make {self.partial}, which takes {need:.1f} GiB: {reason}. Make room or choose another --out"
            ) from error
        finally:
            new.unlink(missing_ok=True)

    def _open(self, content: Content) -> np.ndarray:
        """Byte offsets of the rows, after comparing the partial file with what this run would make."""
        again = f"delete it (and {self.journal.name}) to start again, or choose another --out"
        try:
            with h5py.File(self.partial, "r") as file:
                found = {k: _plain(v) for k, v in file.attrs.items() if k != "complete"}
                maps = file["feature_map"]
                layout = (maps.shape, maps.dtype)
                other = [key for key, values in content.arrays().items() if not _same(file[key], values)]
                offsets = _row_offsets(maps)
        except Exception as error:  # a damaged file raises nearly anything
            raise UserError(f"{self.partial} is damaged ({error}); {again}") from error
        wanted = {**content.provenance, "format_version": FORMAT_VERSION}
        differs = [
            f"{key}: {found.get(key)!r} there, {wanted.get(key)!r} now"
            for key in sorted({*found, *wanted})
            if found.get(key) != wanted.get(key)
        ]
        if layout != ((len(content.metadata.labels), *self.shape), self.dtype):
            differs.append(f"features: {layout[0]} {layout[1]} there, {self.shape} {self.dtype} now")
        differs += [f"{key} is not the same" for key in other]
        if differs:
            raise UserError(f"{self.partial} was begun with other settings ({'; '.join(differs)}); {again}")
        if offsets is None:
            raise UserError(f"{self.partial} is damaged (its index of rows); {again}")
        return offsets

    def _read_journal(self) -> np.ndarray:
        """(N,) bool: rows the journal names and whose bytes are what it says. A torn tail is cut off."""
        done = np.zeros(len(self._offsets), dtype=bool)
        if not self.journal.exists():
            return done
        content = self.journal.read_bytes()
        latest: dict[int, int] = {}
        good = 0
        for start in range(0, len(content) - _RECORD_BYTES + 1, _RECORD_BYTES):
            record = content[start : start + _RECORD.size]
            if zlib.crc32(record) != struct.unpack_from("<I", content, start + _RECORD.size)[0]:
                break
            row, crc = _RECORD.unpack(record)
            if row < len(done):
                latest[row] = crc
            good = start + _RECORD_BYTES
        if good != len(content):
            os.truncate(self.journal, good)
        for row, crc in latest.items():
            block = os.pread(self._data, self._row_bytes + _CHECKSUM_BYTES, int(self._offsets[row]))
            data = block[: self._row_bytes]
            done[row] = zlib.crc32(data) == crc and block[self._row_bytes :] == struct.pack(
                "<I", fletcher32(np.frombuffer(data, np.uint8))
            )
        return done


class FeatureFile:
    """Reads a finished feature file, new layout or DAZLE's; rows on demand, never the whole array."""

    def __init__(self, path: Path | str) -> None:
        """Open and check everything but the features.

        Raises:
            UserError: missing, unfinished, truncated or damaged file; names file and cause.
        """
        self.path = Path(path)
        self._descriptor = -1
        self._file: h5py.File | None = None
        if not self.path.is_file():
            partial = self.path.with_name(self.path.name + ".partial")
            hint = f" There is an unfinished {partial.name}: run the extraction again." if partial.exists() else ""
            raise UserError(f"no feature file at {self.path}.{hint}")
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY)
            self._seal = _read_seal(self._descriptor)
            if self._seal is None:
                _parse_in_child(self.path)
            elif _seal_sha256(self._descriptor, self._seal) != self._seal.sha256:
                raise ValueError("its checksum does not match")
            # 64 MiB: automatic chunks of the old layout are read many times with HDF5's default cache
            self._file = h5py.File(self.path, "r", rdcc_nbytes=64 << 20)
            self._load(self._file)
        except UserError:
            self.close()
            raise
        except Exception as error:  # a damaged file raises nearly anything
            self.close()
            raise UserError(_damaged(self.path, error)) from error

    def _load(self, file: h5py.File, finished: bool = True) -> None:
        if missing := [key for key in _REQUIRED if key not in file]:
            raise UserError(f"{self.path} lacks {', '.join(missing)}: not a feature file")
        self.provenance: dict[str, Any] = {k: _plain(v) for k, v in file.attrs.items()}
        if finished and not self.provenance.get("complete", True):
            raise UserError(f"{self.path} is not complete; run the extraction again")
        if (version := self.provenance.get("format_version", 0)) > FORMAT_VERSION:
            raise UserError(f"{self.path} has format version {version}, newer than this program's {FORMAT_VERSION}")
        if finished and version >= 2 and self._seal is None:
            raise UserError(f"{self.path} was cut or changed after it was written (no seal); extract it again")
        for key in (*_REQUIRED, *_OPTIONAL):
            if key in file:
                _check_stored(file, key)
        self._maps = file["feature_map"]
        if self._maps.ndim not in (3, 4) or self._maps.dtype.kind != "f" or 0 in self._maps.shape:
            raise UserError(f"{self.path}: feature_map is {self._maps.shape} {self._maps.dtype}, expected (N,D,h,w)")
        n, d, *grid = self._maps.shape
        row_bytes = math.prod((d, *grid)) * self._maps.dtype.itemsize
        if row_bytes > _ROW:
            raise UserError(f"{self.path}: {row_bytes} bytes of features an image, more than {_ROW}")
        self.grid: tuple[int, ...] = tuple(grid)  # (h,w)
        self.shape: tuple[int, int, int] = (n, d, int(np.prod(grid)))  # (N,D,R)
        self.dtype: np.dtype[Any] = self._maps.dtype
        self.labels = _integers(file["labels"][()])  # (N,)
        self.att = np.maximum(_matrix(file["att"][()]), 0.0)  # (C,K)
        self.original_att = _matrix(file["original_att"][()]) if "original_att" in file else self.att
        self.w2v_att = _matrix(file["w2v_att"][()]) if "w2v_att" in file else None  # (K,V)
        self.class_names: list[str] | None = self._names(file, "allclasses_names")
        self.image_files: list[str] | None = self._names(file, "image_files")
        self.locs: dict[str, np.ndarray] = {}
        for key in ("trainval_loc", "test_seen_loc", "test_unseen_loc", "train_loc", "val_loc"):
            if key in file:
                self.locs[key] = np.sort(_integers(file[key][()]))
        self._check()
        self._offsets: np.ndarray | None  # None: rows are read through h5py
        if self._seal is None:
            self._offsets = _row_offsets(self._maps)
        elif len(self._seal.offsets) == n and self._seal.row_bytes == row_bytes:
            self._offsets = self._seal.offsets
        else:
            raise ValueError("its seal is of other features")

    def _names(self, file: h5py.File, key: str) -> list[str] | None:
        if key not in file:
            return None
        values = file[key][()].ravel()
        return [v.decode() if isinstance(v, bytes) else str(v) for v in values]

    def _check(self) -> None:
        n, classes = self.shape[0], len(self.att)
        if len(self.labels) != n:
            raise UserError(f"{self.path}: {len(self.labels)} labels for {n} feature maps")
        if self.labels.min() < 0 or self.labels.max() >= classes:
            raise UserError(f"{self.path}: labels outside 0..{classes - 1}")
        for key, values in (("att", self.att), ("original_att", self.original_att), ("w2v_att", self.w2v_att)):
            if values is not None and not np.isfinite(values).all():
                raise UserError(f"{self.path}: {key} holds NaN or infinity; extract it again")
        if self.original_att.shape != self.att.shape:
            raise UserError(f"{self.path}: original_att is {self.original_att.shape}, att {self.att.shape}")
        if len(zero := np.flatnonzero(~(self.att > 0).any(axis=1))):
            raise UserError(f"{self.path}: no attribute is present in the classes {zero[:5].tolist()} (counted from 0)")
        for key, loc in self.locs.items():
            if len(loc) and (loc[0] < 0 or loc[-1] >= n or len(np.unique(loc)) != len(loc)):
                raise UserError(f"{self.path}: {key} has rows outside 0..{n - 1}, or the same row twice")
        for key, names, count in (
            ("allclasses_names", self.class_names, classes),
            ("image_files", self.image_files, n),
        ):
            if names is not None and len(names) != count:
                raise UserError(f"{self.path}: {len(names)} entries in {key}, expected {count}")
        if self.w2v_att is not None and len(self.w2v_att) != self.att.shape[1]:
            raise UserError(f"{self.path}: w2v_att is of {len(self.w2v_att)} attributes, att of {self.att.shape[1]}")

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Features of the given rows in their order, (n,D,R) in the stored type; rows may repeat.

        Raises:
            UserError: a damaged or truncated chunk, or NaN; names file and row.
        """
        rows = np.asarray(rows, dtype=np.int64).ravel()
        if len(rows) and (rows.min() < 0 or rows.max() >= self.shape[0]):
            raise IndexError(f"rows outside 0..{self.shape[0] - 1}")
        out = self._read_chunks(rows) if self._offsets is not None else self._read_h5py(rows)
        if (bad := _first_not_finite(out)) is not None:
            raise UserError(f"{self.path}: row {rows[bad]}{self._image(rows[bad])} holds NaN or infinity")
        return out

    def _read_chunks(self, rows: np.ndarray) -> np.ndarray:
        assert self._offsets is not None
        out = np.empty((len(rows), *self.shape[1:]), dtype=self.dtype)
        size = self.shape[1] * self.shape[2] * self.dtype.itemsize
        checksum = bytearray(_CHECKSUM_BYTES)
        for i, row in enumerate(rows):
            got = os.preadv(self._descriptor, [out[i].reshape(-1).view(np.uint8).data, checksum], self._offsets[row])
            if got != size + _CHECKSUM_BYTES:
                raise UserError(f"{self.path} is truncated at row {row}{self._image(row)}; extract it again")
            if fletcher32(out[i]) != int.from_bytes(checksum, "little"):
                raise UserError(f"{self.path}: row {row}{self._image(row)} is damaged (checksum); extract it again")
        return out

    def _read_h5py(self, rows: np.ndarray) -> np.ndarray:
        unique, back = np.unique(rows, return_inverse=True)
        try:
            values = self._maps[unique] if len(unique) else np.empty((0, *self._maps.shape[1:]), self.dtype)
        except Exception as error:  # filters raise nearly anything
            raise UserError(
                f"{self.path}: a chunk holding the rows {self._bad_rows(unique)} is damaged or truncated ({error}); "
                "get the file again"
            ) from error
        return np.asarray(values).reshape(len(unique), *self.shape[1:])[back]

    def _bad_rows(self, rows: np.ndarray) -> str:
        bad = []
        for row in rows:
            try:
                self._maps[int(row)]
            except Exception:
                bad.append(int(row))
                if len(bad) == 5:
                    break
        return ", ".join(map(str, bad))

    def _image(self, row: int) -> str:
        return f" ({self.image_files[int(row)]})" if self.image_files else ""

    def to_metadata(self, dataset: DataSet) -> Metadata:
        """The file's labels, attributes and splits; train/val are drawn where an old file has none.

        Raises:
            UserError: splits that overlap, or another data set's file.
        """
        where, notes, locs = str(self.path), [], dict(self.locs)
        made_for = self.provenance.get("dataset", dataset.source)
        if made_for != dataset.source:
            raise UserError(f"{where} holds the features of {made_for}, not of {dataset.source}")
        if dataset.counts and dataset.counts.attributes != self.att.shape[1]:
            raise UserError(
                f"{where}: {self.att.shape[1]} attributes, but {dataset.name} has {dataset.counts.attributes}"
            )
        if dataset.name == CUB50.name and self.class_names is None:
            raise UserError(f"{where} has no class names, which CUB50 needs; extract the features again")
        recorded = self.provenance.get("notes")
        if recorded:
            notes.append(str(recorded))
        metadata = Metadata(
            name=dataset.source,
            image_files=self.image_files or [],
            labels=self.labels,
            class_names=self.class_names or [f"class {c}" for c in range(len(self.att))],
            att=self.att,
            original_att=self.original_att,
            trainval_loc=locs["trainval_loc"],
            test_seen_loc=locs["test_seen_loc"],
            test_unseen_loc=locs["test_unseen_loc"],
            train_loc=locs.get("train_loc", np.empty(0, np.int64)),
            val_loc=locs.get("val_loc", np.empty(0, np.int64)),
            split_sha256=str(self.provenance.get("split_sha256", "unknown")),
            notes=notes,
        )
        if min(len(metadata.trainval_loc), len(metadata.test_seen_loc), len(metadata.test_unseen_loc)) == 0:
            raise UserError(f"{where}: one of the splits is empty")
        xlsa17.check_splits(metadata, where)
        if dataset.name == CUB50.name:
            metadata = xlsa17.cub50(metadata)
        elif _usable_validation(metadata):
            return metadata
        train, val = xlsa17.class_disjoint_split(
            metadata.labels, metadata.trainval_loc, dataset.val_share, VALIDATION_SEED
        )
        note = f"train/val classes drawn with seed {VALIDATION_SEED}"
        return replace(metadata, train_loc=train, val_loc=val, notes=[*metadata.notes, note])

    def identity(self) -> str:
        """A cheap SHA-256 that tells files apart: size, attributes, labels, splits and 64 rows spread over the file."""
        digest = hashlib.sha256(repr((self.shape, self.dtype.str, sorted(self.provenance.items()))).encode())
        for array in (self.labels, self.att, *(self.locs[key] for key in sorted(self.locs))):
            digest.update(np.ascontiguousarray(array).tobytes())
        rows = np.unique(np.linspace(0, self.shape[0] - 1, 64 if self._offsets is not None else 2).astype(np.int64))
        digest.update(self.read(rows).tobytes())
        return digest.hexdigest()

    def sha256(self) -> str:
        """SHA-256 of the whole file; reads all of it."""
        return sha256_file(self.path)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> FeatureFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def verify(path: Path | str) -> None:
    """Read every row of a feature file; opening it compares all else.

    Raises:
        UserError: the first thing that is wrong with it.
    """
    with FeatureFile(path) as file:
        for start in range(0, file.shape[0], 64):
            file.read(np.arange(start, min(start + 64, file.shape[0])))


def _usable_validation(m: Metadata) -> bool:
    """Whether train_loc and val_loc lie inside trainval, filled and class-disjoint."""
    both = np.concatenate([m.train_loc, m.val_loc])
    return bool(
        len(m.train_loc)
        and len(m.val_loc)
        and np.isin(both, m.trainval_loc).all()
        and not np.intersect1d(m.labels[m.train_loc], m.labels[m.val_loc]).size
    )


def _parse_in_child(path: Path, finished: bool = True) -> None:
    """Let a child process with bounded memory and time parse a file first, as this process will.

    Raises:
        UserError: what the child found wrong, or that the HDF5 library crashes or hangs there.
    """
    modules = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    command = "import sys; from core.feature_file import _child; sys.exit(_child(sys.argv[1], sys.argv[2] == 'True'))"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", command, os.path.abspath(path), str(finished)],
            env={**os.environ, "PYTHONPATH": modules, "PYTHONUTF8": "1"},
            timeout=_CHILD_SECONDS,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"{path} makes the HDF5 library hang: it is damaged; get it again") from None
    if done.returncode == _REFUSED:
        raise UserError(done.stdout.decode("utf-8", "replace"))
    if done.returncode:
        raise UserError(f"{path} makes the HDF5 library crash: it is damaged; get it again")


def _child(path: str, finished: bool) -> int:
    """Exit code; the reason goes to standard output, which the parent reads."""
    with contextlib.suppress(ValueError, OSError):  # where there is no such limit, or a lower one
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (_CHILD_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    try:
        examine(Path(path), finished)
    except UserError as error:
        sys.stdout.write(str(error))
        return _REFUSED
    return 0


def examine(path: Path, finished: bool = True) -> None:
    """Parse what :class:`FeatureFile` (unfinished: :class:`Writer`) will.

    Raises:
        UserError: anything is wrong, too little memory included.
    """
    reader = FeatureFile.__new__(FeatureFile)
    reader.path, reader._seal = path, None
    try:
        with h5py.File(path, "r") as file:
            reader._load(file, finished)
            if finished:
                reader._read_h5py(np.array([0, reader.shape[0] - 1]))
    except UserError:
        raise
    except Exception as error:  # a damaged file raises nearly anything
        raise UserError(_damaged(path, error)) from error


def _damaged(path: Path, error: Exception) -> str:
    return (
        f"{path} is damaged, truncated or not an HDF5 file ({type(error).__name__}: {error}); delete it and extract "
        "it again"
    )


def _check_stored(file: h5py.File, key: str) -> None:
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


def _same(dataset: h5py.Dataset, values: np.ndarray) -> bool:
    """Whether a dataset holds these values; text as objects."""
    found = dataset.asstr()[()] if values.dtype == object else dataset[()]
    return np.array_equal(found, values, equal_nan=values.dtype.kind == "f")


def _row_offsets(maps: h5py.Dataset) -> np.ndarray | None:
    """(N,) byte offset of each row where every row is one fletcher32-only chunk, else None."""
    if maps.chunks != (1, *maps.shape[1:]) or not maps.fletcher32 or maps.compression or maps.shuffle:
        return None
    if maps.id.get_create_plist().get_nfilters() != 1 or maps.dtype.byteorder == ">":
        return None
    offsets = np.full(maps.shape[0], -1, dtype=np.int64)
    size = math.prod(maps.shape[1:]) * maps.dtype.itemsize + _CHECKSUM_BYTES

    def note(info: Any) -> None:
        row = info.chunk_offset[0]
        if info.size == size and info.filter_mask == 0 and 0 <= row < len(offsets):
            offsets[row] = info.byte_offset

    maps.id.chunk_iter(note)
    return offsets if (offsets >= 0).all() and len(np.unique(offsets)) == len(offsets) else None


def _first_not_finite(values: np.ndarray) -> int | None:
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


def _matrix(values: np.ndarray) -> np.ndarray:
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        raise ValueError(f"a matrix of numbers was expected, found {values.dtype} {values.shape}")
    with np.errstate(over="ignore"):  # to infinity, which is refused
        return values.astype(np.float32)


def _integers(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "fiu" or not (np.abs(values) < 2**53).all() or (values % 1 != 0).any():
        raise ValueError(f"whole numbers were expected, found {values.dtype} {values.shape}")
    return values.ravel().astype(np.int64)


def _plain(value: Any) -> Any:
    """An HDF5 attribute as a plain Python value."""
    if isinstance(value, bytes):
        return value.decode()
    return value.item() if isinstance(value, (np.generic, np.ndarray)) and value.size == 1 else value
