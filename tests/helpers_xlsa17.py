"""AWA2, CUB and SUN, drawn: files of the shape of the published ones, with names and numbers that mean nothing.

What readers rest on is as in xlsa17's files: counts of classes and attributes, the authors' order of classes, labels
and locs counted from 1, absolute image paths of the authors' machines, -1 for what AWA2's annotators left out.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

from core.datasets.registry import CUB50_SEEN, CUB50_UNSEEN, DATASETS, Counts
from tests.helpers import cells

SPLITS = ("trainval_loc", "test_seen_loc", "test_unseen_loc")
COUNTS = {name: DATASETS[name].counts for name in ("AWA2", "CUB", "SUN")}
CUB50_NUMBERS = (*CUB50_SEEN, *CUB50_UNSEEN)
# of these the attribute names are made, so a few hundred vectors serve all three data sets
COLOURS = ("black", "white", "blue", "brown", "grey", "orange", "red", "yellow", "olive", "pink", "buff", "rufous")
BODY = ("bill", "wing", "tail", "belly", "throat", "crown", "back", "nape", "leg", "eye", "breast", "forehead", "head")
PLACES = ("water", "rock", "snow", "grass", "glass", "metal", "concrete", "sand", "ice", "leaves", "cloth", "brick")
DEEDS = ("sailing", "driving", "biking", "eating", "reading", "diving", "digging", "praying", "working", "camping")
SYLLABLES = ("ba", "den", "fi", "gor", "hul", "ka", "lem", "mo", "nar", "pi", "quo", "ras", "su", "tev", "wi", "zor")


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
    counts = counts_of(name)
    total = counts.seen + counts.unseen
    rng = np.random.default_rng(total)
    words: list[str] = []
    while len(words) < 2 * total:
        word = "".join(rng.choice(SYLLABLES, 3))
        if word not in words:
            words.append(word)
    pairs = list(zip(words[:total], words[total:], strict=True))
    unseen = np.zeros(total, dtype=bool)
    if name == "CUB":  # the seen ones first, each part by number
        unseen[-counts.unseen :] = True
        numbers = np.arange(1, total + 1)
        apart = numbers % 4 == 1
        numbers = np.concatenate([numbers[~apart], numbers[apart]])
        return [f"{n:03}.{a.title()}_{b.title()}" for n, (a, b) in zip(numbers, pairs, strict=True)], unseen
    unseen[np.linspace(2, total - 2, counts.unseen).astype(int)] = True
    if name == "AWA2":
        return [f"{a}+{b}" if i % 3 == 1 else a for i, (a, b) in enumerate(pairs)], unseen
    return sorted(f"{a}_{b}" if i % 3 else a for i, (a, b) in enumerate(pairs)), unseen


def attribute_names(name: str) -> list[str]:
    """(K,) names of the data set's style, all of their words in :func:`write_glove`'s file."""
    if name == "AWA2":
        found = [*COLOURS[:11], "newworld", "quadrapedal", *BODY, *PLACES, *DEEDS]
        found += [f"{a}{b}" for a in DEEDS for b in BODY]  # words of their own, as AWA2's toughskin
    elif name == "CUB":
        found = [
            "has_bill_shape::curved_(up_or_down)",
            "has_size::large_(16_-_32_in)",
            "has_wing_shape::red-water-like",
        ]
        found += [f"has_{part}_color::{colour}" for part in BODY for colour in COLOURS]
        found += [f"has_{part}_pattern::{place}" for part in BODY for place in PLACES]
    else:
        found = ["rock/ brick", "wood (not part of a leg)", "man-made", *DEEDS, *PLACES]
        found += [f"{deed}/ {place}" for deed in DEEDS for place in PLACES]
    return found[: counts_of(name).attributes]


def write_glove(path: Path) -> Path:
    """Vectors (300) of every word in the attribute names, in GloVe's text format."""
    from core.datasets.names import clean_name

    words = {word for name in COUNTS for attribute in attribute_names(name) for word in clean_name(attribute)}
    rng = np.random.default_rng(0)
    lines = [f"{word} {' '.join(f'{x:.3f}' for x in rng.standard_normal(300))}\n" for word in sorted(words)]
    path.write_text("".join(lines))
    return path


