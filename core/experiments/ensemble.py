"""The mean of the standardised scores of finished runs of one seed, also on different features.

    s_c = Σ_m w_m (s_mc - mean over classes of s_m) / spread_m        spread_m: of the training images' scores
w_m: as the odds A / (1 - A) of the members' AUSUC on the seed's validation split, Σ w_m = 1. γ is of that split too:
every member is trained there once more, as its own validation chose, and must be as good as it was. On the test images
each answers from its checkpoint, and spreads are measured anew.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.datasets.paths import DEFAULT_ROOT, feature_file
from core.datasets.registry import DATASETS
from core.ensemble import Ensemble
from core.experiments import results
from core.experiments.identity import RunConfig, method_digest
from core.experiments.inputs import Inputs, load_inputs
from core.experiments.run import HOW, carried_over, fit, ready, scores_of, unit_of
from core.features.feature_file import FeatureFile
from core.features.regions import RegionFeatures
from core.files.atomic import Lock
from core.files.errors import UserError
from core.inference.trained import CHECKPOINT, load_trained
from core.method import Method, ZeroShotModel
from core.training import certainty
from core.training.checkpoint import load_checkpoint
from core.training.evaluation import calibration_error, compact, evaluate, standard
from core.training.folds import Fold, final_fold, validation_fold

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
    found = [{path.parent.name: path.parent for path in sorted(run.rglob("metrics.json"))} for run in runs]
    if not (shared := sorted(set.intersection(*map(set, found)))):
        raise UserError(f"{' and '.join(map(str, runs))} have no finished run of a common seed")
    for seed in shared:
        log.info("ensemble: %s", ensemble([of[seed] for of in found], out, data_root, w2v))


class Joined:
    """Features of the same images side by side: regions (n,R,D1+D2+...)."""

    def __init__(self, parts: Sequence[RegionFeatures]) -> None:
        self.parts, first = parts, parts[0]
        self.device, self.source, self.R, self.D = first.device, first.source, first.R, sum(part.D for part in parts)

    def blocks(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
        """As those of :class:`RegionFeatures`."""
        size = self.parts[0].block
        for of_each in zip(*(part.blocks(rows, size) for part in self.parts), strict=True):
            yield of_each[0][0], torch.cat([x for _, x in of_each], dim=2)


def ensemble(folders: Sequence[Path], out: Path, data_root: Path | None = None, w2v: Path | None = None) -> Path:
    """Measure the ensemble of finished runs, and leave below OUT what a run leaves; its folder."""
    started = time.time(), time.process_time()
    members = [_member(folder, data_root, w2v) for folder in folders]
    first, seed = members[0], members[0].config.seed
    if any((m.config.split_sha256, m.config.seed) != (first.config.split_sha256, seed) for m in members):
        raise UserError(f"{' and '.join(map(str, folders))} are not of one split and one seed")
    if len(grids := {m.inputs.provenance["regions"] for m in members}) > 1:
        raise UserError(f"members look at {' and '.join(sorted(grids))} regions; choose --input-size and --pool alike")
    names = [f"{m.config.method}@{m.inputs.variant.rsplit('-', 2)[0]}" for m in members]
    name = "+".join(n.removesuffix(names[0][names[0].index("@") :]) for n in names)  # features other than the first's
    saw = {m.config.features.get("pretraining_saw_unseen", "unknown") for m in members}
    features = first.config.features | {"pretraining_saw_unseen": saw.pop() if len(saw) == 1 else "unknown"}
    config = replace(
        first.config, method=name, epochs=0, recipe={"members": [m.result["sha256"] for m in members]},
        method_code="+".join([*(m.config.method_code for m in members), method_digest(name, Path(__file__))]),
        features=features, gamma_splits=1,
    )  # fmt: skip
    path = out / config.dataset / first.inputs.variant / name / f"seed{seed}"
    with Lock(path / "run"):
        if results.finished(path / "metrics.json", config, resume=True):
            return path
        A = np.clip([m.result["chosen"]["validation"]["AUSUC"] for m in members], 1e-3, 1 - 1e-3)
        shares = A / (1 - A) / (A / (1 - A)).sum()
        of_features = {m.config.features_sha256: m.inputs.features for m in members}
        inputs = replace(first.inputs, features=Joined([*of_features.values()]))  # type: ignore[arg-type]
        fold = validation_fold(inputs.metadata, inputs.w2v, seed)
        models = [_validated(m, fold, path / f"member{k}.state") for k, m in enumerate(members)]
        method = _method(members, models, shares, fold)
        found, unit = asdict(evaluate(scores_of(method, inputs, fold), None)), unit_of(method, inputs, fold)
        gamma = found.pop("gamma")
        recipe = {f"share_{number}": float(share) for number, share in enumerate(shares, 1)}
        chosen = {
            "epochs": 0, "recipe": recipe, "gamma": gamma, "gammas": [gamma], "gamma_in_spreads": gamma / unit,
            "certainty": certainty.measured(method.model, inputs.features, fold, gamma, unit), "validation": found,
            "configurations": 1, "split": seed, "how": HOW["val"],
        }  # fmt: skip
        row = {"epoch": 0, "val_spread": unit, "val_gamma": gamma} | {f"val_{k}": v for k, v in found.items()}
        row |= {f"set_{name}": share for name, share in recipe.items()}
        fold = final_fold(inputs.metadata, inputs.w2v)
        method = _method(members, [load_trained(m.folder).model for m in members], shares, fold)
        gamma, sure = carried_over(chosen, method, inputs, fold)
        condensed = compact(scores_of(method, inputs, fold), partial(certainty.confidence, sure, gamma, fold.space))
        result = {
            "config": asdict(config), "ablation": "", "chosen": chosen, "history": {"validation": [row]},
            "notes": inputs.metadata.notes, "environment": first.result["environment"], "certainty": sure,
            "standard": standard(condensed, gamma) | {"ECE": calibration_error(condensed, gamma)},
        }  # fmt: skip
        record = {
            "names": [f"{m.config.method}, {m.inputs.provenance['name']}" for m in members],
            "members": [load_checkpoint(m.folder / CHECKPOINT)[1] for m in members],
            "views": method.model.views, "widths": method.model.widths,
        }  # fmt: skip
        result["files"] = results.write_files(path, method, result, inputs, fold, condensed, ensemble=record)
        took = {"seconds": time.time() - started[0], "processor_seconds": time.process_time() - started[1]}
        of = {key: sum(m.result.get(key, 0) for m in members) for key in took}  # with what the members took
        results.write_json(path / "metrics.json", result | {key: round(took[key] + of[key], 1) for key in took})
    return path


def _method(members: Sequence[Member], models: Sequence[ZeroShotModel], shares: np.ndarray, fold: Fold) -> Method:
    """The ensemble of models trained on a fold, each scaled by the spread of its scores of that fold's images."""
    alone = [Method(model=model.eval(), phases=[]) for model in models]
    scale = [share / unit_of(a, m.inputs, fold) for share, a, m in zip(shares, alone, members, strict=True)]
    of_features = {m.config.features_sha256: m.inputs.features.D for m in members}
    views = [[*of_features].index(m.config.features_sha256) for m in members]
    return Method(model=Ensemble(models, views, [*of_features.values()], scale), phases=[])


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


def _validated(member: Member, fold: Fold, state: Path) -> ZeroShotModel:
    """The member trained on the validation fold as its validation chose it."""
    chosen, inputs = member.result["chosen"], member.inputs
    method = ready(fit(member.config, inputs, fold, state, chosen)[0], inputs, fold)
    found, was = evaluate(scores_of(method, inputs, fold), None).AUSUC, chosen["validation"]["AUSUC"]
    if abs(found - was) > 1e-3:
        raise UserError(f"{member.folder}: on validation AUSUC was {was:.4f} and is {found:.4f} now; run it again")
    return method.model
