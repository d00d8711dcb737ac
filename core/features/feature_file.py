"""The feature file: region features of a whole data set on disk, read row by row.

DAZLE's dataset names, so files travel both ways. New files: float16, one image per chunk, fletcher32, no compression.
:mod:`core.features.writer` makes them, :mod:`core.features.layout` is what both agree on.

The seal is compared before HDF5 parses anything, since the HDF5 library crashes on some damaged files; a file without
one (DAZLE's) is parsed in a child process first.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from core.datasets import xlsa17
from core.datasets.registry import CUB50, DataSet
from core.datasets.xlsa17 import VALIDATION_SEED, Metadata
from core.features.layout import (
    CHECKSUM_BYTES,
    FORMAT_VERSION,
    check_stored,
    first_not_finite,
    fletcher32,
    plain,
    read_seal,
    row_offsets,
    seal_sha256,
    word_sum,
)
from core.files import sandbox
from core.files.atomic import sha256_file
from core.files.errors import UserError

_OPTIONAL = ("original_att", "w2v_att", "allclasses_names", "image_files", "train_loc", "val_loc")
_REQUIRED = ("feature_map", "labels", "trainval_loc", "test_seen_loc", "test_unseen_loc", "att")
_ROW = 64 << 20  # bytes of one image's features; ResNet-101's have 200 kB
_CHILD_SECONDS = 60


class FeatureFile:
    """Reads a finished feature file, new layout or DAZLE's; rows on demand, never the whole array.

    Worker processes may read it too: a forked one shares the descriptor, whose position no reading uses, one that is
    given a pickled reader opens the file anew.
    """

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
            self._seal = read_seal(self._descriptor)
            if self._seal is None:
                parse_in_child(self.path)
            elif seal_sha256(self._descriptor, self._seal) != self._seal.sha256:
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
        self.provenance: dict[str, Any] = {k: plain(v) for k, v in file.attrs.items()}
        if finished and not self.provenance.get("complete", True):
            raise UserError(f"{self.path} is not complete; run the extraction again")
        if (version := self.provenance.get("format_version", 0)) > FORMAT_VERSION:
            raise UserError(f"{self.path} has format version {version}, newer than this program's {FORMAT_VERSION}")
        if finished and version >= 2 and self._seal is None:
            raise UserError(f"{self.path} was cut or changed after it was written (no seal); extract it again")
        for key in (*_REQUIRED, *_OPTIONAL):
            if key in file:
                check_stored(file, key)
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
            self._offsets = row_offsets(self._maps)
        elif len(self._seal.offsets) == n and self._seal.row_bytes == row_bytes:
            self._offsets = self._seal.offsets
        else:
            raise ValueError("its seal is of other features")
        self._whole = np.zeros(n, dtype=bool)  # rows whose checksum was right when they were first read
        self._sums = np.zeros(n, dtype=np.uint64)  # of their words then

    def __reduce__(self) -> tuple[type[FeatureFile], tuple[Path]]:
        return FeatureFile, (self.path.absolute(),)

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

        The first time a row is read here it is compared with its checksum and looked through for NaN. From then on its
        words are summed, a twentieth of that work, and only another sum than the first one brings the full comparison.
        So a page that the disk returns damaged later is noticed too, unless the damage keeps the sum.

        Raises:
            UserError: a damaged or truncated chunk, or NaN; names file and row.
        """
        rows = np.asarray(rows, dtype=np.int64).ravel()
        if len(rows) and (rows.min() < 0 or rows.max() >= self.shape[0]):
            raise IndexError(f"rows outside 0..{self.shape[0] - 1}")
        if self._offsets is not None:
            return self._read_chunks(rows, self._offsets)
        out = self._read_h5py(rows)
        self._check_finite(rows, out)
        return out

    def expect(self, rows: np.ndarray) -> None:
        """Have the system fetch rows from the disk while something else is done; a hint that changes no value."""
        if self._offsets is not None and hasattr(os, "posix_fadvise"):  # not on macOS
            size = self.shape[1] * self.shape[2] * self.dtype.itemsize + CHECKSUM_BYTES
            for at in self._offsets[rows].tolist():
                os.posix_fadvise(self._descriptor, at, size, os.POSIX_FADV_WILLNEED)

    def _read_chunks(self, rows: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        out, places = np.empty((len(rows), *self.shape[1:]), dtype=self.dtype), offsets[rows].tolist()
        size = self.shape[1] * self.shape[2] * self.dtype.itemsize
        self.expect(rows)  # the disk works on all at once: a cold batch is read in two thirds of the time
        checksum = bytearray(CHECKSUM_BYTES)
        for i, (row, at) in enumerate(zip(rows.tolist(), places, strict=True)):
            got = os.preadv(self._descriptor, [out[i].reshape(-1).view(np.uint8).data, checksum], at)
            if got != size + CHECKSUM_BYTES:
                raise UserError(f"{self.path} is truncated at row {row}{self._image(row)}; extract it again")
            total = word_sum(out[i])
            if self._whole[row] and self._sums[row] == total:
                continue
            if fletcher32(out[i]) != int.from_bytes(checksum, "little"):
                raise UserError(f"{self.path}: row {row}{self._image(row)} is damaged (checksum); extract it again")
            self._check_finite(rows[i : i + 1], out[i : i + 1])
            self._sums[row], self._whole[row] = total, True
        return out

    def _check_finite(self, rows: np.ndarray, maps: np.ndarray) -> None:
        if (bad := first_not_finite(maps)) is not None:
            raise UserError(f"{self.path}: row {rows[bad]}{self._image(rows[bad])} holds NaN or infinity")

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


def parse_in_child(path: Path, finished: bool = True) -> None:
    """Let a child process with bounded memory and time parse a file first, as this process will.

    Raises:
        UserError: what the child found wrong, or that the HDF5 library crashes or hangs there.
    """
    sandbox.call("core.features.feature_file:examine", str(path), finished, kind="HDF5 file", timeout=_CHILD_SECONDS)


def examine(path: Path | str, finished: bool = True) -> None:
    """Parse what :class:`FeatureFile` (unfinished: :class:`Writer`) will.

    Raises:
        UserError: anything is wrong, too little memory included.
    """
    path = Path(path)
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


def _matrix(values: np.ndarray) -> np.ndarray:
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        raise ValueError(f"a matrix of numbers was expected, found {values.dtype} {values.shape}")
    with np.errstate(over="ignore"):  # to infinity, which is refused
        return values.astype(np.float32)


def _integers(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "fiu" or not (np.abs(values) < 2**53).all() or (values % 1 != 0).any():
        raise ValueError(f"whole numbers were expected, found {values.dtype} {values.shape}")
    return values.ravel().astype(np.int64)
