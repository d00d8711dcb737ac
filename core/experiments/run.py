"""One run: choose on validation, refit on trainval, read the test sets, write everything down."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import core
from core.datasets.xlsa17 import Metadata
from core.features.regions import RegionFeatures
from core.files.atomic import Lock, atomic_path, read_json, sha256_file, write_bytes
from core.files.errors import UserError
from core.lockstep import Run, alone
from core.recipes import build
from core.reporting.related_work import published_procedure
from core.training.checkpoint import save_checkpoint
from core.training.evaluation import Metrics, calibration_curve, evaluate, per_class_accuracy, predict
from core.training.loop import Fold, Method, class_scores, test_fold, training, validation_fold
from core.VSMR_staged import VSMRStaged

log = logging.getLogger(__name__)
# the sources on which a run's numbers depend, beside its config
_DENIED = ("commands", "reporting", "demo", "inference")
THRESHOLDS = np.arange(0.05, 0.96, 0.05)  # of the predicted attribute mask, where it is chosen on validation


@functools.cache
def code_version() -> str:
    """Version and digest of the sources that make the numbers: results of other code are never mixed in."""
    folder = Path(core.__file__).parent
    files = sorted(p for p in folder.rglob("*.py") if p.relative_to(folder).parts[0] not in _DENIED)
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in files))
    return f"{core.__version__}-{digest.hexdigest()[:12]}"


@dataclass(frozen=True)
class RunConfig:
    """What a run is; two runs with equal configs, code and feature file give equal numbers (CPU, same versions)."""

    dataset: str
    method: str
    seed: int
    select: str  # "val" | "last"
    epochs: int  # of the selectable phase: the most (val) or the number (last)
    recipe: dict[str, Any]
    features: dict[str, Any]  # provenance of the feature file
    vectors_sha256: str
    precision: str = "float32"  # of the products in a training step
    code: str = field(default_factory=code_version)


def measure(method: Method, features: RegionFeatures, fold: Fold, gamma: float | None) -> Metrics:
    """Run the method's closing step and evaluate on the fold's seen and unseen images."""
    return _evaluated(fold, *_scores(method, features, fold), gamma)


def _scores(method: Method, features: RegionFeatures, fold: Fold) -> tuple[np.ndarray, np.ndarray]:
    if method.finish:
        method.finish(features, fold)
    scores_s = class_scores(method.model, features, fold.seen_rows)
    return scores_s, class_scores(method.model, features, fold.unseen_rows)


def _evaluated(fold: Fold, scores_s: np.ndarray, scores_u: np.ndarray, gamma: float | None) -> Metrics:
    seen, unseen = fold.space.seen.numpy(), fold.space.unseen.numpy()
    return evaluate(scores_s, fold.seen_labels, scores_u, fold.unseen_labels, seen, unseen, gamma)


def running(
    config: RunConfig,
    recipe: Any,
    metadata: Metadata,
    w2v: np.ndarray,
    features: RegionFeatures,
    out: Path,
    resume: bool = True,
    diagnostics: bool = True,
    beside: int = 0,
) -> Run[dict[str, Any]]:
    """Run one seed and return its metrics.json; a finished run is read back, an unfinished one continued.

    A coroutine, to be driven with ``beside`` others of the same recipe (core/lockstep.py), or alone by :func:`run`.

    Raises:
        UserError: another process is at work on ``out``, or what is there is of another run or damaged.
    """
    with _alone(out):
        identity = asdict(config)
        finished = out / "metrics.json"
        if finished.exists() and resume:
            return _finished(finished, identity)
        if not resume:
            for old in ("metrics.json", "validation.state", "refit.state"):
                (out / old).unlink(missing_ok=True)
        started = time.time()
        device = str(features.device)

        chosen: dict[str, Any] = {"epochs": config.epochs, "how": "fixed (--select last), the method's own calibration"}
        if config.select == "val":
            chosen = yield from choosing(
                config, recipe, validation_fold(metadata, w2v, config.seed), features, out, identity
            )
            recipe = replace(recipe, **chosen["recipe"])

        fold = test_fold(metadata, w2v)
        shape = (features.R, features.D)
        method = build(config.method, recipe, fold, shape, config.seed, chosen["epochs"], device, config.epochs)
        best: dict[str, float] = {}

        def diagnose(row: dict[str, Any]) -> None:
            m = measure(method, features, fold, None)
            row |= {f"selected_on_test_{k}": v for k, v in asdict(m).items()}

        history = yield from training(
            method,
            features,
            fold,
            config.seed,
            out / "refit.state",
            identity | {"fold": "test", "chosen": chosen},
            on_epoch=diagnose if diagnostics else None,
            label=f"{config.method} seed {config.seed} refit",
            precision=config.precision,
        )
        gamma = float(chosen.get("gamma", method.model.gamma))  # type: ignore[arg-type]
        scores = _scores(method, features, fold)
        metrics = _evaluated(fold, *scores, gamma)
        if diagnostics:
            if not history:  # a closed form: one row
                history.append({"epoch": 0})
                diagnose(history[0])
            rows = [r for r in history if "selected_on_test_H" in r]
            top = max(rows, key=lambda r: r["selected_on_test_H"])
            best = {k: top[f"selected_on_test_{k}"] for k in ("T1", "U", "S", "H", "AUSUC", "gamma")}
            best["epoch"] = top["epoch"]
        result: dict[str, Any] = {
            "config": identity,
            "chosen": chosen,
            "standard": asdict(metrics),
            "selected_on_test": best or None,
            "published_procedure": None,
            "notes": metadata.notes,
            "seconds": round(time.time() - started, 1),
            "where": _where(device, beside),
        }
        if isinstance(method.model, VSMRStaged):
            result["published_procedure"] = published_procedure(method.model, features, fold)
        _write(out, method, result, history, metadata, fold, scores, gamma)
        return result


run = alone(running)


def _where(device: str, beside: int) -> dict[str, Any]:
    """On what the numbers were made; ``seconds`` of a run with others beside it are those of all of them."""
    return {"torch": torch.__version__, "device": device, "machine": platform.machine(), "seeds_beside": beside}


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold a run's folder; a second process is refused, a dead one's lock is no obstacle."""
    out.mkdir(parents=True, exist_ok=True)
    lock = Lock(out / "run")
    try:
        yield
    finally:
        lock.release()


