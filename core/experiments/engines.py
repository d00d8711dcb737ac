"""Where a sweep's jobs run: processes of this machine, or SLURM through submitit. Two calls: submit, results.

A job that fails, or whose process is killed, is one result among the others. Runs are resumable, so a job that is
preempted is submitted again and goes on after its last finished epoch.
"""

from __future__ import annotations

import importlib
import json
import logging
import multiprocessing
import re
import shlex
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.files.atomic import read_json, write_bytes
from core.files.errors import UserError

log = logging.getLogger(__name__)
Work = Callable[[Any, str], str | None]  # runs a job on a device; None, or what stopped it. Picklable
KILLED = "its process was killed (as happens when memory runs out); the same command continues it"
_NAMES = "_jobs.json"  # which task does which job, beside submitit's files
_MINUTES = 24 * 60  # of a task, where nothing else is said
# what submitit says of parameters it does not know
_ERRORS = (NameError, TypeError, ValueError, AttributeError, AssertionError)
_USUAL = ("None", "Priority", "Resources", "BeginTime", "JobArrayTaskLimit")  # reasons to wait that pass by themselves


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    job: Any
    failure: str | None = None  # None: done
    log: Path | None = None  # what its process wrote, where that is a file


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
        """Each job once it has ended, in the order of ending."""
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
    seconds: float = 1.0  # between two looks for results
    queue_seconds: float = 30.0  # between two questions to SLURM
    _waiting: deque[Any] = field(default_factory=deque)
    _begun: list[tuple[Any, Any]] = field(default_factory=list)  # job, submitit's job
    _absent: set[str] = field(default_factory=set)  # tasks that SLURM no longer had when it was last asked
    _asked: float = 0.0  # when it was asked last
    _said: set[str] = field(default_factory=set)  # why tasks wait, as far as it was told

    def __post_init__(self) -> None:
        self._executor = _submitit().AutoExecutor(folder=self.folder, cluster=self.cluster)
        self._slurm = self._executor.cluster == "slurm"
        if not self._slurm and self.cluster is None:
            log.warning("no SLURM here (no srun in PATH): the runs are processes of this machine")
        usual = {"timeout_min": _MINUTES, "name": "vsmr", "slurm_additional_parameters": {"requeue": True}}
        try:
            self._executor.update_parameters(**usual | dict(self.parameters))
        except _ERRORS as error:
            raise UserError(f"--slurm: submitit does not take these parameters: {error}") from error
        self._task = Task(self.work, self.device)

    def submit(self, jobs: Sequence[Any]) -> None:
        """Submit one array of all jobs (SLURM).

        Raises:
            UserError: SLURM refuses it, or has tasks of an earlier command that do some of these jobs.
        """
        if not self._slurm:
            self._waiting += jobs
            return
        self._refuse_doubled(jobs)
        try:
            begun = self._executor.map_array(self._task, list(jobs))
        except Exception as error:  # submitit's own kinds, and the system's
            raise UserError(f"SLURM did not take the job array: {str(error).strip().splitlines()[-1]}") from error
        self._begun += zip(jobs, begun, strict=True)
        array = begun[0].job_id.partition("_")[0]
        names = {task.job_id: str(job) for job, task in self._begun}
        write_bytes(self.folder / f"{array}{_NAMES}", json.dumps(names, indent=1).encode())
        log.info("job array %s of %d tasks; logs in %s", array, len(jobs), self.folder)

    def results(self) -> Iterator[Outcome]:
        try:
            while self._waiting or self._begun:
                while self._waiting and len(self._begun) < self.processes:
                    job = self._waiting.popleft()
                    self._begun.append((job, self._executor.submit(self._task, job)))
                for entry in self._ended():
                    self._begun.remove(entry)
                    yield _outcome(*entry, gone=self._slurm and not entry[1].paths.result_pickle.exists())
                time.sleep(self.seconds if self._begun else 0)
        except KeyboardInterrupt:
            if self._slurm:
                array = self._begun[0][1].job_id.partition("_")[0]
                log.warning(
                    "job array %s goes on without this command: --status shows its runs, --collect makes the table "
                    "when they are done, and `scancel %s` ends them",
                    *(array, array),
                )
            raise

    def _ended(self) -> list[tuple[Any, Any]]:
        """What has left a result, or is neither with SLURM nor has left one.

        submitit asks `sacct`, which not every site has, and as seldom as every ten minutes; `squeue` every site has.
        """
        if not self._slurm:
            return [entry for entry in self._begun if entry[1].done()]
        ended = [entry for entry in self._begun if entry[1].paths.result_pickle.exists()]
        if time.monotonic() < self._asked + self.queue_seconds or (queue := slurm_queue()) is None:
            return ended
        self._asked = time.monotonic()
        self._say_why(queue)
        absent = {task.job_id for _, task in self._begun} - queue.keys()
        # a file system of many machines shows a result late, so a task must be absent twice
        ended += [e for e in self._begun if e not in ended and e[1].job_id in absent & self._absent]
        self._absent = absent
        return ended

    def _say_why(self, queue: Mapping[str, str]) -> None:
        """Say once why SLURM does not begin tasks, where that may never pass."""
        reasons = [queue[task.job_id] for _, task in self._begun if queue.get(task.job_id, "") not in ("", *_USUAL)]
        for reason in dict.fromkeys(reasons):
            if reason not in self._said:
                more = "; the partition allows less time than was asked for: --slurm-time" * ("TimeLimit" in reason)
                log.warning("SLURM has %d tasks waiting: %s%s", reasons.count(reason), reason, more)
        self._said |= set(reasons)

    def _refuse_doubled(self, jobs: Sequence[Any]) -> None:
        """Two tasks of one run would only wait for each other."""
        wanted, queue = {str(job) for job in jobs}, slurm_queue() or {}
        for path in sorted(self.folder.glob(f"*{_NAMES}")):
            still = {task: name for task, name in read_json(path).items() if task in queue and name in wanted}
            if still:
                task, name = next(iter(still.items()))
                raise UserError(
                    f"SLURM still has {len(still)} of these runs, from an earlier command (task {task}: {name}). "
                    f"--status shows them; give this command again when they have ended, or end them first: "
                    f"scancel {path.name.removesuffix(_NAMES)}"
                )


