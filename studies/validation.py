"""What studies on validation splits share: their flags, a method trained on a fold, what they write."""

import argparse
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from core.commands import flags
from core.commands.parser import Parser, whole
from core.datasets.registry import DATASETS
from core.experiments.identity import RunConfig, run_config
from core.experiments.inputs import Inputs, load_inputs
from core.experiments.run import build, scores_of
from core.files.atomic import read_json, sha256_file, write_bytes
from core.method import Method
from core.methods import find_method
from core.training.evaluation import evaluate
from core.training.folds import Fold
from core.training.loop import train


def arguments(description: str | None, *, splits: int) -> Parser:
    """The flags of a study on validation splits; ``splits`` are measured by default."""
    made = Parser(description)
    made.add_argument("--dataset", required=True, choices=[*DATASETS])
    flags.add_data(made, "DS")
    flags.add_device(made)
    made.add_argument("--splits", type=whole(1), default=splits, help="validation splits, 0 to N-1 (%(default)s)")
    made.add_argument("--out", type=Path, required=True, help="the table; OUT/measured/ keeps each result")
    return made


def inputs_of(args: argparse.Namespace) -> Inputs:
    """The inputs that the flags name; no test image can be read from them."""
    given: dict[str, Any] = {"data_root": args.data_root, "features": args.features, "w2v": args.w2v}
    return load_inputs(args.dataset, **given, device=args.device, test=False)


def write(path: Path, rows: pd.DataFrame, percent: pd.DataFrame) -> None:
    """Write the rows as CSV, and print what they come to."""
    write_bytes(path, rows.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode())
    print(percent.round(2).to_string(na_rep=""))


def kept(out: Path, config: RunConfig, of: dict[str, Any], make: Callable[[], Any]) -> Any:
    """What ``make`` returns, plain values, kept in OUT/measured/: an interrupted study goes on when it is repeated.

    A file is named by the digest of the training's identity, of what it is a result ``of`` and of the studies' code.
    """
    code = [sha256_file(path) for path in sorted(Path(__file__).parent.glob("*.py"))]
    digest = hashlib.sha256(json.dumps([asdict(config), of, code], sort_keys=True).encode()).hexdigest()
    path = out / "measured" / f"{config.method}_split{config.seed}_{digest[:16]}.json"
    if not path.is_file():
        write_bytes(path, json.dumps(make()).encode())
    return read_json(path)


def config_of(name: str, inputs: Inputs, split: int, precision: str) -> RunConfig:
    """Identity of a method with its own defaults on a split."""
    recipe = find_method(name).recipe(inputs.dataset)
    return run_config(inputs, name, recipe, seed=split, epochs=None, precision=precision)


def best_on_fold(config: RunConfig, inputs: Inputs, fold: Fold) -> tuple[Method, dict[str, Any]]:
    """A method in the state of its highest AUSUC, in evaluation mode, and its metrics, epoch and setting there.

    They are chosen as the validation half of a run chooses them, on the images that the metrics are measured on, so
    these flatter every method. It differs from a run's validation in that the fold is given, and the model is kept.
    """
    method, features = build(config, config.recipe, fold, inputs), inputs.features
    best: dict[str, Any] = {"AUSUC": -1.0}
    state: dict[str, Tensor] = {}

    def measure(row: dict[str, Any], setting: dict[str, float] | None = None) -> None:
        nonlocal state
        method.model.eval()
        setting = method.tune(fold.unseen_images(features)) if method.tune else setting
        found = asdict(evaluate(scores_of(method, inputs, fold), None))
        row["measured"] = True
        if found["AUSUC"] > best["AUSUC"]:
            best.update(found, epoch=row["epoch"], setting=setting)
            state = {key: value.detach().clone() for key, value in method.model.state_dict().items()}

    history = train(method, features, fold, seed=config.seed, on_epoch=measure, precision=config.precision)
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
    return method, best
