"""Whether attention falls on the part that an attribute names, where part locations are known (CUB's format).

    python -m studies.localisation --dataset CUB --out localisation/ --methods vsmr dazle --splits 3

No test image is read. Split k trains on the classes of validation split k, chooses epoch and settings there as a run
does (no part location takes part in that), and measures on its validation classes, which stand for unseen ones. A
method says a part is where the map of one attribute of it is highest: the one it predicts the highest value of. The map
is θ, where it looked; of `vsmr` also the evidence, what it shows. Writes localisation.csv, a row a split and point, and
prints the means over splits, in percent. Pointing: share of visible parts that the point lies within 36/227 of the
image's side of, with 95 % intervals over draws of classes; the best cell is the most that the grid allows. own/others:
attention within one region of an attribute's own key points, over what attributes of other parts have there.
"""

import hashlib
import logging
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from core.datasets.paths import DEFAULT_ROOT, image_folder, resolve_images
from core.datasets.registry import DATASETS
from core.experiments.identity import RunConfig
from core.experiments.inputs import Inputs
from core.features.images import Transform
from core.files.errors import UserError, run_cli
from core.inference.trained import grid_said
from core.method import ZeroShotModel
from core.methods import find_method
from core.reporting.run_page import transform_of
from core.training.folds import Fold, validation_fold
from studies.part_measures import Parts, localisation_table, own_and_others, predicted_points, ratio_of
from studies.part_places import attribute_groups, read_key_points, read_parts, shown_groups
from studies.validation import arguments, best_on_fold, config_of, inputs_of, kept, write

log = logging.getLogger(__name__)
RADIUS = 36 / 227  # share of the image's side
BATCH = 16  # images looked at together: θ of 3,441 images at 14x14 with 312 attributes takes 0.8 GB


class Places:
    """How a data set's images and regions lie to each other; refused where that or part locations are not known."""

    def __init__(self, inputs: Inputs, data_root: Path) -> None:
        self.inputs, self.folder = inputs, image_folder(data_root, DATASETS[inputs.dataset])
        grid, transform = grid_said(inputs.provenance["regions"]), transform_of(inputs.provenance.get("transform", ""))
        if grid is None or grid == (1, 1) or transform is None:
            raise UserError(
                "the feature file does not record a grid of regions and how images were resized and cropped, so its "
                "regions have no place on them; extract features with this repository's scripts"
            )
        self.grid: tuple[int, int] = grid
        self.transform: Transform = transform
        self.groups = shown_groups(inputs.attribute_names, read_key_points(self.folder))
        self.attribute_group = attribute_groups(inputs.attribute_names, self.groups)  # (K,)

    def parts(self, rows: np.ndarray) -> Parts:
        """Part locations of the images in ``rows``."""
        metadata = self.inputs.metadata
        files = [metadata.image_files[row] for row in rows]
        paths, _ = resolve_images(self.folder, files)
        return read_parts(
            self.folder, files, paths, metadata.labels[rows], transform=self.transform, groups=self.groups
        )


Found = dict[str, tuple[list[Any], float]]  # kind of map -> where it says the parts are (N,G,2), and own/others


@torch.no_grad()
def look(config: RunConfig, inputs: Inputs, places: Places, fold: Fold, parts: Parts) -> Found:
    """What a method's maps say of the fold's unseen images, a batch at a time: by θ, and where there is evidence by its
    positive part too, as a share of what it sums to over the image.
    """
    model, rows = best_on_fold(config, inputs, fold)[0].model, fold.unseen_rows
    has, G = inputs.metadata.original_att, len(places.groups)
    points, tables = defaultdict(list), defaultdict(list)
    for start in range(0, len(rows), BATCH):
        here = slice(start, start + BATCH)
        a = model.attend(inputs.features.batch(rows[here]))
        assert a is not None
        values = (a.w if a.e is None else a.e).float().cpu().numpy()  # (n,K)
        block = parts.of(here)
        # half of the largest value: half of the people who were asked saw it there (CUB's are percentages)
        present = has[block.labels] > has.max() / 2  # (n,K)
        maps = {"θ": a.theta} | ({} if a.ev is None else {"evidence": F.normalize(a.ev.relu(), p=1, dim=1)})
        for kind, of_kind in maps.items():
            shares = of_kind.float().cpu().numpy()  # (n,R,K)
            points[kind].append(predicted_points(shares, values, places.attribute_group, G, places.grid))
            tables[kind].append(own_and_others(shares, block, places.attribute_group, present, places.grid))
    return {kind: (np.concatenate(points[kind]).tolist(), ratio_of(tables[kind])) for kind in points}


def measure(inputs: Inputs, places: Places, methods: list[str], splits: int, out: Path, precision: str) -> pd.DataFrame:
    """Rows of the table."""
    tables = []
    for split in range(splits):
        fold = validation_fold(inputs.metadata, inputs.w2v, split)
        parts, training = (places.parts(rows) for rows in (fold.unseen_rows, fold.train_rows))
        points, ratio = {}, {}
        for name in methods:
            config = config_of(name, inputs, split, precision)
            digest = hashlib.sha256(parts.points.tobytes()).hexdigest()
            make = partial(look, config, inputs, places, fold, parts)
            for kind, (found, own) in kept(out, config, {"parts": digest, "groups": places.groups}, make).items():
                points[f"{name}, {kind}"], ratio[f"{name}, {kind}"] = np.array(found), own
                log.info("split %d, %s, %s: own/others %.2f", split, name, kind, own)
        rng = np.random.default_rng(split)
        rows = localisation_table(points, parts, training, grid=places.grid, radius=RADIUS, rng=rng)
        tables.append(rows.assign(split=split, own_over_others=rows.point.map(ratio)))
    return pd.concat(tables, ignore_index=True)


def main(argv: list[str] | None = None) -> int:
    """Measure, and write the table."""
    parser = arguments(__doc__, splits=1)
    parser.add_argument("--methods", nargs="+", default=["vsmr", "dazle"], help="(vsmr dazle)")
    args = parser.parse_args(argv)
    methods = list(dict.fromkeys(args.methods))
    inputs = inputs_of(args)
    places = Places(inputs, args.data_root or DEFAULT_ROOT)
    space, shape = validation_fold(inputs.metadata, inputs.w2v).space, (inputs.features.R, inputs.features.D)
    for name in methods:  # before hours of training
        registered = find_method(name)
        model = registered.build(registered.recipe(inputs.dataset), space, shape, 0, 1).model
        if type(model).attend is ZeroShotModel.attend:
            raise UserError(f"--methods {name}: it has no attention over regions, so it says of no part where it is")
    rows = measure(inputs, places, methods, args.splits, args.out, args.precision)
    means = rows.groupby("point", sort=False)[["share", "low", "high", "own_over_others"]].mean()
    means[["share", "low", "high"]] *= 100
    write(args.out / "localisation.csv", rows, means)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
