"""Extraction in shards: each process extracts a contiguous range of the images, the last one makes the file of all."""

from __future__ import annotations

import multiprocessing
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from core.files.errors import UserError, run_cli


@dataclass(frozen=True)
class Shard:
    """Part ``index`` of ``count``, counted from 0."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def rows(self, images: int, batch_size: int) -> range:
        """The rows of this shard; it begins and ends where a batch does, so every division has the same batches.

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
