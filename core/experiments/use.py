"""The model for use of a folder of one's own: fitted once more, on every photograph, with what validation chose.

The run's own model is the one that was measured: a table needs photographs that no model has seen. This one leaves
none, so nothing is measured on it. γ is carried over in spreads of the training images' scores.
"""

from pathlib import Path

from core.experiments.identity import RunConfig
from core.experiments.inputs import Inputs
from core.experiments.results import read_result, write_checkpoint
from core.experiments.run import carried_over, fit, ready
from core.files.errors import UserError
from core.inference.trained import CHECKPOINT, USE
from core.training.checkpoint import load_checkpoint
from core.training.folds import every_photograph

_SAID = """\
The numbers above are of the model in {run}/, fitted on {part} photographs of {seen} classes. The model for use, in
{use}/, was fitted with the same settings on all {all} photographs of {classes} classes, and could not be measured: no
photograph is left. It is the one that predict.py takes where it is not told otherwise."""


def fit_for_use(run: Path, inputs: Inputs) -> str:
    """Fit use/ beside a measured run, with what that has chosen, if it is not there; returns what the table says."""
    result, m, path = read_result(run / "metrics.json"), inputs.metadata, run.with_name(USE) / CHECKPOINT
    config, chosen = RunConfig(**result["config"]), result["chosen"]
    fold, made_from = every_photograph(m, inputs.w2v), {"config": result["config"], "chosen": chosen}
    try:
        there = load_checkpoint(path)[1].get("made_from") == made_from
    except UserError:
        there = False
    if not there:
        path.parent.mkdir(parents=True, exist_ok=True)
        state = path.with_name("use.state")
        method = ready(fit(config, inputs, fold, state, chosen)[0], inputs, fold)
        gamma, certainty = carried_over(chosen, method, inputs, fold)
        write_checkpoint(path, method, result, inputs, fold, gamma, certainty, made_from=made_from)
        state.unlink(missing_ok=True)
    return _SAID.format(
        run=run.name, use=USE, part=len(m.trainval_loc), seen=len(m.seen), all=len(fold.train_rows),
        classes=len(fold.space.seen),
    )  # fmt: skip