def validating(
    config: RunConfig,
    recipe: Any,
    metadata: Metadata,
    w2v: np.ndarray,
    features: RegionFeatures,
    out: Path,
    beside: int = 0,
) -> Run[dict[str, Any]]:
    """The first half of :func:`running` alone: what validation says of one seed. No test image is read (ablations)."""
    with _alone(out):
        identity = asdict(config)
        finished = out / "validation.json"
        if finished.exists():
            return _finished(finished, identity)
        started = time.time()
        fold = validation_fold(metadata, w2v, config.seed)
        chosen = yield from choosing(config, recipe, fold, features, out, identity)
        result = _seal(
            {
                "config": identity,
                "chosen": chosen,
                "seconds": round(time.time() - started, 1),
                "where": _where(str(features.device), beside),
            }
        )
        write_bytes(finished, json.dumps(result, indent=1).encode())
        (out / "validation.state").unlink(missing_ok=True)
        return result


def _seal(result: dict[str, Any]) -> dict[str, Any]:
    """The result with the sha256 of all else in it."""
    content = {k: v for k, v in result.items() if k != "sha256"}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return content | {"sha256": digest}


def read_result(path: Path) -> dict[str, Any]:
    """A run's metrics.json or validation.json, compared with its own checksum.

    Raises:
        UserError: missing, not JSON, or changed since it was written.
    """
    result = read_json(path)
    if not isinstance(result, dict) or "config" not in result or _seal(result) != result:
        raise UserError(f"{path} is damaged or was changed by hand; delete it to run again")
    return result


def verify_run(folder: Path) -> None:
    """Compare every file of a finished run with its recorded checksum.

    Raises:
        UserError: the first file that is missing or differs.
    """
    for name, digest in read_result(folder / "metrics.json")["files"].items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing; delete {folder / 'metrics.json'} to run again")
        if sha256_file(path) != digest:
            raise UserError(f"{path} is not what the run wrote; delete {folder / 'metrics.json'} to run again")


