"""What a run leaves in its folder: written once, sealed by checksums, read back, and as one flat row of summary.csv."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import core
from core.experiments.identity import RunConfig
from core.experiments.inputs import Inputs
from core.experiments.statistics import load_scores
from core.files.atomic import atomic_path, read_json, sha256_file, write_bytes
from core.files.errors import UserError
from core.method import Method, epochs_of, find_method
from core.training.checkpoint import save_checkpoint
from core.training.evaluation import curve_from_compact, per_class_accuracy, predictions
from core.training.folds import Fold

log = logging.getLogger(__name__)
BACKBONE = (  # of a feature file's provenance, what a photograph's regions depend on
    *("backbone", "layer", "weights", "weights_sha256", "transform", "input_size", "pool", "flip", "dtype"),
    *("batch_size", "regions"),
)
WRITTEN = (
    *("history.csv", "per_class.csv", "curve.csv", "confusion.csv", "scores.npz"),
    *("config.json", "checkpoint.safetensors"),
)


def log_epoch(out: Path, config: RunConfig, fold: str, row: dict[str, Any]) -> None:
    """Say how an epoch went: a line of the log, and one of OUT/log.jsonl, to be watched while the run goes on."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "log.jsonl", "a", encoding="utf-8") as handle:
        handle.write(json.dumps({"fold": fold} | row) + "\n")
    prefix = "val_" if fold == "validation" else "selected_on_test_"
    parts = [f"loss {row['loss']:.4g}"] if "loss" in row else []
    if fold == "validation":  # the test sets' numbers are not to be watched while anything is still running
        parts += [f"{key} {100 * row[prefix + key]:.1f}" for key in ("AUSUC", "H") if prefix + key in row]
    settings = [f"{k[4:]} {v:g}" for k, v in row.items() if k.startswith("set_")]
    log.info(
        "%s seed %d %s: epoch %d of %d%s %s",
        config.method,
        config.seed,
        fold,
        row["epoch"],
        config.epochs,
        f" ({', '.join(settings)})" if settings else "",
        ", ".join(parts),
    )


def seal(result: dict[str, Any]) -> dict[str, Any]:
    """The result with the SHA-256 of all else in it."""
    content = {k: v for k, v in result.items() if k != "sha256"}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return content | {"sha256": digest}


