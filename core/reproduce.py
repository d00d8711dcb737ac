"""Data sets x methods x seeds -> results/*.csv: what reproduce_tables.py does. The tables are made in core/tables.py.

A finished run is read back, an interrupted one continued. A run is what its config says: recipe, seed, digest of the
sources, sha256 of the feature file and of the vectors; results of another run under the same name are refused.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from core.cli import Inputs, load_inputs
from core.datasets import CUB50, DATASETS
from core.errors import UserError
from core.experiment import RunConfig, run, validate
from core.files import atomic_path
from core.recipes import METHODS, most_epochs, recipe_of
from core.tables import ABLATIONS, read_summary

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


def execute(plan: Plan, job: Job, device: str) -> dict[str, Any]:
    """Do one run, or read it back; returns its row of the CSV."""
    inputs = _inputs(job.dataset, plan.data_root, plan.features, plan.w2v, device)
    recipe = recipe_of(job.method, job.dataset)
    epochs = most_epochs(recipe)
    epochs = epochs if plan.epochs is None else min(epochs, plan.epochs)
    changes = dict(ABLATIONS[job.ablation]) if job.ablation else {}
    epochs = changes.pop("epochs", epochs)
    recipe = replace(recipe, **changes)
    config = RunConfig(
        job.dataset, job.method, job.seed, "val", epochs, asdict(recipe), inputs.provenance, inputs.vectors_sha256
    )
    out = folder_of(plan, job)
    if job.ablation is not None:
        result = validate(config, recipe, inputs.metadata, inputs.w2v, inputs.features, out)
    else:
        result = run(config, recipe, inputs.metadata, inputs.w2v, inputs.features, out, diagnostics=plan.diagnostics)
    return row_of(job, result)


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
    jobs = jobs_of(plan)
    devices = _devices(plan)
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    with tqdm(total=len(jobs), desc="runs", disable=None) as bar:

        def note(job: Job, outcome: Any) -> None:
            if isinstance(outcome, dict):
                rows.append(outcome)
            else:
                failures.append(f"{job.dataset} {job.method} {job.ablation or ''} seed {job.seed}: {outcome}")
            bar.update()
            bar.set_postfix_str(f"{job.dataset} {job.method}")

        if plan.jobs == 1:
            for job in jobs:
                try:
                    note(job, execute(plan, job, devices[0]))
                except UserError as error:
                    note(job, error)
        else:
            threads = max(1, torch.get_num_threads() // plan.jobs)
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(plan.jobs, context, _worker_setup, (threads,)) as pool:
                running = {
                    pool.submit(execute, plan, job, devices[i % len(devices)]): job for i, job in enumerate(jobs)
                }
                for future in as_completed(running):
                    try:
                        note(running[future], future.result())
                    except UserError as error:
                        note(running[future], error)
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
