"""Feature files and data roots of a few noise images, for the tests of what reads and writes them."""

from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

from core.datasets.metadata import Metadata
from core.features.settings import ExtractionConfig
from core.features.writer import FeatureFileMetadata, Writer
from tests.helpers import toy_mats

SHAPE = (8, 7, 7)
TINY = ExtractionConfig(backbone="squeezenet1_1", weights="random", device="cpu", batch_size=4, input_size=64)


def metadata(n: int = 60) -> Metadata:
    """Six classes, the last two unseen; n must be a multiple of six."""
    labels = np.repeat(np.arange(6), n // 6)
    seen = np.flatnonzero(labels < 4)
    test_seen, trainval = seen[::5], np.setdiff1d(seen, seen[::5])
    return Metadata(
        name="DEMO",
        image_files=[f"images/{i}.png" for i in range(n)],
        labels=labels,
        class_names=[f"class {c}" for c in range(6)],
        att=np.random.default_rng(0).random((6, 5)).astype(np.float32),
        original_att=np.ones((6, 5), np.float32),
        trainval_loc=trainval,
        test_seen_loc=test_seen,
        test_unseen_loc=np.flatnonzero(labels >= 4),
        train_loc=trainval[labels[trainval] < 3],
        val_loc=trainval[labels[trainval] == 3],
        split_sha256="0" * 64,
    )


def content(n: int = 60, **other: str | int) -> FeatureFileMetadata:
    provenance = {"dataset": "DEMO", "backbone": "tiny", **other}
    return FeatureFileMetadata(metadata(n), provenance, np.ones((5, 3), np.float32))


def maps(n: int = 60) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((n, *SHAPE)).astype(np.float16)


def write(path: Path, n: int = 60) -> Path:
    with Writer(path, content(n), SHAPE) as writer:
        writer.write(np.arange(n), maps(n))
        return writer.finish()


def make_data(root: Path, n: int = 36) -> Path:
    """Six classes of noise images in the demo's layout, with xlsa17's two .mat files."""
    rng = np.random.default_rng(0)
    folder = root / "DEMO" / "DEMO_creatures"
    (folder / "images").mkdir(parents=True)
    names = [f"images/{i:03}.png" for i in range(n)]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(folder / name)
    labels = np.repeat(np.arange(6), n // 6)
    seen = np.flatnonzero(labels < 4)
    mats = root / "xlsa17" / "data" / "DEMO"
    mats.mkdir(parents=True)
    files = np.array([[f"/somewhere/DEMO_creatures/{name}"] for name in names], dtype=object)
    scipy.io.savemat(mats / "res101.mat", {"labels": labels[:, None] + 1, "image_files": files})
    scipy.io.savemat(
        mats / "att_splits.mat",
        {
            "att": rng.random((5, 6)),
            "original_att": rng.random((5, 6)),
            "allclasses_names": np.array([[f"class{c}"] for c in range(6)], dtype=object),
            "trainval_loc": np.setdiff1d(seen, seen[::3])[:, None] + 1,
            "test_seen_loc": seen[::3][:, None] + 1,
            "test_unseen_loc": np.flatnonzero(labels >= 4)[:, None] + 1,
        },
    )
    return root


def make_toy(root: Path) -> Path:
    """Nine classes of ten small pictures, coloured by their class, and xlsa17's files of TOY."""
    toy_mats(root / "xlsa17" / "data" / "TOY")
    rng, folder = np.random.default_rng(0), root / "TOY" / "TOY_images"
    for c in range(1, 10):
        (folder / f"c{c}").mkdir(parents=True)
        colour = rng.integers(0, 200, 3)
        for i in range(10):
            pixels = (colour + rng.integers(0, 56, (40, 48, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"c{c}" / f"{10 * (c - 1) + i}.jpg")
    return root
