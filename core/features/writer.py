"""Writing a feature file so that a process killed at any moment loses the rows of its last batch at most.

While it is being made, rows START to STOP - 1 lie in `FINAL.rows-START-STOP.npy`, each behind its crc32, and all else
in `FINAL.rows-START-STOP.beside` (HDF5). A row that fits its crc32 is done, any other is computed again, whatever a
crash left there. Several processes make a part each; parts of different divisions may overlap. Where every row is in
some part, :func:`finish` makes the file of them, with the same bytes however it was divided.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from core.features.layout import (
    FeatureFileMetadata,
    Part,
    content_digest,
    difference,
    first_not_finite,
    held,
    parts_of,
    store,
)
from core.files.atomic import Lock, atomic_path
from core.files.errors import UserError
from core.files.hdf5 import open_hdf5

_HDF5 = ("v108", "v108")  # object headers with checksums, read since 2008; the bytes follow from the content
_log = logging.getLogger(__name__)


class Writer(contextlib.AbstractContextManager["Writer"]):
    """Writes rows of a feature file; a context manager that leaves the part unless :meth:`finish` was called."""

    def __init__(
        self, final: Path | str, content: FeatureFileMetadata, shape: tuple[int, int, int], dtype: str = "float16",
        rows: range | None = None,
    ) -> None:  # fmt: skip
        """Create or resume the part of ``rows`` (None: of all). shape is (D,h,w), dtype float16 or float32.

        Raises:
            UserError: another writer is at work, the disk is full, or what is there was begun with other settings.
        """
        if dtype not in ("float16", "float32"):
            raise UserError(f"features are stored as float16 or float32, not {dtype}")
        self.final, count = Path(final), len(content.metadata.labels)
        self.rows = range(count) if rows is None else rows
        path = self.final.with_name(f"{self.final.name}.rows-{self.rows.start}-{self.rows.stop}.npy")
        self.part = Part(path, self.rows)
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self._record = np.dtype([("crc32", "<u4"), ("maps", self.dtype, shape)])
        self.done = np.zeros(count, dtype=bool)  # rows of the data set that are there, as far as they are this part's
        self._data = -1
        with _refusing(self.final):
            self.final.parent.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(self.part.path)
        try:
            if self.final.exists():
                raise UserError(f"{self.final} exists already; delete it or choose another --out")
            with _refusing(self.final, self._record.itemsize * len(self.rows)):
                self._begin(content)
                self._find_done(content)
        except BaseException:
            self.close()
            raise

    def _begin(self, content: FeatureFileMetadata) -> None:
        """Make the part's two files, or compare the ones there."""
        for part in parts_of(self.final):
            differs = difference(part.content(), (content.provenance, content.arrays()))
            if not differs and part.stored.dtype != self._record:
                differs = f"features: {part.stored.dtype['maps']} there, {self._record['maps']} now"
            if differs:
                raise UserError(
                    f"{part.path} was begun with other settings ({differs}); delete it (rm {self.final}.rows-*) to "
                    "start again, or choose another --out"
                )
        _clear(self.part.beside)
        _clear(self.part.path)
        with atomic_path(self.part.beside) as temporary, h5py.File(temporary, "w", libver=_HDF5) as file:
            store(file, content.provenance, content.arrays())
        if not self.part.path.exists():
            with atomic_path(self.part.path) as temporary, open(temporary, "wb") as handle:
                about = {"descr": self._record.descr, "fortran_order": False, "shape": (len(self.rows),)}
                np.lib.format.write_array_header_1_0(handle, about)
                handle.flush()
                _reserve(handle.fileno(), handle.tell() + len(self.rows) * self._record.itemsize)
        self._data = os.open(self.part.path, os.O_RDWR)
        self._offset = int(self.part.stored.offset)

    def _find_done(self, content: FeatureFileMetadata) -> None:
        """Rows of this part that fit their crc32: here, in another part, or in a damaged file named .partial."""
        parts = [self.part, *(p for p in parts_of(self.final) if p != self.part)]
        for row in self.rows:
            self.done[row] = any(part.row(row) is not None for part in parts)
        old = self.final.with_name(self.final.name + ".partial")
        if self.done[self.rows].all() or not old.is_file():
            return
        with contextlib.suppress(OSError, KeyError, RuntimeError, ValueError), open_hdf5(old) as file:
            if differs := difference(held(file), (content.provenance, content.arrays())):
                _log.warning("%s is of another extraction (%s); its rows are not taken", old, differs)
                return
            for row in [row for row in self.rows if not self.done[row]]:
                maps = file["feature_map"][row]
                if maps.dtype == self.dtype and zlib.crc32(maps.tobytes()) == file["row_crc32"][row]:
                    self.write(np.array([row]), maps[None])

    def write(self, rows: np.ndarray, maps: np.ndarray) -> None:
        """Write maps (n,D,h,w) or (n,D,R) at the given rows of the data set.

        Raises:
            UserError: values that are not finite in the stored type, or the disk refuses.
        """
        if not len(rows):
            return
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(maps, dtype=self.dtype).reshape(len(rows), -1)
        if stored.shape[1] * self.dtype.itemsize + 4 != self._record.itemsize:
            raise ValueError(f"rows of {maps.shape[1:]} in a file of {self._record['maps']}")
        if (bad := first_not_finite(stored)) is not None:
            raise UserError(
                f"the features of row {int(rows[bad])} are NaN or too large for {self.dtype.name}: damaged "
                "weights, or run again with --dtype float32 --store float32"
            )
        with _refusing(self.final):
            for row, values in zip(rows.tolist(), stored, strict=True):
                data = values.tobytes()
                record = struct.pack("<I", zlib.crc32(data)) + data
                at = self._offset + (row - self.rows.start) * self._record.itemsize
                if os.pwrite(self._data, record, at) != len(record):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self.done[row] = True

    def finish(self) -> Path:
        """:func:`finish` where this is the only part.

        Raises:
            UserError: rows are missing, or the disk refuses.
        """
        if missing := finish(self.final):
            raise UserError(f"{missing} rows of {self.final} are not there yet; run the extraction again")
        return self.final

    def close(self) -> None:
        """Close without finishing; what was written stays for the next run."""
        if self._data >= 0:
            os.close(self._data)
        self._data = -1
        self._lock.release()

    def __exit__(self, *_: object) -> None:
        self.close()


