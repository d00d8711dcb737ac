"""One run: choose on the validation fold, refit on trainval, read the test sets once.

The test images enter in one place, :func:`_test`, after everything has been chosen. The row "selected on test" and a
method's own diagnosis are measured on them too, and nothing that is reported depends on those (a test holds it).
"""

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
from core.features.weights import refuse_finetuned
from core.files.atomic import Lock
from core.method import Method, with_settings
from core.methods import find_method
from core.training import certainty, evaluation
from core.training.folds import Fold, final_fold, validation_fold
from core.training.loop import score_pieces, train

log = logging.getLogger(__name__)
GAMMA_LAW = (0.25, -0.1)  # exponents of the numbers of seen and of unseen classes
Row = dict[str, Any]  # of the history: an epoch or a setting
HOW = {
    "val": "class-disjoint validation split (seed k uses split k): highest AUSUC, then γ of the highest H there, in "
    "spreads of the training images' scores",
    "last": "fixed (--select last): all epochs, the method's own γ",
}


def run(
    config: RunConfig, inputs: Inputs, out: Path, *, resume: bool = True, watch: results.Watch = None,
    ablation: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Run one seed and return its metrics.json; a finished run is read back, an unfinished one continued.

    ``watch`` is called with the fold ("validation" or "refit") and the row of each epoch. With the name of an
    ``ablation`` it is the first half alone, what validation says (validation.json); no test image is read.
    """
    with Lock(out / "run"):
        path = out / ("metrics.json" if ablation is None else "validation.json")
        if (found := results.finished(path, config, resume)) is not None:
            log.info("%s: finished earlier, read back", out)
            return found
        started, device, history = (time.time(), time.process_time()), inputs.features.device, list[Row]()
        if config.select == "val":
            chosen, history = choose(config, inputs, out, watch)
        else:
            gamma = build(config, config.recipe, final_fold(inputs.metadata, inputs.w2v), inputs).model.gamma
            chosen = {"epochs": config.epochs, "gamma": gamma, "recipe": {}, "configurations": 0, "how": HOW["last"]}
        machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        environment = {"torch": torch.__version__, "device": str(device), "machine": machine}
        result = {
            "config": asdict(config),
            "ablation": ablation or "",
            "chosen": chosen,
            "history": {"validation": history},
            "notes": inputs.metadata.notes,
            "environment": environment | {"threads": torch.get_num_threads()},
        }
        if ablation is None:
            result |= _test(config, inputs, result, out, watch)
        took = {"seconds": time.time() - started[0], "processor_seconds": time.process_time() - started[1]}
        return results.write_json(path, result | {key: round(value, 3) for key, value in took.items()})


def choose(
    config: RunConfig, inputs: Inputs, out: Path, watch: results.Watch = None
) -> tuple[dict[str, Any], list[Row]]:
    """Epochs and settings (highest AUSUC), γ (highest H there), on the class-disjoint validation fold; its history.

    With ``gamma_splits`` N the method is trained on N - 1 further splits too, and γ is the mean over all N of the γ of
    the highest H at the epoch and the settings that the first has chosen. It is counted in spreads of the training
    images' scores: refitted on more classes a model may score in another unit, and γ with it. Of several splits it also
    keeps the numbers of classes (:func:`carried_over`).
    """
    fold = validation_fold(inputs.metadata, inputs.w2v, config.seed)
    highest = -1.0

    def measure(method: Method, row: Row) -> None:
        if method.tune:
            method.model.eval()
            row |= {f"set_{k}": v for k, v in method.tune(fold.unseen_images(inputs.features)).items()}
        row |= _measured(method, inputs, fold, "val_") | {"val_spread": unit_of(method, inputs, fold)}
        results.log_epoch(out, config, "validation", row, watch)
        nonlocal highest
        if row["val_AUSUC"] > highest:  # this model may be the one that is chosen, and the next epoch takes it away
            highest, at = row["val_AUSUC"], (row["val_gamma"], row["val_spread"])
            row["certainty"] = certainty.measured(method.model, inputs.features, fold, *at)

    method, history = fit(config, inputs, fold, out / "validation.state", on_epoch=measure)
    settings = [(setting, {"epoch": 0} | {f"set_{k}": v for k, v in setting.items()}) for setting in method.grid]
    if not settings and not any("val_AUSUC" in r for r in history):
        settings = [({}, {"epoch": 0})]  # a closed form without settings to choose among: one row
    for setting, row in settings:
        if setting and method.set_params:
            method.set_params(setting)
        measure(method, row)
        history.append(row)
    # from the history alone: what a resumed run did not measure itself must be chosen from too
    measured = [r for r in history if "val_AUSUC" in r]
    best = max(measured, key=lambda r: r["val_AUSUC"])
    recipe = {key.removeprefix("set_"): value for key, value in sorted(best.items()) if key.startswith("set_")}
    used = {"epochs": best["epoch"], "recipe": recipe}
    of_splits = [(best["val_gamma"], best["val_spread"], best["certainty"])]
    counts = [_classes(fold)]
    for split in range(config.seed + 1, config.seed + config.gamma_splits):
        fold = validation_fold(inputs.metadata, inputs.w2v, split)
        method, _ = fit(replace(config, seed=split), inputs, fold, out / f"split{split}.state", used)
        gamma, unit = _measured(method, inputs, fold)["gamma"], unit_of(method, inputs, fold)
        of_splits.append((gamma, unit, certainty.measured(method.model, inputs.features, fold, gamma, unit)))
        counts.append(_classes(fold))
    gammas, units, sure = zip(*of_splits, strict=True)
    chosen = used | {
        "gamma": float(np.mean(gammas)),
        "gammas": gammas,
        "gamma_in_spreads": float(np.mean(np.divide(gammas, units))),
        "certainty": certainty.mean(sure),
        "validation": {k: best[f"val_{k}"] for k in ("T1", "U", "S", "H", "AUSUC")},
        "configurations": len(measured),
        "split": config.seed,
        "how": HOW["val"] + (f", mean over {config.gamma_splits} splits" if config.gamma_splits > 1 else ""),
    }
    chosen |= {"classes": np.mean(counts, axis=0).tolist()} if config.gamma_splits > 1 else {}
    found = {key: chosen[key] for key in ("configurations", "epochs", "recipe", "gamma")}
    log.info("%s seed %d, chosen on validation: %s", config.method, config.seed, found)
    return chosen, [{key: value for key, value in row.items() if key != "certainty"} for row in history]


def fit(
    config: RunConfig, inputs: Inputs, fold: Fold, state_path: Path, chosen: dict[str, Any] | None = None,
    on_epoch: Callable[[Method, Row], None] | None = None,
) -> tuple[Method, list[Row]]:  # fmt: skip
    """The method trained on a fold, and its history; ``chosen``: for so many epochs and with these settings."""
    settings = chosen["recipe"] if chosen else {}
    method = build(config, config.recipe | settings, fold, inputs)
    history = train(
        method, inputs.features, fold, seed=config.seed, stop_after=chosen["epochs"] if chosen else None,
        state_path=state_path, identity=asdict(config) | {"fold": state_path.stem, "chosen": chosen},
        on_epoch=partial(on_epoch, method) if on_epoch else None, precision=config.precision,
    )  # fmt: skip
    if settings and method.set_params:
        method.set_params(settings)
    return method, history


def _test(config: RunConfig, inputs: Inputs, result: dict[str, Any], out: Path, watch: results.Watch) -> dict[str, Any]:
    """Refit on trainval with what was chosen, and read the test sets; what a result has besides, its files written."""
    fold, chosen = final_fold(inputs.metadata, inputs.w2v), result["chosen"]
    measurable = len(fold.unseen_rows) > 0  # of a folder of one's own every class may be trained on

    def on_epoch(method: Method, row: Row) -> None:
        if measurable:
            row |= _measured(method, inputs, fold, "selected_on_test_")
        results.log_epoch(out, config, "refit", row, watch)

    method, history = fit(config, inputs, fold, out / "refit.state", chosen, on_epoch)
    scored, (gamma, sure) = scores_of(method, inputs, fold), carried_over(chosen, method, inputs, fold)
    # the scores are read once: all that follows is made of this
    condensed = evaluation.compact(scored, partial(certainty.confidence, sure, gamma, fold.space) if sure else None)
    on_test = published = None
    if measurable:
        if not history:  # a closed form: one row
            history.append({"epoch": 0} | _measured(method, inputs, fold, "selected_on_test_"))
        top = max((r for r in history if "selected_on_test_H" in r), key=lambda r: r["selected_on_test_H"])
        on_test = {k.removeprefix("selected_on_test_"): v for k, v in top.items() if k.startswith("selected_on_test_")}
        on_test["epoch"] = top["epoch"]
    if method.diagnose and measurable:
        method.model.eval()
        published = method.diagnose(fold.seen_images(inputs.features), fold.unseen_images(inputs.features))
    standard = evaluation.standard(condensed, gamma)
    standard |= {"ECE": evaluation.calibration_error(condensed, gamma)} if sure else {}
    more = {
        "history": result["history"] | {"refit": history},
        "standard": {k: v if measurable or k in ("S", "gamma") else None for k, v in standard.items()},
        "certainty": sure,
        "selected_on_test": on_test,
        "published_procedure": published,
    }
    return more | {"files": results.write_files(out, method, result | more, inputs, fold, condensed)}


def carried_over(chosen: dict[str, Any], method: Method, inputs: Inputs, fold: Fold) -> tuple[float, dict[str, Any]]:
    """γ, and how sure answers are, in the unit of this model's scores and, where γ is of several splits, for its number
    of classes: the highest of S scores of seen classes grows with S, and γ with it (docs/protocol.md has the law).
    """
    if "gamma_in_spreads" not in chosen:
        return chosen["gamma"], {}
    unit, factor = unit_of(method, inputs, fold), 1.0
    if "classes" in chosen and chosen["gamma_in_spreads"] > 0:
        factor = float(np.prod((np.array(_classes(fold)) / chosen["classes"]) ** GAMMA_LAW))
    sure = certainty.mean([chosen["certainty"]], unit)
    return chosen["gamma_in_spreads"] * unit * factor, sure | {"gammas": [g * factor for g in sure["gammas"]]}


def _classes(fold: Fold) -> tuple[int, int]:
    """Classes that compete, seen and unseen; without an unseen one, one that may be added."""
    return len(fold.space.seen), max(len(fold.space.unseen), 1)


def build(config: RunConfig, recipe: dict[str, Any], fold: Fold, inputs: Inputs) -> Method:
    """The run's method for a fold, with the settings of ``recipe``, on the features' device."""
    source = DATASETS[inputs.dataset].source if inputs.dataset in DATASETS else ""
    refuse_finetuned(inputs.provenance, source, inputs.metadata.labels, fold.seen_rows, fold.unseen_rows)
    registered, features = find_method(config.method), inputs.features
    settings = with_settings(registered.recipe_type(), recipe)
    method = registered.build(settings, fold.space, (features.R, features.D), config.seed, config.epochs)
    method.model.to(features.device)
    return method


def ready(method: Method, inputs: Inputs, fold: Fold) -> Method:
    """The method as it answers, after so much training as it had."""
    method.model.eval()
    if method.finish:
        method.finish(fold.train_images(inputs.features))
    return method


def scores_of(method: Method, inputs: Inputs, fold: Fold) -> evaluation.ScoredImages:
    """What the model makes of the fold's images of seen and of unseen classes."""
    model = ready(method, inputs, fold).model
    return fold.scored(*(score_pieces(model, inputs.features, rows) for rows in (fold.seen_rows, fold.unseen_rows)))


def _measured(method: Method, inputs: Inputs, fold: Fold, prefix: str = "") -> dict[str, float]:
    """T1, U, S, H, AUSUC and γ of the highest H on the fold's images, each name behind a prefix."""
    return {f"{prefix}{k}": v for k, v in asdict(evaluation.evaluate(scores_of(method, inputs, fold), None)).items()}


def unit_of(method: Method, inputs: Inputs, fold: Fold) -> float:
    """Spread of the scores of a thousand of the fold's training images: the unit γ is counted in."""
    rows = fold.train_rows[evaluation.sample(len(fold.train_rows))]
    return max(evaluation.spread(score_pieces(method.model, inputs.features, rows)), 1e-12)
