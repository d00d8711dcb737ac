"""The feature file: region features of a whole data set on disk, written crash-safely and read row by row.

DAZLE's dataset names, so files travel both ways. New files: float16, one image per chunk, fletcher32, no compression.
While it is being made the file is `<final>.partial`. Its HDF5 structure is complete (and its disk space taken) before
the first row is computed; rows are then written in place at their byte offsets, and `<final>.partial.rows` records
which of them are safely on disk. So a process killed at any moment loses at most the rows since the last flush.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import struct
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
from core.files import fsync_folder, sha256_file
from core.xlsa17 import VALIDATION_SEED, Metadata

FORMAT_VERSION = 1
_FLUSH_ROWS = 256  # rows between two fsyncs; what a crash can cost
_RECORD = struct.Struct("<QI")  # row, crc32 of its bytes; followed by the crc32 of these 12 bytes
_RECORD_BYTES = _RECORD.size + 4
_CHECKSUM_BYTES = 4
_REQUIRED = ("feature_map", "labels", "trainval_loc", "test_seen_loc", "test_unseen_loc", "att")
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


class Lock:
    """`<final>.lock`, held while a process writes the file; a second process is refused."""

    def __init__(self, final: Path) -> None:
        self.path = final.with_name(final.name + ".lock")
        while True:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(self._descriptor)
                raise UserError(
                    f"another process is writing {final} (it holds {self.path}); wait for it or choose another --out"
                ) from error
            with contextlib.suppress(FileNotFoundError):
                if os.stat(self.path).st_ino == os.fstat(self._descriptor).st_ino:
                    return
            os.close(self._descriptor)  # removed between open and lock

    def release(self) -> None:
        """Let the next process in."""
        self.path.unlink(missing_ok=True)
        os.close(self._descriptor)


@dataclass(frozen=True)
class Content:
    """Everything in a feature file but the features themselves."""

    metadata: Metadata
    provenance: Mapping[str, str | int]  # attributes of the root; what a resumed run must agree with
    w2v: np.ndarray | None = None  # (K,V) float32


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
            if not self.partial.exists():
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
                self.flush()
        except OSError as error:
            raise UserError(f"cannot write {self.partial}: {error.strerror or error}. Rerun to continue.") from error

    def flush(self) -> None:
        """Make the rows written so far durable, then say so in the journal."""
        if not self._pending:
            return
        os.fsync(self._data)
        os.write(self._rows, b"".join(self._pending))
        os.fsync(self._rows)
        for record in self._pending:
            self.done[_RECORD.unpack(record[: _RECORD.size])[0]] = True
        self._pending.clear()

    def finish(self) -> Path:
        """Mark the file complete and give it its final name.

        Raises:
            UserError: rows are missing.
        """
        try:
            self.flush()
            if missing := int((~self.done).sum()):
                raise UserError(f"{missing} rows of {self.partial} are not there yet; run the extraction again")
            with h5py.File(self.partial, "r+") as file:
                file.attrs.modify("complete", True)
            os.fsync(self._data)
            os.replace(self.partial, self.final)
        except OSError as error:
            raise UserError(f"cannot write {self.final}: {error.strerror or error}. Rerun to continue.") from error
        fsync_folder(self.final.parent)
        self.journal.unlink(missing_ok=True)
        return self.final

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
            with contextlib.suppress(OSError):
                self.flush()
        finally:
            self.close()

    def _create(self, content: Content) -> None:
        """Write the whole structure and a zero block for every row, then rename: a partial file is never half made."""
        m = content.metadata
        new = self.final.with_name(self.final.name + ".partial.new")
        zeros = bytes(self._row_bytes + _CHECKSUM_BYTES)  # the checksum of zeros is zero
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
                for key in ("labels", "trainval_loc", "test_seen_loc", "test_unseen_loc", "train_loc", "val_loc"):
                    file.create_dataset(key, data=getattr(m, key).astype(np.int64))
                file.create_dataset("att", data=m.att.astype(np.float32))
                file.create_dataset("original_att", data=m.original_att.astype(np.float32))
                file.create_dataset("image_files", data=np.array(m.image_files, dtype=object), dtype=text)
                file.create_dataset("allclasses_names", data=np.array(m.class_names, dtype=object), dtype=text)
                if content.w2v is not None:
                    file.create_dataset("w2v_att", data=content.w2v.astype(np.float32))
            with open(new, "rb") as handle:
                os.fsync(handle.fileno())
            os.replace(new, self.partial)
            fsync_folder(self.partial.parent)
        except (OSError, RuntimeError) as error:
            need = len(zeros) * len(m.labels) / 2**30
            raise UserError(f"cannot make {self.partial} ({need:.1f} GiB needed): {error}") from error
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
                same = np.array_equal(file["labels"][()], content.metadata.labels)
                same &= list(file["image_files"].asstr()[()]) == list(content.metadata.image_files)
                offsets = _row_offsets(maps)
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise UserError(f"{self.partial} is damaged ({error}); {again}") from error
        wanted = {**content.provenance, "format_version": FORMAT_VERSION}
        differs = [
            f"{key}: {found.get(key)!r} there, {wanted.get(key)!r} now"
            for key in sorted({*found, *wanted})
            if found.get(key) != wanted.get(key)
        ]
        if layout != ((len(content.metadata.labels), *self.shape), self.dtype):
            differs.append(f"features: {layout[0]} {layout[1]} there, {self.shape} {self.dtype} now")
        if not same:
            differs.append("the list of images and labels")
        if differs or offsets is None:
            raise UserError(f"{self.partial} was begun with other settings ({'; '.join(differs)}); {again}")
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
        if not self.path.is_file():
            partial = self.path.with_name(self.path.name + ".partial")
            hint = f" There is an unfinished {partial.name}: run the extraction again." if partial.exists() else ""
            raise UserError(f"no feature file at {self.path}.{hint}")
        try:
            # 64 MiB: automatic chunks of the old layout are read many times with HDF5's default cache
            self._file = h5py.File(self.path, "r", rdcc_nbytes=64 << 20)
        except OSError as error:
            raise UserError(f"{self.path} is truncated or not an HDF5 file ({error}); extract it again") from error
        try:
            self._load()
        except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
            self.close()
            raise UserError(f"{self.path} is damaged ({type(error).__name__}: {error}); extract it again") from error
        except UserError:
            self.close()
            raise

    def _load(self) -> None:
        file = self._file
        if missing := [key for key in _REQUIRED if key not in file]:
            raise UserError(f"{self.path} lacks {', '.join(missing)}: not a feature file")
        self.provenance: dict[str, Any] = {k: _plain(v) for k, v in file.attrs.items()}
        if not self.provenance.get("complete", True):
            raise UserError(f"{self.path} is not complete; run the extraction again")
        if (version := self.provenance.get("format_version", 0)) > FORMAT_VERSION:
            raise UserError(f"{self.path} has format version {version}, newer than this program's {FORMAT_VERSION}")
        self._maps = file["feature_map"]
        if self._maps.ndim not in (3, 4) or self._maps.dtype.kind != "f" or 0 in self._maps.shape:
            raise UserError(f"{self.path}: feature_map is {self._maps.shape} {self._maps.dtype}, expected (N,D,h,w)")
        n, d, *grid = self._maps.shape
        self.grid: tuple[int, ...] = tuple(grid)  # (h,w)
        self.shape: tuple[int, int, int] = (n, d, int(np.prod(grid)))  # (N,D,R)
        self.dtype: np.dtype[Any] = self._maps.dtype
        self.labels = file["labels"][()].ravel().astype(np.int64)  # (N,)
        self.att = np.maximum(_matrix(file["att"][()]), 0.0)  # (C,K)
        self.original_att = _matrix(file["original_att"][()]) if "original_att" in file else self.att
        self.w2v_att = _matrix(file["w2v_att"][()]) if "w2v_att" in file else None  # (K,V)
        self.class_names: list[str] | None = self._names("allclasses_names")
        self.image_files: list[str] | None = self._names("image_files")
        self.locs: dict[str, np.ndarray] = {}
        for key in ("trainval_loc", "test_seen_loc", "test_unseen_loc", "train_loc", "val_loc"):
            if key in file:
                self.locs[key] = np.sort(file[key][()].ravel().astype(np.int64))
        self._check()
        self._offsets = _row_offsets(self._maps)
        if self._offsets is not None:
            self._descriptor = os.open(self.path, os.O_RDONLY)

    def _names(self, key: str) -> list[str] | None:
        if key not in self._file:
            return None
        values = self._file[key][()].ravel()
        return [v.decode() if isinstance(v, bytes) else str(v) for v in values]

    def _check(self) -> None:
        n, classes = self.shape[0], len(self.att)
        if len(self.labels) != n:
            raise UserError(f"{self.path}: {len(self.labels)} labels for {n} feature maps")
        if self.labels.min() < 0 or self.labels.max() >= classes:
            raise UserError(f"{self.path}: labels outside 0..{classes - 1}")
        if not np.isfinite(self.att).all():
            raise UserError(f"{self.path}: att holds NaN or infinity")
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
        except (OSError, RuntimeError) as error:
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
            except (OSError, RuntimeError):
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
        self._file.close()

    def __enter__(self) -> FeatureFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def verify(path: Path | str) -> None:
    """Read every row of a feature file.

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


def _row_offsets(maps: h5py.Dataset) -> np.ndarray | None:
    """(N,) byte offset of each row where every row is one fletcher32-only chunk, else None (read through h5py)."""
    if maps.chunks != (1, *maps.shape[1:]) or not maps.fletcher32 or maps.compression or maps.shuffle:
        return None
    if maps.id.get_create_plist().get_nfilters() != 1 or maps.dtype.byteorder == ">":
        return None
    offsets = np.full(maps.shape[0], -1, dtype=np.int64)
    size = int(np.prod(maps.shape[1:])) * maps.dtype.itemsize + _CHECKSUM_BYTES

    def note(info: Any) -> None:
        if info.size == size and info.filter_mask == 0:
            offsets[info.chunk_offset[0]] = info.byte_offset

    maps.id.chunk_iter(note)
    return offsets if (offsets >= 0).all() else None


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
    if values.ndim != 2:
        raise ValueError(f"a matrix was expected, found shape {values.shape}")
    return values.astype(np.float32)


def _plain(value: Any) -> Any:
    """An HDF5 attribute as a plain Python value."""
    if isinstance(value, bytes):
        return value.decode()
    return value.item() if isinstance(value, (np.generic, np.ndarray)) and value.size == 1 else value
