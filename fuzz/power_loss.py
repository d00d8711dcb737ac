"""Power cuts: what the disk held at some moment is mounted again, and the same command must end as if nothing happened.

    python fuzz/power_loss.py --times 30 --seed 0   # that many cuts of an extraction, and of a training run; needs root
    python fuzz/power_loss.py --control             # with an fsync that does nothing: cuts must be noticed

A run writes to an ext4 image that is mounted by loop. At a random moment, or beside a random fsync, rename or write, it
is stopped and the image copied: all that was not fsynced is missing from the copy, as after a power cut. The copy is
mounted (ext4 replays its journal) and looked through; the next run goes on from it, and so may be cut in turn; in a
second copy the command runs to its end, which is compared with an uninterrupted run.

Harsher than one real disk: the mounts vary (no commit before fsync; data=writeback; no allocation on rename, which
would hide a missing fsync), and before most cuts random pages of the files are written back first, as a kernel may at
any time. Milder: the image holds every block the loop device was given, also where a real disk had it in its cache
only; whether ext4's own flushes are in order is therefore not tested here. A copy during which the device completed a
flush is made again: without one, any mixture of old and new blocks is what a cut can leave.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIZE = 64 << 20  # bytes of the image
PAGE = 4096
MODES = ("commit=300", "data=writeback,commit=1,noauto_da_alloc", "data=writeback,nodelalloc,commit=1,noauto_da_alloc")
CALLS = ("fsync", "replace", "pwrite", "unlink")  # of os: beside them a run is stopped
LONGEST = 300  # seconds for one run
TRIES = 200  # at a copy without a flush


@dataclass
class Work:
    """A command and what it must leave."""

    name: str
    run: Callable[[Path], Any]  # into that folder
    inspect: Callable[[Path], Any]  # raises if a file of a final name is not whole; after a cut, before going on
    compare: Callable[[Path], Any]  # raises if the end is not that of the uninterrupted run
    begun: str  # pattern of the files that a run in progress has
    done: str  # file that a finished run has
    seconds: float = 0  # of an uninterrupted run
    calls: dict[str, int] | None = None  # of an uninterrupted run


def sh(*command: str | Path) -> str:
    """Run a program and return what it prints."""
    return subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True).stdout


@contextlib.contextmanager
def mounted(image: Path, options: str = "") -> Iterator[Path]:
    """The image's file system; always unmounted."""
    place = Path(tempfile.mkdtemp(prefix="mount", dir=image.parent))
    try:
        sh("mount", "-o", ",".join(filter(None, ["loop", options])), image, place)
        try:
            yield place
        finally:
            for _ in range(50):
                if not subprocess.run(["umount", str(place)], capture_output=True).returncode:
                    break
                time.sleep(0.1)  # a process that was killed has its files open a moment longer
            else:
                sh("umount", "--lazy", place)
    finally:
        with contextlib.suppress(OSError):
            place.rmdir()


def empty_image(path: Path) -> Path:
    """A formatted image; nothing is left to be done in the background."""
    with open(path, "wb") as handle:
        handle.truncate(SIZE)
    sh("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", path)
    return path


def refusal() -> str | None:
    """Why this machine cannot do it, or None."""
    if os.geteuid():
        return "mounting needs root"
    if missing := [name for name in ("mkfs.ext4", "mount", "umount", "losetup", "cp") if not shutil.which(name)]:
        return f"there is no {', '.join(missing)}"
    with tempfile.TemporaryDirectory() as made:
        try:
            image = empty_image(Path(made) / "probe.img")
            with mounted(image, MODES[1]):
                flushes(image)
        except (OSError, IndexError, subprocess.CalledProcessError) as error:
            said = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else error
            return f"no ext4 image can be mounted by loop ({said})"
    return None


def flushes(image: Path) -> int:
    """How many flushes the loop device of ``image`` has completed."""
    device = sh("losetup", "-n", "-O", "NAME", "-j", image).split()[0]
    return int(Path("/sys/block", Path(device).name, "stat").read_text().split()[15])


def copy(image: Path, to: Path) -> int:
    """What the device of ``image`` holds at this moment; returns how often it had to be tried."""
    for attempt in range(1, TRIES + 1):
        before = flushes(image)
        sh("cp", "--sparse=always", image, to)
        if flushes(image) == before:
            return attempt
    raise RuntimeError("the device is never at rest")


def write_back_pages(folder: Path, rng: random.Random) -> None:
    """Have the kernel write every other page of every file, without anything that says so to the file system."""
    libc = ctypes.CDLL(None, use_errno=True)
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and "lost+found" not in p.parts):
        with open(path, "rb") as handle:
            for at in range(0, path.stat().st_size, PAGE):
                if rng.random() < 0.5:
                    begin, length = ctypes.c_int64(at), ctypes.c_int64(PAGE)
                    libc.sync_file_range(handle.fileno(), begin, length, 7)  # 7: write, and wait for it


