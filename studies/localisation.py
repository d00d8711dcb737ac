"""Whether attention falls on the part that an attribute names, where part locations are known (CUB's format).

    python -m studies.localisation --dataset CUB --out localisation/ --methods vsmr dazle --splits 3

No test image is read. Split k trains on the classes of validation split k, chooses epoch and settings there as a run
does (no part location takes part in that), and measures on its validation classes, which stand for unseen ones. A
method says a part is where the map of one attribute of it is highest: the one it predicts the highest value of. Writes
localisation.csv and .md. OUT/measured/ keeps every result as it comes: an interrupted command goes on when repeated.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from core.commands.parser import Parser, whole
from core.datasets.paths import DEFAULT_ROOT, image_folder, resolve_images
from core.datasets.registry import DATASETS
from core.experiments.identity import RunConfig
from core.experiments.inputs import Inputs, load_inputs
from core.features.images import Transform
from core.files.atomic import sha256_file, write_bytes
from core.files.errors import UserError, run_cli
from core.inference.trained import grid_said
from core.method import Method, ZeroShotModel
from core.methods import find_method
from core.reporting.run_page import transform_of
from core.training.folds import Fold, validation_fold
from studies import part_measures, part_places
from studies.part_measures import Parts, localisation_table, predicted_points
from studies.part_places import (
    attribute_groups,
    own_and_others,
    ratio_of,
    read_key_points,
    read_parts,
    shown_groups,
)
from studies.validation import Kept, arguments, best_on_fold, config_of

log = logging.getLogger(__name__)
RADIUS = 36 / 227  # share of the image's side
BATCH = 16  # images looked at together
HEAD = """\
Share of visible parts hit (%), on images of the validation classes of {splits}; in brackets 95 % intervals
over draws of classes. PCP: boxes round the predicted point and round the nearest visible key point of the part, of that
share of {size}, overlap by IoU > 0.5. Pointing: both are at most {radius:.3f} of the
image's side apart. own/others: attention within one region of an attribute's own key points, over what attributes of
other parts have there. Parts: {groups}; {count} are visible. Best cell: the most that
{grid} regions allow. Epoch and settings were chosen on these images, by AUSUC, without part locations.
"""


@dataclass(frozen=True, kw_only=True)
class Places:
    """How a data set's images and regions lie to each other."""

    folder: Path
    transform: Transform
    grid: tuple[int, int]
    groups: list[str]
    attribute_group: np.ndarray  # (K,)

    @classmethod
    def of(cls, inputs: Inputs, data_root: Path) -> Places:
        """Found for a data set's features.

        Raises:
            UserError: no part locations, or features whose regions cannot be mapped onto the images.
        """
        folder = image_folder(data_root, DATASETS[inputs.dataset])
        grid = grid_said(inputs.provenance["regions"])
        if grid is None or grid == (1, 1):
            raise UserError(f"features of {inputs.provenance['regions']} regions have no place to look at")
        transform = transform_of(inputs.provenance.get("transform", ""))
        if transform is None:
            raise UserError(
                "the feature file does not record how images were resized and cropped, so its regions cannot be mapped "
                f"onto them; extract features with extract_feature/extract_feature_map_ResNet_101_{inputs.dataset}.py"
            )
        groups = shown_groups(inputs.attribute_names, read_key_points(folder))
        which = attribute_groups(inputs.attribute_names, groups)
        return cls(folder=folder, transform=transform, grid=grid, groups=groups, attribute_group=which)

    def parts(self, inputs: Inputs, rows: np.ndarray) -> Parts:
        """Part locations of the images in ``rows``."""
        files = [inputs.metadata.image_files[row] for row in rows]
        paths, lost = resolve_images(self.folder, files)
        if lost:
            raise UserError(f"{len(lost)} of {len(paths)} images are missing, the first is {paths[lost[0]]}")
        labels = inputs.metadata.labels[rows]
        return read_parts(self.folder, files, paths, labels, transform=self.transform, groups=self.groups)

    def digest(self) -> str:
        """Of the lists that say where the parts are."""
        lists = [self.folder / name for name in ("images.txt", "parts/parts.txt", "parts/part_locs.txt")]
        if (boxes := self.folder / "bounding_boxes.txt").is_file():
            lists.append(boxes)
        return hashlib.sha256("".join(map(sha256_file, lists)).encode()).hexdigest()[:8]


def refuse_without_attention(methods: list[str], inputs: Inputs, fold: Fold) -> None:
    """Say which methods have no attention, before hours of training.

    Raises:
        UserError: names the first.
    """
    shape = (inputs.features.R, inputs.features.D)
    for name in methods:
        registered = find_method(name)
        model = registered.build(registered.recipe(inputs.dataset), fold.space, shape, 0, 1).model
        if type(model).attend is ZeroShotModel.attend:
            raise UserError(f"--methods {name}: it has no attention over regions, so it says of no part where it is")


