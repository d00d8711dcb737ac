"""How far a long piece of work is: a bar on a terminal, a line every tenth in a log."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import AbstractContextManager
from typing import Any

from tqdm import tqdm

_log = logging.getLogger(__name__)


class Progress(AbstractContextManager["Progress"]):
    """``with Progress(len(images), "CUB", "image") as bar: ... bar.update(32)``; ``options`` are tqdm's."""

    def __init__(self, total: int | None, label: str, unit: str, initial: int = 0, **options: Any) -> None:
        self.total, self.label, self.unit, self.initial, self.done = total, label, unit, initial, initial
        self._began, self._said = time.monotonic(), self._tenth()
        terminal = sys.stderr is not None and sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=initial, desc=label, unit=unit, **options) if terminal else None

    def update(self, count: int = 1) -> None:
        """``count`` more are done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._tenth() > self._said:
            self._said = self._tenth()
            rate = (self.done - self.initial) / max(time.monotonic() - self._began, 1e-9)
            _log.info("%s: %d of %d %ss, %.3g a second", self.label, self.done, self.total, self.unit, rate)

    def _tenth(self) -> int:
        return 10 * self.done // self.total if self.total else 0

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
