"""Data sets x methods x seeds -> results/*.csv: what reproduce_tables.py does.

A finished run is read back, an interrupted one continued. A run is what its config says: recipe, seed, digest of the
sources, sha256 of the feature file and of the vectors; results of another run under the same name are refused.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from core.commands.train import Inputs, load_inputs
from core.datasets.registry import CUB50, DATASETS
from core.experiments.ablations import ABLATIONS
from core.experiments.run import RunConfig, running, validating
from core.files.atomic import atomic_path
from core.files.errors import UserError
from core.lockstep import Run, drive
from core.recipes import METHODS, most_epochs, recipe_of
from core.reporting.tables import read_summary

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What reproduce_tables.py was asked for."""

    datasets: tuple[str, ...]
    methods: tuple[str, ...] = METHODS
    seeds: int = 5
    data_root: Path = Path("data")
    features: Path | None = None  # for a single data set
    w2v: Path | None = None
    out: Path = Path("results")
    device: str = "cpu"
    jobs: int = 1
    ablation: bool = True
    diagnostics: bool = True
    together: int = 1  # seeds of a method trained in lockstep (core/lockstep.py)
    epochs: int | None = None  # most epochs of every method; None: each recipe's


@dataclass(frozen=True)
class Job:
    """One run."""

    dataset: str
    method: str
    seed: int
    ablation: str | None = None  # name of an ablation: validation only, no test image is read


def jobs_of(plan: Plan) -> list[Job]:
    """All runs of a plan, the long ones first so that parallel workers end together."""
    weight = {"transzero": 4, "msdn": 3, "vsmr-staged": 2, "dazle": 2, "dazle-prepared": 2}
    methods = sorted(plan.methods, key=lambda m: -weight.get(m, 1))
    jobs = [Job(d, m, s) for d in plan.datasets for m in methods for s in range(plan.seeds)]
    if plan.ablation and "vsmr" in plan.methods:
        jobs += [Job(d, "vsmr", s, name) for d in plan.datasets for s in range(plan.seeds) for name in ABLATIONS]
    return jobs


def folder_of(plan: Plan, job: Job) -> Path:
    """Where a run's files go."""
    base = plan.out / job.dataset / job.method
    if job.ablation is not None:
        base = base / "ablation" / f"{list(ABLATIONS).index(job.ablation):02d}"
    return base / f"seed{job.seed}"


@lru_cache(maxsize=1)
def _inputs(dataset: str, data_root: Path, features: Path | None, w2v: Path | None, device: str) -> Inputs:
    return load_inputs(CUB50 if dataset == CUB50.name else DATASETS[dataset], data_root, features, w2v, device)


def execute(plan: Plan, jobs: Sequence[Job], device: str) -> list[dict[str, Any] | UserError]:
    """Do runs that differ in nothing but their seed, or read them back; a row of the CSV of each, or its error."""
    inputs = _inputs(jobs[0].dataset, plan.data_root, plan.features, plan.w2v, device)
    recipe = recipe_of(jobs[0].method, jobs[0].dataset)
    epochs = most_epochs(recipe)
    epochs = epochs if plan.epochs is None else min(epochs, plan.epochs)
    changes = dict(ABLATIONS[jobs[0].ablation]) if jobs[0].ablation else {}
    epochs = changes.pop("epochs", epochs)
    recipe = replace(recipe, **changes)

    def run_of(job: Job, beside: int) -> Run[dict[str, Any]]:
        config = RunConfig(
            job.dataset, job.method, job.seed, "val", epochs, asdict(recipe), inputs.provenance, inputs.vectors_sha256
        )
        given = (config, recipe, inputs.metadata, inputs.w2v, inputs.features, folder_of(plan, job))
        if job.ablation is not None:
            return validating(*given, beside=beside)
        return running(*given, diagnostics=plan.diagnostics, beside=beside)

    if len(jobs) > 1:
        with contextlib.suppress(UserError):  # of one run; the others are continued below
            results = drive([run_of(job, len(jobs) - 1) for job in jobs])
            return [row_of(job, result) for job, result in zip(jobs, results, strict=True)]
    rows: list[dict[str, Any] | UserError] = []
    for job in jobs:
        try:
            rows.append(row_of(job, drive([run_of(job, 0)])[0]))
        except UserError as error:
            rows.append(error)
    return rows