@torch.no_grad()
def look(
    method: Method, inputs: Inputs, rows: np.ndarray, batch: int
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """θ (n,R,K) float32 and predicted attribute values (n,K), e or w where a model has no e, of a batch after another.

    θ of all images would be the largest array of all: 3,441 images at 14x14 with 312 attributes take 0.8 GB.
    """
    method.model.eval()
    for start in range(0, len(rows), batch):
        here = slice(start, start + batch)
        a = method.model.attend(inputs.features.batch(rows[here]))
        assert a is not None
        yield here, a.theta.float().cpu().numpy(), (a.w if a.e is None else a.e).float().cpu().numpy()


def measure_one(
    config: RunConfig, inputs: Inputs, places: Places, fold: Fold, parts: Parts, batch: int
) -> dict[str, Any]:
    """Where a method says the parts of the fold's unseen images are, and its own/others: plain values, to be kept."""
    best = best_on_fold(config, inputs, fold)
    has = inputs.metadata.original_att
    points, tables = [], []
    for here, theta, values in look(best.method, inputs, fold.unseen_rows, batch):
        points.append(predicted_points(theta, values, places.attribute_group, len(places.groups), places.grid))
        block = parts.of(here)
        # half of the largest value: half of the people who were asked saw it there (CUB's are percentages)
        present = has[block.labels] > has.max() / 2  # (n,K)
        tables.append(own_and_others(theta, block, places.attribute_group, present, places.grid))
    return {"epoch": best.epoch, "own_over_others": ratio_of(tables), "points": np.concatenate(points).tolist()}


def measure(
    inputs: Inputs,
    places: Places,
    methods: list[str],
    splits: int,
    *,
    out: Path,
    epochs: int | None = None,
    precision: str = "float32",
    batch: int = BATCH,
) -> pd.DataFrame:
    """Rows of the table."""
    tables = []
    kept = Kept(out, __file__, *(module.__file__ for module in (part_measures, part_places)))
    lists = {"parts": places.digest()}
    with kept.locked():
        for split in range(splits):
            fold = validation_fold(inputs.metadata, inputs.w2v, split)
            parts, training = (places.parts(inputs, rows) for rows in (fold.unseen_rows, fold.train_rows))
            points, ratio = {}, {}
            for name in methods:
                config = config_of(name, inputs, split, epochs, precision)
                make = partial(measure_one, config, inputs, places, fold, parts, batch)
                found = kept.result(config, lists, make)
                points[name], ratio[name] = np.array(found["points"]), found["own_over_others"]
                log.info("split %d, %s: epoch %d, own/others %.2f", split, name, found["epoch"], ratio[name])
            rng = np.random.default_rng(split)
            rows = localisation_table(points, parts, training, grid=places.grid, radius=RADIUS, rng=rng)
            tables.append(rows.assign(split=split, own_over_others=rows.point.map(ratio)))
    return pd.concat(tables, ignore_index=True)


def table(rows: pd.DataFrame, places: Places, boxes: bool) -> str:
    """Markdown: a line a point; of several splits the mean, with the mean limits of their intervals."""
    splits = rows.split.nunique()
    text = HEAD.format(
        splits=f"{splits} validation split" + "s" * (splits > 1),
        size="the object's size (bounding_boxes.txt)" if boxes else "the image's size (no bounding_boxes.txt)",
        radius=RADIUS,
        groups=", ".join(places.groups),
        count=f"{int(rows.drop_duplicates('split').pairs.sum()):,}",
        grid="x".join(map(str, places.grid)),
    )
    measures = list(rows.measure.unique())
    lines = [text, f"| point | {' | '.join(measures)} | own/others |", "|---|" + "---|" * (len(measures) + 1)]
    for point, own in rows.groupby("point", sort=False):
        cells = []
        for m in measures:
            mean = 100 * own[own.measure == m][["share", "low", "high"]].mean()
            cells.append(f"{mean.share:.1f} [{mean.low:.1f}, {mean.high:.1f}]")
        ratio = own.own_over_others.mean()
        lines.append(f"| {point} | {' | '.join(cells)} | {'-' if np.isnan(ratio) else f'{ratio:.2f}'} |")
    return "\n".join(lines) + "\n"


def _arguments() -> Parser:
    made = arguments(__doc__, methods=["vsmr", "dazle"], splits=1)
    made.add_argument("--batch", type=whole(1), default=BATCH, help="images looked at together (%(default)s)")
    return made


def main(argv: list[str] | None = None) -> int:
    """Measure, and write the table."""
    args = _arguments().parse_args(argv)
    methods = list(dict.fromkeys(args.methods))
    given: dict[str, Any] = {"data_root": args.data_root, "features": args.features, "w2v": args.w2v}
    inputs = load_inputs(args.dataset, **given, device=args.device, test=False)
    places = Places.of(inputs, args.data_root or DEFAULT_ROOT)
    refuse_without_attention(methods, inputs, validation_fold(inputs.metadata, inputs.w2v))
    how = {"out": args.out, "epochs": args.epochs, "precision": args.precision, "batch": args.batch}
    rows = measure(inputs, places, methods, args.splits, **how)
    csv = rows.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    write_bytes(args.out / "localisation.csv", csv.encode())
    text = table(rows, places, boxes=(places.folder / "bounding_boxes.txt").is_file())
    write_bytes(args.out / "localisation.md", text.encode())
    print(text, end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
