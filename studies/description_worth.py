"""How many photographs a description is worth: unseen classes by description, by a few photographs, and by both.

    python -m studies.description_worth --dataset CUB --out worth/ --splits 5

No test image is read. `vsmr` is fitted on the classes of validation split k as a run does. Then each validation class,
which stands for an unseen one, is known by its description, by n photographs drawn from a half of them, or by both, as
`predict.py --add-classes` knows it (core/inference/added_classes.py: the very function is measured); all else is the
same. Measured is on the other half, five draws a split. k, the photographs that a description counts for, is tried at
five values. The share of γ is tried where it matters: half of the classes have photographs and a description, the other
half their descriptions alone, and γ is that of the highest H without any photograph.

Writes and prints description_worth.csv, in percent: T1 and its gain over the description alone (n = 0), with 95 %
intervals over the classes (bootstrap), and H where the shown classes get the whole γ, the share k/(n+k) of it, or none.
"""

from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from core.experiments.identity import RunConfig
from core.experiments.inputs import Inputs
from core.files.errors import run_cli
from core.inference.added_classes import WORTH, known_by
from core.inference.trained import Added
from core.method import Images
from core.reporting.tables import OURS
from core.training.evaluation import ScoredImages, compact, curve_from_compact, harmonic, per_class_accuracy
from core.training.folds import Fold, validation_fold
from core.VSMR import VSMR
from studies.validation import arguments, best_on_fold, config_of, inputs_of, kept, write

SHOTS = (1, 2, 3, 5, 10, 20)
KS = (1, 2, 3, 5, 8)
DRAWS = 5
BOTH = [("both", n, k) for n in SHOTS for k in KS]
RESAMPLES = 2000

Sides = tuple[tuple[Tensor, ...], ...]  # scores, evidence, likeness and labels of images of seen and of unseen classes
Known = tuple[list[Tensor], Added | None]


