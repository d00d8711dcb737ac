"""One run: choose on the validation fold, refit on trainval, read the test sets once.

The test images enter in one place, :func:`_test`, after everything has been chosen. The row "selected on test" and a
method's own diagnosis are measured on them too, and nothing that is reported depends on those (a test holds it).
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.datasets.registry import DATASETS
from core.experiments import results
from core.experiments.identity import RunConfig
from core.experiments.inputs import Inputs
from core.features.finetuned import refuse_finetuned
from core.files.atomic import Lock
from core.files.errors import UserError
from core.method import Method, with_settings
from core.methods import find_method
from core.training.evaluation import ScoredImages, compact, curve_from_compact, evaluate, metrics_from_compact
from core.training.folds import Fold, final_fold, validation_fold
from core.training.loop import score_pieces, train

log = logging.getLogger(__name__)
Row = dict[str, Any]  # of the history: an epoch or a setting
Watch = Callable[[str, Row], None] | None
HOW = {
    "val": "class-disjoint validation split (seed k uses split k): highest AUSUC, then γ of the highest H there",
    "last": "fixed (--select last): all epochs, the method's own γ",
}


def run(
    config: RunConfig, inputs: Inputs, out: Path, *, resume: bool = True, diagnostics: bool = True, watch: Watch = None
) -> dict[str, Any]:
    """Run one seed and return its metrics.json; a finished run is read back, an unfinished one continued.

    Args:
        watch: called with the fold ("validation" or "refit") and the row of each epoch.

    Raises:
        UserError: another process is at work on ``out``, or what is there is of another run or damaged.
    """
    with _locked(out):
        if (found := results.finished(out / "metrics.json", config, resume)) is not None:
            return found
        started = time.time()
        chosen, history = choose(config, inputs, out, watch) if config.select == "val" else _as_planned(config, inputs)
        result = _test(config, inputs, chosen, history, out, diagnostics=diagnostics, started=started, watch=watch)
        _remove_states(out)
        return result


def validate(
    config: RunConfig, inputs: Inputs, out: Path, *, resume: bool = True, ablation: str = ""
) -> dict[str, Any]:
    """The first half of :func:`run` alone: what validation says of one seed. No test image is read (ablations)."""
    with _locked(out):
        if (found := results.finished(out / "validation.json", config, resume)) is not None:
            return found
        started = time.time()
        chosen, history = choose(config, inputs, out)
        result = {
            "config": asdict(config),
            "ablation": ablation,
            "chosen": chosen,
            "history": {"validation": history},
            "notes": inputs.metadata.notes,
            "seconds": round(time.time() - started, 1),
            "environment": environment(inputs),
        }
        result = results.write_json(out / "validation.json", result)
        _remove_states(out)
        return result


def choose(config: RunConfig, inputs: Inputs, out: Path, watch: Watch = None) -> tuple[dict[str, Any], list[Row]]:
    """Epochs and settings (highest AUSUC), γ (highest H there), on the class-disjoint validation fold; its history.

    With ``gamma_splits`` N the method is trained on N - 1 further splits too, and γ is the mean over all N of the γ of
    the highest H at the epoch and the settings that the first has chosen.
    """
    history = validate_epochs(config, inputs, out, watch)
    best = max((r for r in history if "val_AUSUC" in r), key=lambda r: r["val_AUSUC"])
    # from the history alone: what a resumed run did not measure itself must be chosen from too
    settings = {key.removeprefix("set_"): value for key, value in best.items() if key.startswith("set_")}
    used = {"epochs": best["epoch"], "recipe": dict(sorted(settings.items()))}
    gammas = [best["val_gamma"]]
    for split in range(config.seed + 1, config.seed + config.gamma_splits):
        try:
            gammas.append(_gamma_of_split(replace(config, seed=split), inputs, used, out / f"split{split}.state"))
        except UserError as error:
            said = f"{error} (on validation split {split}; --gamma-splits 1 takes that of the seed alone)"
            raise UserError(said) from error
    averaged = f", mean over {config.gamma_splits} splits" if config.gamma_splits > 1 else ""
    chosen = used | {
        "gamma": float(np.mean(gammas)),
        "gammas": gammas,
        "validation": {k: best[f"val_{k}"] for k in ("T1", "U", "S", "H", "AUSUC")},
        "configurations": sum("val_AUSUC" in r for r in history),
        "split": config.seed,
        "how": HOW["val"] + averaged,
    }
    log.info(
        "%s seed %d validation: of %d configurations epoch %d, %s has the highest AUSUC, %.1f; γ %.3g",
        *(config.method, config.seed, chosen["configurations"], chosen["epochs"], chosen["recipe"] or "the recipe"),
        *(100 * best["val_AUSUC"], chosen["gamma"]),
    )
    return chosen, history


def validate_epochs(config: RunConfig, inputs: Inputs, out: Path, watch: Watch) -> list[Row]:
    """Train on the validation fold; the rows of its epochs and settings, each with what it measures there."""
    fold = validation_fold(inputs.metadata, inputs.w2v, config.seed)

    def measure(method: Method, row: Row) -> None:
        if method.tune:
            method.model.eval()
            row |= {f"set_{k}": v for k, v in method.tune(fold.unseen_images(inputs.features)).items()}
        row |= {f"val_{k}": v for k, v in asdict(evaluate(_scored(method, inputs, fold), None)).items()}
        results.log_epoch(out, config, "validation", row)
        if watch:
            watch("validation", row)

    method, history = _fit(config, inputs, fold, out / "validation.state", on_epoch=measure)
    settings: list[Row] = [{"epoch": 0} | {f"set_{k}": v for k, v in setting.items()} for setting in method.grid]
    if not settings and not any("val_AUSUC" in r for r in history):
        settings = [{"epoch": 0}]  # a closed form without settings to choose among: one row
    for row in settings:
        if method.set_params and len(row) > 1:
            method.set_params({k.removeprefix("set_"): v for k, v in row.items() if k != "epoch"})
        measure(method, row)
    return history + settings


def _gamma_of_split(config: RunConfig, inputs: Inputs, used: dict[str, Any], state_path: Path) -> float:
    """The γ of the highest H on validation split ``config.seed``, at the epoch and settings that are used."""
    fold = validation_fold(inputs.metadata, inputs.w2v, config.seed)
    method, _ = _fit(config, inputs, fold, state_path, used)
    return evaluate(_scored(method, inputs, fold), None).gamma


def _fit(
    config: RunConfig, inputs: Inputs, fold: Fold, state_path: Path, chosen: dict[str, Any] | None = None,
    on_epoch: Callable[[Method, Row], None] | None = None,
) -> tuple[Method, list[Row]]:  # fmt: skip
    """The method trained on a fold, and its history; ``chosen``: for so many epochs and with these settings."""
    _refuse_finetuned(inputs, fold)
    settings = chosen["recipe"] if chosen else {}
    method = build(config, config.recipe | settings, fold, inputs)
    history = train(
        method,
        inputs.features,
        fold,
        seed=config.seed,
        stop_after=chosen["epochs"] if chosen else None,
        state_path=state_path,
        identity=asdict(config) | {"fold": state_path.stem, "chosen": chosen},
        on_epoch=partial(on_epoch, method) if on_epoch else None,
        label=f"{config.method} seed {config.seed} {state_path.stem}",
        precision=config.precision,
    )
    if settings and method.set_params:
        method.set_params(settings)
    return method, history


def _as_planned(config: RunConfig, inputs: Inputs) -> tuple[dict[str, Any], list[Row]]:
    """What is taken where nothing is chosen: all epochs, the recipe's settings, the model's own γ."""
    gamma = build(config, config.recipe, final_fold(inputs.metadata, inputs.w2v), inputs).model.gamma
    return {"epochs": config.epochs, "gamma": gamma, "recipe": {}, "configurations": 0, "how": HOW["last"]}, []


def _test(
    config: RunConfig, inputs: Inputs, chosen: dict[str, Any], validation: list[Row], out: Path, *,
    diagnostics: bool, started: float, watch: Watch,
) -> dict[str, Any]:  # fmt: skip
    """Refit on trainval with what was chosen, and read the test sets."""
    fold = final_fold(inputs.metadata, inputs.w2v)

    def select_on_test(method: Method, row: Row) -> None:
        m = evaluate(_scored(method, inputs, fold), None)
        row |= {f"selected_on_test_{k}": v for k, v in asdict(m).items()}

    def on_epoch(method: Method, row: Row) -> None:
        if diagnostics:
            select_on_test(method, row)
        results.log_epoch(out, config, "refit", row)
        if watch:
            watch("refit", row)

    method, history = _fit(config, inputs, fold, out / "refit.state", chosen, on_epoch)
    condensed = compact(_scored(method, inputs, fold))  # the scores are read once: all that follows is made of this
    metrics, curve = metrics_from_compact(condensed, chosen["gamma"]), curve_from_compact(condensed)
    on_test: dict[str, Any] | None = None
    if diagnostics:
        if not history:  # a closed form: one row
            history.append({"epoch": 0})
            select_on_test(method, history[0])
        top = max((r for r in history if "selected_on_test_H" in r), key=lambda r: r["selected_on_test_H"])
        on_test = {k: top[f"selected_on_test_{k}"] for k in ("T1", "U", "S", "H", "AUSUC", "gamma")}
        on_test["epoch"] = top["epoch"]
    published = None
    if method.diagnose:
        method.model.eval()
        published = method.diagnose(fold.seen_images(inputs.features), fold.unseen_images(inputs.features))
    result: dict[str, Any] = {
        "config": asdict(config),
        "chosen": chosen,
        "history": {"validation": validation, "refit": history},
        # H without calibration, and the highest H that any γ gives on these images: that γ is chosen on test
        "standard": asdict(metrics) | {"H_gamma0": curve.H_at(0.0), "H_best": curve.H_at(curve.best())},
        "selected_on_test": on_test,
        "published_procedure": published,
        "notes": inputs.metadata.notes,
        "seconds": round(time.time() - started, 1),
        "environment": environment(inputs),
    }
    return results.write_run(out, method, result, inputs, fold, condensed)


def _refuse_finetuned(inputs: Inputs, fold: Fold) -> None:
    source, labels = DATASETS[inputs.dataset].source if inputs.dataset in DATASETS else "", inputs.metadata.labels
    refuse_finetuned(inputs.provenance, source, labels, fold.seen_rows, fold.unseen_rows)


def build(config: RunConfig, recipe: dict[str, Any], fold: Fold, inputs: Inputs) -> Method:
    """The run's method for a fold, with the settings of ``recipe``, on the features' device."""
    registered, features = find_method(config.method), inputs.features
    settings = with_settings(registered.recipe_type(), recipe)
    method = registered.build(settings, fold.space, (features.R, features.D), config.seed, config.epochs)
    method.model.to(features.device)
    return method


def _scored(method: Method, inputs: Inputs, fold: Fold) -> ScoredImages:
    """What the model makes of the fold's images of seen and of unseen classes."""
    method.model.eval()
    if method.finish:
        method.finish(fold.train_images(inputs.features))
    return ScoredImages(
        scores_seen=score_pieces(method.model, inputs.features, fold.seen_rows),
        labels_seen=fold.seen_labels,
        scores_unseen=score_pieces(method.model, inputs.features, fold.unseen_rows),
        labels_unseen=fold.unseen_labels,
        seen=fold.space.seen.numpy(),
        unseen=fold.space.unseen.numpy(),
        candidates=fold.candidates,
    )


def environment(inputs: Inputs) -> dict[str, Any]:
    """Software and hardware behind the numbers."""
    device = inputs.features.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"torch": torch.__version__, "device": str(device), "machine": name, "threads": torch.get_num_threads()}


def _locked(out: Path) -> Lock:
    """The lock of a run's folder, which is made where it is not there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        return Lock(out / "run")
    except OSError as error:
        raise UserError(
            f"cannot write results to {out}: {error.strerror}. Choose another place with --out FOLDER"
        ) from error


def _remove_states(out: Path) -> None:
    for state in out.glob("*.state"):
        state.unlink()