def draw(
    root: Path,
    name: str,
    images: tuple[int, int, int] | None,
    *,
    cub50: tuple[int, int, int] | None = None,
    leaking: bool = False,
) -> Drawn:
    """Write ``root``/xlsa17/data/``name``/{res101,att_splits}.mat and the attribute names; no images.

    Args:
        images: of each class in SPLITS; None: as many as published.
        cub50: the same of the classes of the CUB50 subset.
        leaking: with the train_loc and val_loc of the other circulating files, which hold all of test_seen.
    """
    names, unseen = class_names(name)
    counts = counts_of(name)
    per_class = published(counts, unseen) if images is None else np.tile(images, (len(names), 1))
    if cub50 is not None:
        per_class[[c for c, n in enumerate(names) if int(n.split(".")[0]) in CUB50_NUMBERS]] = cub50
    per_class[unseen, :2] = 0
    per_class[~unseen, 2] = 0
    # CUB's images lie in the order of the official numbers, not of the labels
    order = np.argsort(names) if name == "CUB" else np.arange(len(names))
    labels = np.repeat(order, per_class[order].sum(axis=1))
    paths = list(image_paths(name, names, labels))

    rng = np.random.default_rng(1)
    parts: dict[str, list[np.ndarray]] = {key: [] for key in SPLITS}
    for c in range(len(names)):
        rows = rng.permutation(np.flatnonzero(labels == c))
        for key, part in zip(SPLITS, np.split(rows, np.cumsum(per_class[c])[:-1]), strict=True):
            parts[key].append(part)
    locs = {key: rng.permutation(np.concatenate(found)) for key, found in parts.items()}

    folder = root / "xlsa17" / "data" / name
    folder.mkdir(parents=True)
    scipy.io.savemat(folder / "res101.mat", {"labels": labels[:, None] + 1, "image_files": cells(paths)})
    content = {"allclasses_names": cells(names), **attributes(name, len(names), counts.attributes)}
    content |= {key: (loc + 1).astype(np.uint16)[:, None] for key, loc in locs.items()}
    if leaking:
        held = rng.permutation(np.flatnonzero(~unseen))[: round(DATASETS[name].val_share * counts.seen)]
        both = np.concatenate([locs["trainval_loc"], locs["test_seen_loc"]])
        inside = np.isin(labels[both], held)
        content |= {"train_loc": both[~inside][:, None] + 1, "val_loc": both[inside][:, None] + 1}
    scipy.io.savemat(folder / "att_splits.mat", content)
    write_attribute_names(root, name)
    return Drawn(root, name, {key: {paths[i] for i in loc} for key, loc in locs.items()})


