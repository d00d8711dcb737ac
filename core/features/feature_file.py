"""The feature file: region features of a whole data set on disk, read row by row.

DAZLE's dataset names, so files travel both ways. New files (format 3) have contiguous float16 rows and checksums of
everything: :mod:`core.features.writer` makes them, :mod:`core.features.layout` is what both agree on. Their checksum is
compared before HDF5 parses anything, since the HDF5 library crashes on some damaged files. Older ones (format 2, and
DAZLE's in any layout) are parsed in a child process first and read through h5py, whose filters check rows if the file
has any.
"""

from __future__ import annotations

import errno
import math
import os
import shlex
import zlib
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from core.datasets.metadata import SPLITS, Metadata, clip_negative, compare_counts, cub50
from core.datasets.registry import CUB50, DataSet
from core.features.identity import extraction_command, first_difference
from core.features.layout import (
    DIGEST,
    FORMAT_VERSION,
    ROWS,
    Header,
    check_axes,
    check_stored,
    class_tokens,
    first_not_finite,
    matrix,
    plain,
    read_header,
    sha256_outside,
    whole_numbers,
    wrong_maps,
)
from core.files import sandbox
from core.files.atomic import sha256_file
from core.files.errors import UserError

_REQUIRED = ("feature_map", "labels", *SPLITS, "att")
_OPTIONAL = ("original_att", "w2v_att", "allclasses_names", "image_files", "train_loc", "val_loc", *ROWS.values())
_ROW = 64 << 20  # bytes of one image's features; ResNet-101's have 200 kB
_CHILD_SECONDS = 60


