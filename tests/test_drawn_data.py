"""The drawn AWA2, CUB and SUN have what the readers rest on in the published files, at their full numbers."""

import os
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from core.datasets.metadata import Metadata
from core.datasets.names import read_attribute_names
from core.datasets.registry import DATASETS
from core.datasets.xlsa17 import read_metadata
from core.files.errors import UserError
from tests.helpers_xlsa17 import COUNTS, Drawn, draw


@pytest.fixture(scope="module", params=list(COUNTS))
def full(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Drawn, Metadata]:
    """All images by name, with the train_loc and val_loc that leak test images where such files circulate."""
    name = request.param
    drawn = draw(tmp_path_factory.mktemp(name), name, None, leaking=name != "CUB")
    return drawn, read_metadata(drawn.root, DATASETS[name])


def mats(drawn: Drawn) -> dict:
    folder = drawn.root / "xlsa17" / "data" / drawn.name
    return scipy.io.loadmat(folder / "res101.mat") | scipy.io.loadmat(folder / "att_splits.mat")


def test_published_counts_and_validation_classes(full: tuple[Drawn, Metadata]) -> None:
    drawn, m = full
    assert not any("subset" in note for note in m.notes)  # every published count is met
    assert len(read_attribute_names(DATASETS[drawn.name], drawn.root)) == m.att.shape[1]
    held = np.unique(m.labels[m.val_loc])
    assert len(held) == round(DATASETS[drawn.name].val_share * len(m.seen))
    assert not np.intersect1d(held, m.labels[m.train_loc]).size
    assert not np.isin(np.r_[m.train_loc, m.val_loc], np.r_[m.test_seen_loc, m.test_unseen_loc]).any()
    if drawn.name == "CUB":
        assert "train_loc" not in mats(drawn)
        return
    assert any(f"{len(m.test_seen_loc)} of its images lie outside" in note for note in m.notes)
    both = np.concatenate([mats(drawn)[key].ravel() - 1 for key in ("train_loc", "val_loc")])
    assert np.array_equal(np.sort(both), np.sort(np.r_[m.trainval_loc, m.test_seen_loc]))


def test_one_image_in_another_split_is_no_proposed_split(full: tuple[Drawn, Metadata], tmp_path: Path) -> None:
    """The counts are held on full data, not only noted."""
    drawn, _ = full
    folder = drawn.root / "xlsa17" / "data" / drawn.name
    raw = {k: v for k, v in scipy.io.loadmat(folder / "att_splits.mat").items() if not k.startswith("__")}
    moved = raw["trainval_loc"][0]
    raw["test_seen_loc"] = np.append(raw["test_seen_loc"].ravel(), moved)[:, None]
    raw["trainval_loc"] = raw["trainval_loc"][1:]
    copy = tmp_path / "xlsa17" / "data" / drawn.name
    copy.mkdir(parents=True)
    os.link(folder / "res101.mat", copy / "res101.mat")
    scipy.io.savemat(copy / "att_splits.mat", raw)
    with pytest.raises(UserError, match=f"not the proposed split of {drawn.name}"):
        read_metadata(tmp_path, DATASETS[drawn.name])


def test_they_hold_what_the_real_files_hold(full: tuple[Drawn, Metadata], shared: Path) -> None:
    """Variables, their shapes and the kinds of numbers; where the real files are there."""
    drawn, real = mats(full[0]), mats(Drawn(shared, full[0].name, {}))
    for key in (k for k in real if not k.startswith("__")):
        assert drawn[key].shape == real[key].shape, key
        assert drawn[key].dtype == real[key].dtype, key
