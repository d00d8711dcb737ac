"""What a run leaves in its folder: written once, sealed by checksums, read back, and as one flat row of summary.csv.

metrics.json (the numbers, what was chosen, the history, all settings), scores.npz (what every curve, confusion and
resampling follows from), per_class.csv, checkpoint.safetensors; log.jsonl is for watching. Whoever reads a run reads it
through :func:`read_result` and :func:`read_scores`, which compare checksums first.
"""

import hashlib
import io
import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import core
from core.experiments.identity import RunConfig
from core.experiments.inputs import Inputs
from core.files.atomic import atomic_path, read_json, sha256_file, write_bytes
from core.files.errors import UserError
from core.method import Method, epochs_of
from core.methods import methods
from core.training.checkpoint import save_checkpoint
from core.training.evaluation import per_class_accuracy, predictions
from core.training.folds import Fold

log = logging.getLogger(__name__)
Watch = Callable[[str, dict[str, Any]], None] | None
BACKBONE = (  # of a feature file's provenance, what a photograph's regions depend on
    *("backbone", "layer", "weights", "weights_sha256", "transform", "input_size", "pool", "flip", "dtype"),
    *("batch_size", "regions"),
)


def log_epoch(out: Path, config: RunConfig, fold: str, row: dict[str, Any], watch: Watch) -> None:
    """Say how an epoch went: to ``watch``, in OUT/log.jsonl, and in a line of the log, where no test number is."""
    if watch:
        watch(fold, row)
    with open(out / "log.jsonl", "a", encoding="utf-8") as handle:
        handle.write(json.dumps({"fold": fold} | row) + "\n")
    if config.epochs:  # the settings of a closed form would be too many lines
        said = [f"{key} {row[key]:.4g}" for key in ("loss", "val_AUSUC", "val_H") if key in row]
        where = f"{config.method} seed {config.seed} {fold}: epoch {row['epoch']} of {config.epochs}"
        log.info("%s %s", where, ", ".join(said))


def seal(result: dict[str, Any]) -> dict[str, Any]:
    """The result with the SHA-256 of all else in it."""
    content = {k: v for k, v in result.items() if k != "sha256"}
    return content | {"sha256": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}


