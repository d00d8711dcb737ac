"""Region features as the models want them: (B,R,D), L2-normalised over D, held in half precision or streamed."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from core.errors import UserError

RESIDENT_BYTES = 8 << 30  # features are held in memory up to this size, the rest is streamed from the file
_SHARE = 0.6  # of the memory that is free, at most
_BLOCK = 256  # images per read while filling the memory
_CACHED = 4  # images normalised at a time: their 3 MB stay in the processor's cache (256 take half as long again)


class FeatureSource(Protocol):
    """What is asked of a feature file: raw maps of the given rows, (n,D,R)."""

    def read(self, rows: np.ndarray) -> np.ndarray: ...

    def expect(self, rows: np.ndarray) -> None:
        """These rows will be read next; a source may use the time until then."""


def normalise(raw: np.ndarray) -> Tensor:
    """(n,D,R) maps to (n,R,D) float16, each region of unit length (all-zero regions stay zero)."""
    x = torch.from_numpy(np.ascontiguousarray(raw)).transpose(1, 2).contiguous().float()  # (n,R,D); moved while small
    return torch.nn.functional.normalize(x, dim=2).half()


def free_bytes(device: torch.device) -> int:
    """Memory that can be taken on a device without swapping; as much as one likes where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return 1 << 62


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
        them (None: 8 GiB, or six tenths of the memory that is free where that is less).
        """
        self.source = source
        self.device = torch.device(device)
        self.R, self.D = shape
        budget = min(RESIDENT_BYTES, int(_SHARE * free_bytes(self.device))) if budget is None else budget
        unique, first = np.unique(rows, return_index=True)
        held = np.sort(rows[np.sort(first)[: budget // (self.R * self.D * 2)]])
        self._position = np.full(int(unique[-1]) + 1, -1, dtype=np.int64)  # in held; -1: streamed
        self._position[held] = np.arange(len(held))
        self.held = torch.empty(len(held), self.R, self.D, dtype=torch.float16, device=self.device)
        for start in range(0, len(held), _BLOCK):
            block = held[start : start + _BLOCK]
            self.held[start : start + len(block)] = self._load(block, torch.float16)
        self.resident = self.held if len(held) == len(unique) else None
        self._pooled: dict[int, Tensor] = {}

    def batch(self, rows: np.ndarray) -> Tensor:
        """(B,R,D) float32 on the device."""
        position = self._position[rows]
        away = np.flatnonzero(position < 0)
        if len(away) == len(rows):
            return self._streamed(rows)
        x = self.held.index_select(0, torch.from_numpy(position.clip(0)).to(self.device)).float()
        if len(away):
            x[torch.from_numpy(away).to(self.device)] = self._streamed(rows[away])
        return x

    def expect(self, rows: np.ndarray) -> None:
        """A batch of these rows comes next: those that are streamed are fetched from the disk meanwhile."""
        away = rows[self._position[rows] < 0]
        if len(away):
            self.source.expect(away)

    def _streamed(self, rows: np.ndarray) -> Tensor:
        dtype = torch.float32 if self.device.type == "cpu" else torch.float16  # moved while small
        return self._load(rows, dtype).to(self.device).float()

    def _load(self, rows: np.ndarray, dtype: torch.dtype) -> Tensor:
        """(n,R,D) in memory, of float16 values."""
        raw = self._read(rows)
        x = torch.empty(len(rows), self.R, self.D, dtype=dtype)
        for start in range(0, len(rows), _CACHED):
            x[start : start + _CACHED] = normalise(raw[start : start + _CACHED])
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
        missing = [int(r) for r in rows if int(r) not in self._pooled]
        for start in range(0, len(missing), _BLOCK):
            block = np.array(missing[start : start + _BLOCK])
            for row, value in zip(block, self.batch(block).mean(dim=1), strict=True):
                self._pooled[int(row)] = value
        return torch.stack([self._pooled[int(r)] for r in rows])
