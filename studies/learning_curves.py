"""How accuracy grows with the number of seen classes and of their images: nested subsets of validation splits.

    python -m studies.learning_curves --dataset CUB --out curves/ --methods vsmr eszsl-prepared --classes 25 50 100
    python -m studies.learning_curves --dataset CUB --out curves/ --images-per-class 5 10 20 40   # all classes

No test image is read. Split k trains on n of the classes that validation split k trains on, drawn from a generator of
seed k so that fewer classes are a subset of more; images of the classes that are left out are not measured on either.
The validation classes, which stand for unseen ones, are the same at every size. Writes learning_curves.csv and .md, and
learning_curves_classes and learning_curves_images as PNG and PDF where they have two sizes or more. OUT/measured/ keeps
every result as it comes: a command that was interrupted goes on when it is repeated.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.ticker import NullLocator

from core.commands.parser import Parser, whole
from core.experiments.identity import RunConfig
from core.experiments.inputs import Inputs, load_inputs
from core.files.atomic import write_bytes
from core.files.errors import UserError, run_cli
from core.method import ClassSpace
from core.methods import find_method
from core.reporting.canvas import canvas, drawing, printable, save, style, wrapped
from core.reporting.figures import is_ours
from core.reporting.rows import OURS
from core.training.folds import Fold, validation_fold
from studies.validation import Kept, arguments, best_on_fold, config_of

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

    Raises:
        UserError: the fold has fewer seen classes.
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
    *,
    out: Path,
    epochs: int | None = None,
    precision: str = "float32",
) -> pd.DataFrame:
    """A row a size (classes, images of each at most), split and method; OUT's CSV grows with every row."""
    rows, kept = [], Kept(out, __file__)
    with kept.locked():
        for split in range(splits):
            whole_fold = validation_fold(inputs.metadata, inputs.w2v, split)
            for classes, per_class in sizes:
                fold = subset(whole_fold, classes, split, per_class)
                size = {"classes": classes, "images": per_class}
                for method in methods:
                    config = config_of(method, inputs, split, epochs, precision)
                    best = kept.result(config, size, partial(_measured, config, inputs, fold))
                    row: dict[str, Any] = {"classes": classes, "images_per_class": per_class}
                    row |= {"images": len(fold.train_rows), "unseen": len(fold.space.unseen)}
                    rows.append(row | {"split": split, "method": method} | best)
                    log.info(
                        "split %d, %d classes, %d images, %s: AUSUC %.1f",
                        split, classes, len(fold.train_rows), method, 100 * best["AUSUC"],
                    )  # fmt: skip
                    text = pd.DataFrame(rows).to_csv(index=False, float_format="%.6g", lineterminator="\n")
                    write_bytes(out / "learning_curves.csv", text.encode())
    return pd.DataFrame(rows)


def _measured(config: RunConfig, inputs: Inputs, fold: Fold) -> dict[str, Any]:
    best = best_on_fold(config, inputs, fold)
    return {"epoch": best.epoch} | best.metrics


