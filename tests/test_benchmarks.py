"""The benchmarks run, at sizes at which their figures mean nothing; the studies say what is drawn into their images."""

import importlib
import os
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from core.datasets.registry import CUB, DATASETS
from core.datasets.xlsa17 import read_metadata
from core.experiments.identity import run_config
from core.experiments.run import choose
from core.features.feature_file import FeatureFile
from core.features.images import Transform
from core.features.writer import FeatureFileMetadata
from core.files.errors import UserError
from core.method import AttentionOutput, Method, ZeroShotModel
from core.methods import find_method
from core.training.folds import validation_fold
from studies import description_worth, localisation
from studies.part_measures import Parts, localisation_table, own_and_others, predicted_points, ratio_of
from studies.part_places import attribute_groups, group_of, read_parts, shown_groups
from studies.validation import best_on_fold
from tests.helpers_features import write
from tests.helpers_runs import inputs_of
from tests.helpers_xlsa17 import draw, paint, tiny_features

SLOW = pytest.mark.skipif("SLOW" not in os.environ, reason="the slow benchmarks: make nightly sets SLOW=1")
SMALL = ("--backbone", "mobilenet_v2", "--input-size", "64", "--images")


@pytest.mark.parametrize(
    ("name", "flags", "told"),
    [
        ("predict", (*SMALL, "64"), "against the bare forward pass, by processor time"),
        ("growth", ("--only", "images", "--repeats", "1"), "growth of evaluation, streamed with images"),
        ("gpu", ("--repeats", "2"), ""),
        pytest.param("steps", ("--shapes", "AWA2", "--repeats", "2"), "step of msdn against", marks=SLOW),
        pytest.param("extraction", (*SMALL, "24", "64", "--forwards", "1"), "peak memory at 24 and 64", marks=SLOW),
    ],
)
def test_a_benchmark_runs(name, flags, told, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, *flags])
    assert importlib.import_module(f"benchmarks.{name}").main() == 0
    assert told in capsys.readouterr().out


@pytest.mark.parametrize("method", ["vsmr", "eszsl-prepared", "dazle", "vsmr-staged"])
def test_a_method_is_chosen_as_a_run_chooses_it(toy, tmp_path, method):
    inputs = inputs_of(toy)
    config = run_config(inputs, method, find_method(method).recipe("TOY"), seed=1, epochs=2)
    chosen, _ = choose(config, inputs, tmp_path)
    _, best = best_on_fold(config, inputs, validation_fold(toy, inputs.w2v, 1))
    assert {name: best[name] for name in chosen["validation"]} == pytest.approx(chosen["validation"])
    assert best["epoch"] == chosen["epochs"]


def test_from_features_to_the_table_without_a_test_image(tmp_path, monkeypatch, capsys):
    given = tiny_features(tmp_path)
    read: set[int] = set()
    real = FeatureFile.read
    monkeypatch.setattr(FeatureFile, "read", lambda self, rows: (read.update(rows), real(self, rows))[1])
    flags = [word for key, path in given.items() for word in (f"--{key.replace('_', '-')}", str(path))]
    flags += ["--dataset", "AWA2", "--splits", "1", "--out", str(tmp_path / "out")]
    assert description_worth.main(flags) == 0
    with FeatureFile(given["features"]) as file:
        m = file.to_metadata(DATASETS["AWA2"])
    assert read and not read & {*m.test_seen_loc.tolist(), *m.test_unseen_loc.tolist()}
    assert "T1_low  T1_high   gain" in capsys.readouterr().out
    found = pd.read_csv(tmp_path / "out" / "description_worth.csv").set_index(["by", "n", "k"])
    assert found.loc["description", 0, 3].gain == 0 and (found.T1.dropna() <= 100).all()
    assert {*found[found.H.notna()].reset_index().by} == {"γ", "γ k/(n+k)", "no γ"}
    monkeypatch.setattr("studies.validation.train", None)  # nothing is trained again
    assert description_worth.main(flags) == 0
    with pytest.raises(TypeError):  # for another precision it is
        description_worth.main([*flags, "--precision", "bfloat16"])


def parts(points, labels=None):
    labels = np.arange(len(points)) if labels is None else labels
    return Parts(points=np.asarray(points, dtype=float), groups=((0,),), labels=labels)


def test_the_attribute_of_the_highest_value_speaks_for_its_group():
    theta = np.zeros((2, 4, 3))
    for attribute, cell in enumerate((0, 3, 1)):
        theta[:, cell, attribute] = 1.0
    values = np.array([[0.9, 0.1, 0.0], [0.1, 0.9, 5.0]])
    points = predicted_points(theta, values, np.array([0, 0, 1]), 2, (2, 2))
    # group 0: attribute 0 (upper left), then attribute 1 (lower right); group 1: attribute 2 (upper right)
    assert points[:, 0].tolist() == [[0.25, 0.25], [0.75, 0.75]]
    assert points[:, 1].tolist() == [[0.75, 0.25]] * 2


