"""Photographs decoded in threads, a bounded number of batches ahead of the forward pass."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from core.features.images import Transform, load_image
from core.features.regions import ahead

_AHEAD = 3  # batches decoded ahead of the forward pass


class Batch:
    """Rows of one batch and their images, filled by the decoding threads."""

    def __init__(
        self, rows: np.ndarray, paths: list[Path], transform: Transform, pin: bool, pool: ThreadPoolExecutor
    ) -> None:
        self.rows = rows
        size = transform.crop
        self.pixels = torch.zeros(len(rows), size, size, 3, dtype=torch.uint8, pin_memory=pin)
        self._view = self.pixels.numpy()
        self._transform = transform
        self._jobs: list[Future[str | None]] = [pool.submit(self._fill, i, paths[r]) for i, r in enumerate(rows)]

    def _fill(self, i: int, path: Path) -> str | None:
        how = self._transform
        try:
            self._view[i] = load_image(path, how.crop, how.resize, how.interpolation)
        except ValueError as error:
            return str(error)
        return None

    def wait(self) -> dict[int, str]:
        """Block until all are decoded; position and reason of those that could not be."""
        reasons = [job.result() for job in self._jobs]
        return {i: reason for i, reason in enumerate(reasons) if reason is not None}


def decoded(
    batches: Sequence[np.ndarray], paths: list[Path], transform: Transform, *, pin: bool, threads: int
) -> Generator[tuple[Batch, dict[int, str]], None, None]:
    """Batches of rows with their images, and position and reason of those that could not be read.

    Some are decoded ahead of the one that is given out. What is queued is dropped when the generator is closed.

    Args: paths one a row; pin: memory from which a GPU reads while something else is done.
    """
    pool = ThreadPoolExecutor(threads)
    try:
        for batch in ahead(lambda rows: Batch(rows, paths, transform, pin, pool), batches, _AHEAD):
            yield batch, batch.wait()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