def write_json(path: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Write a sealed result; returns it as it will be read back."""
    sealed = seal(json.loads(json.dumps(result)))
    write_bytes(path, json.dumps(sealed, indent=1).encode())
    return sealed


def read_result(path: Path) -> dict[str, Any]:
    """A run's metrics.json or validation.json, compared with its own checksum.

    Raises:
        UserError: missing, not JSON, or changed since it was written.
    """
    result = read_json(path)
    if not isinstance(result, dict) or "config" not in result or seal(result) != result:
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


def read_scores(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a finished run's scores.npz, compared with its checksum.

    Raises:
        UserError: missing, or not what the run wrote.
    """
    digest, path = read_result(folder / "metrics.json")["files"]["scores.npz"], folder / "scores.npz"
    if not path.is_file() or sha256_file(path) != digest:
        raise UserError(f"{path} is not what the run wrote; delete {folder / 'metrics.json'} to run again")
    return load_scores(path)


def validation_states(out: Path) -> list[Path]:
    """Where training on a run's validation splits can be taken up again: its own split's state, and further ones'."""
    return [out / "validation.state", *out.glob("split*/validation.state")]


def finished(path: Path, config: RunConfig, resume: bool) -> dict[str, Any] | None:
    """The result of a finished run of this identity; None where there is none, or it is to be made anew.

    Raises:
        UserError: it is of another run, or damaged.
    """
    if not resume:
        of_run = (path.with_name(name) for name in (path.name, "refit.state", "log.jsonl"))
        for old in (*of_run, *validation_states(path.parent)):
            old.unlink(missing_ok=True)
    if not path.exists():
        return None
    result, wanted = read_result(path), json.loads(json.dumps(asdict(config)))
    if result["config"] != wanted:
        known = result["config"]
        differ = sorted(k for k in {*wanted, *known} if known.get(k) != wanted.get(k))
        raise UserError(
            f"{path} is of a run with other {', '.join(differ)}; choose another --out, or --no-resume to replace it"
        )
    if "files" in result:
        verify_run(path.parent)
    log.info("%s: finished earlier, read back", path.parent)
    return result


def write_history(path: Path, history: list[dict[str, Any]]) -> None:
    """One row an epoch."""
    with atomic_path(path) as temporary:
        pd.DataFrame(history).to_csv(temporary, index=False)


def write_run(
    out: Path,
    method: Method,
    result: dict[str, Any],
    history: list[dict[str, Any]],
    inputs: Inputs,
    fold: Fold,
    condensed: dict[str, np.ndarray],
) -> dict[str, Any]:
    """Everything a run leaves; metrics.json last, since it marks the run as finished. Returns what it holds.

    Args: condensed is what core.training.evaluation.compact makes of the scores of the test images.
    """
    gamma, names = result["standard"]["gamma"], inputs.metadata.class_names
    write_history(out / "history.csv", history)
    seen, measured = fold.space.seen.numpy(), np.setdiff1d(fold.space.unseen.numpy(), fold.candidates)
    labels, predicted = condensed["labels"], predictions(condensed, gamma)
    classes = np.concatenate([seen, measured])
    table = pd.DataFrame(
        {
            "class": [names[c] for c in classes],
            "side": ["seen"] * len(seen) + ["unseen"] * len(measured),
            "images": np.bincount(labels, minlength=classes.max() + 1)[classes],
            "accuracy": per_class_accuracy(predicted, labels, classes),
        }
    )
    curve = curve_from_compact(condensed)
    steps = np.concatenate([[-np.inf], curve.thresholds])  # γ from which a point holds
    pairs, counts = np.unique(np.stack([labels, predicted], axis=1), axis=0, return_counts=True)
    confusion = pd.DataFrame(
        {"class": [names[c] for c in pairs[:, 0]], "predicted": [names[c] for c in pairs[:, 1]], "images": counts}
    )
    for name, frame in (
        ("per_class.csv", table),
        ("curve.csv", pd.DataFrame({"gamma": steps, "U": curve.U, "S": curve.S})),
        ("confusion.csv", confusion),  # pairs that occur: with many classes a full table would be mostly zeros
    ):
        with atomic_path(out / name) as temporary:
            frame.to_csv(temporary, index=False)
    with atomic_path(out / "scores.npz") as temporary, open(temporary, "wb") as handle:
        np.savez(handle, allow_pickle=False, **condensed)  # what resampling the classes needs
    write_bytes(out / "config.json", json.dumps(result["config"], indent=1).encode())
    save_checkpoint(out / "checkpoint.safetensors", *checkpoint(method, result, inputs, fold))
    written = [*WRITTEN, *["history_validation.csv"] * (out / "history_validation.csv").is_file()]
    files = {name: sha256_file(out / name) for name in written}
    return write_json(out / "metrics.json", result | {"files": files})


def checkpoint(method: Method, result: dict[str, Any], inputs: Inputs, fold: Fold) -> tuple[dict[str, Any], Any]:
    """Tensors and meta of a checkpoint that needs nothing else but the backbone's weights to predict."""
    tensors = {f"model.{name}": value for name, value in method.model.state_dict().items()}
    parts = {name: getattr(fold.space, name) for name in ("att", "seen", "unseen", "w2v", "text")}
    tensors |= {f"space.{name}": value for name, value in parts.items() if value is not None}
    meta = {
        "version": core.__version__,
        "config": result["config"],
        "recipe": result["config"]["recipe"] | result["chosen"]["recipe"],
        "gamma": result["standard"]["gamma"],
        "shape": [inputs.features.R, inputs.features.D],
        "classes": inputs.metadata.class_names,
        "attributes": inputs.attribute_names,
        "regions": "unit length over D (L2)",
        # what makes the run's regions of a photograph: of the features' provenance, and the type they were stored in
        "backbone": {k: v for k, v in inputs.provenance.items() if k in BACKBONE}
        | {"store": inputs.features.source.read(fold.train_rows[:1]).dtype.name},
        "libraries": {name: version(name) for name in ("torch", "torchvision", "pillow", "numpy")},
        "environment": result["environment"],
    }
    return tensors, meta


def row_of(result: dict[str, Any]) -> dict[str, Any]:
    """A run as one flat row: val_* on the validation split, plain names on the test sets, test_* selected on test."""
    config, chosen = result["config"], result["chosen"]
    registered = find_method(config["method"])
    published = registered.recipe(config["dataset"])
    planned = epochs_of(published)
    changed = {k: v for k, v in config["recipe"].items() if asdict(published).get(k) != v}
    provenance = config["features"]
    row: dict[str, Any] = {
        "dataset": config["dataset"],
        "backbone": provenance.get("backbone", "unknown"),
        "regions": provenance.get("regions", ""),
        "features": provenance.get("name", ""),
        "method": config["method"],
        "ablation": result.get("ablation", ""),
        "seed": config["seed"],
    }
    row |= result.get("standard") or {}
    row |= {"most_epochs": config["epochs"], "epochs": chosen["epochs"]}
    row |= {f"val_{k}": v for k, v in chosen.get("validation", {}).items()}
    row |= {f"test_{k}": v for k, v in (result.get("selected_on_test") or {}).items()}
    row |= {f"published_{k}": v for k, v in (result.get("published_procedure") or {}).items()}
    row |= {
        "configurations": chosen.get("configurations", 0),
        "chosen": json.dumps(chosen.get("recipe", {}), sort_keys=True),
        "recipe": json.dumps(changed, sort_keys=True),
        "select": config["select"],
        "precision": config["precision"],
        "gamma_splits": config.get("gamma_splits", 1),  # runs made before there was a choice
        "cut_off": f"{config['epochs']} of its {planned} epochs" if config["epochs"] < planned else "",
        "pretraining_saw_unseen": provenance.get("pretraining_saw_unseen", "unknown"),
        "finetuned": provenance.get("finetuned", ""),
        "input_size": provenance.get("input_size", ""),
        "seconds": result["seconds"],
        "device": result["environment"]["device"],
        "torch": result["environment"]["torch"],
        "code": config["code"],
        "method_code": config["method_code"],
        "features_sha256": config["features_sha256"],
        "vectors_sha256": config["vectors_sha256"],
        "split_sha256": config["split_sha256"],
        "how": chosen["how"],
        "deviations": registered.deviations,
        "notes": " | ".join(result.get("notes", [])),
    }
    return row
