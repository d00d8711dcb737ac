"""The mean of the standardised scores of finished runs of one seed, also on different features.

    s_c = Σ_m w_m (s_mc - mean over classes of s_m) / spread_m        spread_m: of the training images' scores
w_m: as the odds A / (1 - A) of the members' AUSUC on the seed's validation split, Σ w_m = 1. γ is of that split too:
every member is trained there once more, as its own validation chose, and must be as good as it was. On the test images
each answers from its checkpoint, and spreads are measured anew.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from core.datasets.paths import DEFAULT_ROOT, feature_file
from core.datasets.registry import DATASETS
from core.experiments import results
from core.experiments.identity import RunConfig
from core.experiments.inputs import Inputs, load_inputs
from core.experiments.run import HOW, fit, ready
from core.features.feature_file import FeatureFile
from core.files.atomic import Lock
from core.files.errors import UserError
from core.inference.trained import load_trained
from core.method import Method, ZeroShotModel
from core.training.evaluation import ScoredImages, compact, evaluate, sample, spread, standard
from core.training.folds import Fold, final_fold, validation_fold
from core.training.loop import class_scores

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Member:
    """A finished run and its data."""

    folder: Path
    result: dict[str, Any]
    config: RunConfig
    inputs: Inputs


def ensembles(runs: Sequence[Path], out: Path, data_root: Path | None = None, w2v: Path | None = None) -> None:
    """An ensemble of each seed that all of ``runs`` (folders of runs, or of methods above their seeds) have."""
    found = []
    for run in runs:
        read = {path.parent: results.read_result(path) for path in sorted(run.rglob("metrics.json"))}
        found.append({result["config"]["seed"]: folder for folder, result in read.items()})
    if not (shared := sorted(set.intersection(*map(set, found)))):
        raise UserError(f"{' and '.join(map(str, runs))} have no finished run of a common seed")
    for seed in shared:
        log.info("ensemble: %s", ensemble([of[seed] for of in found], out, data_root, w2v))


def ensemble(folders: Sequence[Path], out: Path, data_root: Path | None = None, w2v: Path | None = None) -> Path:
    """Measure the ensemble of finished runs, and leave below OUT what a run leaves; its folder."""
    started = time.time(), time.process_time()
    members = [_member(folder, data_root, w2v) for folder in folders]
    first, seed = members[0], members[0].config.seed
    if any((m.config.split_sha256, m.config.seed) != (first.config.split_sha256, seed) for m in members):
        raise UserError(f"{' and '.join(map(str, folders))} are not of one split and one seed")
    names = [f"{m.config.method}@{m.inputs.variant.rsplit('-', 2)[0]}" for m in members]
    name = "+".join(n.removesuffix(names[0][names[0].index("@") :]) for n in names)  # features other than the first's
    saw = {m.config.features.get("pretraining_saw_unseen", "unknown") for m in members}
    features = first.config.features | {"pretraining_saw_unseen": saw.pop() if len(saw) == 1 else "unknown"}
    config = replace(
        first.config, method=name, epochs=0, recipe={"members": [m.result["sha256"] for m in members]},
        method_code="+".join(m.config.method_code for m in members), features=features,
    )  # fmt: skip
    path = out / config.dataset / first.inputs.variant / name / f"seed{seed}"
    path.mkdir(parents=True, exist_ok=True)
    with Lock(path / "run"):
        if results.finished(path / "metrics.json", config, resume=True):
            return path
        fold = validation_fold(first.inputs.metadata, first.inputs.w2v, seed)
        A = np.clip([m.result["chosen"]["validation"]["AUSUC"] for m in members], 1e-3, 1 - 1e-3)
        shares = A / (1 - A) / (A / (1 - A)).sum()
        images, unit = _mean(shares, fold, [_validated(m, path / f"member{k}.state") for k, m in enumerate(members)])
        found = asdict(evaluate(images, None))
        gamma = found.pop("gamma")
        recipe = {f"share_{number}": float(share) for number, share in enumerate(shares, 1)}
        chosen = {
            "epochs": 0, "recipe": recipe, "gamma": gamma, "gammas": [gamma], "gamma_in_spreads": gamma / unit,
            "validation": found, "configurations": 1, "split": seed, "how": HOW["val"],
        }  # fmt: skip
        row = {"epoch": 0, "val_spread": unit, "val_gamma": gamma} | {f"val_{k}": v for k, v in found.items()}
        row |= {f"set_{name}": share for name, share in recipe.items()}
        models = [load_trained(member.folder).model for member in members]
        fold = final_fold(first.inputs.metadata, first.inputs.w2v)
        of_each = [_standardised(model, m.inputs, fold) for model, m in zip(models, members, strict=True)]
        images, unit = _mean(shares, fold, of_each)
        condensed = compact(images)
        result = {
            "config": asdict(config), "ablation": "", "chosen": chosen, "history": {"validation": [row]},
            "notes": first.inputs.metadata.notes, "environment": first.result["environment"], "certainty": {},
            "standard": standard(condensed, chosen["gamma_in_spreads"] * unit),
        }  # fmt: skip
        whole = Method(model=nn.ModuleList(models), phases=[])  # type: ignore[arg-type]  # its weights, to be kept
        result["files"] = results.write_files(path, whole, result, first.inputs, fold, condensed)
        took = {"seconds": time.time() - started[0], "processor_seconds": time.process_time() - started[1]}
        of = {key: sum(m.result.get(key, 0) for m in members) for key in took}  # with what the members took
        results.write_json(path / "metrics.json", result | {key: round(took[key] + of[key], 1) for key in took})
    return path


def _member(folder: Path, data_root: Path | None, w2v: Path | None) -> Member:
    result, root = results.read_result(folder / "metrics.json"), data_root or DEFAULT_ROOT
    config = RunConfig(**result["config"])
    if config.select != "val":
        raise UserError(f"{folder} validated nothing (--select last), so it cannot say what an ensemble's γ is")
    pattern = feature_file(root, DATASETS[config.dataset], "*")
    for path in sorted(pattern.parent.glob(pattern.name)):
        if FeatureFile(path).digest() == config.features_sha256:
            inputs = load_inputs(config.dataset, data_root=data_root, features=path, w2v=w2v)
            if (inputs.split_sha256, inputs.vectors_sha256) == (config.split_sha256, config.vectors_sha256):
                return Member(folder=folder, result=result, config=config, inputs=inputs)
    raise UserError(f"{pattern} has not the features, split and vectors of {folder}; name others with --data-root")


def _validated(member: Member, state: Path) -> list[np.ndarray]:
    """Of the validation fold, by the member as its validation chose it."""
    chosen, inputs = member.result["chosen"], member.inputs
    fold = validation_fold(inputs.metadata, inputs.w2v, member.config.seed)
    method = ready(fit(member.config, inputs, fold, state, chosen)[0], inputs, fold)
    scores = _standardised(method.model, inputs, fold)
    found, was = evaluate(fold.scored(*scores[1:]), None).AUSUC, chosen["validation"]["AUSUC"]
    if abs(found - was) > 1e-3:
        raise UserError(f"{member.folder}: on validation AUSUC was {was:.4f} and is {found:.4f} now; run it again")
    return scores


def _standardised(model: ZeroShotModel, inputs: Inputs, fold: Fold) -> list[np.ndarray]:
    """(N,C) of a thousand training images, of the images of seen and of those of unseen classes."""
    rows = fold.train_rows[sample(len(fold.train_rows))], fold.seen_rows, fold.unseen_rows
    scores = [class_scores(model, inputs.features, some).astype(np.float64) for some in rows]
    return [(s - s.mean(axis=1, keepdims=True)) / max(spread([scores[0]]), 1e-12) for s in scores]


def _mean(shares: np.ndarray, fold: Fold, of_each: Sequence[list[np.ndarray]]) -> tuple[ScoredImages, float]:
    """The images with the mean of what :func:`_standardised` made of each member, and its spread."""
    training, *both = (np.tensordot(shares, np.stack(parts), axes=1) for parts in zip(*of_each, strict=True))
    return fold.scored(*both), spread([training])