def test_the_table_by_hand():
    shown = [[[0.25, 0.25, 1]], [[0.75, 0.25, 1]], [[0.5, 0.5, 1]], [[0.1, 0.1, 0]]]
    test, training = parts(shown, np.array([4, 4, 7, 7])), parts([[[0.25, 0.25, 1]]])
    model = np.array([[0.75, 0.75], [0.75, 0.34], [0.25, 0.25], [0.1, 0.1]])[:, None]
    rng = np.random.default_rng(0)
    table = localisation_table({"vsmr": model}, test, training, grid=(2, 2), radius=0.1, rng=rng, resamples=500)
    shares = table.set_index("point")
    # of four cells one hits in the first two images, none in the third; the fourth shows no part
    assert list(shares.index) == ["random cell", "image centre", "part prior", "vsmr", "best cell"]
    assert shares.share.tolist() == pytest.approx([(1 / 4 + 1 / 4 + 0) / 3, 1 / 3, 1 / 3, 1 / 3, 2 / 3])
    assert set(shares.pairs) == {3}
    # classes 4 and 7 drawn: both twice 4 gives 1/2, both once 1/3, twice 7 gives 0
    assert (shares.low["vsmr"], shares.high["vsmr"]) == (0.0, 0.5)


KEY_POINTS = ["back", "beak", "left eye", "left wing", "right wing", "tail"]
GROUPS = ["head", "back", "wing", "tail"]
WHOLE = Transform(crop=224, resize=224)
TRANSFORM = "Resize(224, bilinear) CenterCrop(224) mean (0, 0, 0) std (1, 1, 1)"


def write_parts(folder, names, places):
    """CUB's lists; places (N,P,3) in pixels."""
    (folder / "parts").mkdir(parents=True)
    (folder / "parts/parts.txt").write_text("".join(f"{i} {p}\n" for i, p in enumerate(KEY_POINTS, 1)))
    (folder / "images.txt").write_text("".join(f"{i} {n}\n" for i, n in enumerate(names, 1)))
    rows = [(i, p, *place) for i, image in enumerate(places, 1) for p, place in enumerate(image, 1)]
    np.savetxt(folder / "parts/part_locs.txt", rows, fmt="%d %d %.2f %.2f %d")


@pytest.fixture
def one(tmp_path):
    """A photograph of 200 x 100: the backbone sees x from 50 to 150."""
    Image.new("RGB", (200, 100)).save(tmp_path / "a.png")
    places = [[(60, 20, 1), (140, 90, 1), (30, 50, 1), (100, 50, 0), (100, 50, 1), (0, 0, 0)]]
    write_parts(tmp_path, ["a.png"], places)

    def read(transform=WHOLE):
        labels = np.array([3])
        return read_parts(tmp_path, ["images/a.png"], [tmp_path / "a.png"], labels, transform=transform, groups=GROUPS)

    return read


def test_places_are_shares_of_what_the_backbone_saw(one, tmp_path):
    parts = one()
    assert parts.groups == [[1, 2], [0], [3, 4], [5]]
    back, beak, eye, left, right, tail = parts.points[0]
    assert back.tolist() == pytest.approx([0.1, 0.2, 1]) and beak.tolist() == pytest.approx([0.9, 0.9, 1])
    assert right.tolist() == pytest.approx([0.5, 0.5, 1])
    assert eye[2] == left[2] == tail[2] == 0  # outside of the crop, and marked invisible
    # shorter side to 448, then the middle 224 pixels: the middle half, everything twice as large
    half = one(Transform(crop=224, resize=448))
    assert half.points[0, 4].tolist() == pytest.approx([0.5, 0.5, 1]) and half.points[0, 0, 2] == 0
    (tmp_path / "parts/part_locs.txt").unlink()
    with pytest.raises(UserError, match="part_locs.txt"):
        one()


def test_names_say_the_part():
    assert group_of("left eye") == group_of("has_bill_length::about_the_same_as_head") == "head"
    assert group_of("has_size::small") is None is group_of("has_underparts_color::blue")
    assert group_of("has_upper_tail_color::blue") == "tail"
    names = ["has_tail_shape::x", "has_size::y", "has_wing_color::z", "has_leg_color::z"]
    assert shown_groups(names, KEY_POINTS) == ["wing", "tail"]
    assert attribute_groups(names, ["wing", "tail"]).tolist() == [1, -1, 0, -1]
    with pytest.raises(UserError, match="no attribute names a part"):
        shown_groups(["has_size::y"], KEY_POINTS)


