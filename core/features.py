"""Region features as the models want them: (B,R,D), L2-normalised over D, resident in half precision or streamed."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from core.errors import UserError

RESIDENT_BYTES = 8 << 30  # features are held in memory up to this size, streamed from the file beyond it
_SHARE = 0.6  # of the memory that is free, at most
_BLOCK = 256  # images per read while filling the memory


class FeatureSource(Protocol):
    """What is asked of a feature file: raw maps of the given rows, (n,D,R)."""

    def read(self, rows: np.ndarray) -> np.ndarray: ...


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
    """Batches of normalised region features by row number; the same values resident or streamed."""

    def __init__(
        self,
        source: FeatureSource,
        rows: np.ndarray,
        shape: tuple[int, int],
        device: torch.device | str = "cpu",
        budget: int | None = None,
    ) -> None:
        """Args: rows that will be asked for; shape (R,D); budget in bytes for holding them (None: 8 GiB, or six tenths
        of the memory that is free where that is less).
        """
        self.source = source
        self.device = torch.device(device)
        self.R, self.D = shape
        budget = min(RESIDENT_BYTES, int(_SHARE * free_bytes(self.device))) if budget is None else budget
        rows = np.unique(rows)
        self.resident: Tensor | None = None
        self._position = np.full(int(rows.max()) + 1, -1, dtype=np.int64)
        self._position[rows] = np.arange(len(rows))
        if len(rows) * self.R * self.D * 2 <= budget:
            self.resident = torch.empty(len(rows), self.R, self.D, dtype=torch.float16, device=self.device)
            for start in range(0, len(rows), _BLOCK):
                block = rows[start : start + _BLOCK]
                self.resident[start : start + len(block)] = normalise(self._read(block)).to(self.device)
        self._pooled: dict[int, Tensor] = {}

    def batch(self, rows: np.ndarray) -> Tensor:
        """(B,R,D) float32 on the device."""
        if self.resident is not None:
            return self.resident.index_select(0, torch.from_numpy(self._position[rows]).to(self.device)).float()
        return normalise(self._read(rows)).to(self.device).float()

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
