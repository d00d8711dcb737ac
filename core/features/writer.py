"""Writing a feature file so that a process killed at any moment loses at most the rows since the last flush.

While it is being made the file is `<final>.partial`: all but its rows is there from the start, disk space included.
Rows are written in place, each with its crc32, which is what a resumed run goes by: a row that fits its crc32 is done,
any other is computed again, whatever a crash left there. A finished file renamed to `<final>.partial` is resumed in the
same way, so damage to a row costs that row only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np

from core.datasets.metadata import Metadata
from core.features.feature_file import parse_in_child
from core.features.layout import (
    DIGEST,
    FORMAT_VERSION,
    HEADER_BYTES,
    ROWS,
    Header,
    RowPlace,
    first_not_finite,
    plain,
    row_places,
    sha256_outside,
)
from core.files.atomic import Lock, fsync, fsync_folder
from core.files.errors import UserError, differences

_FLUSH_ROWS = 256  # rows between two fsyncs; what a crash can cost


@dataclass(frozen=True)
class FeatureFileMetadata:
    """Everything in a feature file but the features themselves."""

    metadata: Metadata
    provenance: Mapping[str, str | int]  # attributes of the root; what a resumed run must agree with
    w2v: np.ndarray | None = None  # (K,V) float32

    def attributes(self) -> dict[str, str | int]:
        """HDF5 attributes of the root."""
        return {**self.provenance, "format_version": FORMAT_VERSION}

    def arrays(self) -> dict[str, np.ndarray]:
        """Every dataset but the features and their checksums; text as objects."""
        m = self.metadata
        integers = ("labels", "trainval_loc", "test_seen_loc", "test_unseen_loc", "train_loc", "val_loc")
        arrays = {key: getattr(m, key).astype("<i8") for key in integers}
        arrays |= {key: getattr(m, key).astype("<f4") for key in ("att", "original_att")}
        arrays |= {"image_files": np.array(m.image_files, dtype=object)}
        arrays |= {"allclasses_names": np.array(m.class_names, dtype=object)}
        return arrays | ({} if self.w2v is None else {"w2v_att": self.w2v.astype("<f4")})


class Writer(contextlib.AbstractContextManager["Writer"]):
    """Writes rows of a feature file; a context manager that leaves the `.partial` unless :meth:`finish` was called."""

    def __init__(
        self, final: Path | str, content: FeatureFileMetadata, shape: tuple[int, int, int], dtype: str = "float16",
        global_width: int = 0,
    ) -> None:  # fmt: skip
        """Create or resume `<final>.partial`. shape is (D,h,w), dtype float16 or float32, global_width G; 0: none.

        Raises:
            UserError: another writer is at work, the disk is full, or the partial file was begun with other settings.
        """
        if dtype not in ("float16", "float32"):
            raise UserError(f"features are stored as float16 or float32, not {dtype}")
        self.final = Path(final)
        self.partial = self.final.with_name(self.final.name + ".partial")
        self.shape, self.dtype, self.global_width = shape, np.dtype(dtype).newbyteorder("<"), global_width
        self._unflushed = 0
        self._data = -1
        with self._refusing():
            self.final.parent.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(self.final)
        try:
            with self._refusing():
                if self.final.exists():
                    raise UserError(f"{self.final} exists already; delete it or choose another --out")
                self._begin(content)
                self.done = self._whole_rows()  # (N,) bool
        except BaseException:
            self.close()
            raise

    def row_offset(self, row: int) -> int:
        return self._header.row_offset(row)

    def write(self, rows: np.ndarray, maps: np.ndarray, tokens: np.ndarray | None = None) -> None:
        """Write maps (n,D,h,w) or (n,D,R) at the given rows, and class tokens (n,G) where the file has them.

        Raises:
            UserError: values that are not finite in the stored type, or the disk refuses.
        """
        given = [maps] if tokens is None else [maps, tokens]
        with np.errstate(over="ignore"):
            stored = [np.ascontiguousarray(values, dtype=self.dtype).reshape(len(rows), -1) for values in given]
        if [values.shape[1] * self.dtype.itemsize for values in stored] != [p.row_bytes for p in self._places]:
            beside = f" and {self.global_width} class-token values" if self.global_width else ""
            raise ValueError(f"rows of {[v.shape[1:] for v in given]} in a file of {self.shape}{beside}")
        for values in stored:
            if (bad := first_not_finite(values)) is not None:
                raise UserError(
                    f"the features of row {int(rows[bad])} are NaN or too large for {self.dtype.name}: damaged "
                    "weights, or run again with --dtype float32 --store float32"
                )
        with self._refusing():
            for i, row in enumerate(rows.tolist()):
                for values, place in zip(stored, self._places, strict=True):
                    data = values[i].tobytes()
                    self._put(data, place.base + row * place.row_bytes)
                    self._put(struct.pack("<I", zlib.crc32(data)), place.crcs + 4 * row)
                self.done[row] = True
            self._unflushed += len(rows)
            if self._unflushed >= _FLUSH_ROWS:
                self._flush()

    def flush(self) -> None:
        """Make the rows written so far durable.

        Raises:
            UserError: the disk refuses.
        """
        with self._refusing():
            self._flush()

    def _flush(self) -> None:
        if self._unflushed:
            fsync(self._data)
        self._unflushed = 0

    def finish(self) -> Path:
        """Write the header and give the file its final name.

        Raises:
            UserError: rows are missing, or the disk refuses.
        """
        if missing := int((~self.done).sum()):
            raise UserError(f"{missing} rows of {self.partial} are not there yet; run the extraction again")
        with self._refusing():
            self._put(self._header.pack(), 0)
            digest = sha256_outside(self._data, DIGEST, self._header.span)
            self._put(replace(self._header, sha256=digest).pack(), 0)
            fsync(self._data)
            os.replace(self.partial, self.final)
            fsync_folder(self.final.parent)
        return self.final

    def close(self) -> None:
        """Close without finishing; what was flushed stays for the next run."""
        if self._data >= 0:
            os.close(self._data)
        self._data = -1
        self._lock.release()

    def __exit__(self, *_: object) -> None:
        try:
            # what cannot be flushed is done again by the next run
            with contextlib.suppress(OSError):
                self._flush()
        finally:
            self.close()

    def _put(self, data: bytes, at: int) -> None:
        if os.pwrite(self._data, data, at) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
            way = "Make room and run the same command again: it continues" if full else "Choose another --out"
            above = isinstance(error, FileExistsError)  # a file where a folder is needed
            why = os.strerror(errno.ENOTDIR) if above else error.strerror or error
            raise UserError(f"cannot write {self.final}: {why}. {way}") from error

    def _begin(self, content: FeatureFileMetadata) -> None:
        """Make the file without its rows; become the partial file, or compare every such byte with the one there is."""
        new = self.final.with_name(self.final.name + ".partial.new")
        try:
            self._header, self._places = self._make(new, content)
            if not self.partial.exists():
                with open(new, "r+b") as handle:
                    if hasattr(os, "posix_fallocate"):  # not on macOS
                        os.posix_fallocate(handle.fileno(), 0, os.fstat(handle.fileno()).st_size)
                    fsync(handle.fileno())
                os.replace(new, self.partial)
                fsync_folder(self.partial.parent)
                self._data = os.open(self.partial, os.O_RDWR)
                return
            self._data = os.open(self.partial, os.O_RDWR)
            skipped = ((0, HEADER_BYTES), *(span for place in self._places for span in place.spans))
            with open(new, "rb") as handle, contextlib.suppress(ValueError):  # ValueError: of another length
                if sha256_outside(self._data, *skipped) == sha256_outside(handle.fileno(), *skipped):
                    return
            raise UserError(f"{self._difference(content)}; delete it to start again, or choose another --out")
        except (OSError, RuntimeError) as error:
            number = getattr(error, "errno", None)  # HDF5's own text is long
            need = (
                (int(np.prod(self.shape)) + self.global_width)
                * self.dtype.itemsize
                * len(content.metadata.labels)
                / 2**30
            )
            if number is None and (found := re.search(r"errno = (\d+)", str(error))):
                number = int(found[1])  # of HDF5's text alone
            room = "" if number in (errno.EACCES, errno.EPERM, errno.EROFS) else "make room or choose another --out"
            size = f"It takes {need:.2f} GiB; " if room else ""
            if number == errno.EFBIG:
                room = "raise the limit of this shell or job (ulimit -f) or of the file system"
            raise UserError(
                f"cannot write {self.partial}: {os.strerror(number) if number else error}. {size}"
                f"{room or 'Choose another --out'}"
            ) from error
        finally:
            new.unlink(missing_ok=True)

    def _make(self, path: Path, content: FeatureFileMetadata) -> tuple[Header, list[RowPlace]]:
        """Write all but the rows; the header, and where rows and their checksums lie."""
        n = len(content.metadata.labels)
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)  # the rows stay a hole, until fallocate
        with h5py.File(path, "w", userblock_size=HEADER_BYTES) as file:
            for name, value in content.attributes().items():
                file.attrs[name] = value
            for key, values in content.arrays().items():
                file.create_dataset(key, data=values, dtype=h5py.string_dtype() if values.dtype == object else None)
            shapes = {"global": (self.global_width,)} if self.global_width else {}
            for key, shape in (shapes | {"feature_map": self.shape}).items():
                file.create_dataset(ROWS[key], data=np.zeros(n, "<u4"))
                file.create_dataset(key, (n, *shape), self.dtype, dcpl=plan)
            places = row_places(file)
        maps = places["feature_map"]
        return Header(maps.base, n, maps.row_bytes), [*places.values()]

    def _difference(self, content: FeatureFileMetadata) -> str:
        """In what the partial file is another than this run would make."""
        try:
            parse_in_child(self.partial, finished=False)
            with h5py.File(self.partial, "r") as file:
                found, wanted = {k: plain(v) for k, v in file.attrs.items()}, content.attributes()
                layout = (file["feature_map"].shape, file["feature_map"].dtype)
                other = [key for key, values in content.arrays().items() if not _same(file[key], values)]
        except Exception as error:  # a damaged file raises nearly anything
            return f"{self.partial} is damaged ({error})"
        differs = differences(found, wanted)
        if layout != ((len(content.metadata.labels), *self.shape), self.dtype):
            differs.append(f"features: {layout[0]} {layout[1]} there, {self.shape} {self.dtype} now")
        differs += [f"{key} is not the same" for key in other]
        if not differs:
            return f"{self.partial} is damaged, or was begun with another version of HDF5"
        return f"{self.partial} was begun with other settings ({'; '.join(differs)})"

    def _whole_rows(self) -> np.ndarray:
        """(N,) bool: rows whose bytes fit their crc32. One that was never written has none (0)."""
        done = np.ones(self._header.rows, dtype=bool)
        for place in self._places:
            crcs = np.frombuffer(os.pread(self._data, 4 * place.rows, place.crcs), "<u4")
            done &= crcs > 0
            for row in np.flatnonzero(done).tolist():
                data = os.pread(self._data, place.row_bytes, place.base + row * place.row_bytes)
                done[row] = zlib.crc32(data) == crcs[row]
        return done


def _same(dataset: h5py.Dataset, values: np.ndarray) -> bool:
    """Whether a dataset holds these values; text as objects."""
    found = dataset.asstr()[()] if values.dtype == object else dataset[()]
    return np.array_equal(found, values, equal_nan=values.dtype.kind == "f")
