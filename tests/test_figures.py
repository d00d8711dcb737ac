"""Figures: drawn without pyplot, equal bytes for equal input. How they look was looked at."""

import warnings

import matplotlib
import numpy as np
import pytest
from PIL import Image

from core.inference.names import shown_class, shown_classes
from core.reporting.canvas import printable, wrapped
from core.reporting.figures import Outcome, _along_rays, calibration_figure, read_outcome, reliability_figure
from core.training.evaluation import CalibrationCurve
from tests.helpers_reporting import row, run_left

NAMES = ["a $\\frac{", "_hidden", "x" * 300 + "%&#{}~^\\"]


def outcome(seed):
    rng = np.random.default_rng(seed)
    u, s = np.sort(rng.random(8)) * 0.7, np.sort(rng.random(8))[::-1] * 0.8
    bins = np.stack([np.eye(10)[7], np.full(10, 0.75), np.full(10, 0.5)], axis=1)
    return Outcome(CalibrationCurve(u, np.append(0, u), np.append(0.85, np.append(s[:-1], 0))), (u[4], s[4]), bins)


def draw(folder):
    runs = {m: [outcome(i), outcome(i + 1)] for i, m in enumerate(NAMES)}
    calibration_figure(runs, folder / "a.png", NAMES[0])
    reliability_figure(runs, folder / "c.png", NAMES[0])


def test_every_figure_repeats_to_the_byte_bears_any_name_and_leaves_the_callers_matplotlib_alone(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a glyph that is missing, an axis that collapses
        draw(tmp_path / "plain")
    with matplotlib.rc_context({"font.size": 31.0, "axes.facecolor": "red", "text.usetex": True}):
        before = dict(matplotlib.rcParams)
        draw(tmp_path / "loud")
        assert dict(matplotlib.rcParams) == before
    files = sorted((tmp_path / "plain").iterdir())
    assert [f.name for f in files] == [f"{letter}.{kind}" for letter in "ac" for kind in ("pdf", "png")]
    for file in files:
        assert file.read_bytes() == (tmp_path / "loud" / file.name).read_bytes(), file.name
        if file.suffix == ".png":
            with Image.open(file) as image:
                assert min(image.size) > 200 and not image.info.get("Software")
        else:
            assert b"CreationDate" not in file.read_bytes()


def test_long_names_are_cut_or_wrapped_and_none_is_a_formula():
    assert printable("5 $ or 6 $") == r"5 \$ or 6 \$" and printable("x" * 50, 10) == "x" * 9 + "…"
    assert wrapped("vsmr takes unseen classes for", 12) == "vsmr takes\nunseen\nclasses for"
    lines = wrapped("$" * 99, 9).split("\n")  # no formula appears at a break
    assert len(lines) == 3 and all(line.replace(r"\$", "").strip("…") == "" for line in lines)


def test_rays_meet_the_curve_where_it_is():
    # S 0.8 until U 0.6, then straight down
    curve = CalibrationCurve(np.zeros(2), np.array([0.0, 0.6, 0.6]), np.array([0.8, 0.8, 0.0]))
    found = _along_rays(curve, np.array([0.0, np.arctan2(0.8, 0.6), np.pi / 2]))
    assert found == pytest.approx([0.6, 1.0, 0.8])


def test_an_outcome_is_of_a_runs_files(tmp_path):
    """Classes 1 and 2 are unseen; of five images of class 1 two are right, one is taken for a seen class."""
    labels, best = [0, 3, 1, 1, 1, 1, 1, 2, 2], [0, 3, 1, 1, 2, 2, 3, 2, 2]
    one, chosen, bins = read_outcome(run_left(tmp_path / "a", row(), labels, best))
    assert chosen == (0.5, 0.6) and bins is None  # of metrics.json; no probabilities
    assert one.S.max() == 1.0 and one.U[0] == 0.0 and one.U[-1] == pytest.approx((3 / 5 + 1) / 2)  # of scores.npz


def test_class_names_as_a_person_reads_them():
    """A number of CUB's goes, other numbers, signs at an end and what would leave nothing stay."""
    shown = {"110.Geococcyx": "Geococcyx", "009.Brewer_Blackbird": "Brewer Blackbird", "grizzly+bear": "grizzly bear"}
    shown |= {"access_road": "access road", "鳥_犬": "鳥 犬"}
    shown |= {name: name for name in ("12.thing", "1234.thing", "110.5", "C++", "_hidden_", "110", "110.", "")}
    assert {name: shown_class(name) for name in shown} == shown
    names = ["001.Red_wing", "002.Red_wing", "003.Blue_wing", "red+wing"]
    assert shown_classes(names) == ["001.Red wing", "002.Red wing", "Blue wing", "red wing"]
