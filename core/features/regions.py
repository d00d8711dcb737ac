"""Region features as the models want them: (B,R,D), L2-normalised over D, held in half precision or streamed."""

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

RESIDENT_BYTES = 8 << 30  # features are held in memory up to this size, the rest is streamed from the file
_SHARE = 0.6  # of the memory that is free, at most
_SPARE = 1 << 30  # bytes of it that are left for all else; eszsl's eigenvectors of 2048 channels need a third of them
_STREAMED = 16  # images in a block whose means are all that is kept of them: 13 MB of ResNet-101's, not 50
_CACHED = 4  # images normalised at a time: their 3 MB stay in the processor's cache (256 take half as long again)

Item = TypeVar("Item")
Started = TypeVar("Started")


class FeatureSource(Protocol):
    def read(self, rows: np.ndarray) -> np.ndarray: ...  # raw maps (n,D,R) of the given rows


def unit_regions(maps: Tensor) -> tuple[Tensor, Tensor]:
    """(n,D,R) maps to (n,R,D) float16, each region of unit length (all-zero regions stay zero), and lengths (n,R)."""
    x = maps.transpose(1, 2).contiguous().float()  # (n,R,D); moved while small
    length = x.norm(dim=2)  # (n,R)
    return (x / length.clamp_min(1e-12).unsqueeze(2)).half(), length


