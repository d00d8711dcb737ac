"""A job for the tests of engines, apart from them: the processes that run it need not import PyTorch."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def work(folder: Path, job: str, device: str) -> str | None:
    """A job that is done, fails, raises, or kills its own process; leaves a line a beginning."""
    with open(folder / job, "a") as handle:
        handle.write(f"{device}\n")
    if job == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "raising":
        raise RuntimeError("a fault")
    if job == "slow" and len((folder / job).read_text().splitlines()) == 1:
        time.sleep(60)
    return "no luck" if job == "failing" else None
