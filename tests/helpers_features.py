"""Feature files and data roots of a few noise images, for the tests of what reads and writes them."""

from pathlib import Path

import h5py
import numpy as np
import scipy.io
from PIL import Image

from core.datasets.metadata import Metadata
from core.datasets.registry import DataSet
from core.features.settings import ExtractionConfig
from core.features.writer import FeatureFileMetadata, Writer
from tests.helpers import TOY, cells, metadata_of, toy_mats

SHAPE = (8, 7, 7)
TINY = ExtractionConfig(backbone="squeezenet1_1", weights="random", device="cpu", batch_size=4, input_size=64)


def metadata(n: int = 60) -> Metadata:
    """Six classes, the last two unseen; n must be a multiple of six."""
    return metadata_of(4, 2, n // 6, np.random.default_rng(0).random((6, 5)))


def content(n: int = 60, **other: str | int) -> FeatureFileMetadata:
    provenance = {"dataset": "DEMO", "backbone": "tiny", **other}
    return FeatureFileMetadata(metadata(n), provenance, np.ones((5, 3), np.float32))


def maps(n: int = 60) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((n, *SHAPE)).astype(np.float16)


def write(path: Path, whole: FeatureFileMetadata | None = None, values: np.ndarray | None = None) -> Path:
    values = maps() if values is None else values
    with Writer(path, whole or content(), values.shape[1:]) as writer:
        writer.write(np.arange(len(values)), values)
        return writer.finish()


def dazle(path: Path, m: Metadata, feature_map: np.ndarray, **changes: object) -> Path:
    """A file in DAZLE's layout: gzip, no names; ``changes`` replace arrays."""
    keys = ("labels", "att", "original_att", "trainval_loc", "test_seen_loc", "test_unseen_loc")
    chunks = (min(7, len(feature_map)), *feature_map.shape[1:])
    with h5py.File(path, "w") as file:
        file.create_dataset("feature_map", data=feature_map, compression="gzip", chunks=chunks)
        for key, values in ({key: getattr(m, key) for key in keys} | changes).items():
            file[key] = values
    return path


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
    toy_mats(
        root / "xlsa17" / "data" / "DEMO",
        labels=labels[:, None] + 1,
        image_files=cells([f"/somewhere/DEMO_creatures/{name}" for name in names]),
        att=rng.random((5, 6)),
        original_att=rng.random((5, 6)),
        allclasses_names=cells([f"class{c}" for c in range(6)]),
        trainval_loc=np.setdiff1d(seen, seen[::3])[:, None] + 1,
        test_seen_loc=seen[::3][:, None] + 1,
        test_unseen_loc=np.flatnonzero(labels >= 4)[:, None] + 1,
    )
    return root


def make_toy(root: Path, dataset: DataSet = TOY) -> Path:
    """Nine classes of ten small pictures, coloured by their first three attributes, and xlsa17's files of them."""
    paths = [f"c{i // 10 + 1}/{i}.jpg" for i in range(90)]
    files = cells([f"/a/b/{dataset.anchor}/{path}" for path in paths])
    _, splits = toy_mats(root / "xlsa17" / "data" / dataset.name, image_files=files)
    rng, colours = np.random.default_rng(0), 200 * scipy.io.loadmat(splits)["original_att"][:3].T
    for i, path in enumerate(paths):
        file = root / dataset.folders[0] / path
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = colours[i // 10] + rng.integers(0, 56, (40, 48, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(file)
    return root
