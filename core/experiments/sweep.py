"""Data sets x methods x seeds as jobs, in processes of this machine or each by its number (job arrays).

A finished run is read back, an interrupted one continued, a failed one does not end the others. No job writes a shared
file: :func:`collect` makes summary.csv from the run folders.
"""

import logging
import math
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from core.datasets.paths import DEFAULT_ROOT, feature_file
from core.datasets.registry import DATASETS
from core.experiments.ablations import ABLATIONS
from core.experiments.board import seconds_of_methods
from core.experiments.identity import RunConfig, run_config
from core.experiments.inputs import Inputs, load_inputs
from core.experiments.results import finished, read_result, row_of
from core.experiments.run import run
from core.files.atomic import atomic_path, is_locked
from core.files.errors import UserError
from core.method import epochs_of, with_settings
from core.methods import find_method, methods

log = logging.getLogger(__name__)
KILLED = "a process was killed (as happens when memory runs out): the same command with fewer --jobs goes on"


@dataclass(frozen=True, kw_only=True)
class Plan:
    datasets: tuple[str, ...]
    methods: tuple[str, ...] = ()  # none: all that need no class text
    seeds: tuple[int, ...] = tuple(range(10))
    data_root: Path | None = None
    features: Path | None = None  # for a single data set
    w2v: Path | None = None
    out: Path = Path("results")
    device: str = "cpu"
    jobs: int = 1  # processes
    ablation: bool = True
    epochs: int | None = None  # most epochs of every method; None: each recipe's
    precision: str = "float32"
    board: Path | None = None  # every feature file of a data set, what its rows say is cheapest first


@dataclass(frozen=True, kw_only=True)
class Job:
    dataset: str
    method: str
    seed: int
    ablation: str = ""  # name of an ablation: validation only, no test image is read
    features: Path | None = None  # None: the plan's, or the data root's

    def __str__(self) -> str:
        of = f" {self.features.stem.removeprefix('feature_map_')}" if self.features else ""
        return f"{self.dataset}{of} {self.method}{f' ({self.ablation})' if self.ablation else ''} seed {self.seed}"


def jobs_of(plan: Plan) -> list[Job]:
    """All runs of a plan, the long ones first so that parallel processes end together; of a board the cheap ones."""
    names = plan.methods or tuple(name for name, m in methods().items() if not m.needs_text)
    ordered = sorted(names, key=lambda name: -epochs_of(find_method(name).recipe(plan.datasets[0])))
    jobs = [Job(dataset=d, method=m, seed=s) for d in plan.datasets for m in ordered for s in plan.seeds]
    if plan.board:
        root, took, files = plan.data_root or DEFAULT_ROOT, seconds_of_methods(plan.board), dict[str, list[Path]]()
        for d in plan.datasets if not plan.features else ():
            pattern = feature_file(root, DATASETS[d], "*")
            files[d] = sorted(pattern.parent.glob(pattern.name))
        jobs = [replace(job, features=file) for job in jobs for file in files.get(job.dataset) or (None,)]
        return sorted(jobs, key=lambda job: (took.get(job.method, math.inf), job.method, str(job.features)))
    if plan.ablation and "vsmr" in names:
        pairs = [(d, s) for d in plan.datasets for s in plan.seeds]
        jobs += [Job(dataset=d, method="vsmr", seed=s, ablation=a) for d, s in pairs for a in ABLATIONS]
    return jobs


_inputs = lru_cache(maxsize=1)(load_inputs)


def run_of(plan: Plan, job: Job, budget: int | None = 0) -> tuple[RunConfig, Inputs, Path]:
    """The identity of a job's run, its data (``budget`` as for :func:`load_inputs`), and its folder."""
    where = {"data_root": plan.data_root, "features": job.features or plan.features, "w2v": plan.w2v}
    inputs = _inputs(job.dataset, **where, device=plan.device, budget=budget)
    recipe = with_settings(find_method(job.method).recipe(job.dataset), ABLATIONS.get(job.ablation, {}))
    config = run_config(inputs, job.method, recipe, seed=job.seed, epochs=plan.epochs, precision=plan.precision)
    ablation = ["ablation", job.ablation.replace(" ", "_")] if job.ablation else []
    return config, inputs, plan.out.joinpath(job.dataset, inputs.variant, job.method, *ablation, f"seed{job.seed}")


def attempt(plan: Plan, job: Job) -> str | None:
    """Do a run, or find it finished; None, or what stopped it."""
    try:
        config, inputs, out = run_of(plan, job, budget=None)
        run(config, inputs, out, ablation=job.ablation or None)
        return None
    except UserError as error:
        return str(error)
    except Exception as error:  # one run's fault does not end the others
        log.exception("%s", job)
        return f"{type(error).__name__}: {error}"


def sweep(plan: Plan) -> list[str]:
    """All runs of the plan on this machine; what stopped those that failed, while the others went on."""
    jobs, failures = jobs_of(plan), []
    here = ((job, attempt(plan, job)) for job in jobs)
    for job, failure in tqdm(here if plan.jobs == 1 else _in_processes(plan, jobs), "runs", len(jobs), disable=None):
        if failure:
            failures.append(f"{job}: {failure}")
            log.info("%s", failures[-1])
    return failures


def _in_processes(plan: Plan, jobs: Sequence[Job]) -> Iterator[tuple[Job, str | None]]:
    """Each job with what stopped it, as they end. All processes end with one that is killed, mostly for its memory."""
    threads = max(1, torch.get_num_threads() // plan.jobs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(plan.jobs, context, torch.set_num_threads, (threads,)) as pool:
        futures = {pool.submit(attempt, plan, job): job for job in jobs}
        for future in as_completed(futures):
            killed = isinstance(future.exception(), BrokenProcessPool)
            yield futures[future], KILLED if killed else future.result()


def status(plan: Plan) -> list[tuple[Job, str]]:
    """Each job and its state: done (a run of this very identity), running, refused: why, begun, not begun."""
    return [(job, _state(plan, job)) for job in jobs_of(plan)]


def _state(plan: Plan, job: Job) -> str:
    config, _, out = run_of(plan, job)
    if is_locked(out / "run"):
        return "running"
    try:
        if finished(out / ("validation.json" if job.ablation else "metrics.json"), config, resume=True):
            return "done"
    except UserError as error:
        return f"refused: {error}"
    return "begun" if (out / "log.jsonl").is_file() else "not begun"


def collect(out: Path) -> Path:
    """Rebuild OUT/summary.csv from the run folders below OUT, and from nothing else."""
    if not (found := sorted([*out.rglob("metrics.json"), *out.rglob("validation.json")])):
        raise UserError(f"no finished run below {out} (looked for metrics.json)")
    rows = [row_of(read_result(path)) | {"folder": path.parent.relative_to(out).as_posix()} for path in found]
    keys = ["dataset", "features", "regions", "method", "ablation", "seed", "features_sha256", "code"]
    with atomic_path(summary := out / "summary.csv") as temporary:
        pd.DataFrame(rows).sort_values(keys, kind="stable").to_csv(temporary, index=False, float_format="%.6g")
    return summary
