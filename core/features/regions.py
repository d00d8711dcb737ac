"""Region features as the models want them: (B,R,D), L2-normalised over D, held in half precision or streamed."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from core.files.errors import UserError

try:
    import resource
except ImportError:  # Windows has no limits of memory to ask for
    resource = None  # type: ignore[assignment]

RESIDENT_BYTES = 8 << 30  # features are held in memory up to this size, the rest is streamed from the file
_SHARE = 0.6  # of the memory that is free, at most
_SPARE = 1 << 30  # bytes of it that are left for all else; eszsl's eigenvectors of 2048 channels need a third of them
_STREAMED = 16  # images in a block whose means are all that is kept of them: 13 MB of ResNet-101's, not 50
_CACHED = 4  # images normalised at a time: their 3 MB stay in the processor's cache (256 take half as long again)


Item = TypeVar("Item")
Started = TypeVar("Started")


class FeatureSource(Protocol):
    """What is asked of a feature file: raw maps of the given rows, (n,D,R)."""

    def read(self, rows: np.ndarray) -> np.ndarray: ...

    def prefetch(self, rows: np.ndarray) -> None:
        """These rows will be read next; a source may use the time until then."""


def normalise(raw: np.ndarray) -> tuple[Tensor, Tensor]:
    """(n,D,R) maps to (n,R,D) float16, each region of unit length (all-zero regions stay zero), and lengths (n,R)."""
    return unit_regions(torch.from_numpy(np.ascontiguousarray(raw)))


def unit_regions(maps: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`normalise` of a tensor (n,D,R), where it is."""
    x = maps.transpose(1, 2).contiguous().float()  # (n,R,D); moved while small
    length = x.norm(dim=2)  # (n,R)
    return (x / length.clamp_min(1e-12).unsqueeze(2)).half(), length


