"""How far a long piece of work is: a bar on a terminal, a line every tenth in a log."""

import logging
import time
from contextlib import AbstractContextManager

from tqdm import tqdm

_log = logging.getLogger(__name__)


class Progress(AbstractContextManager["Progress"]):
    """``with Progress(len(images), "CUB", "image") as bar: ... bar.update(32)``"""

    def __init__(self, total: int, label: str, unit: str) -> None:
        self.total, self.label, self.unit, self.done, self._began = total, label, unit, 0, time.monotonic()
        self._bar = tqdm(total=total, desc=label, unit=unit, disable=None)  # on a terminal alone

    def update(self, count: int) -> None:
        """``count`` more are done."""
        before, self.done = self.done, self.done + count
        self._bar.update(count)
        if self._bar.disable and 10 * before // self.total < 10 * self.done // self.total:
            rate = self.done / max(time.monotonic() - self._began, 1e-9)
            _log.info("%s: %d of %d %ss, %.3g a second", self.label, self.done, self.total, self.unit, rate)

    def __exit__(self, *_: object) -> None:
        self._bar.close()