class FeatureFile(AbstractContextManager["FeatureFile"]):
    """Reads a finished feature file of any format; rows on demand, never the whole array.

    Worker processes may read it too: a forked one shares the descriptor, whose position no reading uses, one that is
    given a pickled reader opens the file anew.
    """

    def __init__(self, path: Path | str) -> None:
        """Open and check everything but the features.

        Raises:
            UserError: missing, unfinished, truncated or damaged file, or one that cannot be read now; names the cause.
        """
        self.path = Path(path)
        self.provenance: dict[str, Any] = {}
        self._descriptor = -1
        self._file: h5py.File | None = None
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY)
            self._header: Header | None = read_header(self._descriptor)
            self._state: tuple[int, ...] = _state(self._descriptor)
            if self._header is None:
                parse_in_child(self.path)
            elif sha256_outside(self._descriptor, DIGEST, self._header.span) != self._header.sha256:
                raise ValueError("its checksum does not match")
            # 64 MiB: automatic chunks of the old layout are read many times with HDF5's default cache
            self._file = h5py.File(self.path, "r", rdcc_nbytes=64 << 20, locking="best-effort")
            self._load(self._file)
        except UserError:
            self.close()
            raise
        except Exception as error:  # a damaged file raises nearly anything
            self.close()
            raise UserError(self._reason(error)) from error

    def _load(self, file: h5py.File, finished: bool = True) -> None:
        if missing := [key for key in _REQUIRED if key not in file]:
            raise UserError(f"{self.path} lacks {', '.join(missing)}: not a feature file")
        self.provenance = {k: plain(v) for k, v in file.attrs.items()}
        if (version := self.provenance.get("format_version", 0)) > FORMAT_VERSION:
            raise UserError(f"{self.path} has format version {version}, newer than this program's {FORMAT_VERSION}")
        if finished and not self.provenance.get("complete", True):  # formats before 3
            raise UserError(f"{self.path} is not complete; run the extraction again")
        if finished and version >= 3 and self._header is None:
            raise UserError(f"{self.path} was never finished, or lost its header. {self._mend()}")
        if finished and "shard" in self.provenance:
            raise UserError(f"{self.path} is a part of an extraction in shards: python -m core.commands.merge FINAL")
        for key in (*_REQUIRED, *_OPTIONAL, "global"):
            if key in file:
                check_stored(file, key)
        self._maps = file["feature_map"]
        if wrong := wrong_maps(self._maps.shape, self._maps.dtype):
            raise UserError(f"{self.path}: feature_map is {wrong}")
        n, d, *grid = self._maps.shape
        self.dtype: np.dtype[Any] = self._maps.dtype.newbyteorder("=")
        row_bytes = math.prod((d, *grid)) * self.dtype.itemsize
        if row_bytes > _ROW:
            raise UserError(f"{self.path}: {row_bytes} bytes of features an image, more than {_ROW}")
        try:
            check_axes(self._maps.shape)
        except ValueError as error:
            raise UserError(f"{self.path}: {error}") from None
        self.grid: tuple[int, ...] = tuple(grid)  # (h,w)
        self.shape: tuple[int, int, int] = (n, d, math.prod(grid))  # (N,D,R)
        self.w2v_att = matrix(file, "w2v_att") if "w2v_att" in file else None  # (K,V)
        self.class_names = _names(file, "allclasses_names")
        self.image_files = _names(file, "image_files")
        self._has_original_att = "original_att" in file
        self.metadata = self._read_metadata(file)
        if self._header is not None:
            self._row_crc32 = file["row_crc32"][()]
            self._verified = np.zeros(n, dtype=bool)  # rows whose checksum was right since the file last changed
            stored = Header(self._maps.id.get_offset() or 0, n, row_bytes, self._header.sha256)
            if self._header != stored or self._row_crc32.shape != (n,) or self._maps.dtype.str not in ("<f2", "<f4"):
                raise ValueError("its header is of other features")

    def _read_metadata(self, file: h5py.File) -> Metadata:
        """Labels, attributes and splits as they are in the file, checked."""
        att = matrix(file, "att")
        labels = whole_numbers(file, "labels")
        if len(labels) != self.shape[0] and "shard" not in self.provenance:
            raise UserError(f"{self.path}: {len(labels)} labels for {self.shape[0]} feature maps")
        if self.w2v_att is not None and (len(self.w2v_att) != att.shape[1] or not np.isfinite(self.w2v_att).all()):
            of = f"is of {len(self.w2v_att)} attributes, att of {att.shape[1]}"
            raise UserError(f"{self.path}: w2v_att {of}, or holds NaN or infinity")
        keys = (*SPLITS, "train_loc", "val_loc")
        m = Metadata(
            name=str(self.provenance.get("dataset", "unknown")),
            image_files=self.image_files or [],
            labels=labels,
            class_names=self.class_names or [f"class {c}" for c in range(len(att))],
            att=att,
            original_att=matrix(file, "original_att") if self._has_original_att else att,
            **{key: np.sort(whole_numbers(file, key)) if key in file else np.empty(0, np.int64) for key in keys},
            split_sha256=str(self.provenance.get("split_sha256", "unknown")),
            notes=[str(self.provenance["notes"])] if self.provenance.get("notes") else [],
            attribute_names=[],
            allow_candidates=False,
        )
        m.check(str(self.path))
        return m

    def __reduce__(self) -> tuple[type[FeatureFile], tuple[Path]]:
        return FeatureFile, (self.path.absolute(),)

    def row_offset(self, row: int) -> int:
        """Byte offset of a row in a file of format 3."""
        if self._header is None:
            raise ValueError(f"{self.path} has no rows of fixed places")
        return self._header.row_offset(row)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Features of the given rows in their order, (n,D,R) in the stored type; rows may repeat.

        The first time a row is read here it is compared with its crc32 and looked through for NaN. Later readings check
        that it is there in full and that nobody has written to the file meanwhile (its size and times): if so, every
        row is compared anew. What a failing disk returns on a second reading of an untouched file is not noticed;
        :func:`verify` would.

        Raises:
            UserError: a damaged or truncated row, NaN, or a failing disk; names file and row.
        """
        rows = np.asarray(rows, dtype=np.int64).ravel()
        if len(rows) and (rows.min() < 0 or rows.max() >= self.shape[0]):
            raise IndexError(f"rows outside 0..{self.shape[0] - 1}")
        if self._header is None:
            return self._read_h5py(rows)
        if (state := _state(self._descriptor)) != self._state:
            self._state, self._verified[:] = state, False
        out = np.empty((len(rows), *self.shape[1:]), dtype=self.dtype)
        self.prefetch(rows)  # the disk works on all at once: a cold batch is read in two thirds of the time
        for i, row in enumerate(rows.tolist()):
            target = out[i].reshape(-1).view(np.uint8)
            try:
                got = os.preadv(self._descriptor, [target.data], self.row_offset(row))
            except OSError as error:
                raise UserError(self._reason(error)) from error
            if got != len(target):
                raise UserError(f"{self.path} is truncated at row {row}{self._image(row)}. {self._mend()}")
            if not self._verified[row]:
                if zlib.crc32(target) != self._row_crc32[row]:
                    raise UserError(f"{self.path}: row {row}{self._image(row)} is damaged (checksum). {self._mend()}")
                self._check_finite(row, out[i])
                self._verified[row] = True
        return out

    @cached_property
    def global_features(self) -> np.ndarray | None:
        """Class tokens (N,G) in the stored type, of a file extracted with --keep-global; None of any other.

        Raises:
            UserError: no matrix of one row an image, or a damaged row.
        """
        try:
            return None if self._file is None else class_tokens(self._file, self.shape[0])
        except ValueError as error:
            raise UserError(f"{self.path}: {error}. {self._mend()}") from error

    def prefetch(self, rows: np.ndarray) -> None:
        """Have the system fetch rows from the disk while something else is done; a hint that changes no value."""
        if self._header is not None and hasattr(os, "posix_fadvise"):  # not on macOS
            for row in rows.tolist():
                os.posix_fadvise(self._descriptor, self.row_offset(row), self._header.row_bytes, os.POSIX_FADV_WILLNEED)

    def _read_h5py(self, rows: np.ndarray) -> np.ndarray:
        unique, back = np.unique(rows, return_inverse=True)
        out = np.empty((len(unique), *self.shape[1:]), dtype=self.dtype)
        for i, row in enumerate(unique.tolist()):
            try:
                out[i] = self._maps[row].reshape(self.shape[1:])
            except Exception as error:  # filters raise nearly anything
                raise UserError(
                    f"{self.path}: row {row}{self._image(row)} is damaged or truncated ({error}). {self._mend()}"
                ) from error
            self._check_finite(row, out[i])
            if not out[i].any():
                what = f"row {row}{self._image(row)} is all zeros, as where an extraction broke off before it"
                raise UserError(f"{self.path}: {what}. {self._mend()}")
        return out if np.array_equal(unique, rows) else out[back]

    def _check_finite(self, row: int, maps: np.ndarray) -> None:
        if first_not_finite(maps[None]) is not None:
            what = f"row {row}{self._image(row)} holds NaN or infinity"
            raise UserError(f"{self.path}: {what}. Make it anew with: {self.extraction_command()}")

    def _image(self, row: int) -> str:
        return f" ({self.image_files[row]})" if self.image_files else ""

    def extraction_command(self, data_root: Path | str | None = None) -> str:
        """The complete command that makes this file, from what it records; a general one where it records nothing."""
        stored = self.dtype.name if hasattr(self, "dtype") else None
        return extraction_command(self.path, self.provenance, stored, data_root)

    def digest(self) -> str:
        """SHA-256 that tells this file from every other: format 3 has it ready, it covers the rows' checksums."""
        return self._header.sha256.hex() if self._header else sha256_file(self.path)

    def _mend(self) -> str:
        """What to do about damage. Rows of format 3 are known by their checksums, whatever happened to the others."""
        if self._header is None and self.provenance.get("format_version", 0) < 3:
            return f"Get it again, or make it anew with: {self.extraction_command()}"
        move = shlex.join(["mv", str(self.path), f"{self.path}.partial"])
        return f"To keep every row that is whole: {move}, then run what made it: {self.extraction_command()}"

    def _reason(self, error: Exception) -> str:
        """What an error says of this file: only what is proved is called damage."""
        if isinstance(error, FileNotFoundError):
            partial = self.path.with_name(self.path.name + ".partial")
            hint = f" There is an unfinished {partial.name}: run the extraction again." if partial.exists() else ""
            return f"no feature file at {self.path}.{hint}"
        if isinstance(error, MemoryError):
            return f"too little memory to read {self.path}; close other programs or ask the job for more"
        if isinstance(error, OSError) and error.errno:
            if error.errno == errno.EISDIR:
                return f"{self.path} is a folder; name the feature file in it"
            busy = "; close the program that has it open for writing" if error.errno == errno.EAGAIN else ""
            return f"cannot read {self.path}: {os.strerror(error.errno)}{busy}"
        if getattr(self, "_header", None) is not None:
            what = "was changed after it was finished, by damage or by a program that wrote to it"
        else:
            what = "is damaged or truncated"
        return f"{self.path} {what} ({error}). {self._mend()}"

    def check_belongs(self, metadata: Metadata, where: Path | str, data_root: Path | str | None = None) -> None:
        """Refuse a file whose images, classes, labels, splits or attributes are others than those of the data root.

        Args:
            metadata: of the whole data set (CUB's for CUB50), as the data root has it. where: its split file.
            data_root: for the command in the error.

        Raises:
            UserError: the first difference; names both files and the command that mends it.
        """
        attributes = ("att", "original_att") if self._has_original_att else ("att",)
        validation = ("train_loc", "val_loc") if "split_sha256" in self.provenance else ()
        wrong = first_difference(
            replace(self.metadata, class_names=self.class_names or metadata.class_names),
            metadata,
            (*SPLITS, *validation),
            attributes,
        )
        if wrong:
            raise UserError(
                f"{self.path} does not belong to {where}: {wrong}. Choose the right one with --features or "
                "--data-root, or move the feature file away and make it anew with: "
                f"{self.extraction_command(data_root)}"
            )

    def to_metadata(self, dataset: DataSet, root_metadata: Metadata | None = None) -> Metadata:
        """The file's labels, attributes and splits; train/val are drawn where an old file has none.

        Args:
            root_metadata: of the whole data set, as the data root has it; gives the names that a file in DAZLE's layout
                lacks, where the labels agree.

        Raises:
            UserError: splits that overlap, or another data set's file.
        """
        where, m = str(self.path), self.metadata
        made_for = self.provenance.get("dataset", dataset.source)
        if made_for != dataset.source:
            raise UserError(f"{where} holds the features of {made_for}, not of {dataset.source}")
        names, images = self.class_names, self.image_files
        if root_metadata is not None and np.array_equal(root_metadata.labels, m.labels):
            names = root_metadata.class_names if names is None and len(root_metadata.att) == len(m.att) else names
            images = root_metadata.image_files if images is None else images
        if dataset.name == CUB50.name and names is None:
            raise UserError(
                f"{where} has no class names, which CUB50 needs; --data-root must hold CUB's att_splits.mat"
            )
        att, notes = clip_negative(m.att, dataset)
        m = replace(
            m,
            name=dataset.source,
            class_names=names or m.class_names,
            image_files=images or [],
            att=att,
            notes=[*m.notes, *notes],
        )
        m.check(where)
        if "notes" not in self.provenance:  # extraction has noted what is to be said of its files
            compare_counts(m, dataset, self.path)
        return (cub50(m) if dataset.name == CUB50.name else m).with_validation(dataset.val_share)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._file is not None:
            self._file.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def verify(path: Path | str) -> None:
    """Read every row of a feature file; opening it compares all else.

    Raises:
        UserError: the first thing that is wrong with it.
    """
    with FeatureFile(path) as file:
        _ = file.global_features
        for start in range(0, file.shape[0], 64):
            file.read(np.arange(start, min(start + 64, file.shape[0])))


