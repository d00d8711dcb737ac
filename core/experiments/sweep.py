"""Data sets x methods x seeds as jobs of an engine; summary.csv is rebuilt from what they left.

A finished run is read back, an interrupted one continued, a failed one is one line of the report while the others go
on. No job writes a shared file: :func:`collect` makes summary.csv from the run folders, one process at a time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from math import inf
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from core.experiments.ablations import ABLATIONS
from core.experiments.calibration import add_H_of_all_seeds
from core.experiments.engines import LocalEngine, SlurmEngine
from core.experiments.identity import run_config
from core.experiments.inputs import Inputs, load_inputs
from core.experiments.results import read_result, row_of
from core.experiments.run import run, validate
from core.files.atomic import Lock, atomic_path, is_locked, write_bytes
from core.files.errors import UserError
from core.method import epochs_of, find_method, methods, with_settings

log = logging.getLogger(__name__)
IN_USE = "another process is writing"  # what a lock says that is held
_WAIT = 1.0  # seconds between two tries at one
_LONGEST = 60.0  # seconds that summary.csv, which is written in less than one, may be in use


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be run, and where."""

    datasets: tuple[str, ...]
    methods: tuple[str, ...] = ()  # none: all that need no class text
    seeds: tuple[int, ...] = tuple(range(10))
    data_root: Path | None = None
    features: Path | None = None  # for a single data set
    w2v: Path | None = None
    out: Path = Path("results")
    devices: tuple[str, ...] = ("cpu",)
    jobs: int = 1  # processes
    ablation: bool = True
    diagnostics: bool = True
    epochs: int | None = None  # most epochs of every method; None: each recipe's
    precision: str = "float32"
    engine: str = "local"  # or slurm
    slurm: tuple[tuple[str, Any], ...] = ()  # submitit's parameters


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run."""

    dataset: str
    method: str
    seed: int
    ablation: str = ""  # name of an ablation: validation only, no test image is read

    def __str__(self) -> str:
        return f"{self.dataset} {self.method}{f' ({self.ablation})' if self.ablation else ''} seed {self.seed}"


def jobs_of(plan: Plan) -> list[Job]:
    """All runs of a plan, the long ones first so that parallel processes end together."""
    names = plan.methods or tuple(name for name, m in methods().items() if not m.needs_text)
    ordered = sorted(names, key=lambda name: -epochs_of(find_method(name).recipe(plan.datasets[0])))
    jobs = [Job(dataset=d, method=m, seed=s) for d in plan.datasets for m in ordered for s in plan.seeds]
    if plan.ablation and "vsmr" in names:
        jobs += [
            Job(dataset=d, method="vsmr", seed=s, ablation=a)
            for d in plan.datasets
            for s in plan.seeds
            for a in ABLATIONS
        ]
    return jobs


def _place(job: Job) -> str:
    return "/".join([job.method, *(["ablation", _slug(job.ablation)] if job.ablation else []), f"seed{job.seed}"])


def _slug(name: str) -> str:
    return name.replace(" ", "_").replace("/", "_")


@lru_cache(maxsize=1)
def _inputs(dataset: str, data_root: Path | None, features: Path | None, w2v: Path | None, device: str) -> Inputs:
    return load_inputs(dataset, data_root=data_root, features=features, w2v=w2v, device=device)


def execute(plan: Plan, job: Job, device: str) -> None:
    """Do a run, or find it finished.

    Raises:
        UserError: what stopped it.
    """
    inputs = _inputs(job.dataset, plan.data_root, plan.features, plan.w2v, device)
    recipe = find_method(job.method).recipe(job.dataset)
    epochs = epochs_of(recipe) if plan.epochs is None else plan.epochs
    changes = dict(ABLATIONS[job.ablation]) if job.ablation else {}
    epochs = changes.pop("epochs", epochs)
    config = run_config(
        inputs, job.method, with_settings(recipe, changes), seed=job.seed, epochs=epochs, precision=plan.precision
    )
    out = plan.out / job.dataset / inputs.variant / _place(job)
    if job.ablation:
        _in_turn(partial(validate, config, inputs, out, ablation=job.ablation), out / "run")
    else:
        _in_turn(partial(run, config, inputs, out, diagnostics=plan.diagnostics), out / "run")


def _in_turn(work: Callable[[], object], final: Path, longest: float = inf) -> None:
    """Do what holds the lock of ``final``; while another process (another sweep, say) holds it, wait.

    Raises:
        UserError: what ``work`` says, or the lock was not free for ``longest`` seconds.
    """
    until = time.monotonic() + longest
    said = False
    while True:
        try:
            work()
            return
        except UserError as error:
            if IN_USE not in str(error) or time.monotonic() > until:
                raise
        if not said:
            log.warning("another process is at %s: waiting for it", final)
            said = True
        time.sleep(_WAIT)


def attempt(plan: Plan, job: Job, device: str) -> str | None:
    """Do a run; None, or what stopped it, which is noted in the job's own file for :func:`status`."""
    note = _note(plan, job)
    try:
        execute(plan, job, device)
    except UserError as error:
        failure = str(error)
    except Exception as error:  # one run's fault does not end the others
        log.exception("%s", job)
        failure = f"{type(error).__name__}: {error}"
    else:
        note.unlink(missing_ok=True)
        return None
    write_bytes(note, failure.encode())
    return failure