def start(work: Work, folder: Path, stop: tuple[str, int, bool] | None, control: bool, report: Path) -> int:
    """Run in a child, which stops itself before or after the n-th call of one of CALLS; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    counts = dict.fromkeys(CALLS, 0)
    at, past = (stop[:2], stop[2]) if stop else (None, False)

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            here = (name, counts[name]) == at
            if here and not past:
                os.kill(os.getpid(), signal.SIGSTOP)
            result = None if control and name == "fsync" else real(*args, **kwargs)
            if here and past:
                os.kill(os.getpid(), signal.SIGSTOP)
            return result

        return call

    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        for name in CALLS:
            setattr(os, name, watched(name, getattr(os, name)))
        work.run(folder)
        report.write_text(json.dumps(counts))
        code = 0
    except BaseException as error:
        report.write_text(f"{type(error).__name__}: {error}")
    finally:
        os._exit(code)


def finish(pid: int, report: Path) -> str:
    """Wait for a child that is not stopped; returns what went wrong, or nothing."""
    until = time.time() + LONGEST
    found = 0
    try:
        while time.time() < until:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                return "" if not status else f"status {status}: {report.read_text() if report.exists() else 'it died'}"
            time.sleep(0.01)
        return f"the command did not end within {LONGEST} s"
    finally:
        if not found:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def measure(work: Work, folder: Path) -> None:
    """An uninterrupted run, on a mount of its own: what it leaves, how long it takes and how often it calls."""
    image, report = empty_image(folder / "measure.img"), folder / "report"
    with mounted(image) as place:
        began = time.time()
        if wrong := finish(start(work, place, None, False, report), report):
            raise RuntimeError(f"{work.name}: the uninterrupted run failed: {wrong}")
        work.seconds, work.calls = time.time() - began, json.loads(report.read_text())
        work.compare(place)
    image.unlink()


def stopped(pid: int) -> bool:
    """Whether a child has stopped or ended; one that ended is taken off the list of processes."""
    return os.waitpid(pid, os.WNOHANG | os.WUNTRACED)[0] != 0


def cut(work: Work, image: Path, to: Path, rng: random.Random, control: bool) -> Counter[str]:
    """Run on ``image`` until a random moment and write to ``to`` what the disk held then; how it was, as counts."""
    assert work.calls is not None
    mode, by_call = rng.choice(MODES), rng.random() < 0.6
    name = rng.choice([c for c in CALLS if work.calls[c]])
    stop = (name, rng.randint(1, work.calls[name]), rng.random() < 0.5) if by_call else None
    until = time.time() + (LONGEST if by_call else rng.random() * 1.1 * work.seconds)
    how = Counter({f"beside {name}" if by_call else "at a random time": 1})
    with mounted(image, mode) as place:
        pid = start(work, place, stop, control, to.with_suffix(".report"))
        gone = False
        try:
            while not (gone := stopped(pid)) and time.time() < until:
                time.sleep(0.002)
            if not gone:
                os.kill(pid, signal.SIGSTOP)  # a call it is in goes on, and the copy may fall into it
            if rng.random() < 0.6:
                write_back_pages(place, rng)
                how["pages written back"] += 1
            if "commit=1" in mode and rng.random() < 0.5:
                time.sleep(1.3)  # names and sizes are committed now, contents need not be
                how["names committed"] += 1
            how["copied again"] += copy(image, to) - 1
        finally:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
    return how


def after(work: Work, image: Path, report: Path) -> tuple[str, str]:
    """(state, what is wrong) of a cut: look through it and run the command to its end."""
    with mounted(image) as place:
        state = "finished" if (place / work.done).exists() else "begun" if any(place.glob(work.begun)) else "nothing"
        try:
            work.inspect(place)
        except Exception as error:
            return state, f"a file of a final name is not whole: {type(error).__name__}: {error}"
        report.unlink(missing_ok=True)
        if wrong := finish(start(work, place, None, False, report), report):
            return state, f"the command failed: {wrong}"
        try:
            work.compare(place)
        except Exception as error:
            return state, f"another end than the uninterrupted run: {type(error).__name__}: {error}"
    return state, ""


def cuts(work: Work, times: int, seed: int, folder: Path, control: bool, keep: Path) -> tuple[Counter[str], list[str]]:
    """All cuts of one command: counts, and what was found."""
    counts: Counter[str] = Counter()
    found = []
    image, held, again = (folder / f"{name}.img" for name in ("work", "held", "again"))
    empty = empty_image(folder / "empty.img")
    sh("cp", "--sparse=always", empty, image)
    for number in range(times):
        counts += cut(work, image, held, random.Random(f"{seed} {work.name} {number}"), control)
        sh("cp", "--sparse=always", held, again)
        state, wrong = after(work, again, folder / "report")
        counts[state] += 1
        if wrong:
            keep.mkdir(parents=True, exist_ok=True)
            saved = keep / f"{work.name}-{seed}-{number}.img"
            sh("cp", "--sparse=always", held, saved)
            found.append(f"{work.name}, cut {number} ({saved}): {wrong}")
        # the next run goes on from this cut, unless there is nothing left to do
        sh("cp", "--sparse=always", empty if wrong or state == "finished" else held, image)
    return counts, found


def works(folder: Path) -> list[Work]:
    """A small extraction and a small training run, those that the tests kill."""
    import core.features.writer
    from core.commands.verify import check
    from core.datasets.registry import DEMO
    from core.datasets.xlsa17 import read_mat_files
    from core.experiments.identity import code_digest, method_digest
    from core.features.extraction import extract
    from core.training.checkpoint import load_checkpoint
    from tests import helpers_runs
    from tests.helpers import TOY, toy_mats
    from tests.helpers_features import TINY, make_data

    core.features.writer._FLUSH_ROWS = 8
    code_digest(), method_digest("dazle")  # once for all runs: a source edited meanwhile is no power cut
    data = make_data(folder / "data", 150)
    metadata = read_mat_files(*toy_mats(folder / "mats"), TOY)
    whole, clean = folder / "whole", folder / "clean.hdf5"

    def train(place: Path) -> None:
        helpers_runs.go("dazle", metadata, place / "run", epochs=20)

    def same_file(place: Path) -> None:
        assert (place / "f.hdf5").read_bytes() == clean.read_bytes(), "other bytes"

    def whole_file(place: Path) -> None:
        if (place / "f.hdf5").exists():
            same_file(place)

    def whole_run(place: Path) -> None:
        run = place / "run"
        for path in [*run.glob("*.state"), *run.glob("*.safetensors")]:
            load_checkpoint(path)
        for path in run.glob("*.csv"):
            assert path.read_bytes() == (whole / "run" / path.name).read_bytes(), path.name
        if (run / "metrics.json").exists():
            check(run)
            same_run(place)

    def same_run(place: Path) -> None:
        helpers_runs.same(whole / "run", place / "run")

    extraction = Work(
        "extraction",
        lambda p: extract(DEMO, data_root=data, out=p / "f.hdf5", config=TINY),
        whole_file,
        same_file,
        "*.partial",
        "f.hdf5",
    )
    training = Work("training", train, whole_run, same_run, "run/*.state", "run/metrics.json")
    reference = folder / "reference"
    reference.mkdir()
    whole.mkdir()
    for work, place in ((extraction, reference), (training, whole)):
        if wrong := finish(start(work, place, None, False, folder / "report"), folder / "report"):
            raise RuntimeError(f"{work.name}: {wrong}")
    os.replace(reference / "f.hdf5", clean)
    return [extraction, training]


def main() -> int:
    """Cut both commands and print a table."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--times", type=int, default=30, help="cuts of each command (default: %(default)s)")
    p.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    p.add_argument("--only", choices=("extraction", "training"), help="one command only")
    p.add_argument("--control", action="store_true", help="make fsync do nothing in the runs that are cut")
    p.add_argument("--keep", type=Path, default=Path("results/power_loss"), help="default: %(default)s")
    a = p.parse_args()
    if reason := refusal():
        sys.stderr.write(f"power_loss.py: {reason}; run it as root on a Linux machine with loop devices\n")
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unmount on the way out
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the tests are not installed, core is
    logging.disable(logging.CRITICAL)
    import torch

    torch.set_num_threads(1)
    findings: list[str] = []
    with tempfile.TemporaryDirectory() as made:
        for work in works(Path(made)):
            if a.only in (None, work.name):
                began = time.time()
                measure(work, Path(made))
                counts, found = cuts(work, a.times, a.seed, Path(made), a.control, a.keep)
                findings += found
                line = (
                    f"{work.name:11} {a.times:4} cuts  {a.times - len(found):4} bit-identical  {len(found):3} findings"
                )
                sys.stdout.write(f"{line}  {time.time() - began:.0f} s\n")
                for what, number in sorted(counts.items()):
                    sys.stdout.write(f"  {number:4} {what}\n")
                sys.stdout.flush()
    for text in findings:
        sys.stdout.write(f"{text}\n")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