def parse_in_child(path: Path, finished: bool = True) -> None:
    """Let a child process with bounded memory and time parse a file first, as this process will.

    Raises:
        UserError: what the child found wrong, or that the HDF5 library crashes or hangs there.
    """
    sandbox.call("core.features.feature_file:examine", str(path), finished, kind="HDF5 file", timeout=_CHILD_SECONDS)


def examine(path: Path | str, finished: bool = True) -> None:
    """Parse what :class:`FeatureFile` (unfinished: :class:`Writer`) will; raises nearly anything."""
    reader = FeatureFile.__new__(FeatureFile)
    reader.path, reader._header, reader.provenance = Path(path), None, {}
    try:
        with h5py.File(path, "r", locking="best-effort") as reader._file:
            reader._load(reader._file, finished)
            if finished:
                _ = reader.global_features
                reader._read_h5py(np.array([0, reader.shape[0] - 1]))
    except OSError as error:
        raise UserError(reader._reason(error)) if error.errno else error from None


def _state(descriptor: int) -> tuple[int, ...]:
    """What changes when a file is written to."""
    now = os.fstat(descriptor)
    return now.st_size, now.st_mtime_ns, now.st_ctime_ns


def _names(file: h5py.File, key: str) -> list[str] | None:
    if key not in file:
        return None
    return [v.decode() if isinstance(v, bytes) else str(v) for v in file[key][()].ravel()]