def write_json(path: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Write a sealed result, which ends the states of its run; returns it as it will be read back."""
    sealed = seal(json.loads(json.dumps(result)))
    write_bytes(path, json.dumps(sealed, indent=1).encode())
    for state in path.parent.glob("*.state"):
        state.unlink()
    return sealed


def read_result(path: Path) -> dict[str, Any]:
    """A run's metrics.json or validation.json, compared with its own checksum."""
    result = read_json(path)
    if not isinstance(result, dict) or seal(result) != result:
        raise UserError(f"{path} is damaged or was changed by hand; delete it to run again")
    return result


def read_scores(folder: Path) -> dict[str, np.ndarray]:
    """What core.training.evaluation.compact made of a finished run's test images: arrays (N,), checked."""
    with np.load(io.BytesIO(read_file(folder, "scores.npz")), allow_pickle=False) as arrays:
        return dict(arrays)


def read_file(folder: Path, name: str) -> bytes:
    """A file of a finished run, compared with its recorded checksum."""
    path, wanted = folder / name, read_result(folder / "metrics.json")["files"][name]
    if not path.is_file() or hashlib.sha256(content := path.read_bytes()).hexdigest() != wanted:
        raise UserError(f"{path} is missing or not what the run wrote; delete {folder / 'metrics.json'} to run again")
    return content


def finished(path: Path, config: RunConfig, resume: bool) -> dict[str, Any] | None:
    """The result of a finished run of this identity; None where there is none, or it is to be made anew."""
    if not resume:
        for old in (path, path.with_name("log.jsonl"), *path.parent.glob("*.state")):
            old.unlink(missing_ok=True)
    if not path.exists():
        return None
    result, wanted = read_result(path), json.loads(json.dumps(asdict(config)))
    known = result["config"]
    if differ := sorted(k for k in {*wanted, *known} if known.get(k) != wanted.get(k)):
        raise UserError(
            f"{path} is of a run with other {', '.join(differ)}; choose another --out, or --no-resume to replace it"
        )
    for name in result.get("files", ()):  # an ablation has none
        read_file(path.parent, name)
    return result


def write_files(
    out: Path, method: Method, result: dict[str, Any], inputs: Inputs, fold: Fold, condensed: dict[str, np.ndarray],
    **more: Any,
) -> dict[str, str]:  # fmt: skip
    """All that a run leaves besides metrics.json, which comes last since it marks the run as finished; checksums.

    The checkpoint needs nothing else but the backbone's weights to predict. ``condensed``: core.training.evaluation's
    compact, of the scores of the test images; ``more`` goes into the checkpoint's record.
    """
    space, labels = fold.space, condensed["labels"]
    seen, measured = space.seen.numpy(), np.setdiff1d(space.unseen.numpy(), fold.candidates)
    classes = np.concatenate([seen, measured])
    table = {
        "class": [inputs.metadata.class_names[c] for c in classes],
        "side": ["seen"] * len(seen) + ["unseen"] * len(measured),
        "images": np.bincount(labels, minlength=classes.max() + 1)[classes],
        "accuracy": per_class_accuracy(predictions(condensed, result["standard"]["gamma"]), labels, classes),
    }
    with atomic_path(out / "per_class.csv") as temporary:
        pd.DataFrame(table).to_csv(temporary, index=False)
    with atomic_path(out / "scores.npz") as temporary, open(temporary, "wb") as handle:
        np.savez(handle, allow_pickle=False, **condensed)
    gamma, sure = result["standard"]["gamma"], result["certainty"]
    write_checkpoint(out / "checkpoint.safetensors", method, result, inputs, fold, gamma, sure, **more)
    return {name: sha256_file(out / name) for name in ("per_class.csv", "scores.npz", "checkpoint.safetensors")}


def write_checkpoint(
    path: Path, method: Method, result: dict[str, Any], inputs: Inputs, fold: Fold, gamma: float,
    certainty: dict[str, Any], **more: Any,
) -> None:  # fmt: skip
    """A trained model with all that it needs to predict but the backbone's weights; ``more`` goes into its record."""
    space = fold.space
    tensors = {f"model.{name}": value for name, value in method.model.state_dict().items()}
    parts = {name: getattr(space, name) for name in ("att", "seen", "unseen", "w2v", "questions", "text")}
    tensors |= {f"space.{name}": value for name, value in parts.items() if value is not None}
    stored = inputs.features.source.read(fold.train_rows[:1]).dtype.name
    meta = {
        "version": core.__version__,
        "config": result["config"],
        "recipe": result["config"]["recipe"] | result["chosen"]["recipe"],
        "gamma": gamma,
        "certainty": certainty,
        "groups": inputs.metadata.groups,
        "shape": [inputs.features.R, inputs.features.D],
        "classes": inputs.metadata.class_names,
        "attributes": inputs.attribute_names,
        "regions": "unit length over D (L2)",
        "backbone": {k: v for k, v in inputs.provenance.items() if k in BACKBONE} | {"store": stored},
        "environment": result["environment"],
    }
    save_checkpoint(path, tensors, meta | more)


def row_of(result: dict[str, Any]) -> dict[str, Any]:
    """A run as one flat row: val_* on the validation split, plain names on the test sets, test_* selected on test."""
    config, chosen, provenance = result["config"], result["chosen"], result["config"]["features"]
    registered = methods().get(config["method"])  # None: an ensemble, whose name says all
    published = registered.recipe(config["dataset"]) if registered else None
    planned, usual = epochs_of(published), asdict(published) if published else config["recipe"]
    same = ("dataset", "method", "seed", "select", "precision", "gamma_splits", "code", "method_code")
    row = {key: config[key] for key in (*same, "features_sha256", "vectors_sha256", "split_sha256")}
    row |= {key: provenance.get(key, "") for key in ("regions", "finetuned", "input_size")}
    row |= {key: provenance.get(key, "unknown") for key in ("backbone", "pretraining_saw_unseen")}
    row |= {key: result["environment"][key] for key in ("device", "torch", "threads")}
    measured = {"val": chosen.get("validation"), "test": result.get("selected_on_test")}
    measured |= {"published": result.get("published_procedure")}
    row |= {f"{of}_{key}": value for of, found in measured.items() for key, value in (found or {}).items()}
    return row | (result.get("standard") or {}) | {
        "features": provenance.get("name", ""),
        "ablation": result.get("ablation", ""),
        # epochs that were offered, that the published recipe has (more is a row of its own, fewer is cut off), chosen
        "most_epochs": config["epochs"],
        "recipe_epochs": planned,
        "epochs": chosen["epochs"],
        "cut_off": f"{config['epochs']} of its {planned} epochs" if config["epochs"] < planned else "",
        "configurations": chosen["configurations"],
        "chosen": json.dumps(chosen["recipe"], sort_keys=True),
        "recipe": json.dumps({k: v for k, v in config["recipe"].items() if usual.get(k) != v}, sort_keys=True),
        "seconds": result["processor_seconds"],
        "how": chosen["how"],
        "deviations": registered.deviations if registered else "",
        "notes": " | ".join(result["notes"]),
    }  # fmt: skip
