"""Writing a feature file so that a process killed at any moment loses the rows of its last batch at most.

While it is being made, rows START to STOP - 1 lie in `FINAL.rows-START-STOP.npy`, each behind its crc32, and what
decides them in a `.json` beside. A row that fits its crc32 is done, any other is computed again. Several processes make
a part each, which may overlap. Where every row is in some part, the file is made of them, with the same bytes always.
"""

import contextlib
import glob
import hashlib
import json
import logging
import os
import shlex
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from core.datasets.metadata import Metadata
from core.features.feature_file import FORMAT_VERSION
from core.files.atomic import Lock, atomic_path, read_json, write_bytes
from core.files.errors import UserError, differences
from core.files.hdf5 import content_digest

_RECORDED = {
    "weights", "pretraining_saw_unseen", "batch_size", "device", "torch_version", "word_vectors", "notes",
    "format_version", "complete", "opened",
}  # fmt: skip
_VALIDATION = ("train_loc", "val_loc")  # left out where they are empty
_HDF5 = ("v108", "v108")  # object headers with checksums, read since 2008; the bytes follow from the content
Parts = Mapping[Path, tuple[range, np.memmap]]  # rows and records (n,)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureFileMetadata:
    """Everything in a feature file but the features themselves."""

    metadata: Metadata
    provenance: Mapping[str, str | int]  # attributes of the root
    w2v: np.ndarray | None = None  # (K,V) float32
    class_text: np.ndarray | None = None  # (C,2,E) float32

    def arrays(self) -> dict[str, np.ndarray]:
        """Every dataset but the features and their checksums; text as objects."""
        m, integers = self.metadata, ("labels", "trainval_loc", "test_seen_loc", "test_unseen_loc", *_VALIDATION)
        arrays = {key: np.asarray(getattr(m, key)).astype("<i8") for key in integers}
        arrays |= {key: getattr(m, key).astype("<f4") for key in ("att", "original_att")}
        texts = {"image_files": m.image_files, "allclasses_names": m.class_names, "image_sha256": m.image_sha256}
        arrays |= {key: np.array(values, dtype=object) for key, values in texts.items()}
        vectors = {"w2v_att": self.w2v, "class_text": self.class_text}
        arrays |= {key: values.astype("<f4") for key, values in vectors.items() if values is not None}
        return {key: values for key, values in arrays.items() if len(values) or key not in (*texts, *_VALIDATION)}

    def signature(self, dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
        """What tells these features (N,*shape) from others; arrays by their SHA-256."""
        found = {"features": f"{dtype} {'x'.join(map(str, shape))}"} | decisive(self.provenance)
        for key, values in self.arrays().items():
            data = "\n".join(values).encode("utf-8", "surrogateescape") if values.dtype == object else values.tobytes()
            found[key] = f"{values.shape} sha256 {hashlib.sha256(data).hexdigest()[:16]}"
        return {key: value for key, value in found.items() if key != "w2v_att"}


def decisive(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What of a file's attributes decides its features: another run may go on with it though the rest differs."""
    return {key: value for key, value in provenance.items() if key not in _RECORDED}


class Writer(contextlib.AbstractContextManager["Writer"]):
    """Writes rows of a feature file; a context manager that leaves the part unless :meth:`finish` was called."""

    def __init__(
        self, final: Path, content: FeatureFileMetadata, shape: tuple[int, int, int], dtype: str = "float16",
        rows: range | None = None,
    ) -> None:  # fmt: skip
        """Create or resume the part of ``rows`` (None: of all). shape is (D,h,w), dtype float16 or float32."""
        self.final, self.content, self.count = final, content, len(content.metadata.labels)
        self.rows = range(self.count) if rows is None else rows
        self.path = self.final.with_name(f"{self.final.name}.rows-{self.rows.start}-{self.rows.stop}.npy")
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self._record = np.dtype([("crc32", "<u4"), ("maps", self.dtype, shape)])
        self._signature = content.signature(dtype, shape)
        self._lock = Lock(self.path)
        try:
            if self.final.exists():
                raise UserError(f"{self.final} exists already; delete it or choose another --out")
            parts = self._parts()  # of other settings: refused before anything is written
            if self.path not in parts:
                write_bytes(self.path.with_suffix(".json"), json.dumps(self._signature, indent=1).encode())
                with atomic_path(self.path) as temporary:
                    np.lib.format.open_memmap(temporary, "w+", self._record, (len(self.rows),))
                    _reserve(temporary)
            self._records = np.load(self.path, mmap_mode="r+")
        except BaseException:
            self._lock.release()
            raise
        self.done = np.zeros(self.count, dtype=bool)  # rows of the data set that are there, if they are this part's
        self.done[self.rows] = [self._row(parts, row) is not None for row in self.rows]

    def _parts(self) -> Parts:
        """Every part, each of this very extraction."""
        found = {}
        for path in self.final.parent.glob(glob.escape(self.final.name) + ".rows-*-*.npy"):
            try:
                differs = differences(read_json(path.with_suffix(".json")), self._signature)
                found[path] = range(*map(int, path.stem.rsplit("-", 2)[1:])), np.load(path, mmap_mode="r")
            except (UserError, OSError, ValueError) as error:
                raise UserError(f"{path} is damaged ({error}); delete it and run what made it again") from error
            if differs:
                way = f"delete it (rm {shlex.quote(str(self.final))}.rows-*), or name another file"
                raise UserError(f"{path} was begun with other settings ({'; '.join(differs)}); {way}")
        return found

    @staticmethod
    def _row(parts: Parts, row: int) -> bytes | None:
        """The map of a row of the data set; None where it is in no part, or does not fit its crc32."""
        for rows, stored in parts.values():
            if row in rows:
                record = stored[row - rows.start]
                data: bytes = record["maps"].tobytes()
                if record["crc32"] and zlib.crc32(data) == record["crc32"]:
                    return data
        return None

    def write(self, rows: np.ndarray, maps: np.ndarray) -> None:
        """Write maps (n,D,h,w) or (n,D,R) at the given rows of the data set."""
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(maps, dtype=self.dtype).reshape(len(rows), *self._record["maps"].shape)
        if len(bad := np.argwhere(~np.isfinite(stored))):
            raise UserError(
                f"the features of row {rows[bad[0, 0]]} are NaN or too large for {self.dtype.name}: damaged "
                "weights, or run again with --dtype float32 --store float32"
            )
        for row, values in zip(rows.tolist(), stored, strict=True):
            self._records[row - self.rows.start] = zlib.crc32(values), values
        self.done[rows] = True

    def finish(self) -> Path | None:
        """Make the file of all parts, which are removed then; None where rows are missing. Takes twice its size."""
        with Lock(self.final):
            if not self.final.exists():  # else another process has made it
                parts = self._parts()
                there = np.zeros(self.count, dtype=bool)
                for rows, stored in parts.values():
                    there[rows] |= stored["crc32"] > 0
                if missing := int((~there).sum()):
                    _log.info("%d rows of %s are missing still, of other shards", missing, self.final)
                    return None
                with atomic_path(self.final) as temporary:
                    self._assemble(temporary, parts)
            remove_parts(self.final)
        return self.final

    def _assemble(self, path: Path, parts: Parts) -> None:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)  # a hole: HDF5 itself hangs where the disk is full
        shape, crcs = (self.count, *self._record["maps"].shape), np.zeros(self.count, "<u4")
        with h5py.File(path, "w", libver=_HDF5) as file:
            for name, value in {**self.content.provenance, "format_version": FORMAT_VERSION}.items():
                file.attrs[name] = _text([value]).reshape(()) if isinstance(value, str) else value
            for key, values in self.content.arrays().items():
                file.create_dataset(key, data=_text(values.tolist()) if values.dtype == object else values)
            file.create_dataset("row_crc32", data=crcs)
            offset = file.create_dataset("feature_map", shape, self.dtype, dcpl=plan).id.get_offset()
        _reserve(path)
        with open(path, "r+b") as out:
            out.seek(offset)
            for row in range(self.count):
                if (data := self._row(parts, row)) is None:
                    raise UserError(f"row {row} in {path.parent} was lost by the disk: run the same command again")
                crcs[row] = zlib.crc32(data)
                out.write(data)
        with h5py.File(path, "r+", libver=_HDF5) as file:
            file["row_crc32"][:] = crcs
            file.attrs["sha256"] = content_digest(file)

    def __exit__(self, *_: object) -> None:
        del self._records
        self._lock.release()


def remove_parts(final: Path) -> None:
    """Remove the parts of a finished file, and what a killed process had half written."""
    name = glob.escape(final.name)
    for pattern in (f"{name}.rows-*.npy", f"{name}.rows-*.json", f".{name}.*.tmp"):
        for path in final.parent.glob(pattern):
            path.unlink(missing_ok=True)


def _text(values: list[str]) -> np.ndarray:
    """Text as UTF-8 of one length: text of any length HDF5 keeps without checksums, and hangs on a damaged one."""
    encoded = [value.encode("utf-8", "surrogateescape") for value in values]
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", max(1, *map(len, encoded))))


def _reserve(path: Path) -> None:
    """Take the disk space of a file with holes, so that a full disk is known before hours of work."""
    with open(path, "r+b") as handle:
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(handle.fileno(), 0, path.stat().st_size)
