"""Figures: drawn without pyplot, equal bytes for equal input, names that no font holds. How they look was looked at."""

import sys
import warnings

import matplotlib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from core.experiments.statistics import Interval
from core.files.errors import UserError
from core.reporting.attention import attention_figure, best_median_worst, grid_of, margins_of, panel_of
from core.reporting.canvas import MISSING, printable
from core.reporting.figures import (
    Curve,
    _along_rays,
    calibration_figure,
    confused_pairs,
    confusion_figure,
    draw_per_class,
    forest_figure,
    learning_curves_figure,
    per_class_figure,
    read_curve,
)

HOSTILE = ["鳥 $\\frac{", "_hidden\nb\u202e", "x" * 300 + "%&#{}~^\\"]


def curve_of(seed):
    rng = np.random.default_rng(seed)
    u, s = np.sort(rng.random(8)) * 0.7, np.sort(rng.random(8))[::-1] * 0.8
    return Curve(U=np.append(0, u), S=np.append(0.85, np.append(s[:-1], 0)), chosen=(u[4], s[4]))


def panels_of(names):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
    theta = rng.dirichlet(np.ones(12), 6).T  # (R,K)
    given = {"theta": theta, "contributions": rng.normal(size=6), "names": [*names, *names], "grid": (3, 4)}
    return [panel_of(picture, **given, true=names[0], predicted=names[i], says="best") for i in (0, 1)]


def confusions_of(folder, names, images=4):
    """A run folder in which some images of each class but the first, which is seen, are taken for the next one."""
    folder.mkdir(parents=True)
    side = ["seen", *["unseen"] * (len(names) - 1)]
    pd.DataFrame({"class": names, "side": side, "images": images, "accuracy": 0.5}).to_csv(
        folder / "per_class.csv", index=False
    )
    rows = [(a, a, images - 1 - i % 2) for i, a in enumerate(names)]
    rows += [(a, b, 1 + i % 2) for i, (a, b) in enumerate(zip(names, [*names[1:], names[0]], strict=True))]
    pd.DataFrame(rows, columns=["class", "predicted", "images"]).to_csv(folder / "confusion.csv", index=False)
    return folder


def draw_all(folder, names=HOSTILE):
    interval = Interval(mean=1.0, low=-1.0, high=2.0)
    shares = pd.Series(np.linspace(0.1, 1, len(names)), names)
    frame = pd.DataFrame(
        [{"method": m, "n": n, "AUSUC": 0.4, "seed": s} for m in names for n in (5, 9) for s in (0, 1)]
    )
    calibration_figure({m: [curve_of(i), curve_of(i + 1)] for i, m in enumerate(names)}, folder / "a.png", names[0])
    draw_per_class(shares, shares[::-1], names=("vsmr", names[0]), out=folder / "b.png", title=names[0])
    forest_figure({m: {"T1": interval, "H": interval} for m in names}, folder / "c.png", title=names[0])
    learning_curves_figure(frame, folder / "d.png", x="n", title=names[0])
    confusion_figure([confusions_of(folder.with_name(f"{folder.name}_run"), names)], folder / "e.png", names[0])
    attention_figure(panels_of(names), folder / "f.png", title=names[0])