def _note(plan: Plan, job: Job) -> Path:
    """The file that says why a job failed; each job has its own."""
    name = "-".join(filter(None, (job.dataset, job.method, _slug(job.ablation), f"seed{job.seed}")))
    return plan.out / "jobs" / f"{name}.failed"


class FailedRuns(UserError):
    """Some runs of a sweep failed; the others are done and collected."""


def engine_of(plan: Plan) -> LocalEngine | SlurmEngine:
    work = partial(attempt, plan)
    if plan.engine == "slurm":
        folder = plan.out / "jobs" / "slurm"
        return SlurmEngine(work, folder.absolute(), dict(plan.slurm), plan.jobs, plan.devices[0])
    return LocalEngine(work, plan.jobs, plan.devices)


def sweep(plan: Plan) -> Path:
    """All runs of the plan through its engine; returns OUT/summary.csv, which holds every finished run there.

    Raises:
        FailedRuns: after all other runs are done, with what stopped those that failed.
        UserError: the engine cannot be had.
    """
    jobs, engine = jobs_of(plan), engine_of(plan)
    failures: list[str] = []
    with tqdm(total=len(jobs), desc="runs", disable=None) as bar:
        engine.submit(jobs)
        for outcome in engine.results():
            if outcome.failure:
                failures.append(f"{outcome.job}: {outcome.failure}")
                if not (note := _note(plan, outcome.job)).exists():  # of a killed process, which could not write it
                    write_bytes(note, outcome.failure.encode())
            log.info("%s: %s", outcome.job, "failed" if outcome.failure else "done")
            bar.update()
            bar.set_postfix_str(str(outcome.job))
    said = [f"{len(failures)} of {len(jobs)} runs did not finish:", *failures]
    try:
        path = collect(plan.out)
    except UserError as error:
        if not failures:
            raise
        said.append(str(error))
    if failures:
        raise FailedRuns("\n  ".join(said))
    return path


def status(plan: Plan) -> list[tuple[Job, str, Path | None]]:
    """Each job of a plan, its state (done, running, failed: why, interrupted, not begun), and where its log is."""
    return [(job, *_state(plan, job)) for job in jobs_of(plan)]


def _state(plan: Plan, job: Job) -> tuple[str, Path | None]:
    last = "validation.json" if job.ablation else "metrics.json"
    folders = sorted((plan.out / job.dataset).glob(f"*/{_place(job)}"))  # of every features' folder
    for folder in folders:
        if is_locked(folder / "run"):
            return "running", folder / "log.jsonl"
    note = _note(plan, job)
    if note.is_file():
        return f"failed: {note.read_text('utf-8')}", note
    for folder in folders:
        if (folder / last).is_file():
            return "done", folder / "log.jsonl"
    begun = [folder / "log.jsonl" for folder in folders if (folder / "log.jsonl").is_file()]
    return ("interrupted", begun[0]) if begun else ("not begun", None)


def collect(out: Path) -> Path:
    """Rebuild OUT/summary.csv from the run folders below OUT, and from nothing else.

    Raises:
        UserError: no finished run, or damaged ones (named; the table then holds the others).
    """
    found = [path for name in ("metrics.json", "validation.json") for path in out.rglob(name)]
    if not found:
        raise UserError(f"no finished run below {out} (looked for metrics.json)")
    summary = out / "summary.csv"
    _in_turn(partial(_collect, out, summary), summary, _LONGEST)
    return summary


def _collect(out: Path, summary: Path) -> None:
    """Read and write under one lock: a slower process would write what was there before a faster one's last run."""
    with Lock(summary):
        rows: list[dict[str, Any]] = []
        damaged: list[str] = []
        for path in sorted([*out.rglob("metrics.json"), *out.rglob("validation.json")]):
            try:
                rows.append(row_of(read_result(path)) | {"folder": path.parent.relative_to(out).as_posix()})
            except UserError as error:
                damaged.append(str(error))
        if not rows:
            raise UserError("\n  ".join([f"no finished run below {out} (looked for metrics.json)", *damaged]))
        add_H_of_all_seeds(rows, out)
        # an order that does not depend on when they were made
        keys = ["dataset", "features", "regions", "method", "ablation", "seed", "features_sha256", "code"]
        table = pd.DataFrame(rows).sort_values(keys, kind="stable")
        with atomic_path(summary) as temporary:
            table.to_csv(temporary, index=False, float_format="%.6g")
    if damaged:
        raise UserError("left out of summary.csv:\n  " + "\n  ".join(damaged))
