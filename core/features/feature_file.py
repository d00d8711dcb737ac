"""The feature file: region features of a whole data set on disk, read row by row.

Plain HDF5 under DAZLE's dataset names, so files travel both ways. Format 4 has the rows of feature_map (N,D,h,w) one
behind another, the crc32 of each in row_crc32, and in the attribute sha256 a digest of all else;
:mod:`core.features.writer` makes it. Format 3 kept that digest elsewhere. Files from elsewhere (DAZLE's) have no
checksums and are read through h5py.
"""

from __future__ import annotations

import errno
import math
import os
import shlex
import zlib
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from core.datasets.metadata import SPLITS, Metadata, clip_negative, compare_counts, cub50
from core.datasets.registry import CUB50, DATASETS, DataSet
from core.datasets.stored import check_maps, first_difference, read_content
from core.features.settings import extraction_command, recorded_config
from core.files.atomic import sha256_file
from core.files.errors import UserError
from core.files.hdf5 import content_digest, matrix, names, open_hdf5, plain
from core.files.kinds import missing, unreadable

FORMAT_VERSION = 4


class FeatureFile(AbstractContextManager["FeatureFile"]):
    """Reads a finished feature file of any format; rows on demand, never the whole array.

    Worker processes may read it too: a forked one shares the descriptor, whose position no reading uses, one that is
    given a pickled reader opens the file anew.
    """

    def __init__(self, path: Path | str) -> None:
        """Open and check everything but the features."""
        self.path = Path(path)
        self.provenance: dict[str, Any] = {}
        self._descriptor = -1
        self._file: h5py.File | None = None
        try:
            if self.path.is_dir() or not os.path.lexists(self.path):
                raise UserError(missing(self.path, "feature file"))
            self._descriptor = os.open(self.path, os.O_RDONLY)
            self._file = open_hdf5(self.path)
            self._load(self._file)
        except (UserError, MemoryError):
            self.close()
            raise
        except Exception as error:  # a damaged file raises nearly anything
            self.close()
            raise self._unreadable(error) from error

    def _load(self, file: h5py.File) -> None:
        self.metadata = read_content(file, self.path)
        self.provenance = {k: plain(v) for k, v in file.attrs.items()}
        stored_digest = self.provenance.pop("sha256", None)
        version = self.provenance.get("format_version", 0)
        if version > FORMAT_VERSION:
            raise UserError(f"{self.path} has format version {version}, newer than this program's {FORMAT_VERSION}")
        if not self.provenance.get("complete", True):
            raise UserError(f"{self.path} is not complete: its extraction never finished it. {self._mend()}")
        self._maps = file["feature_map"]
        check_maps(self._maps.shape, self._maps.dtype, self.path)
        n, d, *grid = self._maps.shape
        self.dtype: np.dtype[Any] = self._maps.dtype.newbyteorder("=")
        self.grid: tuple[int, ...] = tuple(grid)  # (h,w)
        self.shape: tuple[int, int, int] = (n, d, math.prod(grid))  # (N,D,R)
        self.w2v_att = matrix(file, "w2v_att") if "w2v_att" in file else None  # (K,V)
        # (C,2,E) float32, texts of a CLIP model: each class's name, and its attributes
        self.class_text: np.ndarray | None = file["class_text"][()] if "class_text" in file else None
        self.class_names = names(file, "allclasses_names")
        self.image_files = names(file, "image_files")
        self._row_bytes = math.prod((d, *grid)) * self.dtype.itemsize
        self._sha256: str | None = None
        self._offset: int | None = None  # of row 0, where rows have checksums
        if version >= 3:
            self._sha256 = content_digest(file)
            if version == 4 and stored_digest != self._sha256:
                raise ValueError("its checksum does not match")
            self._offset = self._maps.id.get_offset()
            self._row_crc32 = file["row_crc32"][()]
            self._verified = np.zeros(n, dtype=bool)  # rows whose checksum was right when they were first read
            if self._offset is None or self._row_crc32.shape != (n,) or self._maps.dtype.str not in ("<f2", "<f4"):
                raise ValueError("its rows are not one behind another")

    def __reduce__(self) -> tuple[type[FeatureFile], tuple[Path]]:
        return FeatureFile, (self.path.absolute(),)

    def row_offset(self, row: int) -> int:
        """Byte offset of a row in a file whose rows have checksums."""
        if self._offset is None:
            raise ValueError(f"{self.path} has no rows of fixed places")
        return self._offset + row * self._row_bytes

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Features of the given rows in their order, (n,D,R) in the stored type; rows may repeat.

        The first time a row is read here it is compared with its crc32 and looked through for NaN.
        """
        rows = np.asarray(rows, dtype=np.int64).ravel()
        if len(rows) and (rows.min() < 0 or rows.max() >= self.shape[0]):
            raise IndexError(f"rows outside 0..{self.shape[0] - 1}")
        out = np.empty((len(rows), *self.shape[1:]), dtype=self.dtype)
        if self._offset is None:
            for i in np.argsort(rows):  # a chunk may hold several
                self._read_h5py(int(rows[i]), out[i])
            return out
        self.prefetch(rows)  # the disk works on all at once: a cold batch is read in two thirds of the time
        for i, row in enumerate(rows.tolist()):
            target = out[i].reshape(-1).view(np.uint8)
            try:
                got = os.preadv(self._descriptor, [target.data], self.row_offset(row))
            except OSError as error:
                raise self._unreadable(error) from error
            if got != len(target):
                raise self._damaged(row, "is truncated")
            if not self._verified[row]:
                if zlib.crc32(target) != self._row_crc32[row]:
                    raise self._damaged(row, "is damaged (checksum)")
                if first_not_finite(out[i : i + 1]) is not None:
                    raise self._damaged(row, "holds NaN or infinity")
                self._verified[row] = True
        return out

    def prefetch(self, rows: np.ndarray) -> None:
        """Have the system fetch rows from the disk while something else is done; a hint that changes no value."""
        if self._offset is not None and hasattr(os, "posix_fadvise"):  # not on macOS
            for row in rows.tolist():
                os.posix_fadvise(self._descriptor, self.row_offset(row), self._row_bytes, os.POSIX_FADV_WILLNEED)

    def _read_h5py(self, row: int, out: np.ndarray) -> None:
        try:
            out[:] = self._maps[row].reshape(self.shape[1:])
        except Exception as error:  # filters raise nearly anything
            raise self._damaged(row, f"is damaged or truncated ({error})") from error
        if first_not_finite(out[None]) is not None:
            raise self._damaged(row, "holds NaN or infinity")
        if not out.any():
            raise self._damaged(row, "is all zeros, as where an extraction broke off before it")

    def _damaged(self, row: int, what: str) -> UserError:
        image = f" ({self.image_files[row]})" if self.image_files else ""
        return UserError(f"{self.path}: row {row}{image} {what}. {self._mend()}")

    def extraction_command(self, data_root: Path | str | None = None) -> str:
        """The complete command that makes this file, from what it records; a general one where it records nothing."""
        endings = [d.source for d in DATASETS.values() if self.path.stem.endswith(f"_{d.source}")]
        dataset = DATASETS.get(str(self.provenance.get("dataset", endings[0] if endings else "")))
        if dataset is None:
            script = "extract_feature/extract_feature_map_ResNet_101_<data set>.py"
            return shlex.join(["python", script, "--out", str(self.path)])
        stored = self.dtype.name if hasattr(self, "dtype") and "backbone" in self.provenance else None
        config = recorded_config(self.provenance, stored)
        return extraction_command(dataset, data_root=data_root or "data", out=self.path, config=config)

    def digest(self) -> str:
        """SHA-256 that tells this file from every other; where rows have checksums, it stands in the file."""
        return self._sha256 or sha256_file(self.path)

    def _mend(self) -> str:
        return f"Move it away (mv) and get it again. Make it anew with: {self.extraction_command()}"

    def _unreadable(self, error: Exception) -> UserError:
        """What an error says of this file: only what is proved is called damage."""
        if isinstance(error, OSError) and error.errno:
            busy = "; close the program that has it open for writing" if error.errno == errno.EAGAIN else ""
            return UserError(f"cannot read {self.path}: {os.strerror(error.errno)}{busy}")
        if not h5py.is_hdf5(self.path):
            return unreadable(self.path, "HDF5 file", error)
        return UserError(f"{self.path} was changed after it was finished, or is damaged ({error}). {self._mend()}")

    def check_belongs(self, metadata: Metadata, where: Path | str, data_root: Path | str | None = None) -> None:
        """Refuse a file whose images, classes, labels, splits or attributes are others than those of the data root.

        Args:
            metadata: of the whole data set (CUB's for CUB50), as the data root has it. where: its split file.
            data_root: for the command in the error.
        """
        attributes = tuple(key for key in ("att", "original_att") if self._file and key in self._file)
        validation = ("train_loc", "val_loc") if "split_sha256" in self.provenance else ()
        mine = replace(self.metadata, class_names=self.class_names or metadata.class_names)
        if wrong := first_difference(mine, metadata, (*SPLITS, *validation), attributes):
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
        """
        where, m = str(self.path), self.metadata
        made_for = self.provenance.get("dataset", dataset.source)
        if made_for != dataset.source:
            raise UserError(f"{where} holds the features of {made_for}, not of {dataset.source}")
        class_names, images = self.class_names, self.image_files
        if root_metadata is not None and np.array_equal(root_metadata.labels, m.labels):
            images = root_metadata.image_files if images is None else images
            if class_names is None and len(root_metadata.att) == len(m.att):
                class_names = root_metadata.class_names
        if dataset.name == CUB50.name and class_names is None:
            raise UserError(
                f"{where} has no class names, which CUB50 needs; --data-root must hold CUB's att_splits.mat"
            )
        att, notes = clip_negative(m.att, dataset)
        m = replace(m, name=dataset.source, image_files=images or [], att=att, notes=[*m.notes, *notes])
        m.class_names = class_names or m.class_names
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
    """Read every row of a feature file, which compares it with its checksum; opening it compares all else."""
    with FeatureFile(path) as file:
        for row in range(file.shape[0]):
            file.read(np.array([row]))


def first_not_finite(values: np.ndarray) -> int | None:
    """Index of the first row with NaN or infinity."""
    if not values.size:
        return None
    flat = np.ascontiguousarray(values).reshape(len(values), -1)
    if values.dtype == np.float16:
        bad = (flat.view(np.uint16) & 0x7FFF).max(axis=1) >= 0x7C00  # several times as fast as np.isfinite
    else:
        bad = ~np.isfinite(flat).all(axis=1)
    return int(bad.argmax()) if bad.any() else None
