"""AWA2, CUB and SUN, drawn: files of the shape of the published ones, with names and numbers that mean nothing.

What readers rest on is as in xlsa17's files: counts of classes and attributes, the authors' order of classes, labels
and locs counted from 1, absolute image paths of the authors' machines, -1 for what AWA2's annotators left out.
"""

import itertools
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

from core.datasets.names import clean_name
from core.datasets.registry import CUB50_SEEN, CUB50_UNSEEN, DATASETS
from core.datasets.xlsa17 import read_metadata
from core.features.writer import FeatureFileMetadata
from tests.helpers import cells
from tests.helpers_features import write

SPLITS = ("trainval_loc", "test_seen_loc", "test_unseen_loc")
COUNTS = {name: DATASETS[name].counts for name in ("AWA2", "CUB", "SUN")}
# of these the attribute names are made, so a few dozen vectors serve all three data sets
COLOURS = ["black", "white", "blue", "brown", "grey", "orange", "red", "yellow", "olive", "pink", "buff", "rufous"]
BODY = ["bill", "wing", "tail", "belly", "throat", "crown", "back", "nape", "leg", "eye", "breast", "brow", "head"]
DEEDS = ["sailing", "driving", "biking", "eating", "reading", "diving", "digging", "praying", "working", "camping"]


@dataclass(frozen=True)
class Part:
    """How many images of a data set are drawn, and what their features are made with."""

    images: tuple[int, int, int]  # of each class in SPLITS
    backbone: str
    input_size: int
    grid: tuple[int, int, int]  # (D,h,w) of its features
    cub50: tuple[int, int, int] | None = None  # of the classes of CUB50, which takes ten test images of each


PARTS = {
    "AWA2": Part((3, 1, 2), "shufflenet_v2_x0_5", 96, (1024, 3, 3)),
    "CUB": Part((2, 1, 2), "mobilenet_v3_small", 96, (576, 3, 3), cub50=(10, 3, 13)),
    "SUN": Part((2, 1, 1), "shufflenet_v2_x0_5", 64, (1024, 2, 2)),
}


@dataclass(frozen=True)
class Drawn:
    """One data set below a data root: the image paths (as in res101.mat) of each split."""

    root: Path
    name: str
    splits: dict[str, set[str]]

    @property
    def images(self) -> int:
        return sum(map(len, self.splits.values()))


Maker = Callable[[str], tuple[Path, Drawn]]  # type of the fixture ``made``


def class_names(name: str) -> tuple[list[str], np.ndarray]:
    """Names (C,) in the order of allclasses_names, and which of them are unseen (C,) bool."""
    seen, total = COUNTS[name].seen, COUNTS[name].seen + COUNTS[name].unseen
    numbers = range(1, total + 1)
    if name == "CUB":  # the seen ones first, each part by number
        return [f"{n:03}.Kind_{n}" for n in sorted(numbers, key=lambda n: n % 4 == 1)], np.arange(total) >= seen
    mark = "+" if name == "AWA2" else "_"
    unseen = np.isin(np.arange(total), np.linspace(2, total - 2, total - seen).astype(int))
    return [f"kind{mark}{n:03}" if n % 3 else f"kind{n:03}" for n in numbers], unseen


def attribute_names(name: str) -> list[str]:
    """(K,) names of the data set's style, all of their words in :func:`write_glove`'s file."""
    pairs = list(itertools.product(DEEDS, BODY))
    if name == "AWA2":
        found = [*COLOURS, "newworld", "quadrapedal", *(f"{a}{b}" for a, b in pairs)]  # as AWA2's toughskin
    elif name == "CUB":
        found = ["has_bill_shape::curved_(up_or_down)", "has_wing_shape::red-water-like"]
        found += [f"has_{part}_{of}::{c}" for of in ("color", "shape") for part in BODY for c in COLOURS]
    else:
        found = ["rock/ brick", "wood (not part of a leg)", "man-made", *(f"{a}/ {b}" for a, b in pairs)]
    return found[: COUNTS[name].attributes]


def write_glove(path: Path) -> Path:
    """Vectors (300) of every word in the attribute names, in GloVe's text format."""
    words = {word for name in COUNTS for attribute in attribute_names(name) for word in clean_name(attribute)}
    rng = np.random.default_rng(0)
    lines = [f"{word} {' '.join(f'{x:.3f}' for x in rng.standard_normal(300))}\n" for word in sorted(words)]
    path.write_text("".join(lines))
    return path