def bundles(plan: Plan, jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs as they are executed: ``plan.together`` seeds at a time, dropout's random numbers excepted."""
    made: dict[tuple[str, str, str | None, int], list[Job]] = {}
    for number, job in enumerate(jobs):
        alone = plan.together == 1 or getattr(recipe_of(job.method, job.dataset), "dropout", 0) > 0
        part = -1 - number if alone else job.seed // plan.together
        made.setdefault((job.dataset, job.method, job.ablation, part), []).append(job)
    return list(made.values())


def row_of(job: Job, result: dict[str, Any]) -> dict[str, Any]:
    """A run as one flat row: val_* on the validation split, plain names on the test sets, test_* selected on test."""
    config, chosen = result["config"], result["chosen"]
    row: dict[str, Any] = {
        "dataset": job.dataset,
        "backbone": config["features"].get("backbone", "unknown"),
        "regions": config["features"].get("regions", ""),
        "method": job.method,
        "ablation": job.ablation or "",
        "seed": job.seed,
    }
    row |= {k: v for k, v in (result.get("standard") or {}).items()}
    row |= {"most_epochs": config["epochs"], "epochs": chosen["epochs"]}
    row |= {f"val_{k}": v for k, v in chosen.get("validation", {}).items()}
    row |= {f"test_{k}": v for k, v in (result.get("selected_on_test") or {}).items()}
    row |= {f"published_{k}": v for k, v in (result.get("published_procedure") or {}).items()}
    row |= {
        "recipe": "; ".join(f"{k}={v}" for k, v in chosen.get("recipe", {}).items()),
        "seconds": result["seconds"],
        "device": result.get("where", {}).get("device", ""),
        "torch": result.get("where", {}).get("torch", ""),
        "seeds_beside": result.get("where", {}).get("seeds_beside", 0),
        "code": config["code"],
        "features_sha256": config["features"].get("file_sha256", "")[:16],
        "notes": " | ".join(result.get("notes", [])),
    }
    return row


def _worker_setup(threads: int) -> None:
    torch.set_num_threads(threads)
    logging.basicConfig(level=logging.WARNING)


def _devices(plan: Plan) -> list[str]:
    if plan.device == "cuda":
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return [plan.device]


def reproduce(plan: Plan) -> Path:
    """All runs of the plan, ``plan.jobs`` at a time; returns results/summary.csv, which holds every finished run.

    Raises:
        UserError: after all other runs are done, with what stopped those that failed.
    """
    work = bundles(plan, jobs_of(plan))
    devices = _devices(plan)
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    with tqdm(total=sum(map(len, work)), desc="runs", disable=None) as bar:

        def note(jobs: Sequence[Job], outcomes: Sequence[dict[str, Any] | UserError]) -> None:
            for job, outcome in zip(jobs, outcomes, strict=True):
                if isinstance(outcome, UserError):
                    failures.append(f"{job.dataset} {job.method} {job.ablation or ''} seed {job.seed}: {outcome}")
                else:
                    rows.append(outcome)
            bar.update(len(jobs))
            bar.set_postfix_str(f"{jobs[0].dataset} {jobs[0].method}")

        if plan.jobs == 1:
            for jobs in work:
                note(jobs, execute(plan, jobs, devices[0]))
        else:
            threads = max(1, torch.get_num_threads() // plan.jobs)
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(plan.jobs, context, _worker_setup, (threads,)) as pool:
                begun = {
                    pool.submit(execute, plan, jobs, devices[i % len(devices)]): jobs for i, jobs in enumerate(work)
                }
                for future in as_completed(begun):
                    note(begun[future], future.result())
    path = write_summary(plan.out, rows)
    if failures:
        raise UserError("these runs did not finish:\n  " + "\n  ".join(failures))
    return path


def write_summary(out: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Merge rows into OUT/summary.csv, replacing runs of the same name."""
    path = out / "summary.csv"
    table = pd.DataFrame(list(rows))
    keys = ["dataset", "backbone", "method", "ablation", "seed"]
    if path.is_file():
        table = pd.concat([read_summary(path), table])
    if len(table):
        table = table.drop_duplicates(keys, keep="last").sort_values(keys, kind="stable")
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
    return path
