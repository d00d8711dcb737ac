"""How many photographs a description is worth: vsmr's unseen classes by description, by a few photographs, and by both.

    python -m studies.description_worth --dataset CUB --out worth/ --splits 5

No test image is read. `vsmr` is fitted on the classes of validation split k as a run does. Then, with all else as it
is, each validation class, which stands for an unseen one, is known by the mean of n photographs of it, drawn from a
half of them, and by its description; measured is on the other half, five draws a split. By both, its score is
n/(n+k) that of the photographs + k/(n+k) that of the description, k = 3. The last row, the mean of the whole half, is
what a better mapping from descriptions could reach with the same features. Writes description_worth.csv and .md.
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
from core.VSMR import POINTS, VSMR
from studies.validation import arguments, best_on_fold, config_of, inputs_of, kept, splits_said, with_error, write

SHOTS = (1, 2, 3, 5, 10, 20)
DRAWS = 5
DESCRIPTION = "description"
WORTH = 3  # k: photographs that a description counts for
HEAD = """\
vsmr on {splits}, five draws each (%); ± the standard error over splits. Validation classes are known
by their descriptions, by n photographs of each, or by both; all else is the same, and half of the photographs of each
are measured on. The sharpness was chosen on all of them.
"""


@torch.no_grad()
def observed(model: VSMR, images: Images) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (N,C), f (N,d) and labels (N,) of images."""
    blocks = [(model.class_scores(x), model.attend(x).f, y) for x, y in images.blocks()]
    scores, f, labels = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    return scores, f, labels


@torch.no_grad()
def shown(model: VSMR, f: Tensor, means: Tensor) -> Tensor:
    """(N,A) points of images f (N,d) for classes known by the means (A,d) of f of their photographs, hubness taken."""
    means, seen = F.normalize(means, dim=1), F.normalize(model.means, dim=1)
    return POINTS * (F.normalize(f, dim=1) @ means.T - model.recipe.hubness * (means @ seen.T).amax(dim=1))


def both(described: Tensor, photographed: Tensor, n: int) -> Tensor:
    """Scores (N,A) of classes known by a description and n photographs."""
    share = n / (n + WORTH)
    return share * photographed + (1 - share) * described


def measure_one(config: RunConfig, inputs: Inputs, fold: Fold) -> list[dict[str, object]]:
    """T1 and AUSUC in percent by what classes are known from: means over draws."""
    model = best_on_fold(config, inputs, fold).method.model
    assert isinstance(model, VSMR)
    s_seen, f_seen, y_seen = observed(model, fold.seen_images(inputs.features))
    s, f, y = observed(model, fold.unseen_images(inputs.features))
    unseen = fold.space.unseen
    found: dict[str, list[tuple[float, float]]] = {}
    for draw in range(DRAWS):
        rng = np.random.default_rng([config.seed, draw])
        orders = [torch.from_numpy(rng.permutation(np.flatnonzero(y.numpy() == int(c)))) for c in unseen]
        halves = [order[: len(order) // 2] for order in orders]
        rest = torch.cat([order[len(order) // 2 :] for order in orders])

        def measured(name: str, n: int | None, of_seen: Tensor, of_unseen: Tensor, rest: Tensor = rest) -> None:
            sides = []
            for scores, own in ((s_seen, of_seen), (s[rest], of_unseen)):
                sides.append(
                    scores.index_copy(1, unseen, own if n is None else both(scores[:, unseen], own, n)).numpy()
                )
            images = ScoredImages(
                scores_seen=sides[0],
                labels_seen=y_seen.numpy(),
                scores_unseen=sides[1],
                labels_unseen=y[rest].numpy(),
                seen=fold.space.seen.numpy(),
                unseen=unseen.numpy(),
            )
            m = evaluate(images, None)
            found.setdefault(name, []).append((100 * m.T1, 100 * m.AUSUC))

        measured(DESCRIPTION, None, s_seen[:, unseen], s[rest][:, unseen])
        for n in SHOTS:
            means = torch.stack([f[half[:n]].mean(dim=0) for half in halves])
            own = shown(model, f_seen, means), shown(model, f[rest], means)
            photographs = f"{n} photograph{'s' * (n > 1)}"
            measured(photographs, None, *own)
            measured(f"description and {photographs}", n, *own)
        means = torch.stack([f[half].mean(dim=0) for half in halves])
        measured("half of the photographs", None, shown(model, f_seen, means), shown(model, f[rest], means))
    means_of = {name: np.mean(values, axis=0) for name, values in found.items()}
    return [{"split": config.seed, "source": name, "T1": t, "AUSUC": a} for name, (t, a) in means_of.items()]


def table(rows: pd.DataFrame) -> str:
    """Markdown: a line a source of prototypes, with AUSUC less that of the descriptions, paired over splits."""
    lines = [
        HEAD.format(splits=splits_said(rows)),
        "| classes are known by | T1 | AUSUC | AUSUC less that of descriptions |",
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
        raise UserError(f"--methods {' '.join(args.methods)}: only {OURS} takes photographs of new classes")
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
