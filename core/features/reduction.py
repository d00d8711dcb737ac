"""Smaller features, for millions of images: the mean over regions in their place, and a linear projection of D."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.files import sandbox
from core.files.errors import UserError

_SEED = 0
_LIMIT = 8192  # most rows and columns of a projection


class Reduction(nn.Module):
    """Maps (B,D,h,w) to (B,d,h,w), or to (B,d,1,1) without regions."""

    projection: Tensor | None

    def __init__(self, D: int, regions: bool, project: str | None) -> None:
        """``project``: a number d for a seeded random projection, a .npy file with a matrix (d,D), or None."""
        super().__init__()
        self.regions = regions
        matrix, self.said = (None, "") if project is None else _matrix(D, project)
        self.register_buffer("projection", None if matrix is None else torch.from_numpy(matrix))

    def forward(self, maps: Tensor) -> Tensor:
        """(B,D,h,w) to (B,d,h,w) or (B,d,1,1)."""
        if not self.regions:
            maps = maps.mean(dim=(2, 3), keepdim=True)
        if self.projection is None:
            return maps
        return F.conv2d(maps, self.projection[:, :, None, None])

    def shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(d,h,w) of what it makes of maps of (D,h,w)."""
        D = shape[0] if self.projection is None else len(self.projection)
        return (D, *shape[1:]) if self.regions else (D, 1, 1)

    def record(self) -> dict[str, str]:
        """What a feature file says of it."""
        said = {} if self.regions else {"regions_kept": "none: their mean"}
        return said | ({"projection": self.said} if self.said else {})


def _matrix(D: int, project: str) -> tuple[np.ndarray, str]:
    """(d,D) float32, and how it is recorded."""
    if project.isdecimal():
        d, said = int(project), f"random {project}x{D}, seed {_SEED}"
        if not 1 <= d < D:
            raise UserError(f"--project {project}: a number from 1 to {D - 1} is needed, the backbone has {D} channels")
        # RandomState's numbers are the same in every version of NumPy; inner products are kept but for 1/√d
        matrix = np.random.RandomState(_SEED).standard_normal((d, D)).astype(np.float32) / np.float32(d**0.5)
    else:
        path = Path(project)
        if path.suffix != ".npy" or not path.is_file():
            raise UserError(f"--project {project}: neither a number of channels nor a .npy file that is there")
        array = sandbox.call("core.datasets.vectors:read_npy", str(path), kind="matrix of NumPy (.npy)")
        said = f"{path.name} {'x'.join(map(str, array.shape))}"
        if array.ndim != 2 or array.dtype.kind != "f" or max(array.shape) > _LIMIT or not np.isfinite(array).all():
            raise UserError(f"{path} holds {array.dtype} {array.shape}; a finite matrix of floats, (d,D), is needed")
        if array.shape[1] != D:
            raise UserError(f"--project {project}: the matrix is {array.shape}, (d,{D}) is needed for this backbone")
        matrix = np.ascontiguousarray(array, dtype=np.float32)
    return matrix, f"{said}, sha256 {hashlib.sha256(matrix.tobytes()).hexdigest()}"
