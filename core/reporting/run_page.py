"""The page of a finished run: why its model named the data set's test images as it did."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from core.datasets.paths import image_folder, resolve_images
from core.datasets.registry import DATASETS
from core.experiments.inputs import Inputs
from core.features.images import Transform
from core.files.errors import UserError
from core.inference.page import IMAGES, Item, write_page
from core.inference.trained import grid_said, load_trained


def draw_page(run_folder: Path, inputs: Inputs, data_root: Path, out: Path) -> Path:
    """Write the page for at most 200 test images, spread over the classes, and return its index.html."""
    metadata, features = inputs.metadata, inputs.features
    rows = spread(np.concatenate([metadata.test_unseen_loc, metadata.test_seen_loc]), metadata.labels, IMAGES)
    folder = image_folder(data_root, DATASETS[inputs.dataset])
    paths, missing = resolve_images(folder, [metadata.image_files[row] for row in rows])
    if missing:
        raise UserError(f"{len(missing)} of {len(paths)} images are missing, the first is {paths[missing[0]]}")
    items = [
        Item(picture=path, x=features.batch(np.array([row]))[0], truth=int(metadata.labels[row]))
        for row, path in zip(rows, paths, strict=True)
    ]
    grid, transform = grid_said(inputs.provenance["regions"]), transform_of(inputs.provenance.get("transform", ""))
    title = f"{inputs.dataset}, {inputs.provenance['name']}, test images"
    trained = load_trained(run_folder, features.device)
    return write_page(trained, items, out, grid=grid, transform=transform, title=title)


def spread(rows: np.ndarray, labels: np.ndarray, most: int) -> np.ndarray:
    """At most ``most`` of the rows: the first of every class, then the second of every class, and so on; by class."""
    turn = pd.Series(rows).groupby(labels[rows]).cumcount().to_numpy()  # of a row among those of its class
    taken = np.argsort(turn, kind="stable")[:most]
    return rows[taken[np.argsort(labels[rows[taken]], kind="stable")]]


def transform_of(said: str) -> Transform | None:
    """The geometry of a feature file's transform, as str(Transform) records it; None where it records none."""
    found = re.match(r"Resize\((\d+), (\w+)\) CenterCrop\((\d+)\)", said)
    return Transform(int(found[3]), int(found[1]), found[2]) if found else None
