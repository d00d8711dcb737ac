"""The drawn AWA2, CUB and SUN have what the readers rest on in the published files, at their full numbers."""

import os
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from core.datasets.names import read_attribute_names
from core.datasets.registry import DATASETS
from core.datasets.xlsa17 import read_metadata
from core.files.errors import UserError
from tests.conftest import SHARED
from tests.helpers_xlsa17 import COUNTS, draw


@pytest.mark.parametrize("name", COUNTS)
def test_published_counts_are_met_and_held_and_a_leak_is_cut(name: str, tmp_path: Path) -> None:
    """All images by name, with the train_loc and val_loc that leak test images where such files circulate."""
    leaking, place, dataset = name != "CUB", Path("xlsa17") / "data" / name, DATASETS[name]
    m = read_metadata(draw(tmp_path, name, None, leaking=leaking).root, dataset)
    assert not any("subset" in note for note in m.notes)  # every published count is met
    assert len(read_attribute_names(dataset, tmp_path)) == m.att.shape[1]
    held = np.unique(m.labels[m.val_loc])
    assert len(held) == round(dataset.val_share * len(m.seen))
    assert not np.intersect1d(held, m.labels[m.train_loc]).size
    assert not np.isin(np.r_[m.train_loc, m.val_loc], np.r_[m.test_seen_loc, m.test_unseen_loc]).any()
    assert any(f"{len(m.test_seen_loc)} of its images lie outside" in note for note in m.notes) == leaking

    files = ("res101.mat", "att_splits.mat")
    drawn = {k: v for file in files for k, v in scipy.io.loadmat(tmp_path / place / file).items() if k[0] != "_"}
    if SHARED.is_dir():  # they hold what the real files hold
        real = {k: v for file in files for k, v in scipy.io.loadmat(SHARED / place / file).items() if k[0] != "_"}
        for key, values in real.items():
            assert (drawn[key].shape, drawn[key].dtype) == (values.shape, values.dtype), key
    # one image in another split is no proposed split
    drawn["test_seen_loc"] = np.append(drawn["test_seen_loc"].ravel(), drawn["trainval_loc"][0])[:, None]
    drawn["trainval_loc"] = drawn["trainval_loc"][1:]
    copy = tmp_path / "copy" / place
    copy.mkdir(parents=True)
    os.link(tmp_path / place / "res101.mat", copy / "res101.mat")
    scipy.io.savemat(copy / "att_splits.mat", drawn)
    with pytest.raises(UserError, match=f"not the proposed split of {name}"):
        read_metadata(tmp_path / "copy", dataset)
