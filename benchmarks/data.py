"""Generated inputs: images laid out as the demo data set, and feature files of any size."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

from core.datasets.metadata import Metadata
from core.datasets.registry import DEMO
from core.features.layout import FeatureFileMetadata
from core.features.writer import Writer

_DIFFERENT = 64  # different images or rows; the others repeat them


def _splits(n: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Labels of six classes in turn, and 0-based splits: classes 4 and 5 unseen, a third of the seen held out."""
    labels = np.arange(n) % 6
    seen = np.flatnonzero(labels < 4)
    held = seen[np.arange(len(seen)) // 4 % 3 == 0]
    test_unseen = np.flatnonzero(labels >= 4)
    return labels, {
        "trainval_loc": np.setdiff1d(seen, held),
        "test_seen_loc": held,
        "test_unseen_loc": test_unseen,
    }


def make_images(root: Path, n: int, width: int = 500, height: int = 375) -> Path:
    """n JPEG files of a photograph's size (hard links to a few different ones) and xlsa17's two .mat files."""
    if n < 24:
        raise ValueError("24 images are the fewest with a test image in every class")
    folder = root / DEMO.folders[0]
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [f"images/{i:06}.jpg" for i in range(n)]
    for i, name in enumerate(names):
        if i < _DIFFERENT:
            (folder / name).write_bytes(_photograph(rng, width, height))
        else:
            os.link(folder / names[i % _DIFFERENT], folder / name)
    labels, splits = _splits(n)
    mats = root / "xlsa17" / "data" / DEMO.source
    mats.mkdir(parents=True)
    files = np.array([[f"/{DEMO.anchor}/{name}"] for name in names], dtype=object)
    scipy.io.savemat(mats / "res101.mat", {"labels": labels[:, None] + 1, "image_files": files})
    classes = np.array([[f"class{c}"] for c in range(6)], dtype=object)
    one_based = {key: rows[:, None] + 1 for key, rows in splits.items()}
    scipy.io.savemat(mats / "att_splits.mat", {"att": rng.random((5, 6)), "allclasses_names": classes, **one_based})
    return root


def _photograph(rng: np.random.Generator, width: int, height: int) -> bytes:
    """JPEG bytes with detail at every scale, as photographs have: about 100 kB at 500x375."""
    pixels = np.zeros((height, width, 3), dtype=np.float32)
    for scale in (4, 16, 64, 256):
        coarse = Image.fromarray(rng.integers(0, 256, (scale, scale, 3), dtype=np.uint8))
        pixels += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32) / scale**0.5
    low, high = pixels.min(), pixels.max()
    buffer = io.BytesIO()
    Image.fromarray(((pixels - low) * (255 / (high - low))).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def random_maps(rows: int, D: int, grid: tuple[int, int], seed: int = 0) -> np.ndarray:
    """(rows,D,h,w) float16, not negative, as a ReLU leaves them."""
    rng = np.random.default_rng(seed)
    return np.maximum(rng.standard_normal((rows, D, *grid), dtype=np.float32), 0).astype(np.float16)


def make_feature_file(path: Path, n: int, D: int = 2048, grid: tuple[int, int] = (7, 7)) -> Path:
    """A complete feature file of n rows, written by core's Writer."""
    labels, splits = _splits(n)
    att = np.random.default_rng(0).random((6, 5), dtype=np.float32)
    none = np.empty(0, dtype=np.int64)
    metadata = Metadata(
        name=DEMO.name,
        image_files=[f"images/{i:06}.jpg" for i in range(n)],
        labels=labels,
        class_names=[f"class{c}" for c in range(6)],
        att=att,
        original_att=att,
        train_loc=none,
        val_loc=none,
        split_sha256="generated",
        trainval_loc=splits["trainval_loc"],
        test_seen_loc=splits["test_seen_loc"],
        test_unseen_loc=splits["test_unseen_loc"],
    )
    block = random_maps(_DIFFERENT, D, grid)
    with Writer(path, FeatureFileMetadata(metadata, {"dataset": DEMO.source}), (D, *grid)) as writer:
        for start in range(0, n, len(block)):
            rows = np.arange(start, min(start + len(block), n))
            writer.write(rows, block[: len(rows)])
        return writer.finish()
