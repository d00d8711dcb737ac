"""What benchmarks on validation splits share: their flags, a method trained on a fold, results kept as they come."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from core.commands import flags
from core.commands.parser import Parser, whole
from core.datasets.registry import DATASETS
from core.experiments.identity import RunConfig, run_config
from core.experiments.inputs import Inputs

# private there, since nothing else in core needs them, and used here so that a fold is measured as a run measures it
from core.experiments.run import _refuse_finetuned, _scored, build
from core.files.atomic import Lock, read_json, sha256_file, write_bytes
from core.files.errors import UserError
from core.method import Method
from core.methods import find_method
from core.training.evaluation import evaluate
from core.training.folds import Fold
from core.training.loop import train

log = logging.getLogger(__name__)
METRICS = ("T1", "U", "S", "H", "AUSUC")


def arguments(description: str | None, *, methods: Sequence[str], splits: int) -> Parser:
    """The flags of a benchmark on validation splits; ``methods`` and ``splits`` are what is measured by default."""
    made = Parser(description)
    made.add_argument("--dataset", required=True, choices=[*DATASETS])
    flags.add_data(made, "DS")
    flags.add_device(made)
    made.add_argument("--methods", nargs="+", default=list(methods), help=f"({' '.join(methods)})")
    made.add_argument("--splits", type=whole(1), default=splits, help="validation splits, 0 to N-1 (%(default)s)")
    made.add_argument("--epochs", type=whole(0), help="at most, for a quick look (each recipe's own)")
    made.add_argument("--out", type=Path, required=True, help="tables and figures; OUT/measured/ keeps each result")
    return made


class Kept:
    """Results in OUT/measured/, each written as soon as it is there with what it is a result of, and read back."""

    def __init__(self, out: Path, *code: str | None) -> None:
        """Args: out the folder of the benchmark; code the files, besides this one, that its numbers depend on."""
        self.folder = out / "measured"
        files = (Path(path) for path in (__file__, *filter(None, code)))
        self._code = hashlib.sha256("".join(map(sha256_file, files)).encode()).hexdigest()[:12]

    def locked(self) -> Lock:
        """While the benchmark is at work a second one of the same OUT is refused."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return Lock(self.folder / "results")

    def result(self, config: RunConfig, of: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What ``make`` returns, or returned when it was asked before.

        Args:
            config: identity of the training.
            of: what of the benchmark the result is for (the number of classes, ...): plain values.

        Raises:
            UserError: the result that is kept is damaged or of another identity (code, features, settings).
        """
        words = [config.method, f"split{config.seed}", *(f"{k}{'-' if v is None else v}" for k, v in of.items())]
        path = self.folder / f"{'_'.join(words)}.json"
        identity = json.loads(json.dumps(asdict(config) | {"benchmark_code": self._code}))
        if path.exists():
            found = read_json(path)
            found = found if isinstance(found, dict) else {}
            known, result = found.get("identity"), found.get("result", {})
            if not known or found.get("sha256") != _digest(known, result):
                raise UserError(f"{path} is damaged or was changed by hand; delete it to measure that again")
            if differ := sorted(k for k in identity if known.get(k) != identity[k]):
                raise UserError(
                    f"{path} was measured with other {', '.join(differ)}; choose another --out, or delete it to "
                    "measure that again"
                )
            log.info("%s: measured earlier, read back", path.stem)
            return dict(found["result"])
        made = json.loads(json.dumps(make()))  # as it will be read back
        whole = {"identity": identity, "result": made, "sha256": _digest(identity, made)}
        write_bytes(path, json.dumps(whole).encode())
        return dict(made)


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Best:
    """A method in the state of its highest AUSUC, in evaluation mode, and what it measures there."""

    method: Method
    metrics: dict[str, float]  # T1, U, S, H (γ of the highest H), AUSUC: shares
    epoch: int


def config_of(name: str, inputs: Inputs, split: int, epochs: int | None, precision: str) -> RunConfig:
    """Identity of a method with its own defaults on a split; ``epochs`` at most, None: the recipe's."""
    recipe = find_method(name).recipe(inputs.dataset)
    return run_config(inputs, name, recipe, seed=split, epochs=epochs, precision=precision)


def best_on_fold(config: RunConfig, inputs: Inputs, fold: Fold) -> Best:
    """Train a method and keep its best, as the validation half of a run chooses it.

    The epoch (0 included), the settings and γ are chosen on the images that the metrics are measured on, so these
    flatter every method. It differs from a run's validation in that the fold is given, and the model is kept.

    Raises:
        UserError: the backbone was fine-tuned on images that are measured here.
    """
    _refuse_finetuned(inputs, fold)
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

    label = f"{config.method}, {len(fold.space.seen)} classes, split {config.seed}"
    history = train(method, features, fold, seed=config.seed, on_epoch=measure, label=label, precision=config.precision)
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