def finish(final: Path) -> int:
    """Make a feature file of its parts, which are removed then. Until then it takes twice its size on disk.

    Returns:
        How many rows are missing; then nothing was changed.

    Raises:
        UserError: no part, parts of two extractions, a process that finishes it already, or a disk that refuses.
    """
    with Lock(final):
        parts = parts_of(final)
        if final.exists():  # by another process; or this was killed before it removed the parts
            _remove(final, parts)
            return 0
        if not parts:
            raise UserError(f"no part of {final}: looked for {final}.rows-*.npy")
        first = parts[0].content()
        for part in parts[1:]:
            if differs := difference(first, part.content()):
                raise UserError(
                    f"{part.path} is of another extraction than {parts[0].path.name} ({differs}); delete it"
                )
        there = np.zeros(len(first[1]["labels"]), dtype=bool)
        for part in parts:
            there[part.rows.start : part.rows.stop] |= part.stored["crc32"] > 0
        if not there.all():
            return int((~there).sum())
        _clear(final)
        with atomic_path(final) as temporary, _refusing(final, part.stored.dtype.itemsize * len(there)):
            _assemble(temporary, *first, parts)
        _remove(final, parts)
        return 0


def _assemble(path: Path, attributes: dict[str, Any], arrays: dict[str, np.ndarray], parts: list[Part]) -> None:
    maps, count = parts[0].stored.dtype["maps"], len(arrays["labels"])
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)  # the rows stay a hole, until _reserve
    with h5py.File(path, "w", libver=_HDF5) as file:
        store(file, attributes, arrays)
        file.create_dataset("row_crc32", data=np.zeros(count, "<u4"))
        offset = file.create_dataset("feature_map", (count, *maps.shape), maps.base, dcpl=plan).id.get_offset()
    crcs = np.zeros(count, "<u4")
    with open(path, "r+b") as out:
        _reserve(out.fileno(), os.fstat(out.fileno()).st_size)
        out.seek(offset)
        for row in range(count):
            data = next((found for part in parts if (found := part.row(row)) is not None), None)
            if data is None:
                raise UserError(f"row {row} in {path.parent} was lost by the disk: run the same command again")
            crcs[row] = zlib.crc32(data)
            out.write(data)
    with h5py.File(path, "r+", libver=_HDF5) as file:
        file["row_crc32"][:] = crcs
        file.attrs["sha256"] = content_digest(file)


def _remove(final: Path, parts: list[Part]) -> None:
    for part in parts:
        part.path.unlink(missing_ok=True)
        part.beside.unlink(missing_ok=True)
    final.with_name(final.name + ".partial").unlink(missing_ok=True)


def _clear(path: Path) -> None:
    """Remove what killed processes left of an earlier write of ``path``, whose lock is held: it may be large."""
    form = re.compile(rf"\.{re.escape(path.name)}\.\d+\.tmp")
    for old in path.parent.glob(".*.tmp"):
        if form.fullmatch(old.name):
            old.unlink(missing_ok=True)


def _reserve(descriptor: int, size: int) -> None:
    """Take disk space now, so that a full disk is known before hours of work."""
    if hasattr(os, "posix_fallocate"):  # not on macOS
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


@contextlib.contextmanager
def _refusing(final: Path, size: int = 0) -> Iterator[None]:
    """What the system refuses, as one sentence; ``size`` bytes are needed."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        number = getattr(error, "errno", None)
        if number is None and (found := re.search(r"errno = (\d+)", str(error))):
            number = int(found[1])  # of HDF5's text alone
        if number is None:
            raise
        why = os.strerror(errno.ENOTDIR if isinstance(error, FileExistsError) else number)
        full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
        way = "Make room and run the same command again: it continues" if full else "Choose another --out"
        if number == errno.EFBIG:
            way = "Raise the limit of this shell or job (ulimit -f) or of the file system, and run the command again"
        need = f" It takes {size / 2**30:.2f} GiB." if full and size else ""
        raise UserError(f"cannot write {final}: {why}.{need} {way}") from error