def slurm_queue() -> dict[str, str] | None:
    """Tasks of this user that SLURM has, each with why it waits (empty: it runs); None: it does not answer."""
    if (said := _answer("squeue", "--me", "--noheader", "--array", "--format=%i|%T|%r")) is None:
        return None
    found = {}
    for line in said.splitlines():
        task, state, reason = line.split("|", 2)
        found[task.strip()] = reason.strip() if state == "PENDING" else ""
    return found


def _state_of(task: str) -> str:
    """How SLURM says that a task ended; empty where it keeps no accounts."""
    said = _answer("sacct", "--noheader", "--parsable2", "--allocations", "--format=State", f"--jobs={task}")
    return next(iter((said or "").splitlines()), "")


def _answer(*command: str) -> str | None:
    """What a program of SLURM's says; None where it does not answer."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def _outcome(job: Any, begun: Any, gone: bool) -> Outcome:
    """How a job of submitit's ended; ``gone``: SLURM no longer has it, and there is no result to read."""
    log_file = Path(begun.paths.stderr)
    if gone:
        state = _state_of(begun.job_id)
        why = f"SLURM ended its task{f' ({state})' if state else ''}; the same command continues it"
        return Outcome(job, f"{why} (log: {log_file})", log_file)
    try:
        return Outcome(job, begun.result(), log_file)
    except Exception as error:  # submitit's own, and whatever the task raised
        raised = re.findall(
            r"^\w[\w.]*(?:Error|Exception|Interrupt).*$", str(error), re.MULTILINE
        )  # end of a traceback
        said = KILLED if type(error).__name__ == "UncompletedJobError" else (raised or [repr(error)])[-1]
        return Outcome(job, f"{said} (log: {log_file})", log_file)


def minutes_of(text: str) -> int:
    """A time limit as sbatch takes it (30, 30:00, 1:30:00, 1-12, 1-12:30) in minutes, which is what submitit counts in.

    Raises:
        UserError: it is none of these, or nothing.
    """
    days, dash, rest = text.strip().rpartition("-")
    parts = rest.split(":")
    minutes = 0
    if all(part.isdecimal() for part in ([days] if dash else []) + parts) and len(parts) <= 3:
        numbers = [int(part) for part in parts]
        if dash:  # hours come next
            h, m, s = [*numbers, 0, 0][:3]
        else:  # minutes, minutes:seconds or hours:minutes:seconds
            h, m, s = numbers if len(numbers) == 3 else [0, *numbers, 0][:3]
        minutes = -(-(((int(days or 0) * 24 + h) * 60 + m) * 60 + s) // 60)
    if not minutes:
        raise UserError(f"--slurm-time {text}: minutes, hours:minutes:seconds or days-hours is needed, such as 2:00:00")
    return minutes


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
    header = [f"#SBATCH --{key}" + (f"={shlex.quote(value)}" if value else "") for key, value in lines.items()]
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