def free_bytes(device: torch.device, root: Path = Path("/")) -> int:
    """Memory that can be taken on a device: on the CPU the least of what the system and the control groups leave."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])

    def number(path: str, name: str = "") -> int | None:
        found = re.search(rf"^{name}\s*(\d+)", (root / path).read_text() if (root / path).is_file() else "", re.M)
        return int(found[1]) if found else None

    free = [(number("proc/meminfo", "MemAvailable:") or 1 << 52) << 10]
    own = root / "proc/self/cgroup"
    groups = re.findall(r"^\d+:[^:]*:/*(.*)$", own.read_text() if own.is_file() else "", re.M)
    # of what a group uses, files that were not read lately (inactive_file) are given back when memory is needed
    for group in {str(folder) for line in groups for folder in PurePosixPath(line, "x").parents}:
        v2, v1 = f"sys/fs/cgroup/{group}/memory", f"sys/fs/cgroup/memory/{group}/memory"
        for most, used, inactive in (
            (number(f"{v2}.max"), f"{v2}.current", (f"{v2}.stat", "inactive_file")),
            (number(f"{v1}.limit_in_bytes"), f"{v1}.usage_in_bytes", (f"{v1}.stat", "total_inactive_file")),
        ):
            free += [] if most is None else [most - (number(used) or 0) + (number(*inactive) or 0)]
    return max(0, min(free))


def held_bytes(free: int) -> int:
    """Bytes of features that are held where ``free`` are: 8 GiB, six tenths, or all but 1 GiB, whichever is least."""
    return max(0, min(RESIDENT_BYTES, int(_SHARE * free), free - _SPARE))


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """The values of a CPU tensor on a device, without waiting for what the device was given before."""
    if device.type == "cuda":  # from pageable memory the host would wait for the stream
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


class RegionFeatures:
    """Batches of normalised region features by row number; the same values held in memory, if all fit, or streamed."""

    def __init__(
        self, source: FeatureSource, rows: np.ndarray, shape: tuple[int, int], device: torch.device | str = "cpu",
        budget: int | None = None,
    ) -> None:  # fmt: skip
        """Args: rows that will be asked for; shape (R,D); budget in bytes for holding them (None: of what is free)."""
        self.source = source
        self.device = torch.device(device)
        # images taken at a time where no gradient is needed; glibc gives tensors above 32 MB back after each use, and
        # taking them anew cost up to half of the time (AWA2's sizes, blocks of 256)
        self.block = 64 if self.device.type == "cpu" else 256
        self.R, self.D = shape
        unique = np.unique(rows)
        self._index = np.full(int(unique[-1]) + 1, -1, dtype=np.int64)  # of a row in resident, _means and _lengths
        self._index[unique] = np.arange(len(unique))
        self._means = torch.empty(len(unique), self.D, device=self.device)  # (N,D) over regions, filled on first use
        self._has_mean = np.zeros(len(unique), dtype=bool)
        self._lengths = np.full(len(unique), np.nan)  # (N,) mean length of a row's raw regions, known once it was read
        self.resident: Tensor | None = None  # (N,R,D)
        budget = held_bytes(free_bytes(self.device)) if budget is None else budget
        if len(unique) * self.R * self.D * 2 <= budget:
            self.resident = torch.empty(len(unique), self.R, self.D, dtype=torch.float16, device=self.device)
            for block, to in zip(_split(unique, self.block), self.resident.split(self.block), strict=True):
                to[:] = self._load(block, torch.float16)

    def batch(self, rows: np.ndarray) -> Tensor:
        """(B,R,D) float32 on the device."""
        if self.resident is not None:
            index = on_device(torch.from_numpy(self._index[rows]), self.device)
            return self.resident.index_select(0, index).float()
        dtype = torch.float32 if self.device.type == "cpu" else torch.float16  # moved while small
        return on_device(self._load(rows, dtype), self.device).float()

    def batches(self, rows: Sequence[np.ndarray]) -> Iterator[Tensor]:
        """:meth:`batch` of each of ``rows``; what they need of the host or the disk comes ahead.

        Where all is held the row numbers go to the device at once. Else a thread reads the next batch while this one is
        used, if computing leaves it a processor (else it cost more than the 9 to 13 % of a step that reading takes).
        """
        if self.resident is not None and len(rows):
            index = on_device(torch.from_numpy(self._index[np.concatenate(rows)]), self.device)
            yield from (self.resident.index_select(0, some).float() for some in index.split([len(r) for r in rows]))
        elif self.device.type == "cuda" or (os.cpu_count() or 1) > torch.get_num_threads():
            with ThreadPoolExecutor(1) as pool:
                for loaded in ahead(lambda some: pool.submit(self.batch, some), rows, 1):
                    yield loaded.result()
        else:
            yield from map(self.batch, rows)

    def blocks(self, rows: np.ndarray, size: int | None = None) -> Iterator[tuple[np.ndarray, Tensor]]:
        """All of ``rows`` in blocks, for what needs no gradient: their numbers and :meth:`batch`."""
        blocks = _split(rows, size or self.block)
        yield from zip(blocks, self.batches(blocks), strict=True)

    def means(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
        """:meth:`blocks` with the mean of the regions as the one region, (n,1,D); each image is read once."""
        for some in _split(rows, 16 * self.block):
            means = self.pooled(some).unsqueeze(1).split(self.block)
            yield from zip(_split(some, self.block), means, strict=True)

    def _load(self, rows: np.ndarray, dtype: torch.dtype) -> Tensor:
        """(n,R,D) in memory, of float16 values."""
        raw = self.source.read(rows)
        x = torch.empty(len(rows), self.R, self.D, dtype=dtype)
        for start in range(0, len(rows), _CACHED):
            some = np.ascontiguousarray(raw[start : start + _CACHED])
            x[start : start + _CACHED], length = unit_regions(torch.from_numpy(some))
            self._lengths[self._index[rows[start : start + _CACHED]]] = length.mean(dim=1).numpy()
        return x

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
        for block in _split(np.unique(rows[np.isnan(self._lengths[self._index[rows]])]), self.block):
            self._load(block, torch.float32)
        return float(self._lengths[self._index[rows]].mean())


def _split(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def ahead(start: Callable[[Item], Started], items: Iterable[Item], count: int) -> Iterator[Started]:
    """What ``start`` returns for each item, which is called for up to ``count`` items after the one given out."""
    begun: deque[Started] = deque()
    for item in items:
        begun.append(start(item))
        if len(begun) > count:
            yield begun.popleft()
    yield from begun
