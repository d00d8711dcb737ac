"""Whole experiments of `vsmr` of the three data sets' sizes: validation, refit, test scores, every file written.

    python -m benchmarks.whole_runs                        # 5 seeds each on a GPU, one after another
    python -m benchmarks.whole_runs --device cpu --seeds 1 # one seed each on the CPU; needs 10 GB of memory
    python -m benchmarks.whole_runs --device cpu --trial   # tiny sizes on the CPU: does the script run?

The features are generated (their values do not matter for time), the classes and numbers of images are the real ones.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.common import SHAPES, Row, Shape, lacks_gpu, parser, report
from benchmarks.data import random_maps
from core.datasets.metadata import VALIDATION_SEED, Metadata, class_disjoint_split
from core.datasets.registry import DATASETS
from core.experiments.identity import run_config
from core.experiments.inputs import Inputs
from core.experiments.run import run
from core.features.regions import RegionFeatures
from core.method import find_method

SEEDS = 5
_BANK = 509  # different generated images; the others repeat them, rotated through the data set


class Generated:
    """A feature source of any number of rows that needs the memory of a few."""

    def __init__(self, D: int, R: int) -> None:
        self.bank = random_maps(_BANK, D, (R, 1)).reshape(_BANK, D, R)

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self.bank[np.asarray(rows) % _BANK]

    def prefetch(self, rows: np.ndarray) -> None:
        """Nothing to fetch."""


def metadata_of(shape: Shape, images: tuple[int, int, int]) -> Metadata:
    """Labels and splits of a data set's size, every class with images."""
    rng = np.random.default_rng(0)
    seen, unseen = np.arange(shape.C - shape.unseen), np.arange(shape.C - shape.unseen, shape.C)
    labels = [rng.permutation(np.resize(classes, n)) for classes, n in zip((seen, seen, unseen), images, strict=True)]
    bounds = np.cumsum([0, *images])
    trainval, test_seen, test_unseen = (np.arange(a, b) for a, b in itertools.pairwise(bounds))
    together = np.concatenate(labels)
    train, val = class_disjoint_split(together, trainval, DATASETS[shape.name].val_share, VALIDATION_SEED)
    att = rng.random((shape.C, shape.K), dtype=np.float32)
    return Metadata(
        name=shape.name,
        image_files=[],
        labels=together,
        class_names=[f"class {c}" for c in range(shape.C)],
        att=att,
        original_att=att,
        trainval_loc=trainval,
        test_seen_loc=test_seen,
        test_unseen_loc=test_unseen,
        train_loc=train,
        val_loc=val,
        split_sha256="generated",
        notes=["generated"],
    )


def whole_runs(device: str, trial: bool, seeds: int = SEEDS) -> list[Row]:
    """Seconds of all seeds of each data set, the loading of the features included, and of all data sets."""
    if trial:
        seeds = 2
    made, total = [], 0.0
    for shape in SHAPES.values():
        counts = DATASETS[shape.name].counts
        assert counts is not None
        images = (counts.trainval, counts.test_seen, counts.test_unseen)
        if trial:
            images = (2 * shape.C, shape.C, shape.unseen)
            shape = replace(shape, D=32, R=4)
        metadata = metadata_of(shape, images)
        started = time.perf_counter()
        inputs = inputs_of(shape, metadata, device)
        for seed in range(seeds):
            experiment(inputs, seed)
        taken = time.perf_counter() - started
        del inputs  # before the features of the next data set are there
        total += taken
        what = f"vsmr, {seeds} seeds of {shape}, {sum(images)} images"
        made.append(Row(what, "", f"{taken:.1f} s", f"{taken / seeds:.1f} s a seed"))
    return [*made, Row("all of these", "", f"{total / 60:.1f} min")]


def inputs_of(shape: Shape, metadata: Metadata, device: str) -> Inputs:
    """What load_inputs finds for a real data set, generated."""
    return Inputs(
        dataset=shape.name,
        metadata=metadata,
        w2v=np.random.default_rng(1).standard_normal((shape.K, shape.V), dtype=np.float32),
        features=RegionFeatures(
            Generated(shape.D, shape.R), np.arange(len(metadata.labels)), (shape.R, shape.D), device
        ),
        provenance={"name": "generated", "regions": f"{shape.R}x1"},
        vectors=None,
        features_sha256="generated",
        vectors_sha256="generated",
        split_sha256="generated",
        attribute_names=[f"attribute {k + 1}" for k in range(shape.K)],
    )


def experiment(inputs: Inputs, seed: int) -> None:
    """What reproduce_tables.py does for one seed of a data set, in a folder that is thrown away."""
    config = run_config(inputs, "vsmr", find_method("vsmr").recipe(inputs.dataset), seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        run(config, inputs, Path(folder), diagnostics=False)


def arguments() -> argparse.ArgumentParser:
    made = parser(__doc__)
    made.add_argument("--device", default="cuda", help="default: %(default)s")
    made.add_argument("--seeds", type=int, default=SEEDS, help="default: %(default)s")
    return made


def main() -> int:
    args = arguments().parse_args()
    if lacks_gpu(args.device):
        return 0
    return report(whole_runs(args.device, args.trial, args.seeds), args)


if __name__ == "__main__":
    sys.exit(main())
