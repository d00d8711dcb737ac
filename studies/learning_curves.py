"""How accuracy grows with the number of seen classes and of their images: nested subsets of validation splits.

    python -m studies.learning_curves --dataset CUB --out curves/ --methods vsmr eszsl-prepared --classes 25 50 100
    python -m studies.learning_curves --dataset CUB --out curves/ --images-per-class 5 10 20 40   # all classes

No test image is read. Split k trains on n of the classes that validation split k trains on, drawn from a generator of
seed k so that fewer classes are a subset of more; images of the classes that are left out are not measured on either.
The validation classes, which stand for unseen ones, are the same at every size. Writes learning_curves.csv and .md, and
learning_curves_classes and learning_curves_images as PNG and PDF where they have two sizes or more.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.ticker import NullLocator

from core.commands.parser import whole
from core.experiments.identity import RunConfig
from core.experiments.inputs import Inputs
from core.files.errors import UserError, run_cli
from core.method import ClassSpace
from core.methods import find_method
from core.reporting.canvas import canvas, style, wrapped
from core.reporting.figures import is_ours
from core.reporting.tables import OURS
from core.training.folds import Fold, validation_fold
from studies.validation import arguments, best_on_fold, config_of, inputs_of, kept, splits_said, with_error, write

log = logging.getLogger(__name__)
SHOWN = ("T1", "H", "AUSUC")
HEAD = """\
Validation numbers (%), mean over {splits}, ± the standard error over splits where there are several. Epoch, settings
and γ are chosen on the very images that are measured: optimistic, for all methods alike. No test image was read. With
fewer seen classes there are fewer to confuse an image with, so the side of S is easier, and with it H and AUSUC:
between sizes compare the lead, AUSUC of {first} less that of the method, paired over splits.
"""


def subset(fold: Fold, classes: int, seed: int, images: int | None = None) -> Fold:
    """The fold with that many of its seen classes and at most that many training images of each.

    Smaller subsets of one seed lie within larger ones, of classes and of images alike. Classes that are left out do not
    exist in the result: neither their attributes nor their images.
    """
    seen = fold.space.seen.numpy()
    if classes > len(seen):
        raise UserError(f"--classes {classes}: validation split {seed} has {len(seen)} seen classes to train on")
    kept_seen = np.random.default_rng([seed, 0]).permutation(seen)[:classes]
    kept = np.sort(np.concatenate([kept_seen, fold.space.unseen.numpy()]))
    number = np.full(len(fold.space.att), -1, dtype=np.int64)
    number[kept] = np.arange(len(kept))
    chosen = []
    for c in np.sort(kept_seen):
        mine = np.flatnonzero(fold.train_labels == c)
        chosen.append(np.random.default_rng([seed, 1, int(c)]).permutation(mine)[:images])
    train = np.sort(np.concatenate(chosen))
    held = np.flatnonzero(np.isin(fold.seen_labels, kept_seen))
    space, rows = fold.space, torch.from_numpy(kept)
    return replace(
        fold,
        space=ClassSpace(
            space.att[rows],
            torch.from_numpy(np.sort(number[kept_seen])),
            torch.from_numpy(number[space.unseen.numpy()]),
            space.w2v,
            None if space.text is None else space.text[rows],
        ),
        train_rows=fold.train_rows[train],
        train_labels=number[fold.train_labels[train]],
        seen_rows=fold.seen_rows[held],
        seen_labels=number[fold.seen_labels[held]],
        unseen_labels=number[fold.unseen_labels],
    )


def measure(
    inputs: Inputs,
    methods: Sequence[str],
    sizes: Sequence[tuple[int, int | None]],
    splits: int,
    out: Path,
    epochs: int | None = None,
    precision: str = "float32",
) -> pd.DataFrame:
    """A row a size (classes, images of each at most), split and method."""
    rows = []
    for split in range(splits):
        whole_fold = validation_fold(inputs.metadata, inputs.w2v, split)
        for classes, per_class in sizes:
            fold = subset(whole_fold, classes, split, per_class)
            size = {"classes": classes, "images_per_class": per_class, "images": len(fold.train_rows)}
            for method in methods:
                config = config_of(method, inputs, split, epochs, precision)
                found = kept(out, config, size, partial(_measured, config, inputs, fold))
                row = size | {"unseen": len(fold.space.unseen), "split": split, "method": method}
                rows.append(row | found)
                log.info("split %d, %s, %s: AUSUC %.1f", split, size, method, 100 * found["AUSUC"])
    return pd.DataFrame(rows)


def _measured(config: RunConfig, inputs: Inputs, fold: Fold) -> dict[str, float]:
    best = best_on_fold(config, inputs, fold)
    return {"epoch": best.epoch} | best.metrics


def table(rows: pd.DataFrame, first: str) -> str:
    """Markdown: a line a size and method; the lead is of ``first``."""
    lines = [
        HEAD.format(splits=splits_said(rows), first=first),
        f"| seen classes | images of each | images | method | {' | '.join(SHOWN)} | lead of {first}, AUSUC |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (classes, per_class), size in rows.fillna({"images_per_class": 0}).groupby(["classes", "images_per_class"]):
        ours = size[size.method == first].set_index("split").AUSUC
        for method, own in size.groupby("method", sort=False):
            cells = " | ".join(with_error(100 * own[name]) for name in SHOWN)
            lead = "" if method == first else with_error(100 * (ours - own.set_index("split").AUSUC), "+")
            most = f"at most {per_class:.0f}" if per_class else "all"
            lines.append(f"| {classes} | {most} | {own.images.mean():.0f} | {method} | {cells} | {lead} |")
    return "\n".join(lines) + "\n"


def draw(rows: pd.DataFrame, out: Path, dataset: str) -> None:
    """The figures: AUSUC over seen classes with all their images, and over images of the most classes."""
    title = f"{dataset}, {splits_said(rows)}, chosen where measured"
    of_classes, of_images = rows[rows.images_per_class.isna()], rows[rows.classes == rows.classes.max()]
    if of_classes.classes.nunique() > 1:
        learning_curves_figure(of_classes, out / "learning_curves_classes.png", "classes", "seen classes", title)
    sizes = of_images.images_per_class.fillna(np.inf)
    if sizes.nunique() > 1:  # splits differ by a few images: one place a size
        at = of_images.groupby(sizes).images.transform("mean").round().astype(int)
        part = of_images.assign(images=at)
        learning_curves_figure(part, out / "learning_curves_images.png", "images", "training images", title)


def learning_curves_figure(frame: pd.DataFrame, out: Path, x: str, label: str, title: str) -> None:
    """AUSUC over the amount of training data: mean and ± one standard deviation over the rows of equal ``x``.

    Args:
        frame: columns ``method``, ``x`` (a number of seen classes or of images) and ``AUSUC`` (a share); a row a run.
    """
    sizes = np.sort(frame[x].unique())
    # from the largest tick down, those that would touch the one before have no label
    ticks, last, room = list[str](), np.inf, 0.11 * np.log(sizes[-1] / sizes[0])
    for size in sizes[::-1]:
        free = np.log(last / size) >= room
        ticks, last = [f"{size:,}" if free else "", *ticks], size if free else last
    with canvas(out, 5.6, 4.0) as (figure, axes):
        axis = axes[0, 0]
        methods = frame.groupby("method").AUSUC.mean().sort_values(ascending=False).index
        for number, method in enumerate(sorted(methods, key=lambda name: not is_ours(name))):
            groups = frame[frame.method == method].groupby(x).AUSUC
            mean, spread = 100 * groups.mean(), 100 * groups.std().fillna(0)
            shift = 1 + 0.012 * (number - (len(methods) - 1) / 2)  # whiskers side by side
            look = style(number) | {"linewidth": 2.2 if is_ours(method) else 1.2, "markeredgecolor": "white"}
            axis.errorbar(mean.index * shift, mean, spread, label=wrapped(method, 30), capsize=2.5, **look)
        axis.set_xscale("log")
        axis.set_xticks(sizes, ticks)
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set(xlabel=label, ylabel="AUSUC (%)")
        figure.suptitle(wrapped(title, 64), fontsize=10)
        axis.grid(color="0.92", linewidth=0.6)
        whiskers = "whiskers: ± 1 standard\ndeviation" if frame.groupby(["method", x]).size().max() > 1 else None
        axis.legend(title=whiskers, fontsize=8, title_fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def main(argv: list[str] | None = None) -> int:
    """Measure, and write the table and the figures."""
    parser = arguments(__doc__, methods=[OURS, "eszsl-prepared"], splits=3)
    parser.add_argument("--classes", nargs="+", type=whole(2), help="(a quarter, half and all of them)")
    images_help = "at most; of the largest number of classes"
    parser.add_argument("--images-per-class", nargs="+", type=whole(1), default=[], help=images_help)
    args = parser.parse_args(argv)
    methods = list(dict.fromkeys(args.methods))
    for method in methods:
        find_method(method)
    inputs = inputs_of(args)
    folds = (validation_fold(inputs.metadata, inputs.w2v, split) for split in range(args.splits))
    most = min(len(fold.space.seen) for fold in folds)
    default = [most] if args.images_per_class else [max(2, most // 4), max(2, most // 2), most]
    classes = sorted({*(args.classes or default)})
    if classes[-1] > most:  # before hours of training
        raise UserError(f"--classes {classes[-1]}: the validation splits have {most} seen classes to train on, no more")
    sizes = [*((n, None) for n in classes), *((classes[-1], m) for m in sorted({*args.images_per_class}))]
    rows = measure(inputs, methods, sizes, args.splits, args.out, args.epochs, args.precision)
    write(args.out, "learning_curves", rows, table(rows, OURS if OURS in methods else methods[0]))
    draw(rows, args.out, args.dataset)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