@torch.no_grad()
def observed(model: VSMR, images: Images) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores (N,C), evidence (N,K), likeness (N,d) and labels (N,) of images."""
    parts = []
    for x, y in images.blocks():
        a = model.attend(x)
        parts.append((model.class_scores(x), model.evidence(x, a), model.likeness(a), y))
    scores, g, f, labels = (torch.cat(values) for values in zip(*parts, strict=True))
    return scores, g, f, labels


def best_gamma(sides: Sides, seen: Tensor, unseen: Tensor) -> float:
    """γ of the highest H."""
    (of_seen, *_, y_seen), (of_unseen, *_, y) = ([values.numpy() for values in side] for side in sides)
    images = ScoredImages(
        scores_seen=of_seen, labels_seen=y_seen, scores_unseen=of_unseen, labels_unseen=y, seen=seen.numpy(),
        unseen=unseen.numpy(),
    )  # fmt: skip
    return curve_from_compact(compact(images)).best()


def accuracies(scores: Tensor, labels: Tensor, classes: Tensor, among: Tensor) -> np.ndarray:
    """(len(classes),) top-1 of each class; scores (N,len(among)) of the classes ``among``."""
    predicted = among[scores.argmax(dim=1)].numpy()
    return per_class_accuracy(predicted, labels.numpy(), classes.numpy())


def measure_one(config: RunConfig, inputs: Inputs, fold: Fold) -> list[dict[str, object]]:
    """Shares: T1 of each class by what it is known from, and H of mixtures."""
    model = best_on_fold(config, inputs, fold)[0].model
    assert isinstance(model, VSMR)
    encoder, seen, unseen = model.class_encoder(fold.space), fold.space.seen, fold.space.unseen
    att, every, rows = fold.space.att[unseen], torch.cat([seen, unseen]), list[dict[str, object]]()
    names = [inputs.metadata.class_names[inputs.metadata.seen[c]] for c in unseen.tolist()]
    of_seen, of_unseen = (observed(model, images(inputs.features)) for images in (fold.seen_images, fold.unseen_images))
    f, y = of_unseen[2], of_unseen[3]
    for draw in range(DRAWS):
        rng = np.random.default_rng([config.seed, draw])
        orders = [torch.from_numpy(rng.permutation(np.flatnonzero(y.numpy() == int(c)))) for c in unseen]
        halves = [order[: len(order) // 2] for order in orders]
        rest = torch.cat([order[len(order) // 2 :] for order in orders])
        sides = of_seen, tuple(values[rest] for values in of_unseen)
        gamma = best_gamma(sides, seen, unseen)
        shown = torch.from_numpy(rng.permutation(len(unseen))[: len(unseen) // 2])

        def known(by: str, n: int, k: float, halves: list[Tensor] = halves, sides: Sides = sides) -> Known:
            added = known_by(encoder, 0 * att if by == "photographs" else att, [f[own[:n]] for own in halves], k)
            assert added.likeness is not None
            return [g @ added.weights.T + added.correction + like @ added.likeness.T for _, g, like, _ in sides], added

        for by, n, k in [("description", 0, WORTH), *(("photographs", n, WORTH) for n in SHOTS), *BOTH]:
            own, added = known(by, n, k) if n else ([scores[:, unseen] for scores, *_ in sides], None)
            said = {"split": config.seed, "draw": draw, "by": by, "n": n, "k": k}
            found = accuracies(own[1], sides[1][3], unseen, unseen)
            rows += [said | {"class": name, "T1": float(v)} for name, v in zip(names, found, strict=True)]
            if by != "both" or k != WORTH or added is None:
                continue
            for rule, share in (("γ", 0 * added.gamma + 1), ("γ k/(n+k)", added.gamma), ("no γ", 0 * added.gamma)):
                means = []
                for (scores, *_, labels), mine, classes in zip(sides, own, (seen, unseen), strict=True):
                    mixed = scores.index_add(1, unseen, torch.full((len(scores), len(unseen)), gamma))
                    mixed[:, unseen[shown]] = (mine + gamma * share)[:, shown]
                    means.append(accuracies(mixed[:, every], labels, classes, every).mean())
                rows.append(said | {"by": rule, "H": harmonic(*means)})
    return rows


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Percent by what classes are known from, n and k; T1 with 95 % intervals over classes, and its gain over n = 0."""
    rng, found = np.random.default_rng(0), []
    of_class = rows[rows.T1.notna()].groupby(["by", "n", "k", "class"]).T1.mean().unstack() * 100
    drawn = rng.integers(of_class.shape[1], size=(RESAMPLES, of_class.shape[1]))
    base = of_class.loc["description", 0, WORTH].to_numpy()
    for (by, n, k), values in of_class.iterrows():
        row = {"by": by, "n": n, "k": k}
        for name, own in (("T1", values.to_numpy()), ("gain", values.to_numpy() - base)):
            low, high = np.quantile(own[drawn].mean(axis=1), (0.025, 0.975))
            row |= {name: own.mean(), f"{name}_low": low, f"{name}_high": high}
        found.append(row)
    H = rows[rows.T1.isna()].groupby(["by", "n", "k"]).H.mean().reset_index()
    return pd.concat([pd.DataFrame(found), H.assign(H=100 * H.H)])


def main(argv: list[str] | None = None) -> int:
    """Measure, and write the table."""
    args = arguments(__doc__, splits=5).parse_args(argv)
    inputs, rows = inputs_of(args), []
    for split in range(args.splits):
        fold = validation_fold(inputs.metadata, inputs.w2v, split)
        config = config_of(OURS, inputs, split, args.precision)
        rows += kept(args.out, config, {"of": "description_worth"}, partial(measure_one, config, inputs, fold))
    found = summary(pd.DataFrame(rows))
    write(args.out / "description_worth.csv", found, found.set_index(["by", "n", "k"]))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