def test_every_figure_repeats_to_the_byte_and_bears_any_name(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a glyph that is missing, an axis that collapses
        draw_all(tmp_path / "one")
        draw_all(tmp_path / "two")
    files = sorted((tmp_path / "one").iterdir())
    assert [f.name for f in files] == [f"{letter}.{kind}" for letter in "abcdef" for kind in ("pdf", "png")]
    for file in files:
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name
        if file.suffix == ".png":
            with Image.open(file) as image:
                assert min(image.size) > 200 and not image.info.get("Software")
        else:
            assert b"CreationDate" not in file.read_bytes()


def test_the_callers_matplotlib_is_left_alone(tmp_path):
    """Neither pyplot nor a backend is loaded for a figure, and settings of the caller change neither it nor them."""
    draw_all(tmp_path / "plain")
    with matplotlib.rc_context({"font.size": 31.0, "axes.facecolor": "red", "text.usetex": True}):
        before = dict(matplotlib.rcParams)
        draw_all(tmp_path / "loud")
        assert dict(matplotlib.rcParams) == before
    for file in (tmp_path / "plain").iterdir():
        assert file.read_bytes() == (tmp_path / "loud" / file.name).read_bytes(), file.name


def test_no_pyplot_is_imported():
    import subprocess

    code = "import sys, core.reporting.figures, core.reporting.attention; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_names_that_a_font_lacks_are_replaced_where_one_sees_it():
    assert printable("Černá γ ± ü") == "Černá γ ± ü"
    assert printable("鳥犬") == MISSING * 2
    assert printable("a\n\u202eb") == f"a{MISSING}{MISSING}b"
    assert printable("5 $ or 6 $") == r"5 \$ or 6 \$"
    assert printable("x" * 50, 10) == "x" * 9 + "…"


def test_rays_meet_the_curve_where_it_is():
    # S 0.8 until U 0.6, then straight down
    curve = Curve(U=np.array([0.0, 0.6, 0.6]), S=np.array([0.8, 0.8, 0.0]))
    found = _along_rays(curve, np.array([0.0, np.arctan2(0.8, 0.6), np.pi / 2]))
    assert found == pytest.approx([0.6, 1.0, 0.8])


def test_figures_read_what_a_run_left(tmp_path):
    for method in ("vsmr", "dazle"):
        folder = tmp_path / method
        folder.mkdir()
        pd.DataFrame({"gamma": [-1, 0], "U": [0.0, 0.5], "S": [0.9, 0.0]}).to_csv(folder / "curve.csv")
        (folder / "metrics.json").write_text('{"standard": {"U": 0.4, "S": 0.3}}')
        table = pd.DataFrame(
            {"class": ["a", "b", "c"], "side": ["unseen", "unseen", "seen"], "accuracy": [0.2, 0.4, 1.0]}
        )
        table.to_csv(folder / "per_class.csv")
    assert read_curve(tmp_path / "vsmr").chosen == (0.4, 0.3)
    runs = {m: [tmp_path / m] for m in ("vsmr", "dazle")}
    calibration_figure(runs, tmp_path / "c.png", "t")
    per_class_figure(runs, tmp_path / "p.png", "t", "dazle")
    assert (tmp_path / "c.png").stat().st_size > 0 and (tmp_path / "p.pdf").stat().st_size > 0


def test_the_rule_that_picks_images():
    assert best_median_worst(np.array([0.0, 3.0, -2.0, 1.0, 1.0])) == {"best": 1, "median": 4, "worst": 2}
    assert best_median_worst(np.array([5.0])) == {"best": 0, "median": 0, "worst": 0}
    scores = np.array([[1.0, 3.0, 2.5], [1.0, 3.0, 2.5]])
    assert margins_of(scores, np.array([1, 0])).tolist() == [0.5, -2.0]
    assert scores[0, 1] == 3.0  # as it was


def test_a_panel_shows_the_highest_contributions_on_a_grid_that_need_not_be_square():
    theta = np.zeros((6, 3))
    theta[4, 2] = 1.0  # row 1, column 1 of 2 x 3
    given = {"theta": theta, "contributions": np.array([0.1, -9.0, 0.5]), "names": ["a", "b", "c"], "attributes": 2}
    panel = panel_of(np.zeros((4, 4, 3), np.uint8), **given, true="x", predicted="y", says="best", grid=(2, 3))
    assert panel.attributes == ["c", "a"] and panel.contributions.tolist() == [0.5, 0.1]
    assert panel.theta.shape == (2, 2, 3) and panel.theta[0, 1, 1] == 1.0
    with pytest.raises(UserError, match="6 regions do not form a grid of 2 x 2"):
        grid_of(6)


def test_confused_pairs_by_hand(tmp_path):
    """Two runs: b -> c 2 and 1 of 4, c -> a 1 and 0 of 4; what the seen class a is taken for does not count."""
    for name, taken in (("one", [("b", "c", 2), ("c", "a", 1), ("a", "b", 3)]), ("two", [("b", "c", 1)])):
        run = tmp_path / name
        run.mkdir()
        pd.DataFrame({"class": ["a", "b", "c"], "side": ["seen", "unseen", "unseen"], "images": [4, 4, 4]}).to_csv(
            run / "per_class.csv", index=False
        )
        rows = [*taken, ("b", "b", 2), ("c", "c", 3)]
        pd.DataFrame(rows, columns=["class", "predicted", "images"]).to_csv(run / "confusion.csv", index=False)
    found = confused_pairs([tmp_path / "one", tmp_path / "two"])
    assert found.to_dict() == {("b", "c"): 3 / 8, ("c", "a"): 1 / 8}
    assert list(found.index) == [("b", "c"), ("c", "a")]
    assert len(confused_pairs([tmp_path / "one", tmp_path / "two"], most=1)) == 1
