"""What benchmarks on validation splits share: a method trained on a fold, at its best epoch and settings."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from core.datasets.registry import DATASETS
from core.experiments.identity import run_config
from core.experiments.inputs import Inputs
from core.experiments.run import build
from core.features.finetuned import refuse_finetuned
from core.method import Method, find_method
from core.training.evaluation import ScoredImages, evaluate
from core.training.folds import Fold
from core.training.loop import class_scores, train

METRICS = ("T1", "U", "S", "H", "AUSUC")


@dataclass(frozen=True, kw_only=True)
class Best:
    """A method in the state of its highest AUSUC, in evaluation mode, and what it measures there."""

    method: Method
    metrics: dict[str, float]  # T1, U, S, H (γ of the highest H), AUSUC: shares
    epoch: int


def best_on_fold(name: str, inputs: Inputs, fold: Fold, *, seed: int, epochs: int | None = None) -> Best:
    """Train a method with its own defaults and keep its best, as the validation half of a run chooses it.

    The epoch (0 included), the settings and γ are chosen on the images that the metrics are measured on, so these
    flatter every method. It differs from a run's validation in that the fold is given, and the model is kept.

    Args:
        epochs: at most; None: the recipe's.

    Raises:
        UserError: the backbone was fine-tuned on images that are measured here.
    """
    source = DATASETS[inputs.dataset].source if inputs.dataset in DATASETS else ""
    refuse_finetuned(inputs.provenance, source, inputs.metadata.labels, fold.seen_rows, fold.unseen_rows)
    recipe = find_method(name).recipe(inputs.dataset)
    config = run_config(inputs, name, recipe, seed=seed, epochs=epochs)
    method, features = build(config, config.recipe, fold, inputs), inputs.features
    best: dict[str, Any] = {"AUSUC": -1.0}
    state: dict[str, Tensor] = {}

    def measure(row: dict[str, Any], setting: dict[str, float] | None = None) -> None:
        nonlocal state
        method.model.eval()
        setting = method.tune(fold.unseen_images(features)) if method.tune else setting
        found = asdict(evaluate(_scored(method, inputs, fold), None))
        row["measured"] = True
        if found["AUSUC"] > best["AUSUC"]:
            best.update(found, epoch=row["epoch"], setting=setting)
            state = {key: value.detach().clone() for key, value in method.model.state_dict().items()}

    label = f"{name}, {len(fold.space.seen)} classes, split {seed}"
    history = train(method, features, fold, seed=seed, on_epoch=measure, label=label, precision=config.precision)
    for setting in method.grid:
        assert method.set_params is not None
        method.set_params(setting)
        measure({"epoch": 0}, setting)
    if not method.grid and not any("measured" in row for row in history):  # a closed form without settings
        measure({"epoch": 0})
    method.model.load_state_dict(state)
    if best["setting"] and method.set_params:
        method.set_params(best["setting"])
    method.model.eval()
    return Best(method=method, metrics={m: best[m] for m in METRICS}, epoch=best["epoch"])


def _scored(method: Method, inputs: Inputs, fold: Fold) -> ScoredImages:
    """What the model makes of the fold's images of seen and of unseen classes."""
    method.model.eval()
    if method.finish:
        method.finish(fold.train_images(inputs.features))
    return ScoredImages(
        scores_seen=class_scores(method.model, inputs.features, fold.seen_rows),
        labels_seen=fold.seen_labels,
        scores_unseen=class_scores(method.model, inputs.features, fold.unseen_rows),
        labels_unseen=fold.unseen_labels,
        seen=fold.space.seen.numpy(),
        unseen=fold.space.unseen.numpy(),
        candidates=fold.candidates,
    )
