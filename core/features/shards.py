"""Extraction in shards: each process extracts a range of images into a part file; the parts become one feature file.

All shards have the same list of images; shard i of n (from 0 on) takes a contiguous range of it that begins and ends
where a batch does, so the merged file has the bytes of a single pass. A part is a feature file in the making like any
other, resumable row by row, that holds its own rows of feature_map and everything else of the whole.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from core.features.writer import FeatureFileMetadata
from core.files.errors import UserError, run_cli


@dataclass(frozen=True)
class Shard:
    """Part ``index`` of ``count``, counted from 0."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def part(self, final: Path) -> Path:
        return final.with_name(f"{final.name}.shard-{self.index}-of-{self.count}")

    def rows(self, images: int, batch_size: int) -> range:
        """The rows of this shard; it begins and ends where a batch does.

        Raises:
            UserError: there are more shards than batches.
        """
        batches = -(-images // batch_size)
        if self.count > batches:
            raise UserError(
                f"--shard {self}: {images} images are {batches} batches of {batch_size} (--batch-size), so at most "
                f"{batches} shards"
            )
        start, stop = (batches * i // self.count * batch_size for i in (self.index, self.index + 1))
        return range(start, min(stop, images))

    def within(self, index: int, count: int) -> Shard:
        """Part ``index`` of ``count`` of this shard."""
        return Shard(self.index * count + index, self.count * count)


def parse_shard(text: str) -> Shard:
    """ "2/8" as a shard.

    Raises:
        UserError: not of that form, or not from 0/n to n-1/n.
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
    if not match or not int(match[1]) < int(match[2]):
        raise UserError(f"--shard {text}: i/n is needed, i from 0 to n-1, such as 0/8 for the first of eight")
    return Shard(int(match[1]), int(match[2]))


def shard_of_environment(environment: Mapping[str, str] = os.environ) -> Shard:
    """The shard that a job array, and torchrun or srun within it, give this process; 0/1 where there is none.

    Raises:
        UserError: an array whose numbers have gaps.
    """
    shard = Shard(0, 1)
    if "SLURM_ARRAY_TASK_COUNT" in environment:
        count, first, last, own = (
            int(environment.get(f"SLURM_ARRAY_TASK_{key}", 0)) for key in ("COUNT", "MIN", "MAX", "ID")
        )
        if last - first + 1 != count and count > 1:
            raise UserError(
                f"the job array has {count} tasks from {first} to {last}, with gaps, so the shards are not clear; give "
                "each task its own --shard i/n"
            )
        shard = Shard(own - first, count) if count > 1 else shard
    for index, count_of in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        if index in environment and count_of in environment:
            return shard.within(int(environment[index]), int(environment[count_of]))
    return shard


def local_rank(environment: Mapping[str, str] = os.environ) -> int | None:
    """Number of this process among those that torchrun or srun started on this machine; None without them."""
    for index, count_of in (("LOCAL_RANK", "WORLD_SIZE"), ("SLURM_LOCALID", "SLURM_STEP_NUM_TASKS")):
        if index in environment and int(environment.get(count_of, 1)) > 1:
            return int(environment[index])
    return None


@dataclass(frozen=True, kw_only=True)
class PartContent(FeatureFileMetadata):
    """Everything in a part but its features: what the whole file has, and which rows these are."""

    whole: FeatureFileMetadata
    shard: Shard
    rows: range

    def attributes(self) -> dict[str, str | int]:
        """Those of the whole, and the shard."""
        own = self.whole.attributes()
        record = {
            "index": self.shard.index,
            "count": self.shard.count,
            "rows": [self.rows.start, self.rows.stop],
            "order": list(own),  # HDF5 gives attributes back by name, and the merged file is to have the same bytes
        }
        return own | {"shard": json.dumps(record)}

    def arrays(self) -> dict[str, np.ndarray]:
        """Those of the whole."""
        return self.whole.arrays()


def part_content(whole: FeatureFileMetadata, shard: Shard, rows: range) -> PartContent:
    """What the part of a shard holds beside its features. ``metadata`` has as many labels as the part has rows."""
    metadata = replace(whole.metadata, labels=whole.metadata.labels[rows.start : rows.stop])
    return PartContent(metadata, whole.provenance, whole.w2v, whole=whole, shard=shard, rows=rows)


def parts_of(final: Path) -> dict[Shard, Path]:
    """The part files of ``final``, finished or begun."""
    found: dict[Shard, Path] = {}
    form = re.compile(re.escape(final.name) + r"\.shard-(\d+)-of-(\d+)(\.partial)?")
    for path in sorted(final.parent.glob("*")) if final.parent.is_dir() else []:
        if match := form.fullmatch(path.name):
            shard = Shard(int(match[1]), int(match[2]))
            found[shard] = shard.part(final)
    return found


def refuse_other_division(final: Path, count: int) -> None:
    """Refuse to begin an extraction in ``count`` shards beside parts of another number of shards.

    Raises:
        UserError: names them, and what to do.
    """
    others = {shard: path for shard, path in parts_of(final).items() if shard.count != count}
    if others:
        shard, path = next(iter(others.items()))
        now = f"in {count} shards" if count > 1 else "without --shard"
        raise UserError(
            f"{path} is there, of an extraction in {shard.count} shards, and this one would be {now}. Go on with "
            f"--shard {shard} (and the others of {shard.count}), or delete it and the other parts: "
            f"rm {final}.shard-*"
        )


def run_on_devices(work: Callable[[Shard, str], None], devices: Sequence[str], outer: Shard) -> None:
    """Run ``work(shard, device)`` in a process for each device, each with its part of ``outer``; none ends another.

    Args:
        work: what a fresh process can import.

    Raises:
        UserError: after all have ended, with those that failed.
    """
    context = multiprocessing.get_context("spawn")
    running = []
    for i, device in enumerate(devices):
        shard = outer.within(i, len(devices))
        process = context.Process(target=_child, args=(work, shard, device), name=f"shard {shard} on {device}")
        process.start()
        running.append(process)
    try:
        for process in running:
            process.join()
    except BaseException:
        for process in running:
            process.terminate()
        raise
    if failed := [f"{p.name} (exit code {p.exitcode})" for p in running if p.exitcode]:
        raise UserError(f"{', '.join(failed)} did not finish. Run the same command again: what is done is kept")


def _child(work: Callable[[Shard, str], None], shard: Shard, device: str) -> None:
    raise SystemExit(run_cli(work, shard, device))
