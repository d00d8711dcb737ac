"""Where a sweep's jobs run: processes of this machine, or SLURM through submitit. Two calls: submit, results.

A job that fails, or whose process is killed, is one result among the others. Runs are resumable, so a job that is
preempted is submitted again and goes on after its last finished epoch.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import re
import shlex
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from core.files.errors import UserError

Work = Callable[[Any, str], str | None]  # runs a job on a device; None, or what stopped it. Picklable
KILLED = "its process was killed (as happens when memory runs out); the same command continues it"
_MINUTES = 24 * 60  # of a task, where nothing else is said
_ERRORS = (NameError, TypeError, ValueError, AttributeError)  # what submitit says of parameters it does not know


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    job: Any
    failure: str | None = None  # None: done
    log: Path | None = None  # what its process wrote, where that is a file


class Engine(Protocol):
    """What a sweep asks of an engine."""

    def submit(self, jobs: Sequence[Any]) -> None:
        """Take these jobs."""

    def results(self) -> Iterator[Outcome]:
        """Each job once it has ended, in the order of ending."""


@dataclass
class LocalEngine:
    """``processes`` of this machine; with one, jobs run in this process. Devices are taken in turn."""

    work: Work
    processes: int = 1
    devices: tuple[str, ...] = ("cpu",)
    _waiting: deque[tuple[int, Any]] = field(default_factory=deque)  # number and job

    def submit(self, jobs: Sequence[Any]) -> None:
        """Take these jobs; they begin when results are asked for."""
        self._waiting += enumerate(jobs)

    def results(self) -> Iterator[Outcome]:
        """Each job once it has ended."""
        if self.processes == 1:
            while self._waiting:
                number, job = self._waiting.popleft()
                yield Outcome(job, self.work(job, self._device(number)))
        while self._waiting:
            # the pool ends with any of its processes; alone, each job in it shows whether it was the one
            for suspect in (yield from self._pool(self.processes, self._waiting)):
                for _, job in (yield from self._pool(1, deque([suspect]))):
                    yield Outcome(job, KILLED)

    def _device(self, number: int) -> str:
        return self.devices[number % len(self.devices)]

    def _pool(self, processes: int, waiting: deque[tuple[int, Any]]) -> Generator[Outcome, None, list[tuple[int, Any]]]:
        """Run what is waiting, until a process is killed at most; returns the jobs that were in work then."""
        import torch  # seconds, which a job of submitit's that needs none of it does not wait for

        threads = max(1, torch.get_num_threads() // self.processes)
        context = multiprocessing.get_context("spawn")
        working: dict[Future[str | None], tuple[int, Any]] = {}
        with ProcessPoolExecutor(processes, context, worker_setup, (threads,)) as pool:
            while waiting or working:
                while waiting and len(working) < processes:
                    number, job = waiting[0]
                    try:
                        working[pool.submit(self.work, job, self._device(number))] = waiting[0]
                    except BrokenProcessPool:
                        break
                    waiting.popleft()
                ended = wait(working, return_when=FIRST_COMPLETED).done
                killed = not working
                for future in ended:
                    error = future.exception()
                    if isinstance(error, BrokenProcessPool):
                        killed = True
                        continue
                    _, job = working.pop(future)
                    yield Outcome(job, f"{type(error).__name__}: {error}" if error else future.result())
                if killed:
                    break
        return list(working.values())


def worker_setup(threads: int) -> None:
    """What a process does first."""
    import torch

    torch.set_num_threads(threads)
    logging.basicConfig(level=logging.WARNING)


class Task:
    """What submitit runs: a job on whatever the node has. Where it is preempted it is submitted again as it was."""

    def __init__(self, work: Work, device: str) -> None:
        self.work, self.device = work, device

    def __call__(self, job: Any) -> str | None:
        """Run the job; None, or what stopped it."""
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        return self.work(job, self.device)

    def checkpoint(self, job: Any) -> Any:
        """Called by submitit before the time is over or the node is taken; a run keeps its own state."""
        return _submitit().helpers.DelayedSubmission(self, job)


@dataclass
class SlurmEngine:
    """Job arrays through submitit; where there is no SLURM, submitit's local processes, ``processes`` at a time."""

    work: Work
    folder: Path  # of submitit's files and logs; every node must see it
    parameters: Mapping[str, Any] = field(default_factory=dict)  # submitit's
    processes: int = 1
    device: str = "auto"
    cluster: str | None = None  # None: SLURM where there is one, else local
    seconds: float = 1.0  # between two looks at the jobs
    _waiting: deque[Any] = field(default_factory=deque)
    _begun: list[tuple[Any, Any]] = field(default_factory=list)  # job, submitit's job

    def __post_init__(self) -> None:
        self._executor = _submitit().AutoExecutor(folder=self.folder, cluster=self.cluster)
        try:
            self._executor.update_parameters(**{"timeout_min": _MINUTES, "name": "vsmr"} | dict(self.parameters))
        except _ERRORS as error:
            raise UserError(f"--slurm: submitit does not take these parameters: {error}") from error
        self._task = Task(self.work, self.device)

    def submit(self, jobs: Sequence[Any]) -> None:
        """Submit one array of all jobs (SLURM)."""
        if self._executor.cluster == "slurm":
            self._begun += zip(jobs, self._executor.map_array(self._task, list(jobs)), strict=True)
        else:
            self._waiting += jobs

    def results(self) -> Iterator[Outcome]:
        """Each job once it has ended."""
        while self._waiting or self._begun:
            while self._waiting and len(self._begun) < self.processes:
                job = self._waiting.popleft()
                self._begun.append((job, self._executor.submit(self._task, job)))
            for entry in [(job, begun) for job, begun in self._begun if begun.done()]:
                self._begun.remove(entry)
                yield _outcome(*entry)
            time.sleep(self.seconds if self._begun else 0)


