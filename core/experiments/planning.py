"""What a sweep will take: time and memory of a run of each method, from a few measured steps on drawn features.

Rough by design. Steps and scoring are timed on this machine at the data set's own sizes, on a subset of the images, and
multiplied by what the recipe plans. Reading the features, closed forms whose cost does not grow with the images, and
what other programs do meanwhile are not in it. How far it is off has not been measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from core.datasets import paths
from core.datasets.registry import DATASETS
from core.experiments.inputs import find_features, find_vectors
from core.experiments.sweep import Job, Plan, jobs_of
from core.features.feature_file import FeatureFile
from core.features.regions import RegionFeatures
from core.method import Method, Phase, epochs_of, find_method
from core.training.folds import Fold, final_fold, validation_fold
from core.training.loop import class_scores

_SUBSET = 256  # training images of the subset, at least one a class
_SCORED = 128
_STEPS = 3  # timed, after one that is not
_BASE = 1 << 30  # bytes: interpreter, PyTorch, buffers


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Of one run."""

    dataset: str
    method: str
    ablation: bool
    runs: int  # of this kind in the plan
    seconds: float  # of one
    memory: int  # bytes of one process


class _Drawn:
    """Random features of the data set's shape in place of the file's."""

    def __init__(self, D: int, R: int) -> None:
        rng = np.random.default_rng(0)
        self._block = np.abs(rng.standard_normal((16, D, R), dtype=np.float32)).astype(np.float16)

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self._block[rows % len(self._block)]

    def prefetch(self, rows: np.ndarray) -> None:
        """Nothing to fetch."""


def estimates(plan: Plan) -> list[Estimate]:
    """One estimate for each data set and method of a plan, ablations apart.

    Raises:
        UserError: features or vectors are missing.
    """
    found = []
    jobs = jobs_of(plan)
    for name in plan.datasets:
        dataset, root = DATASETS[name], plan.data_root or paths.DEFAULT_ROOT
        with FeatureFile(find_features(dataset, root, plan.features)) as file:
            m = file.to_metadata(dataset)
            w2v, _ = find_vectors(dataset, root, plan.w2v, file, m.att.shape[1])
            N, D, R = file.shape
        folds = [validation_fold(m, w2v), final_fold(m, w2v)]
        for method in dict.fromkeys(job.method for job in jobs if job.dataset == name):
            seconds, model = _run(plan, Job(dataset=name, method=method, seed=0), folds, (R, D))
            held = min(N * R * D * 2, 8 << 30)
            for ablation in (False, True):
                runs = sum((j.dataset, j.method, bool(j.ablation)) == (name, method, ablation) for j in jobs)
                if runs:
                    taken = seconds[0] if ablation else sum(seconds)
                    found.append(
                        Estimate(
                            dataset=name, method=method, ablation=ablation, runs=runs, seconds=taken,
                            memory=held + 4 * model + _BASE,
                        )
                    )  # fmt: skip
    return found


def _run(plan: Plan, job: Job, folds: list[Fold], shape: tuple[int, int]) -> tuple[list[float], int]:
    """Seconds of the validation and the final fold, and bytes of the model."""
    registered = find_method(job.method)
    recipe = registered.recipe(job.dataset)
    epochs = epochs_of(recipe) if plan.epochs is None else plan.epochs
    taken, size = [], 0
    for fold in folds:
        method = registered.build(recipe, fold.space, shape, 0, epochs)
        taken.append(_fold(method, fold, shape, plan.devices[0], diagnostics=plan.diagnostics or fold is folds[0]))
        size = sum(p.numel() * p.element_size() for p in method.model.state_dict().values())
    return taken, size


def _fold(method: Method, fold: Fold, shape: tuple[int, int], device: str, diagnostics: bool) -> float:
    """Seconds of training and measuring on one fold."""
    part = _subset(fold)
    features = RegionFeatures(_Drawn(shape[1], shape[0]), part.rows, shape, device)
    method.model.to(features.device)
    share = len(fold.train_rows) / len(part.train_rows)
    total = 0.0
    if method.begin:
        total += share * _timed(partial(method.begin, part.train_images(features)), 1, features.device)
    method.model.train()
    generator = np.random.default_rng(0)
    selectable = 0
    for phase in method.phases:
        positions = next(iter(phase.batches.epoch(part.train_labels, generator)))
        rows = part.train_rows[positions]
        y = torch.from_numpy(part.train_labels[positions]).to(features.device)
        x = features.pooled(rows) if phase.pooled else features.batch(rows)

        def step(phase: Phase = phase, x: Tensor = x, y: Tensor = y) -> None:
            phase.optimizer.zero_grad(set_to_none=True)
            phase.loss(x, y)["loss"].backward()
            phase.optimizer.step()

        step()
        total += phase.epochs * phase.batches.count(len(fold.train_rows)) * _timed(step, _STEPS, features.device)
        selectable += phase.epochs if phase.selectable else 0
    method.model.eval()
    once = 0.0
    if method.finish:
        once = share * _timed(partial(method.finish, part.train_images(features)), 1, features.device)
    scored = part.seen_rows[:_SCORED]
    an_image = _timed(lambda: class_scores(method.model, features, scored), 1, features.device) / max(1, len(scored))
    once += an_image * (len(fold.seen_rows) + len(fold.unseen_rows))
    return total + once * ((selectable + 1 if diagnostics else 1) + len(method.grid))


def _subset(fold: Fold) -> Fold:
    """One image of each class and more up to _SUBSET to train on, _SCORED to measure on."""
    _, first = np.unique(fold.train_labels, return_index=True)
    kept = np.union1d(first, np.arange(min(_SUBSET, len(fold.train_rows))))
    return replace(
        fold,
        train_rows=fold.train_rows[kept],
        train_labels=fold.train_labels[kept],
        seen_rows=fold.seen_rows[:_SCORED],
        seen_labels=fold.seen_labels[:_SCORED],
        unseen_rows=fold.unseen_rows[:_SCORED],
        unseen_labels=fold.unseen_labels[:_SCORED],
    )


def _timed(work: Callable[[], object], times: int, device: torch.device) -> float:
    started = time.perf_counter()
    for _ in range(times):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / times
