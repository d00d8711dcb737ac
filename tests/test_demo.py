"""The drawn data set and its backbone: layout, determinism, honest splits."""

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from core.datasets.registry import DEMO
from core.datasets.xlsa17 import read_metadata
from core.demo import dataset as demo
from core.demo.backbone import WEIGHTS
from core.demo.drawing import draw_creature
from core.features.backbones import build_backbone
from core.files.errors import UserError
from studies import demo_backbone

SIZES = {"images_per_class": 5, "seen": 8, "unseen": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    demo.render_demo(root, seed=3, **SIZES)
    return root


def touch(job: tuple) -> None:
    """In place of a drawing."""
    job[3].touch()


def _digests(root: Path) -> dict[str, str]:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_layout(root: Path) -> None:
    m = read_metadata(root, DEMO)
    folder = root / DEMO.folders[0]
    assert len(m.seen) == 8 and len(m.unseen) == 2 and len(m.labels) == 50
    assert (len(m.trainval_loc), len(m.test_seen_loc), len(m.test_unseen_loc)) == (32, 8, 10)
    assert all((folder / name).is_file() for name in m.image_files)
    names = [line.split()[1] for line in (folder / DEMO.attribute_file).read_text().splitlines()]
    assert names[:2] == ["has_bill_shape::dagger", "has_bill_shape::hooked"] and m.att.shape == (10, len(names))
    assert np.allclose(np.linalg.norm(m.att, axis=1), 1, atol=1e-5)
    assert not list(root.glob(".demo*"))
    assert "of the split file; 0 of its images lie outside" in " ".join(m.notes)
    assert not np.intersect1d(m.labels[m.train_loc], m.labels[m.val_loc]).size
    assert len(np.unique(m.labels[m.val_loc])) == 2  # a quarter of the seen classes


def test_same_seed_same_bytes_other_seed_other_images(root: Path, tmp_path: Path) -> None:
    demo.render_demo(tmp_path, seed=3, **SIZES)
    assert _digests(tmp_path) == _digests(root)
    stamps = [p.stat().st_mtime_ns for p in sorted(tmp_path.rglob("*.jpg"))]
    demo.render_demo(tmp_path, seed=3, **SIZES)  # complete: kept
    assert [p.stat().st_mtime_ns for p in sorted(tmp_path.rglob("*.jpg"))] == stamps
    demo.render_demo(tmp_path, seed=4, **SIZES)  # replaces it
    assert _digests(tmp_path) != _digests(root)


def test_the_drawn_birds_are_those_that_the_committed_numbers_are_of() -> None:
    """Signatures, and with them the look-alike pairs, exactly; pictures as far as every version of Pillow agrees."""
    known, new = demo.draw_signatures(24, 8, np.random.default_rng([0, 1]))
    assert hashlib.sha256(json.dumps([known, new]).encode()).hexdigest().startswith("f4f44b4a782c2ee1")
    assert all(sum(a[t] != b[t] for t in a) == demo.SIBLING_CHANGES for a, b in zip(new[::2], new[1::2], strict=True))
    drawings = [draw_creature(new[i], np.random.default_rng([0, i])) for i in range(3)]
    colours = [np.asarray(image, float).mean(axis=(0, 1)) for image in drawings]
    np.testing.assert_allclose(colours, [[173, 169, 137], [129, 118, 89], [219, 176, 178]], atol=1)


def test_interrupted_leaves_nothing_and_a_strangers_folder_is_not_deleted(tmp_path: Path, monkeypatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_write_mat", stop)
    with pytest.raises(KeyboardInterrupt):
        demo.render_demo(tmp_path, **SIZES)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    mine = tmp_path / DEMO.folders[0] / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("keep")
    with pytest.raises(UserError, match="not drawn by this program"):
        demo.render_demo(tmp_path, **SIZES)
    assert mine.read_text() == "keep"


@pytest.mark.parametrize("seed", [0, 1])
def test_unseen_classes_are_new_combinations_of_seen_values(seed: int) -> None:
    known, new = demo.draw_signatures(24, 8, np.random.default_rng(seed))
    assert (len(known), len(new)) == (24, 8)
    assert all(s not in known for s in new) and len({tuple(s.values()) for s in new}) == 8
    assert all(Counter(s[t] for s in known)[v] >= 3 for s in new for t, v in s.items())


def test_backbone_trains_on_train_alone(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "copy")
    m = read_metadata(tmp_path / "copy", DEMO)
    for i in np.concatenate([m.val_loc, m.test_seen_loc, m.test_unseen_loc]):
        (tmp_path / "copy" / DEMO.folders[0] / m.image_files[i]).unlink()  # if it were opened, this would fail
    state = torch.random.get_rng_state()
    paths = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for path in paths:
        demo_backbone.train(tmp_path / "copy", path, epochs=1)
    assert torch.equal(state, torch.random.get_rng_state())
    first, second = (build_backbone("demo", p) for p in paths)
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert first(torch.rand(2, 3, 112, 112)).shape == (2, *first.shape) and first.shape == (128, 7, 7)


def test_the_weights_that_come_along_are_of_the_pictures_that_are_drawn(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(demo, "_draw", touch)
    demo.render_demo(tmp_path)
    with safe_open(WEIGHTS, "pt") as file:
        settings = json.loads(file.metadata()["settings"])
    assert settings["trained_on"] == demo_backbone.trained_on(read_metadata(tmp_path, DEMO))