def _outcome(job: Any, begun: Any) -> Outcome:
    log = Path(begun.paths.stderr)
    try:
        return Outcome(job, begun.result(), log)
    except Exception as error:  # submitit's own, and whatever the task raised
        raised = re.findall(
            r"^\w[\w.]*(?:Error|Exception|Interrupt).*$", str(error), re.MULTILINE
        )  # end of a traceback
        said = KILLED if type(error).__name__ == "UncompletedJobError" else (raised or [repr(error)])[-1]
        return Outcome(job, f"{said} (log: {log})", log)


def _submitit() -> Any:
    """The library.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module("submitit")
    except ImportError:
        raise UserError(
            "--engine slurm needs submitit: pip install submitit (or pip install 'vsmr[slurm]'); without it, "
            "--print-sbatch writes a job-array script"
        ) from None


def sbatch_script(command: Sequence[str], tasks: int, logs: Path, options: Mapping[str, str]) -> str:
    """A job-array script: task k runs ``command --task k``. ``options`` are sbatch's own, without their dashes."""
    lines = {"job-name": "vsmr", "array": f"0-{tasks - 1}", "output": f"{logs}/%A_%a.log", "open-mode": "append"}
    lines |= {"requeue": "", "time": "24:00:00", "cpus-per-task": "4"} | dict(options)
    header = [f"#SBATCH --{key}" + (f"={value}" if value else "") for key, value in lines.items()]
    python = shlex.quote(sys.executable)
    text = [
        "#!/bin/bash",
        *header,
        "# a task that was preempted or failed continues where it was: submit the same script again",
        f"# submit:  mkdir -p {shlex.quote(str(logs))} && sbatch THIS_FILE",
        f"# then:    {shlex.join(['python', *command])} --status     and when all are done --collect",
        f"cd {shlex.quote(str(Path.cwd()))}",
        f"exec {python} {shlex.join(command)} --task $SLURM_ARRAY_TASK_ID",
    ]
    return "\n".join(text) + "\n"