def _finished(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    result = read_result(path)
    known = result["config"]
    if known != json.loads(json.dumps(identity)):
        differ = sorted(k for k in identity if known.get(k) != json.loads(json.dumps(identity[k])))
        raise UserError(
            f"{path} is of a run with other {', '.join(differ)}; choose another --out, or --no-resume to replace it"
        )
    if "files" in result:
        verify_run(path.parent)
    log.info("%s: finished earlier, read back", path.parent)
    return result


def choosing(
    config: RunConfig, recipe: Any, fold: Fold, features: RegionFeatures, out: Path, identity: dict[str, Any]
) -> Run[dict[str, Any]]:
    """Epochs and settings (highest AUSUC), γ (highest H there), on the class-disjoint validation fold."""
    shape = (features.R, features.D)
    method = build(config.method, recipe, fold, shape, config.seed, config.epochs, str(features.device))
    model = method.model
    tune = isinstance(model, VSMRStaged) and model.recipe.threshold is None

    def watch(row: dict[str, Any]) -> None:
        if tune and isinstance(model, VSMRStaged):
            row["threshold"] = mask_threshold(model, features, fold)
            model.threshold.fill_(row["threshold"])
        row |= {f"val_{k}": v for k, v in asdict(measure(method, features, fold, None)).items()}

    history = yield from training(
        method,
        features,
        fold,
        config.seed,
        out / "validation.state",
        identity | {"fold": "validation"},
        on_epoch=watch,
        label=f"{config.method} seed {config.seed} validation",
        precision=config.precision,
    )
    for option in method.options:
        assert method.configure is not None
        method.configure(option)
        row: dict[str, Any] = {"epoch": 0, **option}
        watch(row)
        history.append(row)
    rows = [r for r in history if "val_AUSUC" in r]
    best = max(rows, key=lambda r: r["val_AUSUC"])
    _history(out / "history_validation.csv", history)
    settings = {"threshold"} if tune else {key for option in method.options for key in option}
    return {
        "epochs": best["epoch"],
        "gamma": best["val_gamma"],
        "recipe": {key: best[key] for key in sorted(settings)},
        "validation": {k: best[f"val_{k}"] for k in ("T1", "U", "S", "H", "AUSUC")},
        "split": config.seed,
        "how": "class-disjoint validation split (seed k uses split k): highest AUSUC, then γ of the highest H there",
    }


@torch.no_grad()
def mask_threshold(model: VSMRStaged, features: RegionFeatures, fold: Fold) -> float:
    """The threshold whose masks have the highest mean F1 on the validation images of unseen classes."""
    p = torch.sigmoid(model.predictor(features.pooled(fold.unseen_rows)))  # (N,K)
    truth = model.presence[torch.from_numpy(fold.unseen_labels).to(p.device)]
    scores = []
    for t in THRESHOLDS:
        mask = (p > t).float()
        hit = (mask * truth).sum(1)
        scores.append((2 * hit / (mask.sum(1) + truth.sum(1)).clamp_min(1)).mean().item())
    return float(round(float(THRESHOLDS[int(np.argmax(scores))]), 2))


def _history(path: Path, history: list[dict[str, Any]]) -> None:
    with atomic_path(path) as temporary:
        pd.DataFrame(history).to_csv(temporary, index=False)


def _write(
    out: Path,
    method: Method,
    result: dict[str, Any],
    history: list[dict[str, Any]],
    metadata: Metadata,
    fold: Fold,
    scores: tuple[np.ndarray, np.ndarray],
    gamma: float,
) -> None:
    """Everything a run leaves; metrics.json last, since it marks the run as finished."""
    _history(out / "history.csv", history)
    seen, unseen = fold.space.seen.numpy(), fold.space.unseen.numpy()
    labels = np.concatenate([fold.seen_labels, fold.unseen_labels])
    scores_s, scores_u = scores
    predicted = predict(np.concatenate(scores), seen, unseen, gamma)
    classes = np.concatenate([seen, unseen])
    names = [metadata.class_names[c] for c in classes]
    accuracy = per_class_accuracy(predicted, labels, classes)
    table = pd.DataFrame(
        {
            "class": names,
            "side": ["seen"] * len(seen) + ["unseen"] * len(unseen),
            "images": np.bincount(labels, minlength=classes.max() + 1)[classes],
            "accuracy": accuracy,
        }
    )
    with atomic_path(out / "per_class.csv") as temporary:
        table.to_csv(temporary, index=False)
    curve = calibration_curve(scores_s, fold.seen_labels, scores_u, fold.unseen_labels, seen, unseen)
    steps = np.concatenate([[-np.inf], curve.thresholds])  # γ from which a point holds
    with atomic_path(out / "curve.csv") as temporary:
        pd.DataFrame({"gamma": steps, "U": curve.U, "S": curve.S}).to_csv(temporary, index=False)
    confusion = np.zeros((len(metadata.class_names),) * 2, dtype=np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    with atomic_path(out / "confusion.csv") as temporary:
        pd.DataFrame(confusion, index=metadata.class_names, columns=metadata.class_names).to_csv(temporary)
    write_bytes(out / "config.json", json.dumps(result["config"], indent=1).encode())
    save_checkpoint(
        out / "checkpoint.safetensors", method.model.state_dict(), {"config": result["config"], "gamma": gamma}
    )
    written = ("history.csv", "per_class.csv", "curve.csv", "confusion.csv", "config.json", "checkpoint.safetensors")
    files = {name: sha256_file(out / name) for name in written}
    if (out / "history_validation.csv").is_file():
        files["history_validation.csv"] = sha256_file(out / "history_validation.csv")
    result.update(_seal(json.loads(json.dumps(result | {"files": files}))))
    write_bytes(out / "metrics.json", json.dumps(result, indent=1).encode())
    for state in ("validation.state", "refit.state"):
        (out / state).unlink(missing_ok=True)
