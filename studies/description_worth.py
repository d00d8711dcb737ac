"""How many photographs a description is worth: vsmr's prototypes of unseen classes against means of a few photographs.

    python -m studies.description_worth --dataset CUB --out worth/ --splits 5

No test image is read. `vsmr` is trained on the classes of validation split k as a run does. Then, with all else as it
is, the prototypes of the validation classes, which stand for unseen ones, are replaced by the mean of n photographs of
each, drawn from a half of them; measured is on the other half, five draws a split. The last row, the mean of the whole
half, is what a better mapping from descriptions to prototypes could reach with the same features and attention. Writes
description_worth.csv and .md.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from core.experiments.identity import RunConfig
from core.experiments.inputs import Inputs
from core.files.errors import UserError, run_cli
from core.method import Images
from core.reporting.tables import OURS
from core.training.evaluation import ScoredImages, evaluate
from core.training.folds import Fold, validation_fold
from core.VSMR import VSMR
from studies.validation import arguments, best_on_fold, config_of, inputs_of, kept, splits_said, with_error, write

SHOTS = (1, 2, 3, 5, 10)
DRAWS = 5
DESCRIPTION = "description"
HEAD = """\
vsmr on {splits}, five draws each (%); ± the standard error over splits. The prototypes of the validation
classes come from their descriptions, or from the mean of n photographs of each; all else is the same, and half of the
photographs of each are measured on. The epoch was chosen on all of them.
"""


@torch.no_grad()
def observed(model: VSMR, images: Images) -> tuple[Tensor, Tensor, Tensor]:
    """s1 (N,C), P φ (N,d) and labels (N,) of images."""
    blocks = [(model.branch_scores(x), y) for x, y in images.blocks()]
    return torch.cat([b[0] for b, _ in blocks]), torch.cat([b[3] for b, _ in blocks]), torch.cat([y for _, y in blocks])


@torch.no_grad()
def scores(model: VSMR, s1: Tensor, u: Tensor, prototypes: Tensor) -> np.ndarray:
    """Class scores (N,C) of images as ``observed`` gives them, with these prototypes (C,d) and the hubness of these."""
    known = model.hub.clone()
    model.hub.copy_(model._nearest_mean(prototypes))
    s2 = model.recipe.alpha * F.normalize(u, dim=1) @ prototypes.T
    found = s1 + model.recipe.beta * s2 + model._correct(u)
    model.hub.copy_(known)
    return found.cpu().numpy()


def replaced(prototypes: Tensor, u: Tensor, labels: Tensor, rows: list[Tensor]) -> Tensor:
    """Prototypes (C,d) in which those of the classes of ``rows`` are the unit mean of P φ (N,d) of those images."""
    made = prototypes.clone()
    for mine in rows:
        made[labels[mine[0]]] = F.normalize(u[mine].mean(dim=0), dim=0)
    return made


def measure_one(config: RunConfig, inputs: Inputs, fold: Fold) -> list[dict[str, object]]:
    """T1 and AUSUC in percent by where the prototypes come from: means over draws."""
    model = best_on_fold(config, inputs, fold).method.model
    assert isinstance(model, VSMR)
    s1_seen, u_seen, y_seen = observed(model, fold.seen_images(inputs.features))
    s1, u, y = observed(model, fold.unseen_images(inputs.features))
    found: dict[str, list[tuple[float, float]]] = {}
    for draw in range(DRAWS):
        rng = np.random.default_rng([config.seed, draw])
        orders = [torch.from_numpy(rng.permutation(np.flatnonzero(y.numpy() == c))) for c in fold.space.unseen.numpy()]
        halves = [order[: len(order) // 2] for order in orders]
        rest = torch.cat([order[len(order) // 2 :] for order in orders])
        of = {DESCRIPTION: model.prototypes()}
        for n in SHOTS:
            of[f"{n} photograph{'s' * (n > 1)}"] = replaced(of[DESCRIPTION], u, y, [half[:n] for half in halves])
        of["half of the photographs"] = replaced(of[DESCRIPTION], u, y, halves)
        for name, prototypes in of.items():
            images = ScoredImages(
                scores_seen=scores(model, s1_seen, u_seen, prototypes),
                labels_seen=y_seen.numpy(),
                scores_unseen=scores(model, s1[rest], u[rest], prototypes),
                labels_unseen=y[rest].numpy(),
                seen=fold.space.seen.numpy(),
                unseen=fold.space.unseen.numpy(),
            )
            m = evaluate(images, None)
            found.setdefault(name, []).append((100 * m.T1, 100 * m.AUSUC))
    means = {name: np.mean(values, axis=0) for name, values in found.items()}
    return [{"split": config.seed, "source": name, "T1": t, "AUSUC": a} for name, (t, a) in means.items()]


def table(rows: pd.DataFrame) -> str:
    """Markdown: a line a source of prototypes, with AUSUC less that of the descriptions, paired over splits."""
    lines = [
        HEAD.format(splits=splits_said(rows)),
        "| prototypes of the classes from | T1 | AUSUC | AUSUC less that of descriptions |",
        "|---|---|---|---|",
    ]
    base = rows[rows.source == DESCRIPTION].set_index("split").AUSUC
    for source, own in rows.groupby("source", sort=False):
        less = "" if source == DESCRIPTION else with_error(own.set_index("split").AUSUC - base, "+")
        lines.append(f"| {source} | {with_error(own.T1)} | {with_error(own.AUSUC)} | {less} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Measure, and write the table."""
    args = arguments(__doc__, methods=[OURS], splits=5).parse_args(argv)
    if {*args.methods} != {OURS}:
        raise UserError(f"--methods {' '.join(args.methods)}: only {OURS} has prototypes that can be replaced")
    inputs, rows = inputs_of(args), []
    for split in range(args.splits):
        fold = validation_fold(inputs.metadata, inputs.w2v, split)
        config = config_of(OURS, inputs, split, args.epochs, args.precision)
        rows += kept(args.out, config, {"of": "description_worth"}, partial(measure_one, config, inputs, fold))
    frame = pd.DataFrame(rows)
    write(args.out, "description_worth", frame, table(frame))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
