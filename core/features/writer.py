"""Writing a feature file so that a process killed at any moment loses at most the rows since the last flush.

While it is being made the file is `<final>.partial`. Its HDF5 structure is complete (and its disk space taken) before
the first row is computed; rows are then written in place at their byte offsets, and `<final>.partial.rows` records
which of them are safely on disk.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np

from core.datasets.xlsa17 import Metadata
from core.features.feature_file import parse_in_child
from core.features.layout import (
    CHECKSUM_BYTES,
    FORMAT_VERSION,
    Seal,
    first_not_finite,
    fletcher32,
    pack_seal,
    plain,
    read_seal,
    row_offsets,
)
from core.files.atomic import Lock, fsync, fsync_folder
from core.files.errors import UserError

_FLUSH_ROWS = 256  # rows between two fsyncs; what a crash can cost
_RECORD = struct.Struct("<QI")  # row, crc32 of its bytes; followed by the crc32 of these 12 bytes
_RECORD_BYTES = _RECORD.size + 4
_NOT_WRITTEN = b"\xff" * CHECKSUM_BYTES  # no checksum of a row of zeros: a row that was lost is noticed


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
                parse_in_child(self.partial, finished=False)
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
        if (bad := first_not_finite(stored)) is not None:
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
            tail = pack_seal(self._data, seal)
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
            if seal := read_seal(self._data):
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
                found = {k: plain(v) for k, v in file.attrs.items() if k != "complete"}
                maps = file["feature_map"]
                layout = (maps.shape, maps.dtype)
                other = [key for key, values in content.arrays().items() if not _same(file[key], values)]
                offsets = row_offsets(maps)
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
            block = os.pread(self._data, self._row_bytes + CHECKSUM_BYTES, int(self._offsets[row]))
            data = block[: self._row_bytes]
            done[row] = zlib.crc32(data) == crc and block[self._row_bytes :] == struct.pack(
                "<I", fletcher32(np.frombuffer(data, np.uint8))
            )
        return done


def _same(dataset: h5py.Dataset, values: np.ndarray) -> bool:
    """Whether a dataset holds these values; text as objects."""
    found = dataset.asstr()[()] if values.dtype == object else dataset[()]
    return np.array_equal(found, values, equal_nan=values.dtype.kind == "f")