def table(rows: pd.DataFrame, first: str) -> str:
    """Markdown: a line a size and method; the lead is of ``first``."""
    lines = [
        HEAD.format(splits=_splits(rows), first=first),
        f"| seen classes | images of each | images | method | {' | '.join(SHOWN)} | lead of {first}, AUSUC |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (classes, per_class), size in rows.fillna({"images_per_class": 0}).groupby(["classes", "images_per_class"]):
        ours = size[size.method == first].set_index("split").AUSUC
        for method, own in size.groupby("method", sort=False):
            cells = [_with_error(100 * own[name]) for name in SHOWN]
            lead = "" if method == first else _with_error(100 * (ours - own.set_index("split").AUSUC), sign=True)
            images = f"{own.images.mean():.0f}"
            most = f"at most {per_class:.0f}" if per_class else "all"
            lines.append(f"| {classes} | {most} | {images} | {method} | {' | '.join(cells)} | {lead} |")
    return "\n".join(lines) + "\n"


def _splits(rows: pd.DataFrame) -> str:
    count = rows.split.nunique()
    return f"{count} validation split" + "s" * (count > 1)


def _with_error(values: pd.Series, sign: bool = False) -> str:
    mean = f"{values.mean():+.1f}" if sign else f"{values.mean():.1f}"
    return mean if len(values) < 2 else f"{mean} ± {values.std(ddof=1) / len(values) ** 0.5:.1f}"


def draw(rows: pd.DataFrame, out: Path, dataset: str) -> None:
    """The figures: AUSUC over seen classes with all their images, and over images of the most classes."""
    title = f"{dataset}, {_splits(rows)}, chosen where measured"
    for x, label, part in (
        ("classes", "seen classes", rows[rows.images_per_class.isna()]),
        ("images", "training images", rows[(rows.classes == rows.classes.max())]),
    ):
        if part.groupby(["classes", part.images_per_class.fillna(0)]).ngroups > 1:
            if x == "images":  # splits differ by a few images: one place a size
                sizes = part.groupby(part.images_per_class.fillna(np.inf)).images
                part = part.assign(images=sizes.transform("mean").round().astype(int))
            learning_curves_figure(part, out / f"learning_curves_{x}.png", x=x, title=title, label=label)


def learning_curves_figure(
    frame: pd.DataFrame, out: Path, *, x: str, y: str = "AUSUC", title: str, label: str | None = None
) -> None:
    """A metric over the amount of training data: mean and ± one standard deviation over the rows of equal ``x``.

    Args:
        frame: columns ``method``, ``x`` (a number of seen classes or of images) and ``y`` (a share); a row a run.
        label: of the horizontal axis; the name of the column where None.
    """
    sizes = np.sort(frame[x].unique())
    with drawing():
        figure, axes = canvas(5.6, 4.0)
        axis = axes[0, 0]
        methods = frame.groupby("method")[y].mean().sort_values(ascending=False).index
        for number, method in enumerate(sorted(methods, key=lambda name: not is_ours(name))):
            groups = frame[frame.method == method].groupby(x)[y]
            mean, spread = 100 * groups.mean(), 100 * groups.std().fillna(0)
            wide = 2.2 if is_ours(str(method)) else 1.2
            shift = 1 + 0.012 * (number - (len(methods) - 1) / 2)  # whiskers side by side
            axis.errorbar(
                mean.index * shift,
                mean,
                spread,
                label=wrapped(str(method), 30),
                linewidth=wide,
                markersize=5.5,
                markeredgecolor="white",
                capsize=2.5,
                elinewidth=0.9,
                **style(number),
            )
        axis.set_xscale("log")
        axis.set_xticks(sizes, _apart(sizes))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set(xlabel=printable(label or x, 60), ylabel=f"{y} (%)")
        figure.suptitle(wrapped(title, 64), fontsize=10)
        axis.grid(color="0.92", linewidth=0.6)
        whiskers = "whiskers: ± 1 standard\ndeviation" if frame.groupby(["method", x]).size().max() > 1 else None
        place = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
        axis.legend(title=whiskers, fontsize=8, title_fontsize=7, frameon=False, **place).set_alignment("left")
        save(figure, out)


def _apart(sizes: np.ndarray) -> list[str]:
    """Labels of ticks on a logarithmic axis: from the largest down, those that would touch the one before have none."""
    labels, last, room = [], np.inf, 0.11 * np.log(sizes[-1] / sizes[0])
    for size in sizes[::-1]:
        free = np.log(last / size) >= room
        labels.append(f"{size:,}" if free else "")
        last = size if free else last
    return labels[::-1]


def sizes_of(classes: Sequence[int] | None, images: Sequence[int] | None, most: int) -> list[tuple[int, int | None]]:
    """Sizes to measure: the numbers of classes with all images, then the largest with fewer of each.

    Args:
        classes: None: a quarter, half and all of ``most``, or all alone where ``images`` are given.
    """
    default = [most] if images else sorted({max(2, most // 4), max(2, most // 2), most})
    chosen = sorted(set(classes or default))
    return [*((n, None) for n in chosen), *((chosen[-1], m) for m in sorted(set(images or ())))]


def _arguments() -> Parser:
    made = arguments(__doc__, methods=[OURS, "eszsl-prepared"], splits=3)
    made.add_argument("--classes", nargs="+", type=whole(2), help="(a quarter, half and all of them)")
    made.add_argument("--images-per-class", nargs="+", type=whole(1), help="at most; of the largest number of classes")
    return made


def main(argv: list[str] | None = None) -> int:
    """Measure, and write the table and the figures."""
    args = _arguments().parse_args(argv)
    methods = list(dict.fromkeys(args.methods))
    for method in methods:
        find_method(method)
    inputs = load_inputs(
        args.dataset, data_root=args.data_root, features=args.features, w2v=args.w2v, device=args.device, test=False
    )
    folds = (validation_fold(inputs.metadata, inputs.w2v, split) for split in range(args.splits))
    most = min(len(fold.space.seen) for fold in folds)
    sizes = sizes_of(args.classes, args.images_per_class, most)
    if sizes[-1][0] > most:  # before hours of training
        raise UserError(
            f"--classes {sizes[-1][0]}: the validation splits have {most} seen classes to train on, no more"
        )
    how = {"out": args.out, "epochs": args.epochs, "precision": args.precision}
    rows = measure(inputs, methods, sizes, args.splits, **how)
    text = table(rows, OURS if OURS in methods else methods[0])
    write_bytes(args.out / "learning_curves.md", text.encode())
    draw(rows, args.out, args.dataset)
    print(text, end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
