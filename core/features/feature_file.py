"""The feature file: region features of a whole data set on disk, read row by row.

Plain HDF5 under DAZLE's dataset names, so files travel both ways. Format 4 has the rows of feature_map (N,D,h,w) one
behind another, the crc32 of each in row_crc32, and in the attribute sha256 a digest of all else;
:mod:`core.features.writer` makes it. Format 3 kept that digest elsewhere. Files from elsewhere (DAZLE's) have no
checksums and are read through h5py.
"""

import math
import mmap
import zlib
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from core.datasets.metadata import SPLITS, Metadata, clip_negative, compare_counts, cub50
from core.datasets.registry import CUB50, DataSet
from core.datasets.stored import check_maps, first_difference, read_content
from core.files.atomic import sha256_file
from core.files.errors import UserError
from core.files.hdf5 import content_digest, matrix, names, open_hdf5, plain
from core.files.kinds import unreadable

FORMAT_VERSION = 4
_MEND = "Move it away (mv), and get it again or make it anew"


class FeatureFile(AbstractContextManager["FeatureFile"]):
    """Reads a finished feature file of any format; rows on demand, never the whole array. Forked processes may too."""

    def __init__(self, path: Path | str) -> None:
        """Open and check everything but the features."""
        self.path = Path(path)
        self._file = open_hdf5(self.path)
        try:
            self._load(self._file)
        except Exception as error:  # a damaged file raises nearly anything
            self.close()
            if isinstance(error, UserError | MemoryError):
                raise
            raise unreadable(self.path, "feature file", error) from error

    def _load(self, file: h5py.File) -> None:
        self.metadata = read_content(file, self.path)
        self.provenance: dict[str, Any] = {k: plain(v) for k, v in file.attrs.items()}
        stored_digest = self.provenance.pop("sha256", None)
        version = self.provenance.get("format_version", 0)
        if version > FORMAT_VERSION:
            raise UserError(f"{self.path} has format version {version}, newer than this program's {FORMAT_VERSION}")
        self._maps = file["feature_map"]
        check_maps(self._maps.shape, self._maps.dtype, self.path)
        n, d, *grid = self._maps.shape
        self.dtype: np.dtype[Any] = self._maps.dtype.newbyteorder("=")
        self.grid: tuple[int, ...] = tuple(grid)  # (h,w)
        self.shape: tuple[int, int, int] = (n, d, math.prod(grid))  # (N,D,R)
        self.w2v_att = matrix(file["w2v_att"][()], "w2v_att") if "w2v_att" in file else None  # (K,V)
        # (C,2,E) float32, texts of a CLIP model: each class's name, and its attributes
        self.class_text: np.ndarray | None = file["class_text"][()] if "class_text" in file else None
        self.class_names = names(file, "allclasses_names")
        self._sha256: str | None = None
        self._rows: Any = None  # (N,D,R) on the disk, where rows have checksums
        if version >= 3:
            self._sha256 = content_digest(file)
            if version == 4 and stored_digest != self._sha256:
                raise ValueError("it was changed after it was finished, or is damaged")
            self.offset = self._maps.id.get_offset()  # of row 0, in bytes
            self._rows = np.memmap(self.path, self.dtype, "r", self.offset, self.shape)
            self._row_crc32 = file["row_crc32"][()]
            self._verified = np.zeros(n, dtype=bool)  # rows whose checksum was right when they were first read

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Features (n,D,R) of the given rows, which may repeat; a row's first time it is compared with its crc32."""
        if self._rows is None:
            return self._read_h5py(rows)
        self._fetch(rows)
        found: np.ndarray = self._rows[rows]
        for i in np.flatnonzero(~self._verified[rows]):
            if zlib.crc32(found[i]) != self._row_crc32[rows[i]]:
                raise self._damaged(rows[i], "is damaged (checksum)")
            self._verified[rows[i]] = True
        return found

    def _fetch(self, rows: np.ndarray) -> None:
        """Have the disk work on all rows at once, where the system takes such a hint."""
        size, page, first = self._rows[0].nbytes, mmap.PAGESIZE, self.offset % mmap.ALLOCATIONGRANULARITY
        for start in (first + rows * size).tolist() if hasattr(mmap, "MADV_WILLNEED") else ():
            self._rows.base.madvise(mmap.MADV_WILLNEED, start // page * page, size + start % page)

    def _read_h5py(self, rows: np.ndarray) -> np.ndarray:
        found = np.empty((len(rows), *self.shape[1:]), dtype=self.dtype)
        for i in np.argsort(rows):  # a chunk may hold several
            try:
                found[i] = self._maps[rows[i]].reshape(self.shape[1:])
            except Exception as error:  # filters raise nearly anything
                raise self._damaged(rows[i], f"is damaged or truncated ({error})") from error
            if not np.isfinite(found[i]).all() or not found[i].any():
                raise self._damaged(rows[i], "holds NaN or zeros alone, as where an extraction broke off before it")
        return found

    def _damaged(self, row: int, what: str) -> UserError:
        image = f" ({self.metadata.image_files[row]})" if self.metadata.image_files else ""
        return UserError(f"{self.path}: row {row}{image} {what}. {_MEND}")

    def digest(self) -> str:
        """SHA-256 that tells this file from every other; where rows have checksums, it stands in the file."""
        return self._sha256 or sha256_file(self.path)

    def check_belongs(self, root: Metadata, where: Path | str) -> None:
        """Refuse a file whose images, classes, labels, splits or attributes are not the root's (CUB's for CUB50)."""
        validation = ("train_loc", "val_loc") if "split_sha256" in self.provenance else ()
        mine = replace(self.metadata, class_names=self.class_names or root.class_names)
        if wrong := first_difference(mine, root, (*SPLITS, *validation), ("att",)):
            raise UserError(
                f"{self.path} does not belong to {where}: {wrong}. Choose another --features or --data-root"
            )

    def to_metadata(self, dataset: DataSet, root: Metadata | None = None) -> Metadata:
        """The file's labels, attributes and splits; what DAZLE's layout lacks is the ``root``'s, train/val drawn."""
        made_for, lacking = self.provenance.get("dataset", dataset.source), root or self.metadata
        if made_for != dataset.source:
            raise UserError(f"{self.path} holds the features of {made_for}, not of {dataset.source}")
        att, notes = clip_negative(self.metadata.att, dataset)
        m = replace(
            self.metadata, name=dataset.source, att=att, notes=[*self.metadata.notes, *notes],
            image_files=self.metadata.image_files or lacking.image_files,
            class_names=self.class_names or lacking.class_names,
        )  # fmt: skip
        m.check(str(self.path))
        if "notes" not in self.provenance:  # extraction has noted what is to be said of its files
            compare_counts(m, dataset, self.path)
        return (cub50(m) if dataset.name == CUB50.name else m).with_validation(dataset.val_share)

    def close(self) -> None:
        self._file.close()

    def __exit__(self, *_: object) -> None:
        self.close()