def free_bytes(device: torch.device, root: Path = Path("/")) -> int:
    """Memory in bytes that can be taken on a device without swapping or being killed.

    On the CPU the least of what the system has available, what the control groups of this process (containers, jobs)
    leave it, and what RLIMIT_AS does; as much as one likes where none of them says. ``root`` holds proc/ and sys/.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [1 << 62, *_group_bytes(root)]
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = (root / "proc/meminfo").read_text().splitlines()
        free += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    if resource is not None and (limit := resource.getrlimit(resource.RLIMIT_AS)[0]) != resource.RLIM_INFINITY:
        with contextlib.suppress(OSError, ValueError, IndexError):
            limit -= int((root / "proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        free.append(limit)
    return max(0, min(free))


def held_bytes(free: int) -> int:
    """Bytes of features that are held where ``free`` are: 8 GiB, six tenths, or all but 1 GiB, whichever is least."""
    return max(0, min(RESIDENT_BYTES, int(_SHARE * free), free - _SPARE))


def _group_bytes(root: Path) -> list[int]:
    """What each control group that this process is in, and each above it, has left of its limit.

    Of what a group uses, files that were not read lately (inactive_file) are given back when memory is needed.
    """
    found = []
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            own = PurePosixPath(path.lstrip("/"))
            # in a container the path may be the host's: then only the mount itself is there
            folders = [*(own / "x").parents]
            if number == "0":  # version 2; its mount is unified/ where version 1 is there too
                mounts, limit, used, inactive = ("", "unified"), "memory.max", "memory.current", "inactive_file"
            elif "memory" in controllers.split(","):
                mounts, limit, used = ("memory", "memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"
                inactive = "total_inactive_file"
            else:
                continue
            for group in [root / "sys/fs/cgroup" / mount / folder for mount in mounts for folder in folders]:
                if (most := _number(group / limit)) is not None:
                    reclaimable = _entry(group / "memory.stat", inactive)
                    found.append(most - max(0, (_number(group / used) or 0) - reclaimable))
    return found


def _number(path: Path) -> int | None:
    """The number in a file; None where there is no file, or it says "max"."""
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())
    return None


def _entry(path: Path, name: str) -> int:
    """The number beside a name in a file of such lines; 0 where there is none."""
    with contextlib.suppress(OSError, ValueError):
        return int(dict(line.split() for line in path.read_text().splitlines()).get(name, 0))
    return 0


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """The values of a CPU tensor on a device, without waiting for what the device was given before."""
    if device.type == "cuda":  # from pageable memory the host would wait for the stream
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


class RegionFeatures:
    """Batches of normalised region features by row number; the same values held in memory or streamed.

    As many rows as the budget allows are held, the first ones asked for; the others are read whenever they are needed.
    """

    def __init__(
        self,
        source: FeatureSource,
        rows: np.ndarray,
        shape: tuple[int, int],
        device: torch.device | str = "cpu",
        budget: int | None = None,
    ) -> None:
        """Args: rows that will be asked for, those needed most often first; shape (R,D); budget in bytes for holding
        them (None: :func:`held_bytes` of what is free).
        """
        self.source = source
        self.device = torch.device(device)
        # images taken at a time where no gradient is needed; glibc gives tensors above 32 MB back to the system after
        # each use, and taking them anew cost up to half of the time (AWA2's sizes, blocks of 256)
        self.block = 64 if self.device.type == "cpu" else 256
        self.R, self.D = shape
        budget = held_bytes(free_bytes(self.device)) if budget is None else budget
        unique, first = np.unique(rows, return_index=True)
        held = np.sort(rows[np.sort(first)[: budget // (self.R * self.D * 2)]])
        self._position = np.full(int(unique[-1]) + 1, -1, dtype=np.int64)  # in held; -1: streamed
        self._position[held] = np.arange(len(held))
        self.held = torch.empty(len(held), self.R, self.D, dtype=torch.float16, device=self.device)
        self._index = np.full(int(unique[-1]) + 1, -1, dtype=np.int64)  # in _means and _lengths
        self._index[unique] = np.arange(len(unique))
        self._means = torch.empty(len(unique), self.D, device=self.device)  # (N,D) over regions, filled on first use
        self._has_mean = np.zeros(len(unique), dtype=bool)
        self._lengths = np.full(len(unique), np.nan)  # (N,) mean length of a row's raw regions, known once it was read
        for start in range(0, len(held), self.block):
            block = held[start : start + self.block]
            self.held[start : start + len(block)] = self._load(block, torch.float16)
        self.resident = self.held if len(held) == len(unique) else None

    def batch(self, rows: np.ndarray) -> Tensor:
        """(B,R,D) float32 on the device."""
        position = self._position[rows]
        away = np.flatnonzero(position < 0)
        if len(away) == len(rows):
            return self._streamed(rows)
        x = self._pick(on_device(torch.from_numpy(position.clip(0)), self.device))
        if len(away):
            x[on_device(torch.from_numpy(away), self.device)] = self._streamed(rows[away])
        return x

    def batches(self, rows: Sequence[np.ndarray]) -> Iterator[Tensor]:
        """:meth:`batch` of each of ``rows``, one after another; what they need of the host or the disk comes ahead.

        Where all is held the row numbers go to the device at once, so that no batch makes the host wait for it.
        """
        if self.resident is None:
            yield from read_ahead(self.batch, rows, self._reads_ahead(), self.prefetch)
        elif len(rows):
            positions = on_device(torch.from_numpy(self._position[np.concatenate(rows)]), self.device)
            yield from map(self._pick, positions.split([len(r) for r in rows]))

    def blocks(self, rows: np.ndarray, size: int | None = None) -> Iterator[tuple[np.ndarray, Tensor]]:
        """All of ``rows`` in blocks, for what needs no gradient: their numbers and :meth:`batch`."""
        blocks = _split(rows, size or self.block)
        yield from zip(blocks, self.batches(blocks), strict=True)

    def means(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
        """:meth:`blocks` with the mean of the regions as the one region, (n,1,D); each image is read once."""
        for some in _split(rows, 16 * self.block):
            means = self.pooled(some).unsqueeze(1).split(self.block)
            yield from zip(_split(some, self.block), means, strict=True)

    def _pick(self, positions: Tensor) -> Tensor:
        return self.held.index_select(0, positions).float()

    def _reads_ahead(self) -> bool:
        """Whether a reading thread pays: computing leaves a processor free.

        Measured with every core computing: reading in between costs 9 to 13 % of a step; a competing thread was dearer.
        """
        return self.device.type == "cuda" or (os.cpu_count() or 1) > torch.get_num_threads()

    def prefetch(self, rows: np.ndarray) -> None:
        """A batch of these rows comes next: those that are streamed are fetched from the disk meanwhile."""
        away = rows[self._position[rows] < 0]
        if len(away):
            self.source.prefetch(away)

    def _streamed(self, rows: np.ndarray) -> Tensor:
        dtype = torch.float32 if self.device.type == "cpu" else torch.float16  # moved while small
        return on_device(self._load(rows, dtype), self.device).float()

    def _load(self, rows: np.ndarray, dtype: torch.dtype) -> Tensor:
        """(n,R,D) in memory, of float16 values."""
        raw = self._read(rows)
        x = torch.empty(len(rows), self.R, self.D, dtype=dtype)
        for start in range(0, len(rows), _CACHED):
            unit, length = normalise(raw[start : start + _CACHED])
            x[start : start + _CACHED] = unit
            self._lengths[self._index[rows[start : start + _CACHED]]] = length.mean(dim=1).numpy()
        return x

    def _read(self, rows: np.ndarray) -> np.ndarray:
        raw = self.source.read(rows)
        if raw.shape != (len(rows), self.D, self.R):
            raise UserError(
                f"features of shape {raw.shape} for {len(rows)} images; ({len(rows)}, {self.D}, {self.R}) is needed: "
                "the feature file is of another backbone or resolution"
            )
        return raw

    def pooled(self, rows: np.ndarray) -> Tensor:
        """(B,D) mean over regions, each row computed once."""
        index = self._index[rows]
        missing = np.unique(rows[~self._has_mean[index]])
        for block, x in self.blocks(missing, self.block if self.resident is not None else _STREAMED):
            self._means[torch.from_numpy(self._index[block]).to(self.device)] = x.mean(dim=1)
            self._has_mean[self._index[block]] = True
        return self._means.index_select(0, on_device(torch.from_numpy(index), self.device))

    def region_norm(self, rows: np.ndarray) -> float:
        """Mean length of the regions of ``rows`` before they were made unit vectors."""
        unread = np.unique(rows[np.isnan(self._lengths[self._index[rows]])])
        for start in range(0, len(unread), self.block):
            self._load(unread[start : start + self.block], torch.float32)
        return float(self._lengths[self._index[rows]].mean())


def _split(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def read_ahead(
    load: Callable[[np.ndarray], Tensor],
    batches: Sequence[np.ndarray],
    threaded: bool,
    prefetch: Callable[[np.ndarray], None] = lambda rows: None,
) -> Iterator[Tensor]:
    """What ``load`` makes of the rows of each batch.

    While a batch is used the next one comes: ``threaded``, a thread loads it; else ``prefetch`` tells the disk.
    """
    if not threaded:
        for number, rows in enumerate(batches):
            x = load(rows)
            if number + 1 < len(batches):
                prefetch(batches[number + 1])
            yield x
        return
    with ThreadPoolExecutor(1) as pool:
        for loaded in ahead(lambda rows: pool.submit(load, rows), batches, 1):
            yield loaded.result()


def ahead(start: Callable[[Item], Started], items: Iterable[Item], count: int) -> Iterator[Started]:
    """What ``start`` returns for each item, which is called for up to ``count`` items after the one given out."""
    begun: deque[Started] = deque()
    for item in items:
        begun.append(start(item))
        if len(begun) > count:
            yield begun.popleft()
    yield from begun