def draw(
    root: Path, name: str, images: tuple[int, int, int] | None, *, cub50: tuple[int, int, int] | None = None
) -> Drawn:
    """Write ``root``/xlsa17/data/``name``/{res101,att_splits}.mat and the attribute names; no images.

    Args:
        images: of each class in SPLITS; None: as many as published.
        cub50: the same of the classes of the CUB50 subset.
    """
    dataset, (names, unseen), counts = DATASETS[name], class_names(name), COUNTS[name]
    K, C, rng = counts.attributes, len(names), np.random.default_rng(1)
    per_class = np.zeros((C, 3), int)  # images of each class in each split
    for side, (key, inside) in enumerate(zip(SPLITS, (~unseen, ~unseen, unseen), strict=True)):
        total = getattr(counts, key.removesuffix("_loc"))
        shares = [len(part) for part in np.array_split(np.arange(total), inside.sum())]
        per_class[inside, side] = shares if images is None else images[side]
        if cub50 is not None:
            numbers = np.array([int(n.split(".")[0]) for n in names])
            per_class[inside & np.isin(numbers, (*CUB50_SEEN, *CUB50_UNSEEN)), side] = cub50[side]
    # CUB's images lie in the order of the official numbers, not of the labels
    order = np.argsort(names) if name == "CUB" else np.arange(C)
    labels = np.repeat(order, per_class[order].sum(axis=1))
    paths = [f"/XX/someone/datasets//{dataset.anchor}/{_file(name, names[c], c, i)}" for i, c in enumerate(labels)]
    parts = [np.split(rng.permutation(np.flatnonzero(labels == c)), np.cumsum(per_class[c])[:2]) for c in range(C)]
    locs = {key: rng.permutation(np.concatenate([p[side] for p in parts])) for side, key in enumerate(SPLITS)}
    original = rng.uniform(1, 100, (K, C)) * (rng.random((K, C)) < 0.4)  # some values absent
    original[0] = rng.uniform(1, 100, C)
    if name == "AWA2":
        original[rng.random((K, C)) < 0.01] = -1

    folder = root / "xlsa17" / "data" / name
    folder.mkdir(parents=True)
    scipy.io.savemat(folder / "res101.mat", {"labels": labels[:, None] + 1, "image_files": cells(paths)})
    att = original / np.linalg.norm(original, axis=0)
    content = {"allclasses_names": cells(names), "original_att": original, "att": att}
    content |= {key: (loc + 1).astype(np.uint16)[:, None] for key, loc in locs.items()}
    scipy.io.savemat(folder / "att_splits.mat", content)

    file = root / dataset.folders[0] / dataset.attribute_file
    file.parent.mkdir(parents=True, exist_ok=True)
    if name == "SUN":
        scipy.io.savemat(file, {"attributes": cells(attribute_names(name))})
    else:
        file.write_text("".join(f"{k:6d}\t{n}\n" for k, n in enumerate(attribute_names(name), 1)))
    return Drawn(root, name, {key: {paths[i] for i in loc} for key, loc in locs.items()})


def _file(name: str, known: str, c: int, i: int) -> str:
    """The image path of row ``i`` below the data set's folder, in the manner of its authors."""
    if name == "SUN":  # a third of the two-part names lie in a folder of the first part, as a/apse/indoor
        return f"images/{known[0]}/{known.replace('_', '/') if c % 3 == 0 else known}/sun_a{i:05}.jpg"
    return f"{'JPEGImages' if name == 'AWA2' else 'images'}/{known}/{known}_{i:05}.jpg"


def paint(drawn: Drawn) -> None:
    """A small noisy image, coloured by its class, at each path that res101.mat names."""
    rng = np.random.default_rng(2)
    colours: dict[Path, np.ndarray] = {}
    for path in sorted(set().union(*drawn.splits.values())):
        target = drawn.root / DATASETS[drawn.name].folders[0] / below(path, drawn.name)
        if target.parent not in colours:
            colours[target.parent] = rng.integers(40, 216, 3)
            target.parent.mkdir(parents=True, exist_ok=True)
        pixels = colours[target.parent] + rng.integers(-40, 40, (36, 44, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(target, format="JPEG")


def below(path: str, name: str) -> str:
    """An xlsa17 image path from below the data set's own folder on."""
    return path.split(f"/{DATASETS[name].anchor}/")[1].lstrip("/")


def tiny_features(root: Path, D: int = 16, grid: tuple[int, int] = (2, 2)) -> dict[str, Path]:
    """A drawn AWA2 with random features and vectors on disk: what a run needs, as arguments of a plan."""
    draw(root, "AWA2", PARTS["AWA2"].images)
    metadata, rng = read_metadata(root, DATASETS["AWA2"]), np.random.default_rng(3)
    base = (metadata.att @ rng.standard_normal((metadata.att.shape[1], D)))[metadata.labels]  # (N,D)
    maps = base[:, :, None, None] + 0.1 * rng.standard_normal((len(base), D, *grid))
    features, w2v = root / "features.hdf5", root / "vectors.pkl"
    write(features, FeatureFileMetadata(metadata, {"dataset": "AWA2", "backbone": "drawn"}), maps)
    w2v.write_bytes(pickle.dumps(rng.standard_normal((metadata.att.shape[1], 8)).astype(np.float32), protocol=2))
    return {"data_root": root, "features": features, "w2v": w2v}