def test_own_over_others_by_hand(one):
    parts = one()
    theta = np.full((1, 100, 3), 0.01)

    def ratio():  # attributes of head, back and of no part
        return ratio_of([own_and_others(theta, parts, np.array([0, 1, -1]), np.ones((1, 3), bool), (10, 10))])

    assert ratio() == pytest.approx(1)
    theta[0, :, :2] = 0
    theta[0, [98, 21], [0, 1]] = 1  # beak at (0.9, 0.9) and back at (0.1, 0.2), each its own
    theta[0, 55, :2] += 0.5
    # own 1 at both; others have nothing at the beak or back, half and half at the wing, which no attribute is of
    with np.errstate(divide="ignore"):
        assert ratio() == np.inf


class Knowing(ZeroShotModel):
    """Looks where a channel of its own says that a group's part is; attribute k of group g at channel g."""

    def __init__(self, groups):
        super().__init__()
        self.groups = torch.from_numpy(groups)

    def class_scores(self, x):
        raise NotImplementedError

    def attend(self, x):
        maps = x[:, :, self.groups.clamp(min=0)].clamp(min=0) + 1e-6  # (B,R,K)
        theta, w = maps / maps.sum(1, keepdim=True), torch.ones(len(x), maps.shape[2])
        ev = torch.where(theta > 0.01, 2 * theta, -1)  # what speaks against counts not
        return AttentionOutput(theta=theta, w=w, e=None, ev=ev)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A CUB whose images are 44 x 36, with part locations, and features that are 1 in the cell of a part."""
    root = tmp_path_factory.mktemp("cub")
    paint(draw(root, "CUB", (2, 1, 1)))
    m = read_metadata(root, CUB)
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 6, (len(m.labels), len(KEY_POINTS), 2))  # column, row
    pixels = (cells + 0.5) / 6 * 36 + np.array([4, 0])  # the middle 36 of 44 columns are seen
    places = np.concatenate([pixels, np.ones((*cells.shape[:2], 1))], axis=2)
    write_parts(root / CUB.folders[0], [n.removeprefix("images/") for n in m.image_files], places)
    maps, every = np.full((len(m.labels), 8, 6, 6), 1e-3, np.float16), np.arange(len(m.labels))
    for g, name in enumerate(GROUPS):
        p = next(i for i, k in enumerate(KEY_POINTS) if group_of(k) == name)
        maps[every, g, cells[:, p, 1], cells[:, p, 0]] = 1
    maps[:, 7] = 0.1
    path, vectors = root / "CUB" / "feature_map_drawn_CUB.hdf5", rng.standard_normal((m.att.shape[1], 8))
    provenance = {"dataset": "CUB", "backbone": "drawn", "transform": TRANSFORM}
    write(path, FeatureFileMetadata(m, provenance, vectors.astype(np.float32)), maps)
    return root


def knowing(config, inputs, fold):
    """In place of training: the model that looks at the right cell."""
    which = attribute_groups(inputs.attribute_names, GROUPS)
    return Method(model=Knowing(which), phases=[]), {}


def flags(root, out, *more):
    return ["--dataset", "CUB", "--data-root", str(root), "--out", str(out), *more]


def test_a_model_that_looks_at_the_part_is_found_to(drawn, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(localisation, "best_on_fold", knowing)
    assert localisation.main(flags(drawn, tmp_path / "out", "--methods", "vsmr")) == 0
    rows = pd.read_csv(tmp_path / "out/localisation.csv").set_index("point")
    pointing = rows.share
    assert pointing["vsmr, θ"] == pointing["vsmr, evidence"] == 1.0 == pointing["best cell"]
    assert max(pointing["random cell"], pointing["image centre"], pointing["part prior"]) < 0.6
    assert min(rows.own_over_others[f"vsmr, {kind}"] for kind in ("θ", "evidence")) > 2
    assert "vsmr, evidence  100.0" in capsys.readouterr().out
    monkeypatch.setattr(localisation, "BATCH", 3)  # blocks of any size give the same
    assert localisation.main(flags(drawn, tmp_path / "blocks", "--methods", "vsmr")) == 0
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "blocks/localisation.csv").set_index("point"), rows, rtol=1e-5)


def test_a_method_without_attention_is_refused(drawn, tmp_path):
    with pytest.raises(UserError, match="--methods eszsl: it has no attention over regions"):
        localisation.main(flags(drawn, tmp_path, "--methods", "vsmr", "eszsl"))