def paint(drawn: Drawn) -> None:
    """A small noisy image, coloured by its class, at each path that res101.mat names."""
    folder = DATASETS[drawn.name].folders[0]
    rng = np.random.default_rng(2)
    colours: dict[Path, np.ndarray] = {}
    for path in sorted(set().union(*drawn.splits.values())):
        target = drawn.root / folder / below(path, drawn.name)
        if target.parent not in colours:
            colours[target.parent] = rng.integers(40, 216, 3)
            target.parent.mkdir(parents=True, exist_ok=True)
        pixels = colours[target.parent] + rng.integers(-40, 40, (36, 44, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(target, format="JPEG")


def below(path: str, name: str) -> str:
    """An xlsa17 image path from below the data set's own folder on."""
    return path.split(f"/{DATASETS[name].anchor}/")[1].lstrip("/")


def counts_of(name: str) -> Counts:
    counts = COUNTS[name]
    assert counts is not None
    return counts


def published(counts: Counts, unseen: np.ndarray) -> np.ndarray:
    """Images of each class in each split (C,3) that add up to the published numbers."""
    found = np.zeros((len(unseen), 3), dtype=int)
    for column, total, classes in (
        (0, counts.trainval, np.flatnonzero(~unseen)),
        (1, counts.test_seen, np.flatnonzero(~unseen)),
        (2, counts.test_unseen, np.flatnonzero(unseen)),
    ):
        found[classes, column] = total // len(classes)
        found[classes[: total % len(classes)], column] += 1
    return found


def image_paths(name: str, names: list[str], labels: np.ndarray) -> Iterator[str]:
    """Absolute paths in the manner of the authors' machines, one an image."""
    seen_before: dict[int, int] = {}
    for c in labels.tolist():
        i = seen_before[c] = seen_before.get(c, 0) + 1
        known = names[c]
        if name == "AWA2":
            yield f"/XX/someone/datasets/data/Animals_with_Attributes2//JPEGImages/{known}/{known}_{10000 + i}.jpg"
        elif name == "CUB":
            bird = known.split(".")[1]
            yield f"/XX/some_group/datasets/CUB_200_2011/images/{known}/{bird}_{i:04}_{796000 + 7 * i}.jpg"
        else:  # a third of the two-part names lie in a folder of the first part, as a/apse/indoor
            where = known.replace("_", "/") if c % 3 == 0 else known
            yield f"/XX/some_group/datasets/SUN/images/{known[0]}/{where}/sun_a{i:03}{known[:4]}.jpg"


def attributes(name: str, C: int, K: int) -> dict[str, np.ndarray]:
    """original_att (K,C), some values absent, and att with columns of length 1."""
    rng = np.random.default_rng(C + K)
    original = rng.uniform(1, 100, (K, C)) * (rng.random((K, C)) < 0.4)
    original[0] = rng.uniform(1, 100, C)
    if name == "AWA2":
        original[rng.random((K, C)) < 0.01] = -1
    return {"original_att": original, "att": original / np.linalg.norm(original, axis=0)}


def write_attribute_names(root: Path, name: str) -> Path:
    """The list where the data set's archive has it: numbered lines, or SUN's attributes.mat."""
    dataset = DATASETS[name]
    path = root / dataset.folders[0] / dataset.attribute_file
    path.parent.mkdir(parents=True, exist_ok=True)
    names = attribute_names(name)
    if path.suffix == ".mat":
        scipy.io.savemat(path, {"attributes": cells(names)})
    else:
        form = "{:6d}\t{}\n" if name == "AWA2" else "{} {}\n"
        path.write_text("".join(form.format(i, n) for i, n in enumerate(names, 1)))
    return path


def tiny_features(root: Path, D: int = 16, grid: tuple[int, int] = (2, 2)) -> dict[str, Path]:
    """A drawn AWA2 with random features and vectors on disk: what a run needs, as arguments of a plan."""
    from core.datasets.xlsa17 import read_metadata
    from core.features.layout import FeatureFileMetadata
    from core.features.writer import Writer

    draw(root, "AWA2", PARTS["AWA2"].images)
    metadata = read_metadata(root, DATASETS["AWA2"])
    rng = np.random.default_rng(3)
    base = (metadata.att @ rng.standard_normal((metadata.att.shape[1], D)))[metadata.labels]  # (N,D)
    maps = base[:, :, None, None] + 0.1 * rng.standard_normal((len(base), D, *grid))
    features = root / "features.hdf5"
    with Writer(
        features, FeatureFileMetadata(metadata, {"dataset": "AWA2", "backbone": "drawn"}), (D, *grid)
    ) as writer:
        writer.write(np.arange(len(maps)), maps)
        writer.finish()
    w2v = root / "vectors.pkl"
    w2v.write_bytes(pickle.dumps(rng.standard_normal((metadata.att.shape[1], 8)).astype(np.float32), protocol=2))
    return {"data_root": root, "features": features, "w2v": w2v}
