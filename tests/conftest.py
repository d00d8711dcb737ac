"""Small data that every test can make, and the shared real data where it is there."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from core.datasets.registry import Counts, DataSet
from core.datasets.xlsa17 import read_mat_files
from core.DAZLE import ClassSpace
from core.files import sandbox

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the shared real data are not beside the repository")
    return SHARED


TOY = DataSet(name="TOY", anchor="TOY_images", val_share=0.34)
TOY_COUNTS = Counts(seen=6, unseen=3, attributes=8, images=90, trainval=48, test_seen=12, test_unseen=30)


def in_process(request: bytes, timeout: float) -> tuple[int, bytes, bytes]:
    """In place of sandbox.run where a test reads many intact files: a child takes 0.2 s each."""
    function, arguments, *_ = json.loads(request)
    return 0, b"".join(sandbox.answer_to(function, arguments)), b""


@pytest.fixture
def no_child(monkeypatch):
    monkeypatch.setattr(sandbox, "run", in_process)


def toy_mats(folder: Path, **changes) -> tuple[Path, Path]:
    """xlsa17-format files of 6+3 classes x 10 images; ``changes`` replace variables (None removes)."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(1, 10), 10)
    att = rng.random((8, 9)) * (rng.random((8, 9)) > 0.3) + 0.01
    per_class = np.arange(90).reshape(9, 10) + 1
    content = {
        "labels": labels[:, None],
        "image_files": _cells([f"/a/b//TOY_images/c{y}/{i}.jpg" for i, y in enumerate(labels)]),
        "att": att / np.linalg.norm(att, axis=0),
        "original_att": att,
        "allclasses_names": _cells([f"class{c}" for c in range(9)]),
        "trainval_loc": per_class[:6, :8].reshape(-1, 1),
        "test_seen_loc": per_class[:6, 8:].reshape(-1, 1),
        "test_unseen_loc": per_class[6:].reshape(-1, 1),
    } | changes
    folder.mkdir(parents=True, exist_ok=True)
    first, second = folder / "res101.mat", folder / "att_splits.mat"
    images = {"labels", "image_files"}
    scipy.io.savemat(first, {k: v for k, v in content.items() if k in images and v is not None})
    scipy.io.savemat(second, {k: v for k, v in content.items() if k not in images and v is not None})
    return first, second


def _cells(values):
    out = np.empty((len(values), 1), dtype=object)
    out[:, 0] = values
    return out


@pytest.fixture
def toy(tmp_path, no_child):
    return read_mat_files(*toy_mats(tmp_path / "toy"), TOY)


class ToyFeatures:
    """Region maps (n,D,R) whose class is told by a few regions, so that training has something to learn."""

    def __init__(self, metadata, D=12, R=9):
        rng = np.random.default_rng(1)
        mix = rng.normal(size=(metadata.att.shape[1], D))
        base = rng.normal(size=(len(metadata.labels), D, R)) * 0.5
        spot = rng.integers(0, R, len(metadata.labels))
        base[np.arange(len(base)), :, spot] += 4 * (metadata.att @ mix)[metadata.labels]
        self.maps = base.astype(np.float16)
        self.shape = (R, D)

    def read(self, rows):
        return self.maps[rows]

    def expect(self, rows):
        self.expected = rows


@pytest.fixture
def toy_features(toy):
    return ToyFeatures(toy)


K, C, V = 11, 7, 5  # of ``space``


@pytest.fixture
def space() -> ClassSpace:
    """Four seen and three unseen classes in float64, for comparison with textbook forms."""
    g = torch.Generator().manual_seed(0)
    att = torch.rand(C, K, generator=g, dtype=torch.float64) * (torch.rand(C, K, generator=g) > 0.4)
    att[:, 0] += 0.1
    return ClassSpace(att, torch.tensor([0, 1, 3, 5]), torch.tensor([2, 4, 6]), torch.randn(K, V, generator=g))
