"""Merging the part files of an extraction in shards (core/features/shards.py) into one feature file."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tqdm import tqdm

from core.datasets.metadata import Metadata
from core.features.layout import DIGEST, ROWS, Header, plain, read_header, sha256_outside
from core.features.shards import PartContent, Shard, parts_of
from core.features.writer import FeatureFileMetadata, Writer
from core.files.atomic import Lock
from core.files.errors import UserError, differences

_BLOCK = 16 << 20  # bytes copied at a time
_log = logging.getLogger(__name__)


class Part:
    """A finished part file, its checksum compared."""

    def __init__(self, path: Path, shard: Shard) -> None:
        """Open and compare everything but the rows.

        Raises:
            UserError: missing, unfinished, damaged, or of another shard; names it.
        """
        self.path, self.shard = path, shard
        self._file: h5py.File | None = None
        begun = path.with_name(path.name + ".partial")
        if not path.is_file():
            state = f"is not finished ({begun.name} is there)" if begun.is_file() else "is missing"
            raise UserError(
                f"shard {shard} {state}: {path}. Run its extraction again: the same command with --shard {shard}"
            )
        try:
            with open(path, "rb") as handle:
                header = read_header(handle.fileno())
                if header is None:
                    raise ValueError("it has no header")
                self.header: Header = header
                if sha256_outside(handle.fileno(), DIGEST, header.span) != header.sha256:
                    raise ValueError("its checksum does not match")
            self._file = file = h5py.File(path, "r", locking="best-effort")
            self.attributes: dict[str, Any] = {k: plain(v) for k, v in file.attrs.items()}
            if "shard" not in self.attributes:
                raise ValueError("it is no part")
            self.record = json.loads(self.attributes.pop("shard"))
            # of feature_map, and of global where it was asked for
            self.crcs = {key: file[crcs][()] for key, crcs in ROWS.items() if key in file}
            self.shapes = {key: tuple(file[key].shape[1:]) for key in self.crcs}
            self.dtype = file["feature_map"].dtype
            self.arrays = {
                key: file[key].asstr()[()] if h5py.check_string_dtype(file[key].dtype) else file[key][()]
                for key in file
                if key not in (*ROWS, *ROWS.values())
            }
        except UserError:
            self.close()
            raise
        except Exception as error:  # a damaged file raises nearly anything
            self.close()
            raise UserError(
                f"{path} is damaged ({error}). Its rows are known by their checksums; to redo only the damaged ones: "
                f"mv {path} {begun}, then the same extraction with --shard {shard}"
            ) from error
        if (self.record["index"], self.record["count"]) != (shard.index, shard.count):
            own = Shard(self.record["index"], self.record["count"])
            self.close()
            raise UserError(
                f"{path} holds shard {own}, not {shard} as its name says: a copy? Extract shard {shard} again"
            )
        self.rows = range(*self.record["rows"])

    def content(self) -> FeatureFileMetadata:
        """What the whole file holds beside the features."""
        keys = ("labels", "trainval_loc", "test_seen_loc", "test_unseen_loc", "train_loc", "val_loc", "att")
        known = {key: self.arrays[key] for key in (*keys, "original_att")}
        metadata = Metadata(
            name=str(self.attributes.get("dataset", "")),
            image_files=self.arrays["image_files"].tolist(),
            class_names=self.arrays["allclasses_names"].tolist(),
            split_sha256=str(self.attributes.get("split_sha256", "")),
            **known,
        )
        order = [key for key in self.record["order"] if key != "format_version"]
        return FeatureFileMetadata(metadata, {key: self.attributes[key] for key in order}, self.arrays.get("w2v_att"))

    def difference(self, other: Part) -> str:
        """In what another part is of another extraction; empty if in nothing."""
        differs = differences(other.attributes, self.attributes, f"in {self.path.name}")
        if (self.shapes, self.dtype) != (other.shapes, other.dtype):
            differs.append(f"features {other.shapes} {other.dtype} there, {self.shapes} {self.dtype}")
        for key in sorted({*self.arrays, *other.arrays}):
            mine, its = self.arrays.get(key), other.arrays.get(key)
            same = mine is not None and its is not None and mine.dtype == its.dtype
            if not same or not np.array_equal(mine, its, equal_nan=mine.dtype.kind == "f"):  # type: ignore[arg-type, union-attr]
                differs.append(f"{key} is another")
        return "; ".join(differs)

    def read(self, first: int, count: int, key: str = "feature_map") -> np.ndarray:
        """``count`` rows from the part's row ``first`` on, each compared with its checksum: (count,D,h,w) or (count,G).

        Raises:
            UserError: a damaged row; names it.
        """
        assert self._file is not None
        values: np.ndarray = self._file[key][first : first + count]
        for i, row in enumerate(values):
            if zlib.crc32(row.tobytes()) != self.crcs[key][first + i]:
                raise UserError(
                    f"{self.path}: row {first + i} ({self.arrays['image_files'][self.rows.start + first + i]}) is "
                    f"damaged (checksum). To redo only what is damaged: mv {self.path} {self.path}.partial, then the "
                    f"same extraction with --shard {self.shard}"
                )
        return values

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def merge(final: Path | str, *, keep: bool = False) -> Path:
    """Make the feature file of all its parts, which are removed then (``keep``: which stay); resumable.

    Raises:
        UserError: no part, a missing, unfinished, doubled or damaged one, or one of another extraction; names it.
    """
    final = Path(final)
    with Lock(final.with_name(final.name + ".merge")):
        found = parts_of(final)
        counts = sorted({shard.count for shard in found})
        if not counts:
            there = f"; {final} itself is there" if final.exists() else ""
            raise UserError(f"no part of {final}: looked for {final}.shard-*-of-*{there}")
        if final.exists():
            raise UserError(f"{final} is there already. Delete it to merge again, or its parts: rm {final}.shard-*")
        if len(counts) > 1:
            raise UserError(
                f"{final} has parts of divisions into {', '.join(map(str, counts))} shards. Delete those of "
                f"all but one, such as: rm {final}.shard-*-of-{counts[-1]}*"
            )
        parts: list[Part] = []
        try:
            for index in range(counts[0]):
                shard = Shard(index, counts[0])
                parts.append(Part(shard.part(final), shard))
            _join(parts, final)
        finally:
            for part in parts:
                part.close()
        if not keep:
            for part in parts:
                part.path.unlink()
        return final


def _join(parts: Sequence[Part], final: Path) -> None:
    """Check that the parts are one extraction's, every row once, and copy their rows."""
    first = parts[0]
    expected = 0
    for part in parts:
        if differs := first.difference(part):
            raise UserError(
                f"{part.path} is of another extraction than {first.path.name} ({differs}). Delete it and run the same "
                f"command with --shard {part.shard}"
            )
        if part.rows.start != expected or len(part.rows) != part.header.rows:
            raise UserError(
                f"{part.path} holds rows {part.rows.start} to {part.rows.stop - 1}, but {expected} is the next. Delete "
                f"it and run the same command with --shard {part.shard}"
            )
        expected = part.rows.stop
    content = first.content()
    if expected != len(content.metadata.labels):
        of = f"{expected} rows of {len(content.metadata.labels)}"
        raise UserError(f"the parts of {final} hold {of}: delete them (rm {final}.shard-*) and extract again")
    channels, height, width = first.shapes["feature_map"]
    (tokens,) = first.shapes.get("global", (0,))
    with Writer(final, content, (channels, height, width), first.dtype.name, tokens) as writer:
        with tqdm(total=expected, unit="image", desc=f"merge {final.name}", disable=None) as bar:
            step = max(1, _BLOCK // first.header.row_bytes)
            for part in parts:
                for start in range(0, len(part.rows), step):
                    count = min(step, len(part.rows) - start)
                    rows = np.arange(start, start + count) + part.rows.start
                    if not writer.done[rows].all():
                        beside = part.read(start, count, "global") if tokens else None
                        writer.write(rows, part.read(start, count), beside)
                    bar.update(count)
        writer.finish()


def finish(final: Path, content: FeatureFileMetadata) -> Path:
    """After a file of ``content`` was finished: merge, where it was the last part that was missing.

    Returns:
        The path of the whole file; of the part where others are missing still.

    Raises:
        UserError: the finished part is of other settings, or parts that do not fit together.
    """
    if not isinstance(content, PartContent):
        return final
    shard = content.shard
    part = Part(shard.part(final), shard)
    part.close()
    wanted = content.whole.attributes()
    if differs := differences({key: part.attributes.get(key) for key in wanted}, wanted):
        raise UserError(
            f"{part.path} was made with other settings ({'; '.join(differs)}). Delete it (rm {part.path}) or choose "
            "another --out"
        )
    others = [Shard(i, shard.count) for i in range(shard.count)]
    waiting = [str(other) for other in others if not other.part(final).is_file()]
    if waiting and not final.exists():
        _log.info("shard %s is finished; not yet: %s", shard, ", ".join(waiting[:8]) + (" ..." if waiting[8:] else ""))
        return shard.part(final)
    try:
        return merge(final)
    except UserError as error:
        # two that finish together both come here, and one merges
        if final.exists() or "another process" in str(error):
            _log.info("shard %s is finished; another process merges", shard)
            return final if final.exists() else shard.part(final)
        raise
