"""Data sets x methods x seeds as jobs, run in processes; summary.csv is rebuilt from what they left.

A finished run is read back, an interrupted one continued, a failed one is one line of the report while the others go
on. No job writes a shared file: :func:`collect` makes summary.csv from the run folders, one process at a time.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from core.experiments.ablations import ABLATIONS
from core.experiments.identity import run_config
from core.experiments.inputs import Inputs, load_inputs
from core.experiments.results import read_result, row_of
from core.experiments.run import run, validate
from core.files.atomic import Lock, atomic_path
from core.files.errors import UserError
from core.method import epochs_of, find_method, methods, with_settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be run, and where."""

    datasets: tuple[str, ...]
    methods: tuple[str, ...] = ()  # none: all that need no class text
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
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


def folder_of(out: Path, inputs: Inputs, job: Job) -> Path:
    """Where a run's files go: OUT/<data set>/<features>/<method>/seed<k>."""
    base = out / job.dataset / inputs.variant / job.method
    if job.ablation:
        base = base / "ablation" / job.ablation.replace(" ", "_").replace("/", "_")
    return base / f"seed{job.seed}"


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
    out = folder_of(plan.out, inputs, job)
    if job.ablation:
        validate(config, inputs, out, ablation=job.ablation)
    else:
        run(config, inputs, out, diagnostics=plan.diagnostics)


def _attempt(plan: Plan, job: Job, device: str) -> str | None:
    """None, or what stopped the run."""
    try:
        execute(plan, job, device)
    except UserError as error:
        return str(error)
    return None


def _worker_setup(threads: int) -> None:
    torch.set_num_threads(threads)
    logging.basicConfig(level=logging.WARNING)


def sweep(plan: Plan) -> Path:
    """All runs of the plan, ``plan.jobs`` at a time; returns OUT/summary.csv, which holds every finished run there.

    Raises:
        UserError: after all other runs are done, with what stopped those that failed.
    """
    jobs = jobs_of(plan)
    failures: list[str] = []
    with tqdm(total=len(jobs), desc="runs", disable=None) as bar:

        def note(job: Job, failure: str | None) -> None:
            if failure:
                failures.append(f"{job}: {failure}")
            log.info("%s: %s", job, "failed" if failure else "done")
            bar.update()
            bar.set_postfix_str(str(job))

        if plan.jobs == 1:
            for job in jobs:
                note(job, _attempt(plan, job, plan.devices[0]))
        else:
            threads = max(1, torch.get_num_threads() // plan.jobs)
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(plan.jobs, context, _worker_setup, (threads,)) as pool:
                begun = {
                    pool.submit(_attempt, plan, job, plan.devices[i % len(plan.devices)]): job
                    for i, job in enumerate(jobs)
                }
                for future in as_completed(begun):
                    try:
                        note(begun[future], future.result())
                    except Exception as error:  # a process that was killed takes its job with it
                        note(begun[future], f"{type(error).__name__}: {error}")
    path = collect(plan.out)
    if failures:
        raise UserError("these runs did not finish:\n  " + "\n  ".join(failures))
    return path


def collect(out: Path) -> Path:
    """Rebuild OUT/summary.csv from the run folders below OUT, and from nothing else.

    Raises:
        UserError: no finished run, or damaged ones (named; the table then holds the others).
    """
    rows: list[dict[str, Any]] = []
    damaged: list[str] = []
    for path in sorted([*out.rglob("metrics.json"), *out.rglob("validation.json")]):
        try:
            rows.append(row_of(read_result(path)) | {"folder": path.parent.relative_to(out).as_posix()})
        except UserError as error:
            damaged.append(str(error))
    if not rows:
        raise UserError("\n  ".join([f"no finished run below {out} (looked for metrics.json)", *damaged]))
    summary = write_summary(out, rows)
    if damaged:
        raise UserError("left out of summary.csv:\n  " + "\n  ".join(damaged))
    return summary


def write_summary(out: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write rows as OUT/summary.csv, in an order that does not depend on when they were made."""
    path = out / "summary.csv"
    keys = ["dataset", "features", "regions", "method", "ablation", "seed", "features_sha256", "code"]
    table = pd.DataFrame(list(rows)).sort_values(keys, kind="stable")
    lock = Lock(path)
    try:
        with atomic_path(path) as temporary:
            table.to_csv(temporary, index=False, float_format="%.6g")
    finally:
        lock.release()
    return path
